package sim

import (
	"bytes"
	"errors"
	"math/rand/v2"

	"replicad/replica/core"
	device "replicad/replica/disk"
)

// Errors of a metadata device.
var (
	errMetaIO    = errors.New("simulated I/O error")
	errMetaFull  = errors.New("simulated full device")
	errPowerLost = errors.New("the machine is going down")
)

// metaDisk is the device that holds a volume's metadata, sector by sector,
// with the volatile cache of a disk: contents of sectors are numbers in a
// table, and everything else is as for data.
//
// Its owner is the metadata code under test, which knows no time. Either an
// operation has its effect at once: that is recovery, before an attach, where
// a crash may hit between any two operations. Or operations are recorded, and
// their effects come later, as for any action in flight.
type metaDisk struct {
	*disk
	table  [][]byte // contents of sectors, by number
	base   int64    // bytes of the device before the part that is kept here
	rng    *rand.Rand
	change func(first, count uint32) // is told what an operation touched

	past []past // what writes replaced

	recording bool
	record    []metaOp
	budget    int               // operations until the machine stops; negative: it does not
	stopped   bool              // it did
	failed    *device.SyncError // after a failed sync, until the device is opened again
}

// metaOp is a recorded operation: a write, then what makes it stable.
type metaOp struct {
	first   uint32
	data    []content
	durable bool // the write alone is stable when it ends
	sync    bool
	fails   bool
}

var (
	blankSector = make([]byte, sectorSize)
	fullSector  = bytes.Repeat([]byte{0xFF}, sectorSize)
)

// reset makes it a new device of size bytes, of which those from base are kept;
// nobody has any business before. Memory is kept.
func (m *metaDisk) reset(base, size int64, rng *rand.Rand) {
	m.disk.reset(int(size-base)/sectorSize, 0)
	clear(m.cache)
	*m = metaDisk{disk: m.disk, table: append(m.table[:0], blankSector, fullSector), past: m.past[:0], base: base, rng: rng, budget: -1}
}

// open makes the device ready for a new owner.
func (m *metaDisk) open() {
	m.recording, m.record = false, nil
	m.budget, m.stopped, m.failed, m.struck = -1, false, nil, false
}

// Possible implements oracle.Store.
func (m *metaDisk) Possible(list [][]byte, sector uint32) [][]byte {
	m.Leaves(sector, func(c content) bool {
		list = append(list, m.table[c])
		return true
	})
	return list
}

// Size implements disk.Device.
func (m *metaDisk) Size() int64 { return m.base + int64(len(m.cache))*sectorSize }

// Close implements disk.Device.
func (m *metaDisk) Close() error { return nil }

// Discard implements disk.Device.
func (m *metaDisk) Discard(int64, int64) error { return errors.ErrUnsupported }

// ReadAt implements disk.Device.
func (m *metaDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := device.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	if m.stopped {
		return 0, errPowerLost
	}
	if m.strike(reading, m.sectorAt(off), uint32(len(p)/sectorSize)) != core.IOOK {
		return 0, errMetaIO
	}
	for i := int64(0); i < int64(len(p)); i += sectorSize {
		if off+i < m.base {
			clear(p[i : i+sectorSize])
			continue
		}
		copy(p[i:i+sectorSize], m.table[m.cache[(off+i-m.base)/sectorSize]])
	}
	return len(p), nil
}

// WriteAt implements disk.Device.
func (m *metaDisk) WriteAt(p []byte, off int64) (int, error) { return m.put(p, off, false) }

// WriteDurable implements disk.Device.
func (m *metaDisk) WriteDurable(p []byte, off int64) (int, error) {
	if m.failed != nil {
		return 0, m.failed
	}
	return m.put(p, off, true)
}

// WriteZeroes implements disk.Device.
func (m *metaDisk) WriteZeroes(off, n int64, _ bool) error {
	_, err := m.put(make([]byte, n), off, false)
	return err
}

// put is a write of either kind.
func (m *metaDisk) put(p []byte, off int64, durable bool) (int, error) {
	if err := device.CheckRange(off-m.base, int64(len(p)), m.Size()-m.base); err != nil {
		return 0, err
	}
	if m.stopped {
		return 0, errPowerLost
	}
	op := metaOp{first: m.sectorAt(off), durable: durable}
	op.data = m.intern(op.first, p)
	err := m.mayWrite(&op)
	if m.recording {
		m.record = append(m.record, op)
		return len(p), err
	}
	m.submit(op.first, op.data)
	if m.spent() { // it is in flight when the machine stops
		return 0, errPowerLost
	}
	m.effect(&op)
	m.settle(&op, m.clock)
	m.changed(op.first, uint32(len(op.data)))
	return len(p), err
}

// mayWrite draws how a write ends.
func (m *metaDisk) mayWrite(op *metaOp) error {
	switch m.strike(writing, op.first, uint32(len(op.data))) {
	case core.IOOK:
		return nil
	case core.IONoSpace:
		op.fails = true
		return errMetaFull
	}
	op.fails = true
	return errMetaIO
}

// sectorAt returns the number of the sector at an offset of the device.
func (m *metaDisk) sectorAt(off int64) uint32 { return uint32(max(0, off-m.base) / sectorSize) }

// intern returns numbers for the sectors of p, which are about to be written.
func (m *metaDisk) intern(first uint32, p []byte) []content {
	data := make([]content, len(p)/sectorSize)
	for i := range data {
		sector := p[i*sectorSize : (i+1)*sectorSize]
		switch now := m.cache[first+uint32(i)]; {
		case bytes.Equal(sector, blankSector):
		case bytes.Equal(sector, fullSector):
			data[i] = 1
		case bytes.Equal(sector, m.table[now]):
			data[i] = now
		default:
			data[i] = m.name(sector)
		}
	}
	return data
}

// name puts the content of a sector into the table.
func (m *metaDisk) name(sector []byte) content {
	n := len(m.table)
	if n == cap(m.table) {
		m.table = append(m.table, nil)
	}
	m.table = m.table[:n+1]
	m.table[n] = append(m.table[n][:0], sector...) // of an earlier run, if there is any
	return content(n)
}

// spent counts an operation of recovery, and reports that it is the last.
func (m *metaDisk) spent() bool {
	m.stopped = m.budget == 0
	m.budget--
	return m.stopped
}

// Sync implements disk.Device.
func (m *metaDisk) Sync() error {
	switch {
	case m.stopped:
		return errPowerLost
	case m.failed != nil:
		return m.failed
	case m.strike(flushing, 0, 0) != core.IOOK:
		m.failed = &device.SyncError{Err: errMetaIO}
	}
	op := metaOp{sync: true, fails: m.failed != nil}
	switch {
	case m.recording:
		m.record = append(m.record, op)
	case m.spent():
		return errPowerLost
	default:
		m.settle(&op, m.clock)
		m.changed(0, uint32(len(m.cache)))
	}
	if m.failed != nil {
		return m.failed
	}
	return nil
}

// effect lets a write reach the cache; of one that fails, some sectors.
func (m *metaDisk) effect(op *metaOp) {
	m.remember(op)
	for i, c := range op.data {
		s := op.first + uint32(i)
		if op.fails && m.rng.Uint64()&1 == 0 {
			m.sector(s).forget(c)
			continue
		}
		m.write(s, c)
	}
}

// settle ends an operation: what it makes stable is what was there at mark.
func (m *metaDisk) settle(op *metaOp, mark uint64) {
	switch {
	case op.fails:
	case op.sync:
		m.flushed(mark)
	case op.durable:
		for i := range op.data {
			m.harden(op.first+uint32(i), mark)
		}
	}
}

func (m *metaDisk) changed(first, count uint32) {
	if m.change != nil {
		m.change(first, count)
	}
}

// begin starts to record what an action writes.
func (m *metaDisk) begin() { m.recording, m.record = true, nil }

// end stops recording; what was recorded is in flight from now on.
func (m *metaDisk) end() []metaOp {
	m.recording = false
	for i := range m.record {
		m.submit(m.record[i].first, m.record[i].data)
	}
	return m.record
}

var _ device.Device = (*metaDisk)(nil)
