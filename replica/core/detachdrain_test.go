package core

import (
	"testing"

	"replicad/wire"
)

// TestDetachWaitsForReceivedWrites: what the Primary was told we received
// reaches the disk before the disk goes, also when the link was lost meanwhile:
// the disk may come back, and this node be promoted, without the Primary.
func TestDetachWaitsForReceivedWrites(t *testing.T) {
	r := newRig(t, 'B', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
	r.hold[ActDiskWrite] = true
	r.peer(
		data(1<<16|1, 5, wire.FlagWantRecvAck),
		wire.Msg{Kind: wire.KindBarrier, Seq: 1, Arg: 1},
		data(2<<16|1, 6, wire.FlagWantRecvAck),
	)
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach}})
	for i := range 2 {
		if len(r.held) != i+1 {
			t.Fatalf("%d of 2 writes reached the disk, which is %v", len(r.held), r.n.vols[0].st.Disk)
		}
		if err, done := r.cmds[7]; done {
			t.Fatalf("detach answered (%v) with a write under way", err)
		}
		r.do(r.answer(r.held[i], IOOK)...)
	}
	if err := r.cmds[7]; err != Success {
		t.Errorf("detach: %v", err)
	}
}

// TestNoReceiptWithoutADisk: protocol B's receipt says that a write will be
// applied. Without a disk it will not.
func TestNoReceiptWithoutADisk(t *testing.T) {
	r := newRig(t, 'B', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach, Force: true}})
	r.peer(data(1<<16|1, 5, wire.FlagWantRecvAck))
	if r.lastSent(wire.KindRecvAck) != nil || r.lastSent(wire.KindNegAck) == nil {
		t.Error("a write that is lost was acknowledged")
	}
}
