package core

import (
	"testing"

	"replicad/wire"
)

// The target keeps the bit of a block that is only in its page cache.
func TestTargetKeepsBitsUntilFlushed(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	n, v := r.n, r.n.vols[0]
	v.disk.bm.SetRange(5, 1)
	v.st.Conn, v.st.Disk, v.sync.running = SyncTarget, Inconsistent, true
	o := n.newOp(opSyncTarget, v)
	o.setRange(5*4096, 4096)
	o.held = true
	n.incoming.active++
	n.syncTargetWritten(o, IOOK)
	if !v.disk.bm.Test(5) {
		t.Error("the bit is gone, and nothing was flushed")
	}
}

// The ack of a barrier is about what the target had written when it was sent.
func TestSourceKeepsBitsOfLaterAcks(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	v := r.n.vols[0]
	v.disk.unflushed = false
	v.disk.bm.SetRange(5, 2)
	v.st.Conn = SyncSource
	v.sync = resync{running: true, source: true, acked: [2][]span{{{5, 1}}, nil}, ackedBits: 1}
	v.sync.barrierSent()
	v.sync.acked[0] = append(v.sync.acked[0], span{6, 1})
	r.n.syncSourceStable(v)
	if v.disk.bm.Test(5) || !v.disk.bm.Test(6) {
		t.Errorf("bits of 5 and 6: %v and %v", v.disk.bm.Test(5), v.disk.bm.Test(6))
	}
}

// A SyncTarget that is Primary has the marked blocks read at its peer, and no
// read passes the core.
func TestPrimaryTargetReadsMarkedBlocksRemotely(t *testing.T) {
	r := goodPrimary(t, 'C')
	v := r.n.vols[0]
	v.disk.bm.SetRange(5, 1)
	r.n.change(v, func(s *State) { s.Conn, s.Disk = SyncTarget, Inconsistent })
	if v.gateOpen {
		t.Error("reads bypass the core")
	}
	if v.readableLocally(5, 5) || v.readableLocally(4, 6) || !v.readableLocally(6, 9) {
		t.Error("block 5 is marked, and only it")
	}
}

// What is taken for a Primary without a disk is hot in the activity log before
// it reaches ours.
func TestServedWriteIsLogged(t *testing.T) {
	r := serving(t)
	r.hold[ActMetaAL], r.hold[ActDiskWrite] = true, true
	r.peer(data(1<<16|1, 7, wantAck))
	if len(r.held) != 1 || r.held[0].Kind != ActMetaAL {
		t.Errorf("%d actions, not one transaction", len(r.held))
	}
}

// The peer's writes that are drained after it lost its disk and the link are
// marked, also those that were on their way to the disk.
func TestLateWritesAreMarked(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
	r.hold[ActDiskWrite], r.hold[ActDiskFlush] = true, true
	r.peer(data(1<<16|1, 7, wantAck))
	r.peer(wire.Msg{Kind: wire.KindBarrier, Seq: 1, Arg: 1})
	r.peer(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Primary), Conn: uint8(Connected), Disk: uint8(Failed)}})
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	if !r.n.vols[0].disk.bm.Test(7) {
		t.Error("block 7 may be here only, and is not marked")
	}
}

// An ack with the slot of a write and another number, or of another session,
// completes nothing.
func TestStaleAnswersCompleteNothing(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 9, Len: 4096})
	seq := r.lastSent(wire.KindData).Seq
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: seq - 1<<16})
	current := r.session
	r.session--
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: seq})
	r.session = current
	if result, done := r.results[9]; done {
		t.Fatalf("completed with %v", result)
	}
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: seq})
	if result, done := r.results[9]; !done || result != IOOK {
		t.Errorf("completed %v with %v", done, result)
	}
}

// A resync block that arrives while a mirrored write of it is on its way to the
// disk waits for that write.
func TestResyncBlockWaitsForMirroredWrite(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
	n, v := r.n, r.n.vols[0]
	r.hold[ActDiskWrite] = true
	r.peer(data(1<<16|1, 5, wantAck))
	v.st.Conn, v.st.Disk, v.sync.running = SyncTarget, Inconsistent, true
	o := n.newOp(opSyncTarget, v)
	o.verb = verbWrite
	o.setRange(5*4096, 4096)
	seq := n.newSeq(o)
	n.unacked.push(o)
	v.ctr.Pending++
	r.peer(wire.Msg{Kind: wire.KindResyncReply, Seq: seq, Off: 5 * 4096, Len: 4096, Arg: 7})
	if len(r.held) != 1 {
		t.Errorf("%d writes of block 5 at once", len(r.held))
	}
	r.release(IOOK)
	if m := r.lastSent(wire.KindResyncWriteAck); m == nil {
		t.Error("the resync block was never written")
	}
}

// The target hears of a sync UUID that is on the source's disk.
func TestSyncUUIDIsDurableFirst(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Gen = Generation{Current: rigGen + 0x100, Bitmap: rigGen}
	r.attach(0, s)
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.expect("cs:WFBitMapS")
	r.hold[ActMetaSuper] = true
	r.peer(wire.Msg{Kind: wire.KindBitmapEnd})
	if m := r.lastSent(wire.KindSyncUUID); m != nil || len(r.held) != 1 {
		t.Errorf("superblocks on their way: %d; sync UUID sent: %v", len(r.held), m != nil)
	}
	r.release(IOOK)
	if m := r.lastSent(wire.KindSyncUUID); m == nil || m.Arg != r.super[0].Gen.Bitmap {
		t.Errorf("sent %+v, on disk %s", m, r.super[0].Gen)
	}
}

// The source's superblock says that the target's disk is out of date before
// the target can begin, let alone end: a source that crashes then must know, as
// soon as it is back, that its generation may be the target's too.
func TestResyncIsOnRecordBeforeTheTargetBegins(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Gen = Generation{Current: rigGen + 0x100, Bitmap: rigGen}
	r.attach(0, s)
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.hold[ActMetaSuper] = true
	r.peer(wire.Msg{Kind: wire.KindBitmapEnd})
	r.do(r.answer(r.held[0], IOOK)...)
	crashed := r.super[0]
	if r.lastSent(wire.KindSyncUUID) == nil || crashed.Flags&FlagPeerOutdated == 0 {
		t.Fatalf("the target may begin; on disk: flags %x", crashed.Flags)
	}
	again := newRig(t, 'C', 1)
	again.attach(0, crashed)
	again.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1002, Kind: CmdPrimary}})
	if g := again.super[0].Gen; masked(g.Current) == s.Gen.Current {
		t.Errorf("promoted alone with %s, which may be the target's", g)
	}
}

// TestTargetEndsInTheGenerationItCopied: the source counts the target as lost
// and starts a new generation, while the last blocks and their barrier are
// already there. What the target has is the generation before.
func TestTargetEndsInTheGenerationItCopied(t *testing.T) {
	s := goodSuper()
	s.Gen = Generation{Current: rigGen}
	r := newRig(t, 'C', 1)
	r.attach(0, s)
	source := wire.UUIDs{Current: rigGen + 0x100, Bitmap: rigGen}
	r.connect(rigSize, source, peerState(Primary, UpToDate))
	r.expect("cs:WFBitMapT")
	r.peer(wire.Msg{Kind: wire.KindBitmapEnd})
	source.H1, source.Bitmap = rigGen, rigGen+UUIDNewBMOffset
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &source}, wire.Msg{Kind: wire.KindSyncUUID, Arg: source.Bitmap})
	r.expect("cs:SyncTarget")
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 0x200, Bitmap: rigGen + 0x100}}, wire.Msg{Kind: wire.KindBarrier, Seq: 1})
	r.expect("cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate")
	if g := r.super[0].Gen; masked(g.Current) != rigGen+0x100 {
		t.Errorf("the generation is %s", g)
	}
}
