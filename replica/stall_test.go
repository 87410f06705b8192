package replica

import (
	"bytes"
	"testing"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
)

// aMoment is long enough for something that must not happen to have happened.
const aMoment = 150 * time.Millisecond

func (c *client) start(io IO) {
	io.Done = c.w
	c.h.Submit(io)
	c.h.Drain()
}

func (c *client) wait(what string) core.IOResult {
	c.t.Helper()
	select {
	case r := <-c.w.c:
		return r
	case <-time.After(patience):
		c.t.Fatalf("%s is not answered", what)
		return 0
	}
}

func (c *client) mustWait(what string) {
	c.t.Helper()
	select {
	case r := <-c.w.c:
		c.t.Fatalf("%s was answered with %d, too early", what, r)
	case <-time.After(aMoment):
	}
}

func arrive(t *testing.T, arrived <-chan struct{}) {
	t.Helper()
	select {
	case <-arrived:
	case <-time.After(patience):
		t.Fatal("no operation reached the disk")
	}
}

// TestReadWaitsForAWriteInFlight: the write is on the local disk but not
// acknowledged by the peer, so a crash could still take it back. A read that
// returned it would have seen something that never was.
func TestReadWaitsForAWriteInFlight(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	w, r := a.client(), a.client()
	defer w.h.Close()
	defer r.h.Close()
	w.write(0, pattern(1, 4096)) // warms the extent
	arrived, resume := b.fault.stall()
	defer resume()
	w.start(IO{Op: OpWrite, Len: 4096, Data: pattern(2, 4096)})
	arrive(t, arrived)
	waitUntil(t, "the local write", func() bool {
		return bytes.Equal(readImage(t, a.image, 4096), pattern(2, 4096))
	})
	w.mustWait("the write")
	if got := r.read(1<<20, 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("read elsewhere returns other bytes")
	}
	got := disk.AlignedBuffer(8192, 4096)
	r.start(IO{Op: OpRead, Len: 8192, Data: got})
	r.mustWait("the overlapping read")
	resume()
	if result := w.wait("the write"); result != core.IOOK {
		t.Errorf("write ends with %d", result)
	}
	if result := r.wait("the read"); result != core.IOOK || !bytes.Equal(got[:4096], pattern(2, 4096)) {
		t.Errorf("read ends with %d, or other bytes", result)
	}
}

// TestReadThatRacesAWriteIsRepeated: the write begins after the read looked
// whether there is one, and is on the disk when the read gets there.
func TestReadThatRacesAWriteIsRepeated(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	w, r := a.client(), a.client()
	defer w.h.Close()
	defer r.h.Close()
	w.write(0, pattern(1, 4096))
	readArrived, readOn := a.fault.stall()
	defer readOn()
	got := disk.AlignedBuffer(4096, 4096)
	go r.start(IO{Op: OpRead, Len: 4096, Data: got}) // stalls in its pread
	arrive(t, readArrived)
	peerArrived, peerOn := b.fault.stall()
	defer peerOn()
	go w.start(IO{Op: OpWrite, Len: 4096, Data: pattern(2, 4096)}) // stalls on both disks
	arrive(t, peerArrived)
	arrive(t, readArrived)
	readOn() // both go on here: whatever the read finds, the peer has not acknowledged
	r.mustWait("the read")
	peerOn()
	if result := r.wait("the read"); result != core.IOOK || !bytes.Equal(got, pattern(2, 4096)) {
		t.Errorf("read ends with %d, or other bytes", result)
	}
	w.wait("the write")
}

// TestDetachWaitsForReaders: a read that bypasses the core keeps the disk open.
func TestDetachWaitsForReaders(t *testing.T) {
	a, _ := newSyncedPair(t, 'C')
	c := a.client()
	defer c.h.Close()
	c.write(0, pattern(1, 4096))
	arrived, resume := a.fault.stall()
	defer resume()
	got := disk.AlignedBuffer(4096, 4096)
	go c.start(IO{Op: OpRead, Len: 4096, Data: got})
	arrive(t, arrived)
	detached := make(chan error, 1)
	ctx := testCtx(t)
	go func() { detached <- a.Detach(ctx, 0, false) }()
	select {
	case err := <-detached:
		t.Fatalf("detached under a reader (%v)", err)
	case <-time.After(aMoment):
	}
	if !a.Volume(0).attached() {
		t.Fatal("the disk was closed under a reader")
	}
	resume()
	if result := c.wait("the read"); result != core.IOOK || !bytes.Equal(got, pattern(1, 4096)) {
		t.Errorf("read ends with %d, or other bytes", result)
	}
	a.must("detach", <-detached)
	a.await("detach", func(s core.State) bool { return s.Disk == core.Diskless })
}

// TestProtocolAWithAFullSocket: writes complete as far as the kernel takes
// them and no further; the rest completes when the peer goes on.
func TestProtocolAWithAFullSocket(t *testing.T) {
	a, b := newPair(t, 'A')
	for _, n := range []*testNode{a, b} {
		cfg := n.cfg
		cfg.Link.SendBuffer, cfg.Link.ReceiveBuffer = 32<<10, 32<<10
		// No barrier, no ping: nothing but the link's own report completes a write.
		cfg.Core.Net.BarrierAge, cfg.Core.Net.BarrierBytes = core.Duration(time.Hour), 1<<40
		cfg.Core.Net.PingInt = core.Duration(time.Hour)
		n.must("reconfigure", n.Reconfigure(testCtx(t), cfg))
		n.up()
	}
	a.await("connect", connected)
	a.must("primary --force", a.Primary(testCtx(t), true))
	a.await("initial sync", inSync)
	b.await("initial sync", inSync)
	w := a.client()
	w.write(0, pattern(1, 4096)) // warms the extent
	w.h.Close()
	c := a.queueClient(1000, 4096)
	arrived, resume := b.fault.stall()
	defer resume()
	for i := range 1000 {
		c.submit(IO{Op: OpWrite, Off: uint64(i) * 4096, Len: 4096}, nil)
		c.h.Drain()
	}
	arrive(t, arrived)
	time.Sleep(aMoment)
	if n := len(c.free); n == 0 || n > 500 {
		t.Errorf("%d of 1000 writes are complete with a stalled peer", n)
	}
	resume()
	c.finish(t)
	a.must("secondary", a.Secondary(testCtx(t)))
	sameData(t, a, b)
}

// TestStalledPeerStopsListening: under protocol A trims complete without the
// peer, so what it holds unfinished must be bounded by its own reader.
func TestStalledPeerStopsListening(t *testing.T) {
	a, b := newSyncedPair(t, 'A')
	c := a.queueClient(256, 4096)
	_, resume := b.fault.stall()
	defer resume()
	const underWay = 4096 // the core's limit; what comes on top waits in its queue, or in the socket
	for i := range 4 * underWay {
		c.submit(IO{Op: OpTrim, Off: uint64(i%6000) * 4096, Len: 4096}, nil)
	}
	c.h.Drain()
	unacked := func() int { return b.Status().Volumes[0].Counters.Unacked }
	waitUntil(t, "the peer to be full", func() bool { return unacked() >= underWay })
	time.Sleep(aMoment)
	if n := unacked(); n > underWay {
		t.Errorf("%d operations for the peer are under way", n)
	}
	resume()
	c.finish(t)
	waitUntil(t, "the peer to catch up", func() bool { return unacked() == 0 })
	a.must("secondary", a.Secondary(testCtx(t)))
	sameData(t, a, b)
}

// TestHaltWaitsForReaders: a read that bypasses the core keeps the disk open.
func TestHaltWaitsForReaders(t *testing.T) {
	a, _ := newSyncedPair(t, 'C')
	c := a.client()
	c.write(0, pattern(1, 4096))
	arrived, resume := a.fault.stall()
	defer resume()
	got := disk.AlignedBuffer(4096, 4096)
	go c.start(IO{Op: OpRead, Len: 4096, Data: got})
	arrive(t, arrived)
	halted := make(chan error, 1)
	ctx := testCtx(t)
	go func() { halted <- a.halt(ctx) }()
	select {
	case err := <-halted:
		t.Fatalf("halted under a reader (%v)", err)
	case <-time.After(aMoment):
	}
	resume()
	if result := c.wait("the read"); result != core.IOOK || !bytes.Equal(got, pattern(1, 4096)) {
		t.Errorf("read ends with %d, or other bytes", result)
	}
	a.must("halt", <-halted)
	c.h.Close()
}

// TestCloseAnswersWhatAStalledDiskHolds: shutdown cannot wait for ever, but
// every client gets an answer, and memory in use is not given back.
func TestCloseAnswersWhatAStalledDiskHolds(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	c.write(0, pattern(1, 4096))
	arrived, resume := b.fault.stall()
	defer resume()
	c.start(IO{Op: OpWrite, Len: 4096, Data: pattern(2, 4096)})
	arrive(t, arrived)
	stacked := make(chan error, 1)
	ctx := testCtx(t)
	go func() { stacked <- a.halt(ctx) }()
	if result := c.wait("the write"); result != core.IOShutdown {
		t.Errorf("write ends with %d, want IOShutdown", result)
	}
	a.must("halt", <-stacked)
	if result := c.do(IO{Op: OpRead, Len: 4096, Data: disk.AlignedBuffer(4096, 4096)}); result != core.IOShutdown {
		t.Errorf("read after the end ends with %d, want IOShutdown", result)
	}
	c.h.Close()
}
