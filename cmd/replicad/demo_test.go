package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"replicad/internal/ctl"
)

// TestDemoWords makes sure that the demo's command line is taken.
func TestDemoWords(t *testing.T) {
	out, err := exec.Command("replicad", "demo", "--size", "1M").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "size must be between") {
		t.Errorf("demo --size 1M: %v: %s", err, out)
	}
}

// TestDemo has the demo tell its story.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	out := tool(t, "replicad", "demo", "--size", "48M")
	for _, want := range []string{"None was lost.", "e2fsck -fy ends clean", "are lost: the price of not waiting", "everything was as told", "sync'ed:"} {
		if !strings.Contains(out, want) && (want != "e2fsck -fy ends clean" || hasTool("e2fsck")) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
}

func hasTool(name string) bool {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// TestDemoInterrupted makes sure that an impatient user leaves no daemon behind.
func TestDemoInterrupted(t *testing.T) {
	dir := shortTempDir(t)
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		work := filepath.Join(dir, how.String())
		cmd := exec.Command("replicad", "demo", "--size", "32M", "--dir", work)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(work, "b.ctl")
		awaitThat(t, "the demo's daemons run", func() bool {
			_, err := ctl.NewClient(socket).Daemon(t.Context())
			return err == nil
		})
		if err := cmd.Process.Signal(how); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("an interrupted demo ended as if all were well")
		}
		for _, name := range []string{"a.ctl", "b.ctl"} {
			awaitThat(t, name+" is silent", func() bool {
				_, err := ctl.NewClient(filepath.Join(work, name)).Daemon(t.Context())
				return errors.Is(err, ctl.ErrNoDaemon)
			})
		}
	}
}

func awaitThat(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(daemonPatience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never comes true that %s", what)
		}
	}
}
