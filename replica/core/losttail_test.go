package core

import (
	"testing"

	"replicad/wire"
)

// sentWrite is a write that completed under protocol A: it is on the own disk,
// and on its way to the peer.
func (r *rig) sentWrite(buf Buf) {
	r.t.Helper()
	r.do(Event{Kind: EvWrite, Buf: buf, Len: 4096})
	r.do(Event{Kind: EvSent, Session: r.session, Seq: r.lastSent(wire.KindData).Seq})
	r.mustHave(buf)
}

// TestLostTail: protocol A. A Primary's disk goes while a completed write is on
// its way to the peer, and then the link. The peer's data is not what the clients
// saw; the write is on the disk that went, and must not be overwritten unasked.
func TestLostTail(t *testing.T) {
	r := goodPrimary(t, 'A')
	r.sentWrite(5)
	r.detach()
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.shake(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.expect("cs:StandAlone ro:Primary/Unknown ds:Diskless/DUnknown")
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 8, Kind: CmdSecondary}})
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.expect("cs:Connected ro:Secondary/Secondary ds:Diskless/UpToDate")
}

// TestRefusedTail: the same, and the peer's disk refuses the write.
func TestRefusedTail(t *testing.T) {
	r := goodPrimary(t, 'A')
	r.sentWrite(5)
	seq := r.lastSent(wire.KindData).Seq
	r.detach()
	r.peer(wire.Msg{Kind: wire.KindNegAck, Seq: seq, Len: 4096}, r.state(Secondary, Diskless))
	r.peer(
		wire.Msg{Kind: wire.KindSizes, Body: &wire.Sizes{Disk: rigSize, Current: rigSize}},
		wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen}},
		r.state(Secondary, Negotiating),
	)
	r.expect("cs:StandAlone ro:Primary/Unknown ds:Diskless/DUnknown")
}

// TestConfirmedTail: what the peer confirmed, or received before it agreed to a
// detach, is no loss.
func TestConfirmedTail(t *testing.T) {
	for _, confirmed := range []bool{true, false} {
		r := goodPrimary(t, 'A')
		r.sentWrite(5)
		if confirmed {
			r.detach()
			r.later(2e9)
			m := r.lastSent(wire.KindBarrier)
			r.peer(wire.Msg{Kind: wire.KindBarrierAck, Seq: m.Seq, Arg: m.Arg})
		} else {
			r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach}})
			ask := r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID
			r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: ask, Arg: uint64(Success)})
		}
		r.expect("ds:Diskless/UpToDate")
		r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
		r.shake(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
		r.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	}
}
