// Package disktest provides Mem, a disk.Device in memory that can lose power
// and fail on demand, and Machine, several such disks with one power supply. It
// exists for tests and the simulator.
//
// What a real disk leaves open, Mem leaves to a random source that the caller
// passes in: which of the unsynced 512-byte sectors survive a power cut, and in
// which of the versions written since the last Sync. The same calls with the
// same seed give the same bytes.
//
// Operations take time: a write is visible to reads before it has returned, and
// a Sync covers only what had returned before the Sync was called. Whether two
// operations overlap is up to their callers, and to Machine.SetPause.
package disktest

import (
	"cmp"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"

	"replicad/replica/disk"
)

// ErrPowerCut is returned by every operation between a power cut and Crash, and
// for ever to those who opened the disk before it.
var ErrPowerCut = errors.New("power cut")

const (
	pageSize = 4096
	sector   = disk.SectorSize
)

type (
	page    [pageSize]byte
	content [sector]byte
)

// version is what a sector held at one time since it was last durable.
type version struct {
	data content
	by   *change // nil: this one is durable
}

// change is one write of a caller.
type change struct {
	returned uint64 // when, by Machine.clock; 0 while it is in flight, and for ever if it failed
}

// Mem is a crashable device. It keeps only pages that were written, so a
// device of many gigabytes is cheap. Methods may be called from any goroutine.
//
// Mem is itself a disk.Device, for one user who outlives power cuts. Open gives
// devices that die with the process or the power.
type Mem struct {
	*Machine
	size   int64
	pages  map[int64]*page     // what a read returns now
	undone map[int64][]version // unsynced sectors: the durable content, then what was written, newest last
	faults []*Fault
	own    use  // the use through Mem's own methods
	open   *use // the latest of Open
}

// use is one opening of a device, with what belongs to it alone.
type use struct {
	life   int // the machine's life it belongs to; -1: any
	closed bool
	failed *disk.SyncError
}

// New returns a device of size bytes that reads as zero, with a power supply
// of its own.
func New(size int64) *Mem { return NewMachine().NewDisk(size) }

// Size implements disk.Device.
func (m *Mem) Size() int64 { return m.size }

// ReadAt implements disk.Device.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) { return m.read(&m.own, p, off) }

// WriteAt implements disk.Device.
func (m *Mem) WriteAt(p []byte, off int64) (int, error) { return m.write(&m.own, Write, p, off) }

// WriteDurable implements disk.Device. A power cut during it may tear it like
// any other write.
func (m *Mem) WriteDurable(p []byte, off int64) (int, error) {
	return m.write(&m.own, WriteDurable, p, off)
}

// Sync implements disk.Device. Like the real one it never succeeds again after
// it failed, and what was unsynced then stays unsynced.
func (m *Mem) Sync() error { return m.sync(&m.own) }

// Discard implements disk.Device; discarded sectors read as zero.
func (m *Mem) Discard(off, n int64) error { return m.zero(&m.own, Discard, off, n) }

// WriteZeroes implements disk.Device.
func (m *Mem) WriteZeroes(off, n int64, _ bool) error { return m.zero(&m.own, WriteZeroes, off, n) }

// Close implements disk.Device. Reopen undoes it.
func (m *Mem) Close() error { return m.shut(&m.own) }

// Reopen makes a closed device usable again; unsynced data stays unsynced, as
// the page cache of a living host does when a process dies.
func (m *Mem) Reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.own.closed = false
}

// Clone returns an independent device with the same content, durable and not,
// a power supply of its own, and no planned fault or power cut.
func (m *Mem) Clone() *Mem { return m.CloneOn(NewMachine()) }

// CloneOn is Clone with the power supply of another machine.
func (m *Mem) CloneOn(machine *Machine) *Mem {
	c := machine.NewDisk(m.size)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range m.pages {
		if *p != (page{}) {
			c.pages[i] = new(*p)
		}
	}
	for s, versions := range m.undone {
		c.undone[s] = slices.Clone(versions)
	}
	return c
}

// Unsynced returns how many sectors a power cut could take back now.
func (m *Mem) Unsynced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.undone)
}

// Crash cuts the power and restores it, as Machine.Crash does, for every disk
// of the machine. An unsynced sector falls back with even chances.
func (m *Mem) Crash(rng *rand.Rand) { m.Machine.crash(rng, func() float64 { return 0.5 }) }

// crash settles what survived: each unsynced sector, in ascending order, keeps
// its newest content or falls back to an older one, by rng.
func (m *Mem) crash(rng *rand.Rand, keep float64) {
	for _, s := range slices.SortedFunc(maps.Keys(m.undone), cmp.Compare) {
		if versions := m.undone[s]; rng.Float64() >= keep {
			*m.sector(s) = versions[rng.IntN(len(versions)-1)].data
		}
	}
	clear(m.undone)
	m.own, m.open = use{life: -1}, nil
}

// admit lets an operation begin: power, life, range, then injected faults. It
// is called with mu held, like every function below that has no lock of its own.
func (m *Mem) admit(u *use, op Op, off, n int64) error {
	if err := m.alive(u); err != nil {
		return err
	}
	if u.closed {
		return disk.ErrClosed
	}
	if err := disk.CheckRange(off, n, m.size); err != nil {
		return err
	}
	if err := m.spend(op); err != nil {
		return err
	}
	return m.fault(op, off, n)
}

func (m *Mem) read(u *use, p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.admit(u, Read, off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		done += m.readPart(p[done:], off+int64(done))
	}
	return len(p), nil
}

// write is a write of either kind. One that the power cut hits still reaches
// the cache, where the crash tears it; one that fails for another reason has
// written its first half.
func (m *Mem) write(u *use, op Op, p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if op == WriteDurable && u.failed != nil {
		return 0, u.failed
	}
	by := &change{}
	wasOff := m.alive(u) != nil
	switch err := m.admit(u, op, off, int64(len(p))); {
	case err == nil:
	case errors.Is(err, ErrPowerCut) && !wasOff:
		m.store(p, off, by)
		return 0, err
	case errors.Is(err, disk.ErrRange), errors.Is(err, disk.ErrClosed), wasOff:
		return 0, err
	default:
		half := len(p) / 2
		m.store(p[:half], off, by)
		return half, err
	}
	half := len(p) / 2 / sector * sector
	for _, part := range [][2]int{{0, half}, {half, len(p)}} {
		m.store(p[part[0]:part[1]], off+int64(part[0]), by)
		if err := m.breathe(u, op); err != nil {
			return 0, err
		}
	}
	m.clock++
	by.returned = m.clock
	if op == WriteDurable {
		for s := off / sector; s*sector < off+int64(len(p)); s++ {
			m.settle(s, func(v *version) bool { return v.by == by })
		}
	}
	return len(p), nil
}

func (m *Mem) sync(u *use) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.failed != nil {
		return u.failed
	}
	called := m.clock
	err := m.admit(u, Sync, 0, 0)
	if err == nil {
		err = m.breathe(u, Sync)
	}
	if errors.Is(err, ErrPowerCut) || errors.Is(err, disk.ErrClosed) {
		return err
	}
	if err != nil {
		u.failed = &disk.SyncError{Err: err}
		return u.failed
	}
	for s := range m.undone {
		m.settle(s, func(v *version) bool { return v.by.returned != 0 && v.by.returned <= called })
	}
	return nil
}

// settle makes the newest version of a sector durable that is among those that
// must be by now.
func (m *Mem) settle(s int64, must func(*version) bool) {
	versions := m.undone[s]
	for i := len(versions) - 1; i > 0; i-- {
		if versions[i].by == nil || !must(&versions[i]) {
			continue
		}
		if versions = versions[i:]; len(versions) == 1 {
			delete(m.undone, s)
			return
		}
		versions[0].by = nil
		m.undone[s] = versions
		return
	}
}

func (m *Mem) zero(u *use, op Op, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.admit(u, op, off, n); err != nil {
		return err
	}
	by := &change{}
	var zeroes page
	for done := int64(0); done < n; {
		part := min(n-done, pageSize)
		m.store(zeroes[:part], off+done, by)
		done += part
	}
	if err := m.breathe(u, op); err != nil {
		return err
	}
	m.clock++
	by.returned = m.clock
	return nil
}

func (m *Mem) shut(u *use) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.closed {
		return disk.ErrClosed
	}
	u.closed = true
	return nil
}

// store changes what reads return and remembers what a crash may bring back.
func (m *Mem) store(p []byte, off int64, by *change) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		s, within := at/sector, at%sector
		data := m.sector(s)
		if m.undone[s] == nil {
			m.undone[s] = append(m.undone[s], version{data: *data})
		}
		done += copy(data[within:], p[done:])
		m.undone[s] = append(m.undone[s], version{data: *data, by: by})
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
