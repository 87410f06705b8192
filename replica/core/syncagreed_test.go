package core

import (
	"testing"

	"replicad/wire"
)

// TestAgreedResyncOutlivesOwnRequests: this node agreed to be the source of a
// full sync; the target is getting ready. Requests of its own for another one
// are refused, here or there, and must not make it forget that: the target
// would wait for ever.
func TestAgreedResyncOutlivesOwnRequests(t *testing.T) {
	theirs := wire.Msg{Kind: wire.KindStateReq, Body: &wire.StateReq{ID: 3, Vol: 0, Conn: uint8(StartingSyncT)}}
	ready := wire.Msg{Kind: wire.KindState, Body: &wire.State{
		Role: uint8(Primary), Peer: uint8(Secondary), Conn: uint8(WFSyncUUID), Disk: uint8(Inconsistent), PDisk: uint8(UpToDate),
	}}
	for _, kind := range []CommandKind{CmdInvalidate, CmdInvalidateRemote} {
		for _, first := range []bool{true, false} {
			r := newRig(t, 'C', 1)
			r.attach(0, goodSuper())
			r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
			own := Event{Kind: EvCommand, Cmd: &Command{ID: 5, Kind: kind}}
			if first {
				r.do(own)
			}
			r.peer(theirs)
			agreed := StateErr(int64(r.lastSent(wire.KindStateReply).Arg)) == Success
			if !first {
				r.do(own)
			}
			if m := r.lastSent(wire.KindStateReq); m != nil {
				refused := ErrConcurrent
				r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: m.Body.(*wire.StateReq).ID, Arg: uint64(refused)})
			}
			if err := r.cmds[5]; !err.Failed() {
				t.Errorf("command %d, first %v: own request: %v", kind, first, err)
			}
			if !agreed {
				continue
			}
			r.peer(ready)
			if c := r.n.vols[0].st.Conn; c != SyncSource {
				t.Errorf("command %d, first %v: the target waits, we are %v", kind, first, c)
			}
		}
	}
}

// TestSourceLostBeforeTheResyncBegan: the peer was allowed to give its data up
// for ours, and our disk goes. Our clients must not be served from the peer's
// disk as if it were good, which only meeting anew can tell.
func TestSourceLostBeforeTheResyncBegan(t *testing.T) {
	r := goodPrimary(t, 'C')
	first := r.session
	r.peer(wire.Msg{Kind: wire.KindStateReq, Body: &wire.StateReq{ID: 3, Vol: 0, Conn: uint8(StartingSyncT)}})
	if m := r.lastSent(wire.KindStateReply); StateErr(int64(m.Arg)) != Success {
		t.Fatalf("reply: %+v", m)
	}
	r.detach()
	if r.session == first {
		t.Errorf("still connected: %v", r.n.vols[0].st)
	}
	r.do(Event{Kind: EvWrite, Buf: 5, Len: 4096})
	if got := r.results[5]; got == IOOK {
		t.Error("a write completed, and no good disk has it")
	}
}
