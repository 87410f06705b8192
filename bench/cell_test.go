package main

import (
	"errors"
	"io"
	"math"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// startBench starts one of the servers this program has in itself.
func startBench(t *testing.T, label string) (*server, options) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	opt, err := parseOptions([]string{"-dir", dir, "-size", "4", "-servers", label}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLab(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
		left, err := filepath.Glob(filepath.Join(dir, "*"))
		if len(left) > 0 || err != nil {
			t.Errorf("left behind: %v", left)
		}
	})
	s, err := l.start(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	return s, opt
}

// The figures of a cell must agree with each other, whatever the machine does.
func TestMeasureAddsUp(t *testing.T) {
	s, opt := startBench(t, labelNBDFile)
	opt.cell = 300 * time.Millisecond
	for _, name := range []string{"r4q1", "w4q32c4"} {
		w, _ := findWorkload(name)
		r := measure(t.Context(), s, w, opt, 4)
		if r.err != nil || r.round != 4 || r.workload != name || r.server != labelNBDFile {
			t.Fatalf("row %+v", r)
		}
		if r.elapsed < opt.cell/2 || r.bytes != int64(r.ops)*4096 || r.p50 <= 0 || r.p99 < r.p50 {
			t.Errorf("row %+v", r)
		}
		// The time that operations spend in flight is the depth times the window.
		if inFlight := float64(r.ops) * r.p50.Seconds(); inFlight > 2*r.elapsed.Seconds()*float64(w.depth*w.conns) {
			t.Errorf("%s: %d operations of %v in %v", name, r.ops, r.p50, r.elapsed)
		}
		// An operation costs at least its two system calls, and all of them
		// together no more than the machine has.
		for _, cpu := range []float64{r.serverCPU, r.clientCPU} {
			if math.IsNaN(cpu) || cpu < 0.1 || cpu*1e-6*r.rate() > 1000 {
				t.Errorf("%s: CPU %v µs per operation", name, cpu)
			}
		}
	}
}

func TestMeasureAServerThatHangs(t *testing.T) {
	s, opt := startBench(t, labelGoNBD)
	w, _ := findWorkload("r4q32")
	opt.cell = 100 * time.Millisecond
	if err := syscall.Kill(s.procs[0].pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := time.AfterFunc(300*time.Millisecond, func() { _ = syscall.Kill(s.procs[0].pid(), syscall.SIGKILL) })
	defer resume.Stop()
	r := measure(t.Context(), s, w, opt, 0)
	if r.err == nil || r.ops != 0 || !math.IsNaN(r.serverCPU) {
		t.Errorf("row %+v", r)
	}
}

func TestCostPerOperation(t *testing.T) {
	if server, client := (cost{server: 30 * time.Microsecond, client: 15 * time.Microsecond, ops: 10}).perOperation(); server != 3 || client != 1.5 {
		t.Errorf("%v and %v", server, client)
	}
	if server, client := (cost{server: time.Second}).perOperation(); !math.IsNaN(server) || !math.IsNaN(client) {
		t.Errorf("%v and %v for nothing", server, client)
	}
}

func TestStartSaysWhy(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	l, err := newLab(options{dir: dir, size: sizeMin, transport: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.close() }()
	t.Setenv("PATH", dir)
	if _, err := l.start(t.Context(), labelQEMU); !errors.Is(err, errAbsent) {
		t.Errorf("a program that is not installed: %v", err)
	}
	if _, err := l.start(t.Context(), "C"); !errors.Is(err, errAbsent) {
		t.Errorf("replicad without a Go tool to build it: %v", err)
	}
}
