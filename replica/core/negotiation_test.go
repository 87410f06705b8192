package core

import (
	"testing"

	"replicad/wire"
)

// negotiating is a node whose disk is Negotiating with a Primary that told of
// data with the generation u.
func negotiating(t *testing.T, u wire.UUIDs) *rig {
	r := newRig(t, 'C', 1)
	r.connect(rigSize, u, peerState(Primary, UpToDate))
	r.attach(0, goodSuper())
	r.expect("ds:Negotiating/UpToDate")
	return r
}

// TestNegotiationLostToNewerData: the link goes while the disk is Negotiating
// with a peer that told of newer data. By its own metadata the disk is good;
// this node knows better, durably, and is not promoted.
func TestNegotiationLostToNewerData(t *testing.T) {
	r := negotiating(t, wire.UUIDs{Current: rigGen + 0x100, Bitmap: rigGen})
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdPrimary}})
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.expect("ds:Outdated/DUnknown")
	if err := r.cmds[7]; err != ErrNoUpToDateDisk {
		t.Errorf("promotion: %v", err)
	}
	if r.super[0].Flags&FlagWasUpToDate != 0 {
		t.Error("on disk it is good")
	}
}

// TestNegotiationLostToTheSameData: nothing said that this disk is older.
func TestNegotiationLostToTheSameData(t *testing.T) {
	for _, u := range []wire.UUIDs{{Current: rigGen}, {Current: rigGen, Flags: wire.UUIDFlagCrashedPrimary}, {Current: 0x7700, Bitmap: 0x7600}} {
		r := negotiating(t, u)
		r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
		r.expect("ds:UpToDate/DUnknown")
	}
}

// TestNewGenerationIsAnnounced: a Primary whose peer's disk goes tells it of
// the generation in which that disk falls behind.
func TestNewGenerationIsAnnounced(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.hold[ActMetaSuper] = true
	r.sent = nil
	r.peer(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(Secondary), Conn: uint8(Connected), Disk: uint8(Failed)}})
	if r.lastSent(wire.KindUUIDs) != nil {
		t.Error("announced before it is durable")
	}
	r.release(IOOK)
	m := r.lastSent(wire.KindUUIDs)
	if m == nil || masked(m.Body.(*wire.UUIDs).Current) != masked(r.super[0].Gen.Current) || masked(r.super[0].Gen.Current) == rigGen {
		t.Errorf("sent %+v, on disk %s", m, r.super[0].Gen)
	}
}
