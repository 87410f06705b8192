package disktest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"replicad/replica/disk"
)

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func mustWrite(t testing.TB, m *Mem, off int64, p []byte) {
	t.Helper()
	if _, err := m.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, m *Mem, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := m.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCrashModel writes random ranges, syncs now and then, crashes, and checks
// that each sector holds its content at the last sync or one written since.
func TestCrashModel(t *testing.T) {
	const sectors = 24
	rapid.Check(t, func(t *rapid.T) {
		m := New(sectors * sector)
		allowed := make([][]byte, sectors) // fill bytes a sector may have, newest last
		for i := range allowed {
			allowed[i] = []byte{0}
		}
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			first := rapid.IntRange(0, sectors-1).Draw(t, "first")
			n := rapid.IntRange(1, sectors-first).Draw(t, "sectors")
			fill := byte(step + 1)
			p, off := filled(n*sector, fill), int64(first)*sector
			switch rapid.SampledFrom([]string{"write", "durable", "sync", "zero"}).Draw(t, "op") {
			case "write":
				_, _ = m.WriteAt(p, off)
				for i := first; i < first+n; i++ {
					allowed[i] = append(allowed[i], fill)
				}
			case "durable":
				_, _ = m.WriteDurable(p, off)
				for i := first; i < first+n; i++ {
					allowed[i] = []byte{fill}
				}
			case "zero":
				_ = m.WriteZeroes(off, int64(n*sector), false)
				for i := first; i < first+n; i++ {
					allowed[i] = append(allowed[i], 0)
				}
			case "sync":
				_ = m.Sync()
				for i, fills := range allowed {
					allowed[i] = fills[len(fills)-1:]
				}
			}
		}
		for i, fills := range allowed {
			if got := sectorFill(t, m, i); got != fills[len(fills)-1] {
				t.Fatalf("sector %d reads %d before the crash, want %v", i, got, fills)
			}
		}
		m.Crash(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		for i, fills := range allowed {
			if got := sectorFill(t, m, i); !bytes.Contains(fills, []byte{got}) {
				t.Fatalf("sector %d holds %d after the crash, allowed %v", i, got, fills)
			}
		}
	})
}

// sectorFill returns the byte a sector is filled with; a mix is a failure.
func sectorFill(t *rapid.T, m *Mem, i int) byte {
	p := make([]byte, sector)
	if _, err := m.ReadAt(p, int64(i)*sector); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, filled(sector, p[0])) {
		t.Fatalf("sector %d is torn inside", i)
	}
	return p[0]
}

// TestCrashTearsAndKeeps checks that the coin really falls on both sides, and
// that a seed replays.
func TestCrashTearsAndKeeps(t *testing.T) {
	outcome := func(seed uint64) []byte {
		m := New(1 << 20)
		mustWrite(t, m, 0, filled(1<<20, 7))
		m.Crash(rand.New(rand.NewPCG(seed, 0)))
		return mustRead(t, m, 0, 1<<20)
	}
	a, again, b := outcome(1), outcome(1), outcome(2)
	if !bytes.Equal(a, again) {
		t.Error("the same seed gave different crashes")
	}
	if bytes.Equal(a, b) {
		t.Error("two seeds gave the same crash")
	}
	lost := bytes.Count(a, []byte{0})
	if lost < 1<<18 || lost > 3<<18 {
		t.Errorf("lost %d of %d bytes, want about half", lost, 1<<20)
	}
}

func TestPowerCut(t *testing.T) {
	m := New(1 << 20)
	m.CutPowerAfter(2)
	mustWrite(t, m, 0, filled(512, 1))
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WriteAt(filled(512, 2), 512); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("third operation: %v, want a power cut", err)
	}
	if _, err := m.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("read without power: %v", err)
	}
	if m.Unsynced() != 1 {
		t.Errorf("%d unsynced sectors, want the one cut off", m.Unsynced())
	}
	m.Crash(rand.New(rand.NewPCG(0, 0)))
	if got := mustRead(t, m, 0, 512); got[0] != 1 {
		t.Error("a synced sector was lost")
	}
	if m.Unsynced() != 0 {
		t.Error("unsynced sectors after a crash")
	}
}

func TestFaults(t *testing.T) {
	m := New(1 << 20)
	m.Inject(Fault{Ops: AnyWrite, Off: 4096, Len: 4096, Skip: 1, Err: unix.EIO})
	mustWrite(t, m, 0, filled(4096, 1))
	mustWrite(t, m, 4096, filled(4096, 1))
	if n, err := m.WriteAt(filled(8192, 2), 0); !errors.Is(err, unix.EIO) || n != 4096 {
		t.Errorf("second write to the bad range: %d, %v, want half and EIO", n, err)
	}
	mustWrite(t, m, 4096, filled(4096, 3))

	m.Inject(Fault{Ops: Read, Sticky: true, Err: unix.EIO})
	for range 3 {
		if _, err := m.ReadAt(make([]byte, 512), 0); !errors.Is(err, unix.EIO) {
			t.Errorf("sticky read fault: %v", err)
		}
	}
	m.ClearFaults()
	mustRead(t, m, 0, 512)
}

func TestFailedSyncIsFinal(t *testing.T) {
	m := New(1 << 20)
	mustWrite(t, m, 0, filled(512, 9))
	m.Inject(Fault{Ops: Sync, Err: unix.EIO})
	var first *disk.SyncError
	if err := m.Sync(); !errors.As(err, &first) || !errors.Is(err, unix.EIO) {
		t.Fatalf("sync: %v", err)
	}
	if err := m.Sync(); err != error(first) {
		t.Errorf("second sync: %v, want the first error", err)
	}
	if _, err := m.WriteDurable(filled(512, 9), 0); err != error(first) {
		t.Errorf("durable write after a failed sync: %v", err)
	}
	if m.Unsynced() != 1 {
		t.Error("a failed sync made data durable")
	}
}

func TestCloneIsIndependent(t *testing.T) {
	m := New(1 << 20)
	mustWrite(t, m, 0, filled(512, 1))
	c := m.Clone()
	mustWrite(t, m, 0, filled(512, 2))
	if got := mustRead(t, c, 0, 512); got[0] != 1 {
		t.Error("a write to the original changed the clone")
	}
	if c.Unsynced() != 1 {
		t.Error("the clone forgot that the sector is unsynced")
	}
}

func TestCloseAndReopen(t *testing.T) {
	m := New(1 << 20)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(); !errors.Is(err, disk.ErrClosed) {
		t.Errorf("sync of a closed device: %v", err)
	}
	m.Reopen()
	mustWrite(t, m, 0, filled(512, 1))
}
