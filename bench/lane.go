package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"replicad/nbd"
)

// window is the time of one cell: operations begin until it ends, and those that
// end before it begins only warm the server up.
type window struct{ from, until time.Time }

// tally is what one connection did.
type tally struct {
	ops       int             // operations that ended after the window began
	last      time.Time       // when the last of them ended
	latencies []time.Duration // of each
	err       error           // why the connection stopped early
}

func (t *tally) record(began, ended time.Time, win window) {
	if ended.Before(win.from) {
		return
	}
	t.ops++
	t.last = ended
	t.latencies = append(t.latencies, ended.Sub(began))
}

// lane is one connection of a workload.
type lane interface {
	// run works through the window and returns when the last reply is there.
	run(win window) tally
	// done is the number of operations so far, warm-up included; any goroutine
	// may ask.
	done() int64
	// abort makes run return soon; any goroutine may call it.
	abort()
	close()
}

// openLane connects the conn-th connection of w. A depth of one needs no
// pipeline.
func openLane(ctx context.Context, uri string, w workload, p *places) (lane, error) {
	if w.depth == 1 {
		c, err := dialBlocking(uri, w.block)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		return &stepLane{client: c, workload: w, places: p}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	c, err := nbd.Dial(ctx, uri)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return newPipeLane(c, w, p), nil
}

// counter is the part of a lane that others may look at while it runs.
type counter struct{ ended atomic.Int64 }

func (c *counter) done() int64 { return c.ended.Load() }

// stepLane makes one operation after the other.
type stepLane struct {
	counter
	client   *blockingClient
	workload workload
	places   *places
	serial   uint64
}

func (l *stepLane) run(win window) (t tally) {
	t.latencies = make([]time.Duration, 0, expectedOps(win))
	for began := time.Now(); began.Before(win.until); {
		if err := l.operation(); err != nil {
			t.err = err
			return t
		}
		ended := time.Now()
		l.ended.Add(1)
		t.record(began, ended, win)
		began = ended
	}
	return t
}

func (l *stepLane) operation() error {
	at, n := l.places.offset(), l.workload.block
	if l.workload.kind == kindRead {
		p, err := l.client.read(at, n)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		return checkStamp(p, at)
	}
	l.serial++
	stamp(l.client.payload(n), at, l.serial)
	if err := l.client.write(at, n); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if l.workload.kind == kindWriteFlush {
		if err := l.client.flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	return nil
}

func (l *stepLane) abort() { l.client.shutdown() }
func (l *stepLane) close() { l.client.close() }

// pipeLane keeps depth operations in flight. The client's reader goroutine does
// the work: each reply sends the next request, and the client lets the requests
// of one batch of replies leave together.
type pipeLane struct {
	counter
	client   *nbd.Client
	workload workload

	mu       sync.Mutex // the first requests are sent while replies arrive
	places   *places
	slots    []pipeSlot
	serial   uint64
	inFlight int
	win      window
	tally    tally
	idle     chan struct{} // closed when nothing is in flight
}

type pipeSlot struct {
	call  nbd.Call
	began time.Time
}

func newPipeLane(c *nbd.Client, w workload, p *places) *pipeLane {
	l := &pipeLane{client: c, workload: w, places: p, slots: make([]pipeSlot, w.depth)}
	arena := alignedBytes(w.depth * w.block)
	noise(arena, 3)
	for i := range l.slots {
		s := &l.slots[i]
		s.call.Data = arena[i*w.block : (i+1)*w.block]
		s.call.Length = uint32(w.block)
		if w.kind != kindRead {
			s.call.Op = nbd.OpWrite
		}
		s.call.Done = func(*nbd.Call) { l.answered(s) }
	}
	return l
}

func (l *pipeLane) run(win window) tally {
	calls := make([]*nbd.Call, len(l.slots))
	l.mu.Lock()
	l.win, l.idle, l.inFlight = win, make(chan struct{}), len(l.slots)
	l.tally.latencies = make([]time.Duration, 0, expectedOps(win))
	now := time.Now()
	for i := range l.slots {
		l.prepare(&l.slots[i], now)
		calls[i] = &l.slots[i].call
	}
	l.mu.Unlock()
	l.client.Submit(calls...)
	<-l.idle
	return l.tally
}

// prepare makes s the next operation. The caller holds mu.
func (l *pipeLane) prepare(s *pipeSlot, now time.Time) {
	at := l.places.offset()
	s.call.Offset, s.began = uint64(at), now
	if l.workload.kind != kindRead {
		l.serial++
		stamp(s.call.Data, at, l.serial)
	}
}

// answered takes in the outcome of s and begins the next operation, unless the time
// is over or something went wrong.
func (l *pipeLane) answered(s *pipeSlot) {
	if l.settle(s) {
		l.client.Submit(&s.call)
	}
}

// settle reports whether s has a next operation to make.
func (l *pipeLane) settle(s *pipeSlot) bool {
	now := time.Now()
	err := s.call.Err
	if err == nil && l.workload.kind == kindRead {
		err = checkStamp(s.call.Data, int64(s.call.Offset))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.ended.Add(1)
		l.tally.record(s.began, now, l.win)
	case l.tally.err == nil:
		l.tally.err = fmt.Errorf("%s: %w", l.workload.kind, err)
	}
	if l.tally.err == nil && now.Before(l.win.until) {
		l.prepare(s, now)
		return true
	}
	l.inFlight--
	if l.inFlight == 0 {
		close(l.idle)
	}
	return false
}

func (l *pipeLane) abort() { l.client.Abort() }
func (l *pipeLane) close() { _ = l.client.Close() }

// expectedOps is room for the latencies of a fast server, within reason, so that
// recording them seldom allocates.
func expectedOps(win window) int {
	const perSecond, most = 300_000, 1 << 20
	return int(min(win.until.Sub(win.from).Seconds()*perSecond, most)) + 1
}

// alignedBytes allocates n bytes that start on a page: copies to and from other
// places are slower, and it is the server that is to be measured.
func alignedBytes(n int) []byte {
	b := make([]byte, n+pageBytes)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % pageBytes)
	return b[skip : skip+n : skip+n]
}
