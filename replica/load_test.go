package replica

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
)

// queueClient keeps up to depth requests in flight on its own handle.
type queueClient struct {
	h     *Handle
	free  chan *pending
	bad   atomic.Int32
	count int
}

type pending struct {
	c    *queueClient
	io   IO
	data []byte
}

// Complete implements Completer.
func (p *pending) Complete(result core.IOResult) {
	if result != core.IOOK {
		p.c.bad.Store(int32(result))
	}
	p.c.free <- p
}

func (n *testNode) queueClient(depth, bytes int) *queueClient {
	n.t.Helper()
	h, err := n.Volume(0).Open()
	n.must("open", err)
	c := &queueClient{h: h, free: make(chan *pending, depth)}
	for range depth {
		c.free <- &pending{c: c, data: disk.AlignedBuffer(bytes, 4096)}
	}
	return c
}

// submit starts one request, draining when nothing is free.
func (c *queueClient) submit(io IO, fill func([]byte)) {
	var p *pending
	select {
	case p = <-c.free:
	default:
		c.h.Drain()
		p = <-c.free
	}
	io.Data = p.data[:io.Len]
	if fill != nil {
		fill(io.Data)
	}
	io.Done = p
	p.io = io
	c.h.Submit(io)
	c.count++
}

// finish waits for everything and closes.
func (c *queueClient) finish(t *testing.T) {
	t.Helper()
	c.h.Drain()
	for range cap(c.free) {
		select {
		case <-c.free:
		case <-time.After(patience):
			t.Fatalf("requests are not answered: %s", stateOf(c.h.v.r))
		}
	}
	if r := c.bad.Load(); r != 0 {
		t.Errorf("a request ended with result %d", r)
	}
	c.h.Close()
}

// TestOverlappingWriters: two clients write the same few blocks, unaligned and
// at full speed, while the link breaks. Both nodes must end with the same bytes.
func TestOverlappingWriters(t *testing.T) {
	for _, protocol := range []byte{'A', 'B', 'C'} {
		t.Run(string(protocol), func(t *testing.T) {
			a, b := newSyncedPair(t, protocol)
			var wg sync.WaitGroup
			stop := time.Now().Add(1500 * time.Millisecond)
			for w := range 2 {
				c := a.queueClient(32, 16<<10)
				wg.Go(func() { overlapLoad(t, c, uint64(w), stop) })
			}
			wg.Go(func() {
				for time.Now().Before(stop) {
					time.Sleep(300 * time.Millisecond)
					a.cut()
				}
			})
			wg.Wait()
			a.await("resync", inSync)
			b.await("resync", inSync)
			a.must("secondary", a.Secondary(testCtx(t)))
			sameData(t, a, b)
		})
	}
}

// overlapLoad mixes writes, zeroes, trims, reads and flushes within 64 KiB at
// an extent border.
func overlapLoad(t *testing.T, c *queueClient, seed uint64, stop time.Time) {
	rng := rand.New(rand.NewPCG(seed, 1))
	const base = 4<<20 - 32<<10
	for time.Now().Before(stop) {
		off := base + rng.Uint64N(96)*512
		n := uint32(1+rng.Uint64N(31)) * 512
		switch rng.IntN(20) {
		case 0:
			c.submit(IO{Op: OpZero, Off: off, Len: n}, nil)
		case 1:
			c.submit(IO{Op: OpTrim, Off: off, Len: n}, nil)
		case 2:
			c.submit(IO{Op: OpFlush}, nil)
		case 3, 4, 5:
			c.submit(IO{Op: OpRead, Off: off, Len: n}, nil)
		default:
			c.submit(IO{Op: OpWrite, Off: off, Len: n, FUA: rng.IntN(50) == 0}, func(p []byte) {
				for i := 0; i < len(p); i += 8 {
					binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
				}
			})
		}
		if rng.IntN(8) == 0 {
			c.h.Drain()
		}
	}
	c.finish(t)
}

// TestReadsNeverGoBack: readers race with one writer that counts up in a block;
// what a reader sees never decreases, nor is less than what was completed before it began.
func TestReadsNeverGoBack(t *testing.T) {
	a, _ := newSyncedPair(t, 'C')
	var done, stop atomic.Uint64
	var wg sync.WaitGroup
	w := a.client()
	wg.Go(func() {
		data := disk.AlignedBuffer(4096, 4096)
		for n := uint64(1); stop.Load() == 0; n++ {
			binary.LittleEndian.PutUint64(data, n)
			w.write(8<<20, data)
			done.Store(n)
		}
	})
	for range 2 {
		c := a.client()
		wg.Go(func() {
			last := uint64(0)
			for stop.Load() == 0 {
				floor := max(last, done.Load())
				got := binary.LittleEndian.Uint64(c.read(8<<20, 4096))
				if got < floor {
					t.Errorf("read %d after %d", got, floor)
					stop.Store(1)
				}
				last = got
			}
			c.h.Close()
		})
	}
	time.Sleep(time.Second)
	stop.Store(1)
	wg.Wait()
	w.h.Close()
	if done.Load() < 100 {
		t.Errorf("only %d writes", done.Load())
	}
}

// TestAdmissionHoldsBackAndLetsThrough: more and larger requests than there is
// room for all complete.
func TestAdmissionHoldsBackAndLetsThrough(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	var wg sync.WaitGroup
	for range 4 {
		c := a.queueClient(20, 6<<20)
		wg.Go(func() {
			for i := range 30 {
				c.submit(IO{Op: OpWrite, Off: uint64(i%3) * (6 << 20), Len: 6 << 20}, nil)
			}
			c.finish(t)
		})
	}
	wg.Wait()
	waitUntil(t, "all admission to come back", func() bool {
		a.room.mu.Lock()
		defer a.room.mu.Unlock()
		return a.room.slots == a.cfg.limitRequests() && a.room.bytes == DefaultRequestBytes
	})
	a.must("secondary", a.Secondary(testCtx(t)))
	sameData(t, a, b)
}

// waitUntil polls for what is done just after a request was answered.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}

func (c Config) limitRequests() int {
	c.setDefaults()
	return c.Limits.Requests
}

// TestNothingAllocatedPerRequest covers 4 KiB reads and writes, alone and
// mirrored under each protocol. Both nodes are in this process, so what the peer
// allocates counts as well.
func TestNothingAllocatedPerRequest(t *testing.T) {
	for name, protocol := range map[string]byte{"standalone": 'C', "connected A": 'A', "connected B": 'B', "connected C": 'C'} {
		t.Run(name, func(t *testing.T) {
			a, b := newSyncedPair(t, protocol)
			if name == "standalone" {
				b.must("disconnect", b.Disconnect(testCtx(t), true))
				a.must("disconnect", a.Disconnect(testCtx(t), true))
			}
			c := a.client()
			defer c.h.Close()
			data := pattern(1, 4096)
			for _, op := range []Op{OpRead, OpWrite} {
				io := IO{Op: op, Off: 4 << 20, Len: 4096, Data: data, Done: c.w}
				one := func() {
					c.h.Submit(io)
					c.h.Drain()
					<-c.w.c
				}
				for range 2000 {
					one()
				}
				if n := testing.AllocsPerRun(2000, one); n != 0 {
					t.Errorf("op %d allocates %v times", op, n)
				}
			}
		})
	}
}
