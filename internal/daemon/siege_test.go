package daemon

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/internal/ctl"
	"replicad/internal/figure"
)

// controlAttacks are bytes for the control socket, and what the answer begins
// with: the connection is closed afterwards in every case.
var controlAttacks = map[string]struct{ send, want string }{
	"no HTTP":            {"\x00\x01\x02\r\n\r\n", "HTTP/1.1 400"},
	"no such method":     {"BREW /v1/daemon HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 405"},
	"wrong method":       {"POST /v1/daemon HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 405"},
	"GET of a verb":      {"GET /v1/resources/r0/primary?force=yes HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 404"},
	"no such verb":       {"POST /v1/resources/r0/explode HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 404"},
	"no such path":       {"GET /etc/passwd HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 404"},
	"path that climbs":   {"GET /v1/resources/../../../etc/passwd HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 3"},
	"volume 65536":       {"GET /v1/resources/r0/role?volume=65536 HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 400"},
	"volume -1":          {"POST /v1/resources/r0/detach?volume=-1 HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "HTTP/1.1 400"},
	"header of 1 MiB":    {"GET /v1/daemon HTTP/1.1\r\nHost: r\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "HTTP/1.1 431"},
	"path of 1 MiB":      {"GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: r\r\n\r\n", "HTTP/1.1 431"},
	"body of 2^63":       {"POST /v1/resources/r0/primary HTTP/1.1\r\nHost: r\r\nContent-Length: 9223372036854775807\r\n\r\n{", "HTTP/1.1 413"},
	"length of 2^64":     {"POST /v1/resources/r0/primary HTTP/1.1\r\nHost: r\r\nContent-Length: 18446744073709551616\r\n\r\n", "HTTP/1.1 400"},
	"chunked":            {"POST /v1/resources/r0/primary HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "HTTP/1.1 413"},
	"JSON of depth 10^5": {"POST /v1/resources/r0/primary HTTP/1.1\r\nHost: r\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("[", 100000), "HTTP/1.1 413"},
	"two lengths":        {"POST /v1/resources/r0/primary HTTP/1.1\r\nHost: r\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 400"},
}

// TestControlAttacks: nonsense on the control socket is answered or cut off, soon,
// and changes nothing.
func TestControlAttacks(t *testing.T) {
	c, _ := startDaemon(t, true)
	for name, attack := range controlAttacks {
		t.Run(name, func(t *testing.T) {
			conn := dialControl(t, c)
			go func() { _, _ = io.WriteString(conn, attack.send) }() // it may be cut off
			answer, err := io.ReadAll(conn)
			if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
				t.Fatalf("the connection stays: %q", answer)
			}
			if !bytes.HasPrefix(answer, []byte(attack.want)) {
				t.Errorf("answered %.60q, %v; want %s", answer, err, attack.want)
			}
		})
	}
	r, err := c.Resource(t.Context(), "r0")
	if err != nil || r.Role != "Secondary" || r.Volumes[0].Disk != "UpToDate" && r.Volumes[0].Disk != "Inconsistent" {
		t.Errorf("%+v, %v", r, err)
	}
	figure.Print("hostile-control-attacks", len(controlAttacks))
}

func dialControl(t *testing.T, c *ctl.Client) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", c.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(controlPatience))
	return conn
}

// TestControlCrowd: clients of the control socket that say nothing, or send a body
// byte by byte. They get no further than their number allows, and once they are
// gone verbs are answered as before; nothing is left.
func TestControlCrowd(t *testing.T) {
	c, _ := startDaemon(t, true)
	if _, err := c.Daemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	slow := dialControl(t, c)
	if _, err := io.WriteString(slow, "POST /v1/resources/r0/down HTTP/1.1\r\nHost: r\r\nContent-Length: 1000\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(slow), nil)
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Fatalf("slow body: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	crowd := make([]net.Conn, 0, 4*controlClients)
	for range 4 * controlClients {
		conn, err := net.Dial("unix", c.Socket())
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, conn)
	}
	if grown := runtime.NumGoroutine() - before; grown > controlClients+20 {
		t.Errorf("%d goroutines more", grown)
	}
	for _, conn := range crowd {
		_ = conn.Close()
	}
	eventually(t, "verbs are answered", func() bool { _, err := c.Daemon(t.Context()); return err == nil })
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+5 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(controlPatience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after %v", what, controlPatience)
		}
	}
}

// TestControlConcurrent: all verbs at once on one resource, and questions beside
// them. Each is answered, and the resource is well afterwards.
func TestControlConcurrent(t *testing.T) {
	c, _ := startDaemon(t, true)
	var answered atomic.Int64
	var all sync.WaitGroup
	for i, verb := range []string{"up", "down", "attach", "detach", "primary", "secondary", "connect", "disconnect", "adjust", "invalidate", "outdate", "disk-options"} {
		all.Go(func() {
			for n := range 5 {
				if _, err := c.Command(t.Context(), "r0", verb, url.Values{"force": {fmt.Sprint(n % 2)}}); err != nil {
					t.Errorf("%s: %v", verb, err)
					return
				}
				if _, err := c.Resource(t.Context(), "r0"); err != nil {
					t.Errorf("state after %d of %s: %v", i, verb, err)
				}
				answered.Add(1)
			}
		})
	}
	all.Wait()
	if got := answered.Load(); got != 60 {
		t.Errorf("%d answers", got)
	}
	for _, verb := range []string{"down", "up", "detach", "attach"} {
		if r, err := c.Command(t.Context(), "r0", verb, nil); err != nil || r.Exit != 0 {
			t.Fatalf("%s afterwards: %+v, %v", verb, r, err)
		}
	}
}
