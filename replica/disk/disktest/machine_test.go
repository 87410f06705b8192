package disktest

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"replicad/replica/disk"
)

// inTheMiddle runs f once, in the pause of the next operation of this kind.
func inTheMiddle(m *Machine, op Op, f func()) {
	m.SetPause(func(which Op) {
		if which != op {
			return
		}
		m.SetPause(nil)
		f()
	})
}

// mayLose crashes copies of the disk until the sector falls back, and reports
// whether it ever does.
func mayLose(m *Mem, off int64, newest byte) bool {
	for seed := range uint64(64) {
		c := m.Clone()
		c.Crash(rand.New(rand.NewPCG(seed, 0)))
		p := make([]byte, 1)
		if _, err := c.ReadAt(p, off); err != nil || p[0] != newest {
			return true
		}
	}
	return false
}

// TestSyncCoversWhatReturnedBeforeIt: a write that is under way when the sync is
// called is not covered, whichever of them ends first.
func TestSyncCoversWhatReturnedBeforeIt(t *testing.T) {
	m := New(1 << 20)
	mustWrite(t, m, 0, filled(sector, 1))
	inTheMiddle(m.Machine, Write, func() {
		if err := m.Sync(); err != nil {
			t.Error(err)
		}
	})
	mustWrite(t, m, 4096, filled(sector, 2)) // a sync comes and goes in its middle
	inTheMiddle(m.Machine, Sync, func() { mustWrite(t, m, 8192, filled(sector, 3)) })
	if err := m.Sync(); err != nil { // a write comes and goes in its middle
		t.Fatal(err)
	}
	for _, c := range []struct {
		off   int64
		fill  byte
		loses bool
	}{{0, 1, false}, {4096, 2, false}, {8192, 3, true}} {
		if got := mayLose(m, c.off, c.fill); got != c.loses {
			t.Errorf("write at %d may be lost: %v, want %v", c.off, got, c.loses)
		}
	}

	other := New(1 << 20)
	inTheMiddle(other.Machine, Write, func() {
		if err := other.Sync(); err != nil {
			t.Error(err)
		}
	})
	mustWrite(t, other, 0, filled(sector, 1))
	if !mayLose(other, 0, 1) {
		t.Error("a sync covers a write that had not returned when it was called")
	}
}

// TestDurableWriteCoversItsOwnRange, and neither what was written around it nor
// what overwrites it meanwhile.
func TestDurableWriteCoversItsOwnRange(t *testing.T) {
	m := New(1 << 20)
	mustWrite(t, m, 0, filled(3*sector, 1))
	inTheMiddle(m.Machine, WriteDurable, func() { mustWrite(t, m, 2*sector, filled(sector, 3)) })
	if _, err := m.WriteDurable(filled(2*sector, 2), sector); err != nil {
		t.Fatal(err)
	}
	if !mayLose(m, 0, 1) {
		t.Error("a durable write made its neighbour durable")
	}
	for seed := range uint64(64) {
		c := m.Clone()
		c.Crash(rand.New(rand.NewPCG(seed, 0)))
		got := mustRead(t, c, sector, 2*sector)
		if got[0] != 2 || got[sector] != 2 && got[sector] != 3 {
			t.Fatalf("after the crash: %d and %d", got[0], got[sector])
		}
	}
}

// TestMachineLosesPowerAsOne: the cut strikes all disks at the operation that was
// planned, the hook runs before anybody notices, and who had a disk open does
// not reach it after the power is back.
func TestMachineLosesPowerAsOne(t *testing.T) {
	m := NewMachine()
	data, log := m.NewDisk(1<<20), m.NewDisk(1<<20)
	d, err := data.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := data.Open(); err == nil {
		t.Error("a disk was opened twice")
	}
	cuts := 0
	m.OnCut(func() { cuts++ })
	m.CutPowerAt(Sync, 1)
	for range 2 {
		if _, err := d.WriteAt(filled(sector, 1), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := log.WriteAt(filled(sector, 1), 0); err != nil {
			t.Fatal(err)
		}
		if err := log.Sync(); (err == nil) != (cuts == 0) {
			t.Fatalf("sync: %v after %d cuts", err, cuts)
		}
	}
	if _, err := d.ReadAt(make([]byte, sector), 0); !errors.Is(err, ErrPowerCut) || cuts != 1 || !m.Off() {
		t.Fatalf("read of the other disk: %v, %d cuts", err, cuts)
	}
	m.Crash(rand.New(rand.NewPCG(1, 1)))
	if _, err := d.WriteAt(filled(sector, 9), 0); !errors.Is(err, ErrPowerCut) {
		t.Errorf("a write from before the cut: %v", err)
	}
	again, err := data.Open()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, sector)
	if _, err := again.ReadAt(p, 0); err != nil || p[0] == 9 {
		t.Errorf("after the cut: %v, %d", err, p[0])
	}
	if cuts != 1 {
		t.Errorf("%d cuts", cuts)
	}
}

// TestCutHitsWhatIsUnderWay: an operation that the cut catches in its middle fails,
// and may have left any of its sectors.
func TestCutHitsWhatIsUnderWay(t *testing.T) {
	m := New(1 << 20)
	inTheMiddle(m.Machine, Write, m.CutPower)
	if _, err := m.WriteAt(filled(4*sector, 1), 0); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("write: %v", err)
	}
	if m.Unsynced() == 0 {
		t.Error("nothing of the write reached the cache")
	}
	m.Crash(rand.New(rand.NewPCG(1, 0)))
	mustWrite(t, m, 0, filled(sector, 2))
	inTheMiddle(m.Machine, Sync, func() {
		m.CutPower()
		m.Machine.Crash(rand.New(rand.NewPCG(1, 0)))
	})
	if err := m.Sync(); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("sync over a power cut: %v", err)
	}
}

func TestKillKeepsWhatWasWritten(t *testing.T) {
	m := New(1 << 20)
	d, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(filled(sector, 1), 0); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	if err := d.Sync(); !errors.Is(err, ErrPowerCut) {
		t.Errorf("sync by who was killed: %v", err)
	}
	if _, err := m.Open(); err != nil {
		t.Fatal(err)
	}
	if p := mustRead(t, m, 0, sector); p[0] != 1 || m.Unsynced() != 1 {
		t.Errorf("after a kill the sector holds %d, %d unsynced", p[0], m.Unsynced())
	}
}

func TestFailedSyncIsFinalForOneUser(t *testing.T) {
	m := New(1 << 20)
	m.Inject(Fault{Ops: Sync, Err: unix.EIO})
	d, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	var failed *disk.SyncError
	if err := d.Sync(); !errors.As(err, &failed) {
		t.Fatalf("sync: %v", err)
	}
	if _, err := d.WriteDurable(filled(sector, 1), 0); err != error(failed) {
		t.Errorf("durable write after a failed sync: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = m.Open(); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Errorf("sync of who opened it again: %v", err)
	}
}
