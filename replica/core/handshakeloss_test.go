package core

import (
	"testing"

	"replicad/wire"
)

// TestDiskLostInHandshake: the disk goes after the peer was told of it. The
// peer may have become its target and Outdated, while we would still count it
// as UpToDate and serve from it: both meet anew.
func TestDiskLostInHandshake(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1001, Kind: CmdConnect}})
	r.do(Event{Kind: EvLinkUp, Session: r.session})
	first := r.session
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach, Force: true}})
	r.expect("cs:WFConnection ro:Secondary/Unknown ds:Diskless/DUnknown")
	if r.session == first {
		t.Error("no new session")
	}
}

// TestNoPrimaryOnAnOutdatedDisk: a node without a disk asks to be Primary in
// the belief that ours is good. It is not.
func TestNoPrimaryOnAnOutdatedDisk(t *testing.T) {
	s := goodSuper()
	s.Flags = FlagConsistent // and not FlagWasUpToDate: Outdated
	r := newRig(t, 'C', 1)
	r.attach(0, s)
	r.connect(rigSize, wire.UUIDs{}, peerState(Secondary, Diskless))
	r.expect("ds:Outdated/Diskless")
	r.peer(wire.Msg{Kind: wire.KindStateReq, Body: &wire.StateReq{ID: 9, Vol: -1, Role: uint8(Primary)}})
	if m := r.lastSent(wire.KindStateReply); m == nil || StateErr(int64(m.Arg)) != ErrNoUpToDateDisk {
		t.Errorf("reply %+v", m)
	}
}

// TestNoResyncFromAnOutdatedDisk: a node that knows that its data is old meets a
// new, empty disk. The better data may have been on the one that it replaces:
// that the old data will do is for an administrator to say.
func TestNoResyncFromAnOutdatedDisk(t *testing.T) {
	s := goodSuper()
	s.Flags = FlagConsistent
	r := newRig(t, 'C', 1)
	r.attach(0, s)
	fresh := wire.UUIDs{Current: UUIDJustCreated, Flags: wire.UUIDFlagInconsistent}
	r.connect(rigSize, fresh, peerState(Secondary, Inconsistent))
	r.expect("cs:StandAlone ro:Secondary/Unknown ds:Outdated/DUnknown")
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 9, Kind: CmdPrimary, Force: true}})
	if err := r.cmds[9]; err != Success {
		t.Fatalf("primary --force: %v", err)
	}
	r.connect(rigSize, fresh, peerState(Secondary, Inconsistent))
	r.expect("cs:WFBitMapS ro:Primary/Secondary ds:UpToDate/Inconsistent")
}
