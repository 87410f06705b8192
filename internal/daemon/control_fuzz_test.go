package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replicad/config"
	"replicad/internal/ctl"
)

// controlPatience bounds a command on a disk that answers, as P25 wants it.
const controlPatience = 20 * time.Second

// caller asks a daemon through its handler.
type caller struct {
	t testing.TB
	h http.Handler
}

// ask sends one request and checks the form of the answer. A command that would
// wait for the peer is given up after a moment.
func (c *caller) ask(method, path, query string, body []byte) *httptest.ResponseRecorder {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	r := httptest.NewRequest("GET", "/", bytes.NewReader(body)).WithContext(ctx)
	r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() { c.h.ServeHTTP(w, r); close(done) }()
	select {
	case <-done:
	case <-time.After(controlPatience):
		c.t.Fatalf("%s %q %q is not answered", method, path, query)
	}
	switch w.Code {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusRequestEntityTooLarge:
		return w
	default:
		c.t.Fatalf("%s %q %q: status %d", method, path, query, w.Code)
	}
	if w.Header().Get("Content-Type") == "application/json" && method != http.MethodHead && !json.Valid(w.Body.Bytes()) {
		c.t.Fatalf("%s %q %q: %q is not JSON", method, path, query, w.Body)
	}
	return w
}

// resource is the daemon's view of r0.
func (c *caller) resource() (r ctl.Resource) {
	c.t.Helper()
	if err := json.Unmarshal(c.ask("GET", "/v1/resources/r0", "", nil).Body.Bytes(), &r); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// fuzzDaemon is a daemon of one resource with good metadata, without a peer and
// without a control socket.
func fuzzDaemon(f *testing.F) (d *Daemon, image string) {
	dir := f.TempDir()
	image = filepath.Join(dir, "a.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Truncate(image, 1<<20); err != nil {
		f.Fatal(err)
	}
	createMetadata(f, image)
	text := `resource r0 { device /dev/nbd0; meta-disk internal; disk DIR/a.img;
		on be1 { address 127.0.0.1:1; } on be2 { address 127.0.0.1:2; } }`
	path := filepath.Join(dir, "r.conf")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
		f.Fatal(err)
	}
	d = newDaemon(Options{ConfigPath: path, Self: config.Self{Node: "be1", RunDir: dir}, Version: "v1", StopTimeout: 10 * time.Second})
	locals, err := d.configure(true)
	if err != nil {
		f.Fatal(err)
	}
	d.addUnit(locals[0])
	close(d.ready)
	f.Cleanup(func() {
		defer d.end()
		if err := d.shutDown(); err != nil {
			f.Error(err)
		}
	})
	return d, image
}

// FuzzControl plays scripts of requests to the control interface, one a line:
// METHOD path?query. Everything is answered, in form and in time, a question
// changes nothing, and no command touches data that no client wrote.
func FuzzControl(f *testing.F) {
	base := "/v1/resources/r0/"
	for verb := range commands {
		f.Add("POST "+base+verb, []byte(nil))
		f.Add("POST "+base+"primary?force=yes\nPOST "+base+verb+"?volume=0\nPOST "+base+verb+"?force=yes&volume=1", []byte(nil))
	}
	for verb := range lifecycle {
		f.Add("POST "+base+verb+"?discard-my-data=1\nPOST "+base+"down\nPOST "+base+verb, []byte(nil))
	}
	for question := range answers {
		f.Add("GET "+base+question+"?volume=65535\nGET "+base+question+"?volume=65536", []byte(nil))
	}
	f.Add("GET /proc/drbd?resource=r0&resource=%00\nGET /v1/status?resource=x\nGET /v1/daemon\nGET /v1/resources", []byte("x"))
	f.Add("POST "+base+"disk-options?resync-rate=99999999999999999999\nPOST "+base+"disk-options?c-plan-ahead=-1&al-extents=7", bytes.Repeat([]byte("["), 1<<16))
	f.Add("DELETE "+base+"\nPUT /v1/daemon\nPOST /v1/resources//primary\nGET /v1/resources/../../proc/drbd\nTRACE /\nGET "+base+"nosuch\nPOST "+base+"nosuch", []byte(nil))
	f.Add("POST "+base+"wait-connect?timeout=1e300\nPOST "+base+"wait-sync?timeout=NaN\nPOST "+base+"wait-sync?timeout=-0", []byte(nil))
	d, image := fuzzDaemon(f)
	f.Fuzz(func(t *testing.T, script string, body []byte) {
		c := &caller{t, d.controlHandler()}
		c.ask("POST", base+"down", "", nil)
		c.ask("POST", base+"up", "", nil)
		for i, line := range strings.Split(script, "\n") {
			method, target, ok := strings.Cut(line, " ")
			if i == 20 || !ok || !strings.HasPrefix(target, "/") {
				break
			}
			path, query, _ := strings.Cut(target, "?")
			before := c.resource()
			c.ask(method, path, query, body)
			after := c.resource()
			if method == "GET" && (before.Role != after.Role || before.Configured != after.Configured) {
				t.Fatalf("%s has changed %+v to %+v", line, before, after)
			}
		}
		data, err := os.ReadFile(image)
		if err != nil || bytes.Count(data[:512<<10], []byte{0}) != 512<<10 {
			t.Fatalf("data was changed: %v", err)
		}
	})
}
