// Package ledger is the witness of a client against a device: which writes it
// issued, which it saw completed, and what a device shows of them later. The demo
// and the tests that kill daemons believe nothing else.
//
// A Ledger may be used from any goroutine.
package ledger

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// BlockSize is the unit of the writes, bytes.
const BlockSize = 4096

// Ledger is what clients know of their writes: when each was issued and when
// its completion arrived.
type Ledger struct {
	mu     sync.Mutex
	clock  int64 // counts what happens
	safe   int64 // what completed before this was covered by a flush
	blocks map[int64]*history
}

// history is what was written to one block, in order: writes of one block are
// never in flight together.
type history struct {
	writes []write
}

type write struct {
	issued    int64
	completed int64 // 0: no answer came
	sum       uint64
}

// New returns an empty ledger.
func New() *Ledger { return &Ledger{blocks: map[int64]*history{}} }

// Baseline notes what a block holds before the load.
func (l *Ledger) Baseline(off int64, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	l.blocks[off] = &history{writes: []write{{issued: l.clock, completed: l.clock, sum: xxhash.Sum64(data)}}}
}

// Issue notes that a write goes out, and returns a function to call when it
// completed. The block needs a Baseline, and no other write in flight.
func (l *Ledger) Issue(off int64, data []byte) (completed func()) {
	sum := xxhash.Sum64(data)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	h := l.blocks[off]
	at := len(h.writes)
	h.writes = append(h.writes, write{issued: l.clock, sum: sum})
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.clock++
		h.writes[at].completed = l.clock
	}
}

// Flush notes that a flush goes out, and returns a function to call when it
// completed: what had completed before it was issued is then covered.
func (l *Ledger) Flush() (completed func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	issued := l.clock
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.safe = max(l.safe, issued)
	}
}

// Finding is what comparing a device with the ledger gave.
type Finding struct {
	Completed int // writes whose completion arrived, in all
	Lost      int // of those, how many the device does not show, nor a later one of that block
	LostSafe  int // of the lost, how many a flush had covered
	Open      int // writes that got no answer
	OpenKept  int // of those, how many are there
	Disorder  int // writes that are there although one that completed before they were issued is lost
	Foreign   int // blocks that hold what nobody wrote there
}

// Compare reads every block of the ledger from the device.
func (l *Ledger) Compare(device io.ReaderAt) (Finding, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var f Finding
	var present, missing []write
	buf := make([]byte, BlockSize)
	for off, h := range l.blocks {
		if _, err := device.ReadAt(buf, off); err != nil {
			return f, fmt.Errorf("read block at %d: %w", off, err)
		}
		at := h.find(xxhash.Sum64(buf))
		if at < 0 {
			f.Foreign++
			continue
		}
		for i, w := range h.writes {
			switch {
			case i == 0: // the baseline
			case w.completed != 0:
				f.Completed++
			default:
				f.Open++
			}
			if i > at && w.completed != 0 {
				f.Lost++
				if w.completed < l.safe {
					f.LostSafe++
				}
				missing = append(missing, w)
			}
		}
		if at == 0 {
			continue
		}
		if h.writes[at].completed == 0 {
			f.OpenKept++
		}
		if first := h.first(at); first > 0 {
			present = append(present, h.writes[first])
		}
	}
	f.Disorder = disorder(present, missing)
	return f, nil
}

// find returns the newest write that left this sum, -1 if none did.
func (h *history) find(sum uint64) int {
	for i := len(h.writes) - 1; i >= 0; i-- {
		if h.writes[i].sum == sum {
			return i
		}
	}
	return -1
}

// first returns the oldest write that left what write number at left: where
// content repeats, nothing newer is certain to be there.
func (h *history) first(at int) int {
	return slices.IndexFunc(h.writes, func(w write) bool { return w.sum == h.writes[at].sum })
}

// disorder counts present writes that were issued after a missing one had
// completed. What a client saw completed it may build upon.
func disorder(present, missing []write) int {
	if len(missing) == 0 {
		return 0
	}
	first := slices.MinFunc(missing, func(a, b write) int { return int(a.completed - b.completed) })
	count := 0
	for _, w := range present {
		if w.issued > first.completed {
			count++
		}
	}
	return count
}

// Adopt takes what the device holds for the new truth: a lost tail is lost.
func (l *Ledger) Adopt(device io.ReaderAt) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	buf := make([]byte, BlockSize)
	for off, h := range l.blocks {
		if _, err := device.ReadAt(buf, off); err != nil {
			return fmt.Errorf("read block at %d: %w", off, err)
		}
		l.clock++
		h.writes = []write{{issued: l.clock, completed: l.clock, sum: xxhash.Sum64(buf)}}
	}
	return nil
}
