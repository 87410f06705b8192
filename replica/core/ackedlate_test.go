package core

import (
	"testing"

	"replicad/wire"
)

// TestAckedWriteCompletesInTheNewGeneration: the peer acked a write, the link
// goes, and only then the local disk answers. If it completed before the new
// generation id is durable and this node crashed, a peer that lost the write
// with its power would discard it without a split brain.
func TestAckedWriteCompletesInTheNewGeneration(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.hold[ActDiskWrite] = true
	r.do(Event{Kind: EvWrite, Buf: 2, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	write := r.held
	r.held, r.hold = nil, map[ActionKind]bool{ActMetaSuper: true}
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropBrokenPipe})
	r.do(r.answer(write[0], IOOK)...)
	r.mustNotHave(2)
	r.release(IOOK)
	r.mustHave(1, 2)
}
