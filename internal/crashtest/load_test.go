package crashtest

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/disk"
)

const (
	writers      = 3
	places       = 24 // that writes go to, far apart: collisions are frequent and all extents are touched
	placeSectors = 16
	placeStride  = 1000 // sectors
	writeSectors = 12
	batchMax     = 6
	thinkMax     = time.Millisecond // between batches
)

// load is clients at work on a Primary.
type load struct {
	t     testing.TB
	book  *book
	life  life
	stop  atomic.Bool
	done  atomic.Int64 // writes completed
	wg    sync.WaitGroup
	quick bool // flushes are rare
}

// startLoad lets clients write to n until its life is over or the load is ended.
func startLoad(n *node, b *book, seed uint64) *load {
	n.t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	l := &load{t: n.t, book: b, quick: rng.IntN(3) == 0}
	for i := range writers {
		h, err := n.Volume(0).Open()
		n.must("open", err)
		w := &writer{load: l, handle: h, rng: rand.New(rand.NewPCG(seed, uint64(i+100)))}
		l.wg.Go(w.run)
	}
	return l
}

// end stops the clients and waits until all their requests are answered.
func (l *load) end() {
	l.stop.Store(true)
	l.wg.Wait()
}

type writer struct {
	load   *load
	handle *replica.Handle
	rng    *rand.Rand
	bad    atomic.Bool
	wg     sync.WaitGroup
}

// answer hears of one request.
type answer struct {
	w       *writer
	id      uint32 // 0: a flush
	flushed int64
}

// Complete implements replica.Completer.
func (a *answer) Complete(result core.IOResult) {
	defer a.w.wg.Done()
	l, counted := a.w.load, true
	switch {
	case result != core.IOOK:
		a.w.bad.Store(true)
		l.book.mu.Lock()
		over := l.life.over
		l.book.mu.Unlock()
		if !over {
			l.t.Errorf("request of write %d ended with result %d while its machine had power", a.id, result)
		}
		return
	case a.id == 0:
		counted = l.book.endFlush(&l.life, a.flushed)
	default:
		counted = l.book.completed(&l.life, a.id)
		l.done.Add(1)
	}
	if !counted {
		a.w.bad.Store(true)
	}
}

// run issues batches of writes, and flushes between them, until it hears a bad
// answer or the load is ended.
func (w *writer) run() {
	defer w.handle.Close()
	for !w.bad.Load() && !w.load.stop.Load() {
		for range 1 + w.rng.IntN(batchMax) {
			w.write()
		}
		flush := w.rng.IntN(3) == 0
		if w.load.quick {
			flush = w.rng.IntN(20) == 0
		}
		if w.rng.IntN(4) != 0 { // else the flush overtakes nothing: it waits with the writes
			w.handle.Drain()
			w.wg.Wait()
		}
		if flush && !w.bad.Load() {
			w.wg.Add(1)
			w.handle.Submit(replica.IO{Op: replica.OpFlush, Done: &answer{w: w, flushed: w.load.book.beginFlush()}})
		}
		w.handle.Drain()
		w.wg.Wait()
		time.Sleep(time.Duration(w.rng.Int64N(int64(thinkMax))))
	}
}

func (w *writer) write() {
	first := uint32(w.rng.IntN(places)*placeStride + w.rng.IntN(placeSectors))
	count := uint32(1 + w.rng.IntN(writeSectors))
	io := replica.IO{Op: replica.OpWrite, Off: uint64(first) * sectorSize, Len: count * sectorSize, FUA: w.rng.IntN(12) == 0}
	switch w.rng.IntN(30) {
	case 0:
		io.Op = replica.OpZero
	case 1:
		io.Op = replica.OpTrim
	}
	id := w.load.book.issue(first, count, io.Op != replica.OpWrite, io.FUA)
	if io.Op == replica.OpWrite {
		io.Data = disk.AlignedBuffer(int(io.Len), 4096)
		for s := range count {
			fill(io.Data[s*sectorSize:][:sectorSize], id, first+s)
		}
	}
	io.Done = &answer{w: w, id: id}
	w.wg.Add(1)
	w.handle.Submit(io)
}
