package core

import "testing"

// A crash while all bits were being set: the attach sets them again, and only
// then drops the flag.
func TestAttachFinishesAFullSync(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.hold[ActMetaBitmap] = true
	s := goodSuper()
	s.Flags = FlagFullSync
	r.attach(0, s)
	if bm := r.n.vols[0].disk.bm; bm.Count() != bm.Bits() {
		t.Errorf("%d of %d bits are set", bm.Count(), bm.Bits())
	}
	if _, written := r.super[0]; written {
		t.Error("the superblock was written before the bitmap")
	}
	r.release(IOOK)
	if r.super[0].Flags&FlagFullSync != 0 {
		t.Error("the flag stays")
	}
}

// The full-sync flag is on disk for as long as the bitmap is not.
func TestFullSyncFlagOutlivesTheBitmapWrite(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.hold[ActMetaBitmap] = true
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1, Kind: CmdInvalidate}})
	if len(r.held) == 0 || r.super[0].Flags&FlagFullSync == 0 {
		t.Errorf("bitmap being written (%d actions), superblock flags %#x", len(r.held), r.super[0].Flags)
	}
	r.release(IOOK)
	if r.super[0].Flags&FlagFullSync != 0 || r.cmds[1] != Success {
		t.Errorf("flags %#x, command %v", r.super[0].Flags, r.cmds[1])
	}
}

// Clients may write as soon as a Primary has its disk back: what it writes to
// the superblock has a crash replay the activity log from the first time on.
func TestAttachUnderAPrimaryIndicates(t *testing.T) {
	r := served(t)
	r.hold[ActMetaSuper] = true
	r.attach(0, goodSuper())
	if len(r.held) == 0 || r.held[0].Super.Flags&FlagPrimaryInd == 0 {
		t.Errorf("first superblock of %d: no primary indicator", len(r.held))
	}
}

// A node that crashed as Primary says so, until both disks are good again.
func TestAttachNotesACrashedPrimary(t *testing.T) {
	r := newRig(t, 'C', 1)
	s := goodSuper()
	s.Flags |= FlagPrimaryInd
	r.attach(0, s)
	if f := r.super[0].Flags; f&FlagCrashedPrimary == 0 || f&FlagPrimaryInd != 0 {
		t.Errorf("flags %#x", f)
	}
}
