package ctl

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketPath(t *testing.T) {
	t.Setenv(SocketEnv, "")
	t.Setenv("XDG_RUNTIME_DIR", "/xdg")
	root := "/xdg/replicad"
	if os.Geteuid() == 0 {
		root = "/run/replicad"
	}
	tests := []struct{ flag, env, node, want string }{
		{"", "", "", root + "/replicad.sock"},
		{"", "", "be1", root + "/be1/replicad.sock"},
		{"", "/e.sock", "be1", "/e.sock"},
		{"f.sock", "/e.sock", "be1", "f.sock"},
	}
	for _, tt := range tests {
		t.Setenv(SocketEnv, tt.env)
		if got := SocketPath(tt.flag, tt.node); got != tt.want {
			t.Errorf("flag %q, environment %q, node %q: %s, want %s", tt.flag, tt.env, tt.node, got, tt.want)
		}
	}
}

// A folder that somebody else could have prepared must not hold our sockets.
func TestMakeOwnRefuses(t *testing.T) {
	made := func(mode os.FileMode) string {
		dir := filepath.Join(t.TempDir(), "run")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(made(0o700), link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, dir, want string }{
		{"new", filepath.Join(t.TempDir(), "new"), ""},
		{"ours", made(0o700), ""},
		{"tighter", made(0o500), ""},
		{"group", made(0o750), "others could tamper"},
		{"world", made(0o777), "others could tamper"},
		{"link", link, "is not a folder"},
		{"file", file, "is not a folder"},
		{"nowhere", filepath.Join(t.TempDir(), "a", "b"), "create run folder"},
	}
	if os.Geteuid() == 0 {
		foreign := made(0o700)
		if err := os.Chown(foreign, 4711, 4711); err != nil {
			t.Fatal(err)
		}
		tests = append(tests, struct{ name, dir, want string }{"foreign", foreign, "belongs to user 4711"})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := makeOwn(tt.dir, 0o700)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "none.sock"), stale, filepath.Join(dir, "no", "folder.sock")} {
		_, err := NewClient(socket).Daemon(t.Context())
		if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), socket) {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

// serve answers on a unix socket until the test ends.
func serve(t *testing.T, h http.Handler) *Client {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		_ = server.Serve(l)
		close(done)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return NewClient(socket)
}

func TestClientAsks(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(Reply{Exit: 17, Out: r.Method + " " + r.URL.RequestURI(), Err: []string{"no"}, Hint: "do"})
	}))
	r, err := c.Command(t.Context(), "r0", "primary", url.Values{"force": {"yes"}})
	if err != nil || r.Exit != 17 || r.Out != "POST /v1/resources/r0/primary?force=yes" || r.Hint != "do" {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = c.Ask(t.Context(), "a b%c", "role", nil)
	if err != nil || r.Out != "GET /v1/resources/a%20b%25c/role" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestClientRefusesNonsense(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/daemon") {
			_, _ = w.Write([]byte("not JSON"))
			return
		}
		http.Error(w, "no such resource", http.StatusNotFound)
	}))
	if _, err := c.Daemon(t.Context()); err == nil || !strings.Contains(err.Error(), "understand") {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := c.Resource(t.Context(), "r9"); err == nil || !strings.Contains(err.Error(), "no such resource") {
		t.Errorf("404: %v", err)
	}
}
