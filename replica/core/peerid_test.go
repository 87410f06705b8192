package core

import (
	"testing"

	"replicad/wire"
)

// TestWriteWaitsForThePeersNewID: the local disk fails under a write that the
// peer has. If it completed at once, and both nodes then crashed, the disk
// that failed could come back good with the id that the peer still has, be
// promoted, and discard the write without a split brain.
func TestWriteWaitsForThePeersNewID(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.hold[ActDiskWrite] = true
	r.do(Event{Kind: EvWrite, Buf: 2, Len: 4096}, Event{Kind: EvWrite, Buf: 3, Off: 1 << 20, Len: 4096})
	for _, m := range r.sent {
		if m.Kind == wire.KindData {
			r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: m.Seq})
		}
	}
	r.release(IOError)
	r.expect("ds:Diskless/UpToDate")
	r.mustHave(1)
	r.mustNotHave(2, 3)
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 2, Bitmap: rigGen}})
	r.mustHave(2, 3)
}

// TestWriteWaitsInVain: the link goes before the peer's new id came. Nobody
// knows whether the write will be there.
func TestWriteWaitsInVain(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.hold[ActDiskWrite] = true
	r.do(Event{Kind: EvWrite, Buf: 2, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.release(IOError)
	r.mustNotHave(2)
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropBrokenPipe})
	if got, ok := r.results[2]; !ok || got == IOOK {
		t.Errorf("write: %v, answered %v", got, ok)
	}
}
