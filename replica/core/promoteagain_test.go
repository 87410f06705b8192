package core

import (
	"testing"

	"replicad/wire"
)

// TestPromotionDoesNotWaitForALostPeer: the peer said "try again", and the link
// goes before it answered the second time. Nothing is awaited any more: the
// node is promoted without it, and not after the half minute in which a
// handshake could have ended.
func TestPromotionDoesNotWaitForALostPeer(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1002, Kind: CmdPrimary}})
	ask := func() uint64 {
		t.Helper()
		m := r.lastSent(wire.KindStateReq)
		if m == nil {
			t.Fatalf("the peer was not asked: %v %q", r.cmds, r.logs)
		}
		r.sent = nil
		return m.Body.(*wire.StateReq).ID
	}
	transient := ErrTransient
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: ask(), Arg: uint64(transient)})
	r.later(2e8)
	ask()
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	if got := r.cmds[1002]; got != Success {
		t.Errorf("promotion: %v", got)
	}
}
