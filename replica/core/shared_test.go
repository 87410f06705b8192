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
