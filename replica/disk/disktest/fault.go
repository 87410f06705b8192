package disktest

import "slices"

// Op is a kind of operation that can be made to fail. Values can be combined.
type Op uint8

// The operations of disk.Device.
const (
	Read Op = 1 << iota
	Write
	WriteDurable
	Sync
	Discard
	WriteZeroes

	AnyWrite = Write | WriteDurable | Discard | WriteZeroes
	Any      = Read | AnyWrite | Sync
)

// Fault makes matching operations fail.
type Fault struct {
	Ops Op
	// Off and Len limit the fault to operations that touch these bytes; Len 0
	// means the whole device. Sync touches everything.
	Off, Len int64
	// Skip lets this many matching operations succeed first.
	Skip int
	// Sticky makes the fault stay after it first struck.
	Sticky bool
	// Err is what the operation returns, for example unix.EIO.
	Err error
}

// Inject adds a fault. Of several that match the one injected first strikes.
func (m *Mem) Inject(f Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, &f)
}

// ClearFaults removes all faults. A Sync that failed stays failed until Crash.
func (m *Mem) ClearFaults() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = nil
}

// Pending reports how many of the injected faults may still strike: one that
// is not sticky is gone once it has.
func (m *Mem) Pending() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.faults)
}

// fault returns the error of the fault that strikes, nil if none does.
func (m *Mem) fault(op Op, off, n int64) error {
	for i, f := range m.faults {
		if !f.matches(op, off, n) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if !f.Sticky {
			m.faults = slices.Delete(m.faults, i, i+1)
		}
		return f.Err
	}
	return nil
}

func (f *Fault) matches(op Op, off, n int64) bool {
	if f.Ops&op == 0 {
		return false
	}
	return f.Len == 0 || op == Sync || off < f.Off+f.Len && f.Off < off+n
}
