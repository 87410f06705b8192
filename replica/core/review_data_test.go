package core

import (
	"testing"

	"replicad/bitmap"
	"replicad/wire"
)

const wantAck = wire.FlagWantWriteAck

// A write taken while the Primary has no disk must be marked out of sync even
// if it starts only after the Primary's disk came back.
func TestReviewPeerWriteTakenBeforeAttachIsMarked(t *testing.T) {
	r := serving(t)
	r.hold[ActMetaAL] = true // the extent is cold: the write waits for a transaction
	r.peer(data(1<<16|1, 7, wantAck))
	r.peer(
		wire.Msg{Kind: wire.KindSizes, Body: &wire.Sizes{Disk: rigSize, Current: rigSize}},
		wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen | 1}},
		wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Primary), Conn: uint8(Connected), Disk: uint8(Negotiating)}},
	)
	r.release(IOOK)
	r.expect("cs:WFBitMapS")
	if !r.n.vols[0].disk.bm.Test(7) {
		t.Error("block 7 was written here only, and is not marked")
	}
	marked := false
	for _, m := range r.sent {
		if b, ok := m.Body.(*wire.Bitmap); ok && m.Kind == wire.KindBitmap && m.Off == 0 && b.Words[0]>>7&1 == 1 {
			marked = true
		}
	}
	if !marked {
		t.Error("the bitmap sent to the Primary does not have block 7")
	}
}

// The same for a write that is drained from the queue after the link died.
func TestReviewPeerWriteDrainedAfterLossIsMarked(t *testing.T) {
	r := serving(t)
	r.peer(data(1<<16|1, 1, wantAck))
	r.hold[ActDiskFlush] = true
	r.peer(wire.Msg{Kind: wire.KindBarrier, Seq: 1, Arg: 1})
	r.peer(data(2<<16|1, 7, wantAck)) // waits for the flush
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.release(IOOK)
	if !r.n.vols[0].disk.bm.Test(7) {
		t.Error("block 7 was written here only, and is not marked")
	}
}

// A write whose copy the peer refused completes only when the new generation
// id is durable: the peer's disk may come back, and its node be promoted.
func TestReviewNegAckWaitsForRotation(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 5, Off: 4096, Len: 4096})
	w := r.lastSent(wire.KindData)
	r.hold[ActMetaSuper] = true
	r.peer(wire.Msg{Kind: wire.KindNegAck, Seq: w.Seq, Off: w.Off, Len: w.Len})
	if res, ok := r.results[5]; ok && masked(r.super[0].Gen.Current) == rigGen {
		t.Errorf("write completed with %d while the durable generation is the peer's", res)
	}
	r.release(IOOK)
	r.peer(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Secondary), Conn: uint8(Connected), Disk: uint8(Failed)}})
	if res, ok := r.results[5]; !ok || res != IOOK {
		t.Errorf("write not completed after the rotation: %v %v", res, ok)
	}
}

// A barrier that follows a failed write does not vouch for it.
func TestReviewBarrierAfterFailedWriteIsNotAcked(t *testing.T) {
	r := serving(t)
	r.hold[ActDiskWrite] = true
	r.peer(data(1<<16|1, 1, wantAck))
	r.release(IOError)
	if r.lastSent(wire.KindNegAck) == nil {
		t.Fatal("the failed write was not refused")
	}
	r.peer(wire.Msg{Kind: wire.KindBarrier, Seq: 1, Arg: 1})
	if r.lastSent(wire.KindBarrierAck) != nil {
		t.Error("the epoch was confirmed as stable, but its write failed")
	}
}

func TestReviewNackedFUADoesNotComplete(t *testing.T) {
	r := served(t)
	r.do(Event{Kind: EvWrite, Buf: 5, Off: 4096, Len: 4096, FUA: true})
	w, b := r.lastSent(wire.KindData), r.lastSent(wire.KindBarrier)
	r.peer(
		wire.Msg{Kind: wire.KindNegAck, Seq: w.Seq, Off: w.Off, Len: w.Len},
		wire.Msg{Kind: wire.KindBarrierAck, Seq: b.Seq, Arg: b.Arg},
	)
	if res, ok := r.results[5]; ok && res == IOOK {
		t.Error("a write that the only disk refused was completed as durable")
	}
}

// Protocol A: a write that failed here and is in a socket buffer is on no disk.
func TestReviewLocalFailureNeedsThePeersDisk(t *testing.T) {
	r := goodPrimary(t, 'A')
	r.hold[ActDiskWrite] = true
	r.do(Event{Kind: EvWrite, Buf: 5, Off: 4096, Len: 4096})
	w := r.lastSent(wire.KindData)
	r.do(Event{Kind: EvSent, Session: r.session, Seq: w.Seq})
	r.release(IOError)
	if res, ok := r.results[5]; ok && res == IOOK {
		t.Error("completed, though the local disk failed and the peer confirmed nothing")
	}
}

// Writes that complete while a forced demotion saves are as safe as others.
func TestReviewWriteDuringDemotion(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.promote()
	r.do(Event{Kind: EvWrite, Buf: 4, Off: 0, Len: 4096}) // makes the extent hot
	r.hold[ActCloseGate] = true
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdSecondary, Force: true}})
	r.do(Event{Kind: EvWrite, Buf: 5, Off: 8 * 4096, Len: 4096})
	r.release(IOOK)
	if r.cmds[7] != Success {
		t.Fatalf("demotion: %v", r.cmds[7])
	}
	v := r.n.vols[0]
	if r.results[5] == IOOK && r.super[0].Flags&FlagPrimaryInd == 0 && (v.disk.bm.DirtyPages() > 0 || v.disk.unflushed) {
		t.Errorf("the primary indicator is gone, but a completed write is unflushed=%v, bitmap pages not on disk: %d", v.disk.unflushed, v.disk.bm.DirtyPages())
	}
}

// A forced promotion raises the volumes that need it, and no others.
func TestReviewForcedPromotionDoesNotInventDisks(t *testing.T) {
	r := newRig(t, 'C', 2) // the peer of the node that is forced
	r.attach(0, goodSuper())
	bad := goodSuper()
	bad.Flags = 0
	r.attach(1, bad)
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, Diskless), peerState(Secondary, Inconsistent))
	req := &wire.StateReq{ID: 9, Vol: -1, Role: uint8(Primary), Disk: uint8(UpToDate) + 1}
	r.peer(wire.Msg{Kind: wire.KindStateReq, Body: req})
	if got := r.n.vols[0].st; got.PDisk == UpToDate {
		t.Errorf("the peer's volume 0 has no disk, but counts as UpToDate: %s", got)
	}
}

// A diskless node that is promoted knows which data its clients see.
func TestReviewDisklessPromotionExposesThePeersData(t *testing.T) {
	r := served(t)
	v := r.n.vols[0]
	if masked(v.exposed) != rigGen {
		t.Errorf("exposed id %016X, the peer's data is %016X", v.exposed, uint64(rigGen))
	}
}

// A source that is a Secondary and misses the end of its resync shares the
// target's generation; promoted alone, it must leave it.
func TestReviewSecondarySourceMissesTheEnd(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Gen = Generation{Current: rigGen, Bitmap: 0xBBBB000000000000}
	r.attach(0, s)
	r.n.vols[0].disk.bm.SetRange(3, 1)
	r.connect(rigSize, wire.UUIDs{Current: 0xBBBB000000000000}, peerState(Secondary, UpToDate))
	r.expect("cs:WFBitMapS")
	r.peer(wire.Msg{Kind: wire.KindBitmapEnd})
	r.expect("cs:SyncSource")
	r.peer(wire.Msg{Kind: wire.KindResyncRequest, Seq: 1 << 16, Off: 3 * 4096, Len: 4096})
	reply := r.lastSent(wire.KindResyncReply)
	r.peer(wire.Msg{Kind: wire.KindResyncWriteAck, Seq: reply.Arg, Off: reply.Off, Len: reply.Len})
	if r.lastSent(wire.KindBarrier) == nil {
		t.Fatal("no barrier after the last block")
	}
	// The target is UpToDate now, in generation rigGen; its ack is lost.
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.promote()
	if masked(r.super[0].Gen.Current) == rigGen {
		t.Errorf("Primary alone in the generation that the peer has too: %s", r.super[0].Gen)
	}
}

// A detach that was agreed looks again before it gives up the last good disk.
func TestReviewDetachAfterLinkLoss(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.hold[ActCloseGate] = true
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach}})
	id := r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: id, Arg: uint64(Success)})
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.release(IOOK)
	if r.n.vols[0].st.Disk != UpToDate || !r.cmds[7].Failed() {
		t.Errorf("detached the only good disk of a lone Primary: %s, answer %v", r.n.vols[0].st, r.cmds[7])
	}
}

// outdate lowers a disk or does nothing.
func TestReviewOutdateNeverRaises(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.hold[ActDetach], r.hold[ActDiskWrite] = true, true
	r.peer(data(1<<16|1, 1, wantAck))
	r.do(r.answer(r.held[0], IOError)...)
	r.held = r.held[1:]
	r.expect("ds:Failed/UpToDate")
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdOutdate}})
	if got := r.n.vols[0].st.Disk; got > Failed {
		t.Errorf("outdate made a failed disk %v", got)
	}
}

// A promotion that the peer agreed to is looked at again when the link dies
// before it is carried out: this node's own disk may be no good.
func TestReviewConsentedPromotionAfterLinkLoss(t *testing.T) {
	r := resyncing(t, 'C', wire.UUIDs{Current: 0xBBBB000000000000, Bitmap: rigGen}, Generation{Current: rigGen})
	r.expect("cs:SyncTarget ro:Secondary/Secondary ds:Inconsistent/UpToDate")
	r.hold[ActDiskWrite] = true
	r.peer(data(1<<16|1, 100, wantAck)) // must be on disk first
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdPrimary}})
	id := r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: id, Arg: uint64(Success)})
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.release(IOOK)
	if got := r.n.vols[0].st; got.Role == Primary {
		t.Errorf("alone, Inconsistent and Primary: %s (answer %v)", got, r.cmds[7])
	}
}

// A source that now serves the target's node alone leaves the generation that
// the target's disk may have reached.
func TestReviewServingAfterTheEndOfAResync(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Gen = Generation{Current: rigGen, Bitmap: 0xBBBB000000000000}
	r.attach(0, s)
	r.n.vols[0].disk.bm.SetRange(3, 1)
	r.connect(rigSize, wire.UUIDs{Current: 0xBBBB000000000000}, peerState(Primary, Inconsistent))
	r.peer(wire.Msg{Kind: wire.KindBitmapEnd})
	r.peer(wire.Msg{Kind: wire.KindResyncRequest, Seq: 1 << 16, Off: 3 * 4096, Len: 4096})
	reply := r.lastSent(wire.KindResyncReply)
	r.peer(wire.Msg{Kind: wire.KindResyncWriteAck, Seq: reply.Arg, Off: reply.Off, Len: reply.Len})
	// The target became UpToDate; before its ack is here, its disk fails.
	r.peer(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Primary), Conn: uint8(Connected), Disk: uint8(Failed)}})
	r.expect("cs:Connected ro:Secondary/Primary ds:UpToDate/Failed")
	if masked(r.super[0].Gen.Current) == rigGen {
		t.Errorf("serves a diskless Primary in the generation that its disk has too: %s", r.super[0].Gen)
	}
}

// A diskless Primary does not shrink under its clients.
func TestReviewAttachOfASmallerDisk(t *testing.T) {
	r := served(t)
	s := goodSuper()
	s.Size = rigSize / 2
	r.do(Event{Kind: EvAttach, Attach: &Attachment{Super: s, Disk: rigSize / 2, ALSlots: 67, Cmd: 7, Bitmap: bitmap.New(rigSize / 2 / 4096)}})
	if r.cmds[7] == Success || r.n.vols[0].size != rigSize {
		t.Errorf("attach: %v, the volume has %d bytes now, clients were promised %d", r.cmds[7], r.n.vols[0].size, uint64(rigSize))
	}
}
