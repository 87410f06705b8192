package core

import (
	"testing"

	"replicad/wire"
)

// TestFlushAfterReconnectAsksThePeer: a Primary without a disk loses its link
// after a write completed, and finds the same peer again. What that acked may
// be in its page cache only, so the next flush must ask it (P5), though
// nothing was written in this session.
func TestFlushAfterReconnectAsksThePeer(t *testing.T) {
	r := served(t)
	// The peer, serving alone, has begun a generation of its own.
	good := wire.UUIDs{Current: rigGen + 2, Bitmap: rigGen}
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &good})
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.mustHave(1)
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropBrokenPipe})
	r.shake(rigSize, good, peerState(Secondary, UpToDate))
	r.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	r.sent = nil
	r.do(Event{Kind: EvFlush, Buf: 2})
	r.mustNotHave(2)
	b := r.lastSent(wire.KindBarrier)
	if b == nil {
		t.Fatal("no barrier was sent")
	}
	r.peer(wire.Msg{Kind: wire.KindBarrierAck, Seq: b.Seq, Arg: b.Arg})
	r.mustHave(2)
	if got := r.results[2]; got != IOOK {
		t.Errorf("flush: %v", got)
	}
}
