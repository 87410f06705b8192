package disktest

import (
	"math/rand/v2"
	"sync"

	"replicad/replica/disk"
)

// Machine is a power supply: its disks go dark at the same instant and come
// back together. Methods may be called from any goroutine.
type Machine struct {
	mu    sync.Mutex // guards the machine and all of its disks
	disks []*Mem
	clock uint64 // counts writes that returned
	life  int    // counts power cuts
	off   bool

	ops    int // writes, syncs, discards and zeroings begun so far
	budget int // operations left before the power cut; negative: no cut planned
	cutAt  Op  // the operations that count for budget
	onCut  func()
	pause  func(Op)
}

// NewMachine returns a machine without disks, its power on.
func NewMachine() *Machine { return &Machine{budget: -1} }

// NewDisk adds a disk of size bytes that reads as zero.
func (m *Machine) NewDisk(size int64) *Mem {
	d := &Mem{Machine: m, size: size, pages: map[int64]*page{}, undone: map[int64][]version{}, own: use{life: -1}}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disks = append(m.disks, d)
	return d
}

// OnCut sets what happens at the instant of a power cut, nil for nothing. f runs
// before any operation can fail for the cut, and holds up every disk of the
// machine: it must not wait, nor touch them.
func (m *Machine) OnCut(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onCut = f
}

// SetPause sets what every operation but reads does between its begin and its
// end, nil for nothing. f is called without a lock and may wait. A write of
// several sectors pauses in its middle too.
func (m *Machine) SetPause(f func(Op)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pause = f
}

// Ops returns how many writes, syncs, discards and zeroings have begun.
func (m *Machine) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// CutPowerAfter plans a power cut: n more operations of those that Ops counts
// complete, the next one is cut off half done and fails with ErrPowerCut, and
// so does every operation from then until Crash. A negative n cancels the plan.
func (m *Machine) CutPowerAfter(n int) { m.CutPowerAt(AnyWrite|Sync, n) }

// CutPowerAt is CutPowerAfter where only the given operations count.
func (m *Machine) CutPowerAt(ops Op, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.budget, m.cutAt = n, ops
}

// CutPower cuts the power now. Operations under way do not complete.
func (m *Machine) CutPower() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut()
}

// Off reports whether the power is off.
func (m *Machine) Off() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.off
}

// Crash cuts the power, if it is on, and restores it. Of the unsynced sectors of
// a disk all, about half, a few or none fall back to older content, by rng. The
// disks come back synced and without failures other than those injected as sticky.
func (m *Machine) Crash(rng *rand.Rand) {
	m.crash(rng, func() float64 { return []float64{0, 0.5, 0.9, 1}[rng.IntN(4)] })
}

// Kill ends every process of the machine: what they had open fails for ever as
// after a power cut, and what was written stays, synced or not.
func (m *Machine) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut()
	for _, d := range m.disks {
		d.own, d.open = use{life: -1}, nil
	}
	m.life++
	m.off = false
}

func (m *Machine) crash(rng *rand.Rand, keep func() float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut()
	for _, d := range m.disks {
		d.crash(rng, keep())
	}
	m.life++
	m.off = false
}

// cut turns the power off. Called with mu held.
func (m *Machine) cut() {
	if m.off {
		return
	}
	if m.onCut != nil {
		m.onCut()
	}
	m.off, m.budget = true, -1
}

// alive fails for who uses a disk that is without power, or has been since it
// was opened. Called with mu held.
func (m *Machine) alive(u *use) error {
	if m.off || u.life >= 0 && u.life != m.life {
		return ErrPowerCut
	}
	return nil
}

// spend counts an operation, and cuts the power if it is the one planned for.
// Called with mu held.
func (m *Machine) spend(op Op) error {
	if op == Read {
		return nil
	}
	m.ops++
	if m.budget < 0 || op&m.cutAt == 0 {
		return nil
	}
	if m.budget == 0 {
		m.cut()
		return ErrPowerCut
	}
	m.budget--
	return nil
}

// breathe lets other operations in between the begin and the end of one, and
// fails if there is no power to end it. Called with mu held.
func (m *Machine) breathe(u *use, op Op) error {
	if m.pause == nil {
		return nil
	}
	pause, life := m.pause, m.life
	m.mu.Unlock()
	pause(op)
	m.mu.Lock()
	if m.off || life != m.life {
		return ErrPowerCut
	}
	return m.alive(u)
}

// Open opens the disk for one user, alone. The device fails with ErrPowerCut
// for ever once the power was cut; a failed Sync is final for it, and not for
// who opens the disk again.
func (m *Mem) Open() (disk.Device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.off:
		return nil, ErrPowerCut
	case m.open != nil && !m.open.closed:
		return nil, &disk.InUseError{Path: "disk in memory"}
	}
	m.open = &use{life: m.life}
	return &opened{m: m, use: m.open}, nil
}

// opened is a Mem in use.
type opened struct {
	m   *Mem
	use *use
}

func (o *opened) ReadAt(p []byte, off int64) (int, error)  { return o.m.read(o.use, p, off) }
func (o *opened) WriteAt(p []byte, off int64) (int, error) { return o.m.write(o.use, Write, p, off) }

func (o *opened) WriteDurable(p []byte, off int64) (int, error) {
	return o.m.write(o.use, WriteDurable, p, off)
}
func (o *opened) Sync() error                { return o.m.sync(o.use) }
func (o *opened) Discard(off, n int64) error { return o.m.zero(o.use, Discard, off, n) }

func (o *opened) WriteZeroes(off, n int64, noHole bool) error {
	return o.m.zero(o.use, WriteZeroes, off, n)
}
func (o *opened) Size() int64  { return o.m.size }
func (o *opened) Close() error { return o.m.shut(o.use) }
