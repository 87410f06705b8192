package core

import (
	"testing"

	"replicad/wire"
)

func noPanic(t *testing.T) {
	if p := recover(); p != nil {
		t.Errorf("panic: %v", p)
	}
}

// A second reply to a resync request must not start a second disk action.
func TestReviewZeroReplyTwice(t *testing.T) {
	defer noPanic(t)
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	gen := wire.UUIDs{Current: 0xCCCC000000000000, Bitmap: rigGen, Bits: 1}
	r.connect(rigSize, gen, peerState(Secondary, UpToDate))
	r.peer(
		wire.Msg{Kind: wire.KindBitmap, Off: 0, Len: 64, Body: &wire.Bitmap{Words: []uint64{1 << 9}}},
		wire.Msg{Kind: wire.KindBitmapEnd},
		wire.Msg{Kind: wire.KindSyncUUID, Arg: rigGen + UUIDNewBMOffset},
	)
	r.expect("cs:SyncTarget")
	q := r.lastSent(wire.KindResyncRequest)
	if q == nil {
		t.Fatal("no resync request")
	}
	r.hold[ActDiskZero] = true
	reply := wire.Msg{Kind: wire.KindResyncReply, Seq: q.Seq, Off: q.Off, Len: q.Len, Arg: 1 << 16, Flags: wire.FlagZeroes}
	r.peer(reply, reply)
	r.release(IOOK)
}

// Requests without payload are bounded by nothing but the core. With 65,536
// of them it panics (and needs minutes to get there: each walks the index).
func TestReviewFloodOfReads(t *testing.T) {
	r := serving(t)
	r.hold[ActDiskRead] = true
	const most = 4096
	for i := range uint64(most + 500) {
		r.do(Event{Kind: EvPeer, Session: r.session, Msg: wire.Msg{Kind: wire.KindReadRequest, Seq: i<<16 | 1, Off: i % 4096 * 4096, Len: 512}})
	}
	if got := len(r.held); got > most {
		t.Errorf("%d reads for the peer in flight at once", got)
	}
}

// invalidate while the own disk fails.
func TestReviewInvalidateDiskFails(t *testing.T) {
	defer noPanic(t)
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdInvalidate}})
	id := r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID
	r.failDisk(data(1<<16|1, 1, wantAck))
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: id, Arg: uint64(Success)})
	if !r.cmds[7].Failed() {
		t.Errorf("invalidate of a lost disk: %v, %s", r.cmds[7], r.n.vols[0].st)
	}
}

// invalidate-remote: the source's own disk is gone when the target is ready.
func TestReviewInvalidateRemoteSourceFails(t *testing.T) {
	defer noPanic(t)
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdInvalidateRemote}})
	id := r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: id, Arg: uint64(Success)})
	r.failDisk()
	r.peer(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Secondary), Conn: uint8(WFSyncUUID), Disk: uint8(Inconsistent), PDisk: uint8(UpToDate)}})
	if r.cmds[7] == 0 {
		t.Error("the command is never answered")
	}
}

// invalidate-remote: the target's disk fails while it prepares.
func TestReviewInvalidateRemoteTargetFails(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdInvalidateRemote}})
	id := r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: id, Arg: uint64(Success)})
	r.peer(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Secondary), Conn: uint8(Connected), Disk: uint8(Diskless), PDisk: uint8(UpToDate)}})
	if r.cmds[7] == 0 {
		t.Error("the command is never answered, and all later ones wait behind it")
	}
}

// A peer that answers pings but no question must not hold commands for ever.
func TestReviewStateRequestTimesOut(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDisconnect}})
	for range 1200 {
		r.now += 100e6
		r.do(Event{Kind: EvTick})
		r.peer(wire.Msg{Kind: wire.KindPingAck})
	}
	if r.cmds[7] == 0 {
		t.Error("disconnect unanswered after two minutes")
	}
}

// Nor may it keep a bitmap exchange open for ever.
func TestReviewBitmapExchangeTimesOut(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Gen = Generation{Current: rigGen, Bitmap: 0xBBBB000000000000}
	r.attach(0, s)
	r.promote()
	r.connect(rigSize, wire.UUIDs{Current: 0xBBBB000000000000}, peerState(Secondary, UpToDate))
	r.expect("cs:WFBitMapS")
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdSecondary}})
	for range 3000 {
		r.now += 100e6
		r.do(Event{Kind: EvTick})
		r.peer(wire.Msg{Kind: wire.KindPingAck})
	}
	if r.cmds[7] == 0 {
		t.Error("demotion unanswered after five minutes in WFBitMapS")
	}
}

// A target with an old size takes the source's.
func TestReviewTargetTakesSourcesSize(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Flags = 0 // Inconsistent
	s.Gen.Current = UUIDJustCreated
	s.Size = 0
	r.attach(0, s)
	if got := r.n.vols[0].size; got != rigSize {
		t.Fatalf("size %d", got)
	}
	// The peer has the room, but serves 8 MiB.
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1001, Kind: CmdConnect}})
	r.do(Event{Kind: EvLinkUp, Session: r.session})
	c := &r.n.cfg.Net
	st := peerState(Secondary, UpToDate)
	r.peer(
		wire.Msg{Kind: wire.KindParams, Body: &wire.Params{Protocol: c.Protocol, AfterSB0: c.AfterSB0, AfterSB1: c.AfterSB1, AfterSB2: c.AfterSB2, Volumes: []uint16{0}}},
		wire.Msg{Kind: wire.KindSizes, Body: &wire.Sizes{Disk: rigSize, Current: 8 << 20}},
		wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen}},
		wire.Msg{Kind: wire.KindState, Body: &st},
	)
	r.expect("cs:WFBitMapT")
	if got := r.n.vols[0].size; got != 8<<20 {
		t.Errorf("target of a source that serves 8 MiB has %d bytes", got)
	}
}

// A disk that is given up is gone only when the owner says so.
func TestReviewAttachWaitsForDetach(t *testing.T) {
	defer noPanic(t)
	r := newRig(t, 'C', 1)
	r.connect(rigSize, wire.UUIDs{Current: rigGen + 2}, peerState(Secondary, UpToDate))
	r.promote()
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 4}}) // our clients saw newer data
	r.attach(0, goodSuper())
	r.expect("ds:Negotiating")
	r.hold[ActDetach] = true
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.expect("ds:Diskless")
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdSecondary}})
	r.attach(0, goodSuper())
	r.release(IOOK)
	if d := r.n.vols[0].st.Disk; d == UpToDate && r.n.vols[0].disk.bm == nil {
		t.Error("the new disk was detached with the old one")
	}
}
