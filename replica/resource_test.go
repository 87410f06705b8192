package replica

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"replicad/replica/core"
)

func TestConnectSyncAndWrite(t *testing.T) {
	for _, protocol := range []byte{'A', 'B', 'C'} {
		t.Run(string(protocol), func(t *testing.T) {
			a, b := newSyncedPair(t, protocol)
			c := a.client()
			want := pattern(1, 64<<10)
			c.write(1<<20, want)
			c.write(4<<20-4096, pattern(2, 8192)) // over an extent border
			c.write(512, pattern(3, 512))
			c.flush()
			if got := c.read(1<<20, len(want)); !bytes.Equal(got, want) {
				t.Fatal("read returns other bytes than were written")
			}
			c.h.Close()
			a.must("secondary", a.Secondary(testCtx(t)))
			sameData(t, a, b)
		})
	}
}

func TestLargeRequestsAreSplitAndJoined(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	want := pattern(7, 9<<20)
	c.write(3<<20+512, want)
	if got := c.read(3<<20+512, len(want)); !bytes.Equal(got, want) {
		t.Fatal("large read returns other bytes than were written")
	}
	c.ok(IO{Op: OpZero, Off: 4 << 20, Len: 5 << 20, FUA: true})
	c.ok(IO{Op: OpTrim, Off: 10 << 20, Len: 1 << 20})
	copy(want[1<<20-512:], make([]byte, 5<<20))
	copy(want[7<<20-512:], make([]byte, 1<<20))
	if got := c.read(3<<20+512, len(want)); !bytes.Equal(got, want) {
		t.Fatal("read after zeroing returns other bytes")
	}
	c.h.Close()
	a.must("secondary", a.Secondary(testCtx(t)))
	sameData(t, a, b)
}

func TestBadRequestsAreRefused(t *testing.T) {
	a, _ := newSyncedPair(t, 'C')
	c := a.client()
	defer c.h.Close()
	size := a.Volume(0).Size()
	for name, io := range map[string]IO{
		"beyond the end": {Op: OpWrite, Off: size, Len: 512, Data: make([]byte, 512)},
		"across the end": {Op: OpRead, Off: size - 512, Len: 1024, Data: make([]byte, 1024)},
		"not a sector":   {Op: OpRead, Off: 1, Len: 512, Data: make([]byte, 512)},
		"short data":     {Op: OpWrite, Off: 0, Len: 1024, Data: make([]byte, 512)},
		"unknown op":     {Op: 99, Len: 512},
		"overflow":       {Op: OpTrim, Off: 1<<64 - 512, Len: 1024},
	} {
		if r := c.do(io); r != core.IOInvalid {
			t.Errorf("%s: result %d, want IOInvalid", name, r)
		}
	}
	if r := c.do(IO{Op: OpTrim}); r != core.IOOK {
		t.Errorf("empty trim: result %d", r)
	}
}

func TestOpenNeedsPrimary(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	_, err := b.Volume(0).Open()
	if notPrimary, ok := errors.AsType[*NotPrimaryError](err); !ok || notPrimary.Role != core.Secondary {
		t.Fatalf("open on the Secondary: %v", err)
	}
	c := a.client()
	err = a.Secondary(testCtx(t))
	if refused, ok := errors.AsType[*StateError](err); !ok || refused.Err != core.ErrDeviceInUse || refused.ExitCode() != 11 {
		t.Fatalf("demotion of an open volume: %v", err)
	}
	c.h.Close()
	a.must("secondary", a.Secondary(testCtx(t)))
}

func TestSwitchover(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	for i := range 4 {
		c := a.client()
		c.write(uint64(i)<<20, pattern(byte(i), 128<<10))
		c.h.Close()
		err := b.Primary(testCtx(t), false)
		if refused, ok := errors.AsType[*StateError](err); !ok || refused.Err != core.ErrTwoPrimaries {
			t.Fatalf("second Primary: %v", err)
		}
		a.must("secondary", a.Secondary(testCtx(t)))
		b.must("primary", b.Primary(testCtx(t), false))
		a, b = b, a
	}
	sameData(t, a, b)
}

func TestCutWriteAndHeal(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	defer c.h.Close()
	for round := range 3 {
		b.must("disconnect", b.Disconnect(testCtx(t), true))
		a.await("loss of the peer", func(s core.State) bool { return s.Conn < core.Connected })
		for i := range 20 {
			c.write(uint64(i*37%20)<<20, pattern(byte(round+i), 4096))
		}
		if a.Status().Volumes[0].OutOfSync == 0 {
			t.Fatal("writes without a peer left no mark")
		}
		b.connect()
		a.await("resync", inSync)
		b.await("resync", inSync)
		if oos := a.Status().Volumes[0].OutOfSync + b.Status().Volumes[0].OutOfSync; oos != 0 {
			t.Fatalf("out of sync after the resync: %d", oos)
		}
		sameData(t, a, b)
	}
}

func TestSessionsBreakUnderLoad(t *testing.T) {
	for _, protocol := range []byte{'A', 'C'} {
		t.Run(string(protocol), func(t *testing.T) {
			a, b := newSyncedPair(t, protocol)
			c := a.client()
			begin := time.Now()
			cuts := time.Duration(1)
			for i := 0; time.Since(begin) < 2*time.Second; i++ {
				c.write(uint64(i*61%4096)*4096, pattern(byte(i), 4096))
				if time.Since(begin) > cuts*150*time.Millisecond {
					cuts++
					a.cut()
				}
			}
			c.flush()
			c.h.Close()
			a.await("resync", inSync)
			b.await("resync", inSync)
			a.must("secondary", a.Secondary(testCtx(t)))
			sameData(t, a, b)
		})
	}
}

func TestDetachAndAttachWhilePrimary(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	defer c.h.Close()
	c.write(0, pattern(1, 8192))
	a.must("detach", a.Detach(testCtx(t), 0, false))
	if s := a.Status().Volumes[0].State; s.Disk != core.Diskless {
		t.Fatalf("after detach: %v", s)
	}
	if got := c.read(0, 8192); !bytes.Equal(got, pattern(1, 8192)) {
		t.Fatal("diskless read returns other bytes")
	}
	c.write(4096, pattern(2, 8192))
	if got := c.read(4096, 8192); !bytes.Equal(got, pattern(2, 8192)) {
		t.Fatal("diskless read after write returns other bytes")
	}
	if got := c.read(0, 3<<20); !bytes.Equal(got[4096:12288], pattern(2, 8192)) {
		t.Fatal("large diskless read returns other bytes")
	}
	a.attach()
	a.await("resync after attach", inSync)
	b.await("resync after attach", inSync)
	if got := c.read(4096, 8192); !bytes.Equal(got, pattern(2, 8192)) {
		t.Fatal("read after attach returns other bytes")
	}
	sameData(t, a, b)
}

func TestDiskErrorsDetach(t *testing.T) {
	eio := errors.New("the test says EIO")
	for name, c := range map[string]struct {
		read, write, sync error
		io                IO
	}{
		"read":  {read: eio, io: IO{Op: OpRead, Len: 4096, Data: make([]byte, 4096)}},
		"write": {write: eio, io: IO{Op: OpWrite, Len: 4096, Data: pattern(9, 4096)}},
		"fua":   {write: eio, io: IO{Op: OpWrite, Len: 4096, Data: pattern(9, 4096), FUA: true}},
		"flush": {sync: eio, io: IO{Op: OpFlush}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newSyncedPair(t, 'C')
			cl := a.client()
			defer cl.h.Close()
			cl.write(0, pattern(1, 4096))
			a.fault.set(c.read, c.write, c.sync)
			cl.ok(c.io)
			a.await("detach", func(s core.State) bool { return s.Disk == core.Diskless })
			cl.write(8192, pattern(3, 4096))
			if got := cl.read(8192, 4096); !bytes.Equal(got, pattern(3, 4096)) {
				t.Fatal("diskless read returns other bytes")
			}
			if c.io.Op == OpWrite && !bytes.Equal(cl.read(0, 4096), c.io.Data) {
				t.Fatal("the write that met the error is lost")
			}
			a.attach()
			a.await("resync", inSync)
			b.await("resync", inSync)
			sameData(t, a, b)
		})
	}
}

func TestErrorOnTheSecondary(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	defer c.h.Close()
	b.fault.set(nil, errors.New("the test says EIO"), nil)
	c.write(0, pattern(1, 4096))
	b.await("detach", func(s core.State) bool { return s.Disk == core.Diskless })
	c.write(4096, pattern(2, 4096))
	b.attach()
	a.await("resync", inSync)
	b.await("resync", inSync)
	sameData(t, a, b)
}

func TestInvalidate(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	c.write(0, pattern(5, 256<<10))
	c.h.Close()
	b.must("invalidate", b.Invalidate(testCtx(t), 0))
	b.must("wait-sync", b.WaitSync(testCtx(t), 0))
	a.must("wait-sync", a.WaitSync(testCtx(t), 0))
	sameData(t, a, b)
	b.must("invalidate-remote", a.InvalidateRemote(testCtx(t), 0))
	a.must("wait-sync", a.WaitSync(testCtx(t), 0))
	b.must("wait-sync", b.WaitSync(testCtx(t), 0))
	sameData(t, a, b)
}

func TestDownIsUnconfigured(t *testing.T) {
	a, _ := newSyncedPair(t, 'C')
	a.must("down", a.Down(testCtx(t)))
	s := a.Status().Volumes[0].State
	if s.Conn != core.StandAlone || s.Disk != core.Diskless || s.Role != core.Secondary {
		t.Fatalf("after down: %v", s)
	}
	a.must("second down", a.Down(testCtx(t)))
	if err := a.WaitConnect(testCtx(t)); !errors.Is(err, ErrStandAlone) {
		t.Fatalf("wait-connect while StandAlone: %v", err)
	}
	a.up()
	a.await("reconnect", inSync)
}

func TestWaitSyncGivesUpOnADeadLink(t *testing.T) {
	a, _ := newPair(t, 'C')
	a.up()
	begin := time.Now()
	if err := a.WaitSync(testCtx(t), 100*time.Millisecond); !errors.Is(err, ErrLinkDown) {
		t.Fatalf("wait-sync without a peer: %v", err)
	}
	if d := time.Since(begin); d < 100*time.Millisecond || d > 5*time.Second {
		t.Fatalf("wait-sync took %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.WaitConnect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait-connect without a peer: %v", err)
	}
}

func TestWrongSecretGoesStandAlone(t *testing.T) {
	a, b := newPair(t, 'C')
	cfg := b.cfg
	cfg.Link.Secret = "other"
	b.must("reconfigure", b.Reconfigure(testCtx(t), cfg))
	a.up()
	b.up()
	a.await("StandAlone", func(s core.State) bool { return s.Conn == core.StandAlone })
	b.await("StandAlone", func(s core.State) bool { return s.Conn == core.StandAlone })
	for _, n := range []*testNode{a, b} {
		waitUntil(t, "the port to close", func() bool {
			conn, err := net.Dial("tcp", n.cfg.Link.Local.String())
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
	}
	// Corrected, they find each other.
	cfg.Link.Secret = a.cfg.Link.Secret
	b.must("reconfigure", b.Reconfigure(testCtx(t), cfg))
	a.connect()
	b.connect()
	a.await("connect", connected)
}

func TestCloseFlushesDemotesAndLeavesNothingBehind(t *testing.T) {
	noLeaks(t, func() {
		a, b := newSyncedPair(t, 'C')
		c := a.client()
		c.write(0, pattern(1, 1<<20))
		revoked := 0
		a.mu.Lock()
		a.Resource.cfg.Revoke = func(_ context.Context, vol uint16) {
			revoked++
			c.h.Close()
		}
		a.mu.Unlock()
		a.must("close", a.Close(testCtx(t)))
		if revoked != 1 {
			t.Fatalf("clients were sent away %d times", revoked)
		}
		if _, err := a.Volume(0).Open(); !errors.Is(err, ErrClosed) {
			t.Fatalf("open after close: %v", err)
		}
		b.must("primary after the peer left", b.Primary(testCtx(t), false))
		b.must("close", b.Close(testCtx(t)))
	})
}

func TestRestartAfterCrashAppliesTheLog(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	c := a.client()
	b.must("disconnect", b.Disconnect(testCtx(t), true))
	c.write(5<<20, pattern(1, 4096))
	// A crash: the process is gone without a word.
	a.crash()
	a.start()
	result, err := a.Attach(testCtx(t), 0)
	a.must("attach after a crash", err)
	if result.MarkedKiB == 0 {
		t.Fatal("apply-al marked nothing after a crash of the Primary")
	}
	a.connect()
	b.connect()
	a.await("resync", inSync)
	b.await("resync", inSync)
	sameData(t, a, b)
	got := readImage(t, b.image, 6<<20)[5<<20:][:4096]
	if !bytes.Equal(got, pattern(1, 4096)) {
		t.Fatal("the write before the crash is lost")
	}
}

// crash stops a resource as kill -9 does, as far as one process can: the core
// steps no more and nothing else is written.
func (n *testNode) crash() {
	n.t.Helper()
	ctx := testCtx(n.t)
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	if err := n.halt(ctx); err != nil {
		n.t.Fatal(err)
	}
}
