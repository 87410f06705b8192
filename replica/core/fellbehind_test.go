package core

import (
	"testing"

	"replicad/wire"
)

// TestFailedDiskIsBehind: a Secondary's disk fails, and the Primary goes on
// without it. Some of the Primary's writes are there and others are not. Its
// superblock says so with the last write to it: should the disk come back
// without the Primary, it is not good.
func TestFailedDiskIsBehind(t *testing.T) {
	for _, protocol := range []byte{'A', 'B', 'C'} {
		flags := map[byte]uint16{'B': wire.FlagWantRecvAck, 'C': wantAck}[protocol]
		r := newRig(t, protocol, 1)
		r.attach(0, goodSuper())
		r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
		r.failDisk(data(1<<16|1, 5, flags), data(2<<16|1, 6, flags))
		r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
		r.attach(0, r.super[0])
		r.expect("ds:Outdated/DUnknown")
		r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 9, Kind: CmdPrimary}})
		if err := r.cmds[9]; err != ErrNoUpToDateDisk {
			t.Errorf("protocol %c: promotion: %v", protocol, err)
		}
	}
}

// TestReceivedWriteThatFails: the link is gone when a write that the Primary
// counts as done (protocol B) finds the disk broken.
func TestReceivedWriteThatFails(t *testing.T) {
	r := newRig(t, 'B', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
	r.hold[ActDiskWrite] = true
	r.peer(data(1<<16|1, 5, wire.FlagWantRecvAck))
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.release(IOError)
	r.attach(0, r.super[0])
	r.expect("ds:Outdated/DUnknown")
}

// TestFailedOnlyDiskIsNotBehind: of what a Primary without a disk was told,
// everything is here; the write that failed was answered so.
func TestFailedOnlyDiskIsNotBehind(t *testing.T) {
	r := serving(t)
	r.failDisk(data(1<<16|1, 7, wantAck))
	if r.super[0].Flags&FlagWasUpToDate == 0 {
		t.Error("the only copy counts as old")
	}
}
