package core

import (
	"testing"

	"replicad/wire"
)

// change takes the core from one state to another without what led there.
func (r *rig) change(edit func(*State)) {
	r.n.out = nil
	r.n.change(r.n.vols[0], edit)
	out := r.n.out
	r.n.out = nil
	for _, a := range out {
		r.take(a)
	}
	r.do()
}

// TestFlushOutlivesTheResyncAndThePeer: a flush begins while only the peer's
// disk is good. The resync ends, and then the peer is lost before it confirmed.
// By now the own disk has everything: it is flushed, and an error is its own.
func TestFlushOutlivesTheResyncAndThePeer(t *testing.T) {
	for _, result := range []IOResult{IOOK, IOError} {
		r := goodPrimary(t, 'C')
		v := r.n.vols[0]
		r.change(func(s *State) { s.Conn, s.Disk = SyncTarget, Inconsistent })
		r.do(Event{Kind: EvWrite, Buf: 4, Len: 4096})
		r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
		r.do(Event{Kind: EvFlush, Buf: 5})
		r.mustNotHave(5)
		r.change(func(s *State) { s.Conn, s.Disk = Connected, UpToDate })
		v.disk.unflushed = true
		r.hold[ActDiskFlush] = true
		r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
		r.mustNotHave(5)
		r.release(result)
		if got, done := r.results[5]; !done || got != result {
			t.Errorf("flush: %v (answered: %v), the disk said %v", got, done, result)
		}
	}
}
