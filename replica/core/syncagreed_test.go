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
