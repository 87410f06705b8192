package core

import (
	"testing"

	"replicad/wire"
)

func (r *rig) state(role Role, disk Disk) wire.Msg {
	return wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: uint8(role), Conn: uint8(Connected), Disk: uint8(disk)}}
}

func (r *rig) detach() {
	r.t.Helper()
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach, Force: true}})
	if r.cmds[7] != Success {
		r.t.Fatalf("detach: %v", r.cmds[7])
	}
}

// TestPrimaryTakesItsDiskBack: both disks went, and the Primary's comes back.
// The peer's is of the same generation: writes from now on must not be.
func TestPrimaryTakesItsDiskBack(t *testing.T) {
	for _, connected := range []bool{true, false} {
		r := goodPrimary(t, 'C')
		r.detach()
		r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen}}, r.state(Secondary, Diskless))
		r.attach(0, r.super[0])
		if connected {
			r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{}}, r.state(Secondary, Diskless))
			r.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/Diskless")
		} else {
			r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
			r.expect("ro:Primary/Unknown ds:UpToDate/DUnknown")
		}
		r.do(Event{Kind: EvWrite, Buf: 5, Len: 4096})
		r.mustHave(5)
		if g := r.super[0].Gen; masked(g.Current) == rigGen || masked(g.Bitmap) != rigGen {
			t.Errorf("connected %v: the write completed in the generation %s", connected, g)
		}
	}
}

// TestPrimaryTakesNoOldDiskBack: the peer served the Primary alone, and then
// lost its disk too. What the Primary's own disk holds is older than what its
// clients saw.
func TestPrimaryTakesNoOldDiskBack(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.detach()
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 0x100, Bitmap: rigGen}})
	r.do(Event{Kind: EvWrite, Buf: 5, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.mustHave(5)
	r.attach(0, r.super[0])
	r.expect("ds:Negotiating/UpToDate")
	r.peer(r.state(Secondary, Diskless))
	r.expect("ds:Diskless/Diskless")
	r.attach(0, r.super[0])
	r.expect("ds:Diskless/Diskless")
	if err := r.cmds[1000]; err != ErrDataNotCurrent {
		t.Errorf("attach: %v", err)
	}
}

// TestPrimaryRefusesWhatAnotherWrote: a Primary that was the target of a resync
// lost the link, then its disk. The peer was promoted meanwhile. Its new
// generation is not one in which it served this Primary.
func TestPrimaryRefusesWhatAnotherWrote(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 8, Kind: CmdInvalidate}})
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID, Arg: uint64(Success)})
	r.expect("ro:Primary/Secondary ds:Inconsistent/UpToDate")
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.detach()
	r.shake(rigSize, wire.UUIDs{Current: rigGen + 0x100, Bitmap: rigGen}, peerState(Secondary, UpToDate))
	r.expect("cs:StandAlone ro:Primary/Unknown ds:Diskless/DUnknown")
}

// TestLonePrimaryTakesNoFailedDiskBack: without a peer, a Primary's disk that
// failed may have lost what was in its cache.
func TestLonePrimaryTakesNoFailedDiskBack(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
	r.do(Event{Kind: EvWrite, Buf: 5, Len: 4096})
	r.hold[ActDiskFlush] = true
	r.do(Event{Kind: EvFlush, Buf: 6})
	r.release(IOError)
	r.attach(0, r.super[0])
	r.expect("ds:Diskless/DUnknown")
	if err := r.cmds[1000]; err != ErrDataNotCurrent {
		t.Errorf("attach: %v", err)
	}
}

// TestPrimaryKnowsItsHeir: a Primary's disk went, and then the link, before it
// heard of the generation in which the peer serves it alone. It takes that one
// up, and not what the peer wrote as a Primary of its own after that.
func TestPrimaryKnowsItsHeir(t *testing.T) {
	for _, c := range []struct {
		peer wire.UUIDs
		want string
	}{
		{wire.UUIDs{Current: rigGen + 0x100, Bitmap: rigGen, H1: 0x7700}, "cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate"},
		{wire.UUIDs{Current: rigGen + 0x200, Bitmap: rigGen, H1: rigGen + 0x100, H2: 0x7700}, "cs:StandAlone"},
	} {
		s := goodSuper()
		s.Gen.H1 = 0x7700
		r := newRig(t, 'C', 1)
		r.attach(0, s)
		r.connect(rigSize, wire.UUIDs{Current: rigGen, H1: 0x7700}, peerState(Secondary, UpToDate))
		r.promote()
		r.detach()
		r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropPing})
		r.shake(rigSize, c.peer, peerState(Secondary, UpToDate))
		r.expect(c.want)
	}
}
