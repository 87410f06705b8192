// Package disktest provides Mem, a disk.Device in memory that can lose power
// and fail on demand. It exists for tests and the simulator.
//
// What a real disk leaves open, Mem leaves to a random source that the caller
// passes in: which of the unsynced 512-byte sectors survive a power cut, and in
// which of the versions written since the last Sync. The same calls with the
// same seed give the same bytes.
package disktest

import (
	"cmp"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"replicad/replica/disk"
)

// ErrPowerCut is returned by every operation between a power cut and Crash.
var ErrPowerCut = errors.New("power cut")

const (
	pageSize = 4096
	sector   = disk.SectorSize
)

type (
	page    [pageSize]byte
	content [sector]byte
)

// Mem is a crashable device. It keeps only pages that were written, so a
// device of many gigabytes is cheap. Methods may be called from any goroutine.
type Mem struct {
	mu     sync.Mutex
	size   int64
	pages  map[int64]*page     // what a read returns now
	undone map[int64][]content // unsynced sectors: the durable content, then older versions, oldest first
	faults []*Fault
	failed *disk.SyncError

	ops    int  // writes, syncs, discards and zeroings begun so far
	budget int  // operations left before the power cut; negative: no cut planned
	off    bool // power is off
	closed bool
}

// New returns a device of size bytes that reads as zero.
func New(size int64) *Mem {
	return &Mem{size: size, pages: map[int64]*page{}, undone: map[int64][]content{}, budget: -1}
}

// Size implements disk.Device.
func (m *Mem) Size() int64 { return m.size }

// ReadAt implements disk.Device.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(Read, off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		done += m.readPart(p[done:], off+int64(done))
	}
	return len(p), nil
}

// WriteAt implements disk.Device.
func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.change(Write, p, off)
}

// WriteDurable implements disk.Device. A power cut during it may tear it like
// any other write.
func (m *Mem) WriteDurable(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return 0, m.failed
	}
	n, err := m.change(WriteDurable, p, off)
	if err != nil {
		return n, err
	}
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		delete(m.undone, s)
	}
	return n, nil
}

// Sync implements disk.Device. Like the real one it never succeeds again after
// it failed, and what was unsynced then stays unsynced.
func (m *Mem) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	if err := m.begin(Sync, 0, 0); err != nil {
		if !errors.Is(err, ErrPowerCut) && !errors.Is(err, disk.ErrClosed) {
			m.failed = &disk.SyncError{Err: err}
			return m.failed
		}
		return err
	}
	clear(m.undone)
	return nil
}

// Discard implements disk.Device; discarded sectors read as zero.
func (m *Mem) Discard(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.zero(Discard, off, n)
}

// WriteZeroes implements disk.Device.
func (m *Mem) WriteZeroes(off, n int64, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.zero(WriteZeroes, off, n)
}

// Close implements disk.Device. Reopen undoes it.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return disk.ErrClosed
	}
	m.closed = true
	return nil
}

// Reopen makes a closed device usable again; unsynced data stays unsynced, as
// the page cache of a living host does when a process dies.
func (m *Mem) Reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = false
}

// Clone returns an independent device with the same content, durable and not,
// and no planned fault or power cut.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := New(m.size)
	for i, p := range m.pages {
		c.pages[i] = new(*p)
	}
	for s, versions := range m.undone {
		c.undone[s] = slices.Clone(versions)
	}
	return c
}

// Ops returns how many writes, syncs, discards and zeroings have begun.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Unsynced returns how many sectors a power cut could take back now.
func (m *Mem) Unsynced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.undone)
}

// CutPowerAfter plans a power cut: n more operations of those that Ops counts
// complete, the next one is cut off half done and fails with ErrPowerCut, and
// so does every operation from then until Crash.
func (m *Mem) CutPowerAfter(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.budget = n
}

// Crash cuts the power and restores it. Each unsynced sector, in ascending
// order, keeps its newest content or falls back to an older one, by rng. The
// device comes back open, synced and without failures other than those
// injected as sticky.
func (m *Mem) Crash(rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range slices.SortedFunc(maps.Keys(m.undone), cmp.Compare) {
		if versions := m.undone[s]; rng.IntN(2) == 0 {
			*m.sector(s) = versions[rng.IntN(len(versions))]
		}
	}
	clear(m.undone)
	m.failed, m.off, m.closed, m.budget = nil, false, false, -1
}

// begin admits an operation: power, life, range, then injected faults. It is
// called with mu held, like every function below.
func (m *Mem) begin(op Op, off, n int64) error {
	switch {
	case m.off:
		return ErrPowerCut
	case m.closed:
		return disk.ErrClosed
	}
	if err := disk.CheckRange(off, n, m.size); err != nil {
		return err
	}
	if op != Read {
		m.ops++
		if m.budget == 0 {
			m.off = true
			return ErrPowerCut
		}
		if m.budget > 0 {
			m.budget--
		}
	}
	return m.fault(op, off, n)
}

// change is a write of either kind. One that the power cut hits still reaches
// the cache, where Crash tears it; one that fails for another reason has
// written its first half.
func (m *Mem) change(op Op, p []byte, off int64) (int, error) {
	wasOff := m.off
	err := m.begin(op, off, int64(len(p)))
	switch {
	case err == nil:
		m.store(p, off)
		return len(p), nil
	case errors.Is(err, ErrPowerCut) && !wasOff:
		m.store(p, off)
		return 0, err
	case errors.Is(err, disk.ErrRange), errors.Is(err, disk.ErrClosed), wasOff:
		return 0, err
	}
	half := len(p) / 2
	m.store(p[:half], off)
	return half, err
}

func (m *Mem) zero(op Op, off, n int64) error {
	if err := m.begin(op, off, n); err != nil {
		return err
	}
	var zeroes page
	for done := int64(0); done < n; {
		part := min(n-done, pageSize)
		m.store(zeroes[:part], off+done)
		done += part
	}
	return nil
}

// store changes what reads return and remembers what a crash may bring back.
func (m *Mem) store(p []byte, off int64) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		s, within := at/sector, at%sector
		data := m.sector(s)
		m.undone[s] = append(m.undone[s], *data)
		done += copy(data[within:], p[done:])
	}
}

// sector returns the current content of sector s, making its page if needed.
func (m *Mem) sector(s int64) *content {
	index, within := s*sector/pageSize, s*sector%pageSize
	p := m.pages[index]
	if p == nil {
		p = new(page)
		m.pages[index] = p
	}
	return (*content)(p[within : within+sector])
}

func (m *Mem) readPart(p []byte, off int64) int {
	within := off % pageSize
	n := int(min(int64(len(p)), pageSize-within))
	if data := m.pages[off/pageSize]; data != nil {
		return copy(p, data[within:within+int64(n)])
	}
	clear(p[:n])
	return n
}

var _ disk.Device = (*Mem)(nil)
