package failpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// arm puts rules into force for one test, in which killing and stopping only
// count.
func arm(t *testing.T, spec string) (killed, stopped *int) {
	t.Helper()
	killed, stopped = new(int), new(int)
	k, s := killSelf, stopSelf
	killSelf, stopSelf = func() { *killed++ }, func() { *stopped++ }
	t.Cleanup(func() { armed, killSelf, stopSelf = nil, k, s })
	if err := Arm(spec); err != nil {
		t.Fatal(err)
	}
	return killed, stopped
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ spec, says string }{
		{"disk.write", "POINT=ACTION"},
		{";", "POINT=ACTION"},
		{"disk.write=kill;", "POINT=ACTION"},
		{"disk.wriet=kill", "disk.write, disk.durable"},
		{"disk.write=explode", "kill, kill-after"},
		{"disk.write=kill@0", "from 1 on"},
		{"disk.write=kill@-1", "from 1 on"},
		{"disk.write=kill@", "from 1 on"},
		{"disk.write=kill@3++", "from 1 on"},
		{"disk.write=kill:5ms", "delay and jitter take a duration"},
		{"disk.write=delay", "delay and jitter take a duration"},
		{"disk.write=jitter", "delay and jitter take a duration"},
		{"disk.write=delay:0s", "not a duration"},
		{"disk.write=delay:soon", "not a duration"},
		{"disk.sync=torn", "cannot be cut short"},
		{"link.send=short", "cannot be cut short"},
		{"Disk.write=kill", "unknown point"},
	} {
		err := Arm(tt.spec)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: %v, want words about %q", tt.spec, err, tt.says)
		}
		if armed != nil {
			t.Fatalf("%q was armed", tt.spec)
		}
	}
}

func TestRulesCount(t *testing.T) {
	arm(t, "disk.sync=eio@3;disk.open=enospc@2+; meta.al=delay:1ms")
	for n := 1; n <= 5; n++ {
		if _, err := Begin(DiskSync); errors.Is(err, syscall.EIO) != (n == 3) {
			t.Errorf("sync %d: %v", n, err)
		}
		if _, err := Begin(DiskOpen); errors.Is(err, syscall.ENOSPC) != (n >= 2) {
			t.Errorf("open %d: %v", n, err)
		}
		if _, err := Begin(DiskRead); err != nil {
			t.Errorf("read %d: %v", n, err)
		}
	}
	began := time.Now()
	if _, err := Begin(MetaAL); err != nil || time.Since(began) < time.Millisecond {
		t.Errorf("delay: %v after %s", err, time.Since(began))
	}
}

func TestBeforeAndAfter(t *testing.T) {
	killed, stopped := arm(t, "disk.write=kill;disk.sync=kill-after;meta.super=stop;meta.al=stop-after;disk.durable=torn")
	for _, tt := range []struct {
		at            Point
		before, after [2]int // killed, stopped
		partial       bool
	}{
		{DiskWrite, [2]int{1, 0}, [2]int{1, 0}, false},
		{DiskSync, [2]int{0, 0}, [2]int{1, 0}, false},
		{MetaSuper, [2]int{0, 1}, [2]int{0, 1}, false},
		{MetaAL, [2]int{0, 0}, [2]int{0, 1}, false},
		{DiskDurable, [2]int{0, 0}, [2]int{1, 0}, true},
		{DiskZero, [2]int{0, 0}, [2]int{0, 0}, false},
	} {
		*killed, *stopped = 0, 0
		h, err := Begin(tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]int{*killed, *stopped}; got != tt.before || h.Partial() != tt.partial {
			t.Errorf("%s before: %v, partial %v", tt.at, got, h.Partial())
		}
		h.End()
		if got := [2]int{*killed, *stopped}; got != tt.after {
			t.Errorf("%s after: %v", tt.at, got)
		}
	}
}

// Every point is a place in the program, and every point and action is in the
// documentation.
func TestEveryPointIsHooked(t *testing.T) {
	root := filepath.Join("..", "..")
	used := map[string]bool{}
	call := regexp.MustCompile(`failpoint\.Begin\(failpoint\.(\w+)\)`)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range call.FindAllSubmatch(text, -1) {
			used[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(used) != int(pointCount) {
		t.Errorf("%d points are hooked of %d: %v", len(used), pointCount, used)
	}
	docs, err := os.ReadFile(filepath.Join(root, "docs", "TESTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(Names(), actions[:]...) {
		if !strings.Contains(string(docs), "`"+name) {
			t.Errorf("docs/TESTING.md does not know %s", name)
		}
	}
}

// With nothing armed a place allocates nothing.
func TestDisarmedAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(1000, func() { pass(DiskWrite) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func pass(p Point) bool {
	h, err := Begin(p)
	partial := h.Partial()
	h.End()
	return partial || err != nil
}

func BenchmarkDisarmed(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		pass(DiskWrite)
	}
}
