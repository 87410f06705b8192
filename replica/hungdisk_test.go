package replica

import (
	"bytes"
	"context"
	"testing"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
)

// setDiskTimeout turns disk-timeout on while the disk is in use.
func (n *testNode) setDiskTimeout(d time.Duration) {
	n.t.Helper()
	n.cfg.Core.Volumes[0].DiskTimeout = core.Duration(d)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Reconfigure(ctx, n.cfg); err != nil {
		n.t.Fatal(err)
	}
}

// TestHungDisk: the Primary's disk stops answering. With disk-timeout its
// clients wait that long and no longer, reads included; then the peer serves
// them. What the disk does when it wakes up touches no client's memory and is
// taken for nobody's answer.
func TestHungDisk(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	const timeout = 300 * time.Millisecond
	a.setDiskTimeout(timeout)
	w, r, z := a.client(), a.client(), a.client()
	defer w.h.Close()
	defer r.h.Close()
	defer z.h.Close()
	w.write(0, pattern(1, 8192))
	arrived, resume := a.fault.stall()
	defer resume()
	begin := time.Now()
	written, got := pattern(2, 4096), disk.AlignedBuffer(4096, 4096)
	w.start(IO{Op: OpWrite, Len: 4096, Data: written})
	r.start(IO{Op: OpRead, Off: 4096, Len: 4096, Data: got})
	z.start(IO{Op: OpZero, Off: 1 << 20, Len: 4096})
	arrive(t, arrived)
	for name, c := range map[string]*client{"write": w, "read": r, "zeroes": z} {
		if result := c.wait(name); result != core.IOOK {
			t.Errorf("%s ends with %d", name, result)
		}
	}
	if d := time.Since(begin); d < timeout {
		t.Errorf("all answered after %v, before disk-timeout", d)
	}
	if !bytes.Equal(got, pattern(1, 8192)[4096:]) {
		t.Error("the read returned other bytes")
	}
	clear(written) // the client's memory is its own again
	copy(got, "mine")
	if s := a.coreStatus().Volumes[0].State; s.Disk != core.Failed || s.PDisk != core.UpToDate {
		t.Errorf("state %v", s)
	}
	w.write(8192, pattern(3, 4096)) // served by the peer alone
	resume()
	waitUntil(t, "Diskless", func() bool { return a.coreStatus().Volumes[0].State.Disk == core.Diskless })
	if !bytes.HasPrefix(got, []byte("mine")) {
		t.Error("the late read wrote into the client's memory")
	}
	if late := readImage(t, a.image, 4096); !bytes.Equal(late, pattern(2, 4096)) {
		t.Error("the late write did not write what it was given")
	}
	a.setDiskTimeout(0)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := a.Attach(ctx, 0); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the resync", func() bool {
		s := a.coreStatus().Volumes[0]
		return s.State.Disk == core.UpToDate && s.State.PDisk == core.UpToDate && s.OutOfSync == 0
	})
	if x, y := readImage(t, a.image, 2<<20), readImage(t, b.image, 2<<20); !bytes.Equal(x, y) {
		t.Error("the disks differ")
	}
}

// TestHungDiskOfTheSecondary: the Primary's writes wait no longer than the
// Secondary's disk-timeout.
func TestHungDiskOfTheSecondary(t *testing.T) {
	a, b := newSyncedPair(t, 'C')
	b.setDiskTimeout(300 * time.Millisecond)
	w := a.client()
	defer w.h.Close()
	w.write(0, pattern(1, 4096))
	arrived, resume := b.fault.stall()
	defer resume()
	w.start(IO{Op: OpWrite, Len: 4096, Data: pattern(2, 4096)})
	arrive(t, arrived)
	if result := w.wait("write"); result != core.IOOK {
		t.Errorf("write ends with %d", result)
	}
	waitUntil(t, "the peer's disk to be given up", func() bool {
		return a.coreStatus().Volumes[0].State.PDisk <= core.Failed
	})
	w.write(4096, pattern(3, 4096))
}
