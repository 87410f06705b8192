package core

import (
	"testing"

	"replicad/wire"
)

// fullDisk makes node x's next local write end with IONoSpace.
func (x *testNode) fullDisk(buf Buf, block uint64) {
	x.p.t.Helper()
	x.noSpace = true
	x.write(buf, block)
	x.noSpace = false
}

// TestNoSpace: a full file system below a lone Primary's image is the client's
// error, not the end of the disk; with a good peer the peer serves.
func TestNoSpace(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	a.write(1, 5)
	p.breakLink(DropPing)
	a.fullDisk(2, 7)
	if a.results[2] != IONoSpace {
		t.Errorf("write to a lone Primary's full disk: %v", a.results[2])
	}
	a.expect("cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown")
	if !a.n.vols[0].disk.bm.Test(7) {
		t.Error("the block of the failed write is not marked")
	}
	p.heal()
	p.advance(3e9)
	a.expect("ds:UpToDate/UpToDate")
	a.fullDisk(3, 9)
	if a.results[3] != IOOK {
		t.Errorf("write that the peer took: %v", a.results[3])
	}
	a.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	b.expect("ds:UpToDate/Diskless")
}

// TestNoSpaceDuringResync: a write that the target of a resync took and the
// source's full disk did not must stay marked, also when the resync of its
// block is being confirmed at that moment.
func TestNoSpaceDuringResync(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	p.breakLink(DropPing)
	a.write(1, 7)
	first := true
	a.onSend = func(k wire.Kind) {
		if k == wire.KindResyncReply && first {
			first, a.noSpace = false, true
			a.push(Event{Kind: EvWrite, Buf: 2, Off: 7 * 4096, Len: 4096})
		}
	}
	resyncs := a.sent[wire.KindSyncUUID]
	p.heal()
	p.advance(3e9)
	if a.results[2] != IONoSpace {
		t.Fatalf("write to a full disk during a resync: %v", a.results[2])
	}
	a.noSpace = false
	p.advance(3e9)
	a.expect("ds:UpToDate/UpToDate")
	b.expect("ds:UpToDate/UpToDate")
	if n := a.sent[wire.KindSyncUUID] - resyncs; n != 2 {
		t.Errorf("%d resyncs; the block that differs needs a second", n)
	}
}

// TestNoSpaceLeavesSomethingToFlush: a write that found no space may have
// reached the cache in part. What the next flush covers, and what a resync
// copies from there and then calls the same on both disks, includes that part.
func TestNoSpaceLeavesSomethingToFlush(t *testing.T) {
	p, a, _ := syncedPair(t, 'C')
	p.breakLink(DropPing)
	a.write(1, 7)
	a.push(Event{Kind: EvFlush, Buf: 2})
	p.settle()
	before := a.flushes
	a.fullDisk(3, 7)
	a.push(Event{Kind: EvFlush, Buf: 4})
	p.settle()
	if a.results[3] != IONoSpace || a.flushes != before+1 {
		t.Errorf("write: %v; %d flushes of the disk after it", a.results[3], a.flushes-before)
	}
}
