package nbd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestListenUnix(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "r0.nbd")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if _, err := Listen("unix:" + path); !errors.Is(err, ErrAddressInUse) {
		t.Errorf("second listener: %v", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the living socket was damaged: %v", err)
	} else {
		_ = c.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r0.nbd")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close() // as after kill -9
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestListenRefusesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"precious", "link", "", "no/such/folder"} {
		if l, err := Listen("unix:" + filepath.Join(dir, name)); err == nil {
			t.Errorf("listening on %q worked", name)
			_ = l.Close()
		}
	}
	if b, _ := os.ReadFile(path); string(b) != "data" {
		t.Error("the file was damaged")
	}
	if l, err := Listen("unix:" + filepath.Join(t.TempDir(), strings.Repeat("n", 108))); err == nil {
		_ = l.Close()
		t.Error("listening where no client can connect")
	}
	if l, err := Listen("unix:"); err == nil {
		t.Error("an empty path was accepted")
		_ = l.Close()
	}
}

// TestListenRace: of many that find the same stale socket exactly one wins.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r0.nbd")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []net.Listener
	for range 8 {
		wg.Go(func() {
			l, err := Listen("unix:" + path)
			if err != nil {
				if !errors.Is(err, ErrAddressInUse) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			won = append(won, l)
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d listeners on one path", len(won))
	}
	for _, l := range won {
		_ = l.Close()
	}
}

// TestCloseLeavesSuccessorAlone: a listener closed late must not remove the
// socket of the one that took its place.
func TestCloseLeavesSuccessorAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r0.nbd")
	first, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_ = first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
