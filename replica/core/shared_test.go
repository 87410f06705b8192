package core

import (
	"testing"

	"replicad/wire"
)

// TestSharedGenerationSurvivesADisklessPeer: a killed source comes back, and
// its former target, which may be UpToDate in the same generation, connects
// without its disk. That compares nothing: a promotion must leave the
// generation before a write completes alone in it.
func TestSharedGenerationSurvivesADisklessPeer(t *testing.T) {
	const syncID = 0xBBBB000000000000
	s := goodSuper()
	s.Gen.Bitmap = syncID
	s.Flags |= FlagPeerOutdated
	r := newRig(t, 'C', 1)
	r.attach(0, s)
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, Diskless))
	r.expect("cs:Connected ro:Secondary/Secondary ds:UpToDate/Diskless")
	r.promote()
	if got := masked(r.super[0].Gen.Current); got == rigGen {
		t.Errorf("promoted in generation %016X, which the peer's disk may have too", got)
	}
}

// TestDisklessPromotionIsReported: a report that was sent before the promotion
// was asked for may reach the peer after its consent. The peer then takes us
// for a Secondary and would serve our writes without a new generation and
// without its indicator: after a crash nothing would say what may differ.
// Found by seed 7978.
func TestDisklessPromotionIsReported(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.promote()
	r.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	if s, ok := r.lastSent(wire.KindState).Body.(*wire.State); !ok || Role(s.Role) != Primary {
		t.Errorf("the last report says %+v", s)
	}
}
