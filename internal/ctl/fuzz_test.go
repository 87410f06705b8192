package ctl

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzAnswer answers a verb with arbitrary bytes in place of the daemon: the
// client returns, with an error in words or with a value.
func FuzzAnswer(f *testing.F) {
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	f.Add([]byte(ok + "Content-Length: 11\r\n\r\n{\"exit\":17}"))
	f.Add([]byte(ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"))
	f.Add([]byte(ok + "Content-Length: 99999999999999999999\r\n\r\n{}"))
	f.Add([]byte(ok + "Content-Length: 9\r\n\r\n{}"))
	f.Add([]byte(ok + "\r\n" + strings.Repeat("[", 20000)))
	f.Add([]byte(ok + "\r\n{\"exit\":1e400}"))
	f.Add([]byte("HTTP/1.1 404 \xff\r\n\r\nno such resource"))
	f.Add([]byte("HTTP/1.1 301 Moved\r\nLocation: /v1/daemon\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	socket := filepath.Join(f.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		f.Fatal(err)
	}
	answers := make(chan []byte, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := <-answers
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = conn.Write(b)
				_ = conn.(*net.UnixConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	f.Cleanup(func() { _ = l.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for range 12 { // a client may be led around, but not for ever
			select {
			case answers <- b:
			default:
			}
		}
		r, err := NewClient(socket).Command(ctx, "r0", "primary", nil)
		if ctx.Err() != nil {
			t.Fatal("the client waits for ever")
		}
		if err != nil && (err.Error() == "" || r.Exit != 0 && r.Out != "") {
			t.Fatalf("%+v with %q", r, err)
		}
		for len(answers) > 0 {
			<-answers
		}
	})
}
