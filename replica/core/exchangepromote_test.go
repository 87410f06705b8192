package core

import (
	"testing"

	"replicad/wire"
)

// TestPromotedWhileThePeerBecomesATarget: the peer agrees to a promotion, and
// its disk, of the same generation, turns out to be the target of a resync
// just then. Until it has put that on record, clients' writes are announced to
// it only: they must be of a generation that it does not have. Otherwise it
// could be promoted after a crash of both, and discard them without a split brain.
func TestPromotedWhileThePeerBecomesATarget(t *testing.T) {
	s := goodSuper()
	s.Flags |= FlagPrimaryInd // crashed as Primary: the source where generations are equal
	r := newRig(t, 'C', 1)
	r.attach(0, s)
	r.connect(rigSize, wire.UUIDs{}, peerState(Secondary, Diskless))
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1002, Kind: CmdPrimary}})
	ask := r.lastSent(wire.KindStateReq)
	r.peer(
		wire.Msg{Kind: wire.KindSizes, Body: &wire.Sizes{Disk: rigSize, Current: rigSize}},
		wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen}},
		wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Secondary), Conn: uint8(Connected), Disk: uint8(Negotiating)}},
	)
	r.expect("cs:WFBitMapS")
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: ask.Body.(*wire.StateReq).ID, Arg: uint64(Success)})
	r.expect("cs:WFBitMapS ro:Primary/Secondary")
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096})
	r.mustHave(1)
	if g := r.super[0].Gen; masked(g.Current) == rigGen || g.Bitmap != rigGen {
		t.Errorf("the write completed in the generation %s", g)
	}
}
