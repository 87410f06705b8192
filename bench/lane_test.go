package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"replicad/nbd"
)

func soon(d time.Duration) window {
	now := time.Now()
	return window{from: now, until: now.Add(d)}
}

func open(t *testing.T, uri, name string) lane {
	t.Helper()
	w, ok := findWorkload(name)
	if !ok {
		t.Fatalf("no workload %s", name)
	}
	l, err := openLane(t.Context(), uri, w, newPlaces(w, 0, testSize, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func TestLanesDoWhatTheWorkloadSays(t *testing.T) {
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			e := newExport()
			got := open(t, serveExport(t, e), w.name).run(soon(40 * time.Millisecond))
			if got.err != nil || got.ops == 0 || len(got.latencies) != got.ops || got.last.IsZero() {
				t.Fatalf("%d operations, %d latencies, error %v", got.ops, len(got.latencies), got.err)
			}
			reads, writes, flushes := int(e.reads.Load()), int(e.writes.Load()), int(e.flushes.Load())
			want := map[kind][3]int{kindRead: {got.ops, 0, 0}, kindWrite: {0, got.ops, 0}, kindWriteFlush: {0, got.ops, got.ops}}[w.kind]
			if [3]int{reads, writes, flushes} != want {
				t.Errorf("the server saw %d reads, %d writes, %d flushes for %d operations", reads, writes, flushes, got.ops)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			if err := checkStamp(e.data, 0); err != nil {
				t.Errorf("the export's content: %v", err)
			}
		})
	}
}

// The server answers only when the whole depth is there: less would hang, and
// it counts more.
func TestDepthIsKept(t *testing.T) {
	for _, name := range []string{"r4q32", "w4q32", "w4q32c4", "sr1m"} {
		w, _ := findWorkload(name)
		e := newExport()
		e.hold = w.depth
		uri := serveExport(t, e)
		l := open(t, uri, name)
		done := make(chan tally, 1)
		go func() { done <- l.run(soon(30 * time.Millisecond)) }()
		select {
		case <-done: // the end of the window leaves less than the depth, or nothing
		case <-time.After(500 * time.Millisecond):
			e.letGo()
			<-done
		}
		e.mu.Lock()
		if e.most != w.depth {
			t.Errorf("%s: %d requests at a time, want %d", name, e.most, w.depth)
		}
		e.mu.Unlock()
	}
}

func TestLanesReportErrors(t *testing.T) {
	for _, name := range []string{"r4q1", "w4q1", "wflush", "r4q32", "w4q32", "sw1m"} {
		e := newExport()
		served := 0
		e.spoil = func(r *nbd.Request) error {
			if served++; served == 40 {
				return nbd.EIO
			}
			return nil
		}
		got := open(t, serveExport(t, e), name).run(soon(5 * time.Second))
		if !errors.Is(got.err, nbd.EIO) {
			t.Errorf("%s: error %v, want EIO", name, got.err)
		}
	}
}

func TestLanesNoticeWrongData(t *testing.T) {
	for _, name := range []string{"r4q1", "r4q32", "sr1m"} {
		e := newExport()
		served := 0
		e.spoil = func(r *nbd.Request) error {
			if served++; served == 40 { // the last block of another place
				stamp(r.Data[len(r.Data)-stampEvery:], int64(r.Offset)+testSize, 0)
			}
			return nil
		}
		got := open(t, serveExport(t, e), name).run(soon(5 * time.Second))
		if !errors.Is(got.err, errMisplaced) {
			t.Errorf("%s: error %v, want a misplaced block", name, got.err)
		}
	}
}

func TestWarmUpIsNotCounted(t *testing.T) {
	for _, name := range []string{"r4q1", "r4q32"} {
		e := newExport()
		now := time.Now()
		win := window{from: now.Add(60 * time.Millisecond), until: now.Add(90 * time.Millisecond)}
		got := open(t, serveExport(t, e), name).run(win)
		if got.err != nil || got.ops == 0 {
			t.Fatalf("%s: %d operations, %v", name, got.ops, got.err)
		}
		if served := int(e.reads.Load()); served < got.ops*3/2 {
			t.Errorf("%s: %d of %d operations counted, of a time two thirds of which is warm-up", name, got.ops, served)
		}
		if got.last.Before(win.from) {
			t.Errorf("%s: the last operation ended before the window", name)
		}
	}
}

func TestAbortEndsALane(t *testing.T) {
	for _, name := range []string{"r4q1", "r4q32"} {
		e := newExport()
		e.hold = 1000 // never answers
		l := open(t, serveExport(t, e), name)
		done := make(chan tally, 1)
		go func() { done <- l.run(soon(time.Hour)) }()
		time.Sleep(20 * time.Millisecond)
		l.abort()
		select {
		case got := <-done:
			if got.err == nil || got.ops != 0 {
				t.Errorf("%s: %d operations, error %v", name, got.ops, got.err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: still running", name)
		}
		e.letGo()
		l.abort() // again: harmless
	}
}

func TestLaneSaysWhyItCannotConnect(t *testing.T) {
	uri := strings.Replace(serveExport(t, newExport()), "/r0?", "/nobody?", 1)
	for _, name := range []string{"r4q1", "r4q32"} {
		w, _ := findWorkload(name)
		if _, err := openLane(t.Context(), uri, w, nil); err == nil {
			t.Errorf("%s opened an export that does not exist", name)
		}
	}
}
