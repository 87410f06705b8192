package bitmap

import (
	"fmt"
	"iter"
	"slices"

	"replicad/internal/mutant"
)

// Extent numbers a 4 MiB piece of a volume: ExtentBlocks blocks.
type Extent uint32

// NoExtent marks a free slot, in memory and on disk.
const NoExtent Extent = 0xFFFFFFFF

// Limits of one activity-log transaction (DRBD 8.4 metadata v08).
const (
	// TransactionUpdatesMax is the most slots that one transaction changes.
	TransactionUpdatesMax = 64
	// ContextSlots is the number of slots whose state a transaction repeats.
	ContextSlots = 919
	// SlotsMax is the most slots a log may have: numbers are 16 bits wide and
	// 0xFFFF means "unused".
	SlotsMax = 0xFFFF
)

// Transaction is one record of the activity-log ring: the slots that change,
// and a piece of the whole table so that the ring may be overwritten.
type Transaction struct {
	Number       uint32
	Updates      []SlotUpdate // at most TransactionUpdatesMax
	ContextSize  uint16       // slots of the log
	ContextFirst uint16       // slot of Context[0]
	Context      []Extent     // slots as they are after the updates, at most ContextSlots
}

// SlotUpdate says that a slot now holds an extent.
type SlotUpdate struct {
	Slot   uint16
	Extent Extent
}

// ActivityLog is the set of hot extents: those that may have writes in flight
// and whose blocks a crashed Primary counts as out of sync. An extent becomes
// hot by a transaction (Prepare, write it durably, Commit) and stays hot until
// its slot is given to another. A pinned extent keeps its slot.
type ActivityLog struct {
	slots    []slot
	index    map[Extent]slotID // hot extents
	free     []slotID          // free slots, the next one to use last
	newest   slotID            // ends of the list of used slots,
	oldest   slotID            // in the order of their last use
	pinned   int               // hot slots with references
	number   uint32            // of the next transaction
	cycle    int               // first slot of the next context
	prepared *Transaction
}

type slotID uint16

const noSlot slotID = SlotsMax

type slot struct {
	extent       Extent
	refs         int
	newer, older slotID
	pending      bool // a prepared transaction will overwrite it
}

// NewActivityLog returns a log of cold extents whose first transaction has
// number 0. The number of slots is 1 to SlotsMax.
func NewActivityLog(slots int) *ActivityLog {
	if slots < 1 || slots > SlotsMax {
		panic(fmt.Sprintf("bitmap: activity log of %d slots", slots))
	}
	a := &ActivityLog{
		slots: make([]slot, slots),
		index: make(map[Extent]slotID, slots),
		free:  make([]slotID, 0, slots),
	}
	a.Reset(0)
	return a
}

// Reset makes every extent cold, forgets references and a prepared
// transaction, and gives the next transaction this number. It is for a log
// whose ring was initialised anew.
func (a *ActivityLog) Reset(nextNumber uint32) {
	clear(a.index)
	a.free = a.free[:0]
	for i := len(a.slots) - 1; i >= 0; i-- {
		a.slots[i] = slot{extent: NoExtent, newer: noSlot, older: noSlot}
		a.free = append(a.free, slotID(i))
	}
	a.newest, a.oldest = noSlot, noSlot
	a.pinned, a.cycle = 0, 0
	a.number = nextNumber
	a.prepared = nil
}

// Slots reports how many extents can be hot at once.
func (a *ActivityLog) Slots() int { return len(a.slots) }

// Hot reports whether writes to e are covered.
func (a *ActivityLog) Hot(e Extent) bool {
	_, hot := a.index[e]
	return hot
}

// Pin takes a reference on e and makes it the most recently used. It reports
// false, and changes nothing, when e is cold. It allocates nothing.
func (a *ActivityLog) Pin(e Extent) bool {
	id, hot := a.index[e]
	if !hot {
		return false
	}
	s := &a.slots[id]
	if s.refs == 0 {
		a.pinned++
	}
	s.refs++
	a.unlink(id)
	a.linkNewest(id)
	return true
}

// Unpin drops a reference on e. It allocates nothing. It panics when e has
// none: an extent that cools while it is written to loses data after a crash.
func (a *ActivityLog) Unpin(e Extent) {
	id, hot := a.index[e]
	if !hot || a.slots[id].refs == 0 {
		panic(fmt.Sprintf("bitmap: unpin of extent %d without a reference", e))
	}
	s := &a.slots[id]
	s.refs--
	if s.refs == 0 {
		a.pinned--
	}
}

// Refs reports how many references e has; 0 when it is cold.
func (a *ActivityLog) Refs(e Extent) int {
	id, hot := a.index[e]
	if !hot {
		return 0
	}
	return a.slots[id].refs
}

// Available reports how many extents Prepare could find a slot for now: free
// slots and those of unpinned hot extents, without the ones that a prepared
// transaction has taken.
func (a *ActivityLog) Available() int { return len(a.free) + len(a.index) - a.pinned }

// Prepare builds the transaction that makes the extents in want hot, which are
// distinct, cold, and at most TransactionUpdatesMax. It takes all the slots or
// none: free ones first, then those of the least recently used extents without
// references. These, listed as evicted, stop being hot at once. The wanted ones
// become hot at Commit.
//
// ok is false, and nothing changed, when there are not enough slots or another
// transaction is prepared. Before the transaction is written, the bitmap pages
// that cover the evicted extents must be durable.
func (a *ActivityLog) Prepare(want []Extent) (tx *Transaction, evicted []Extent, ok bool) {
	a.checkWanted(want)
	if a.prepared != nil || len(want) > a.Available() {
		return nil, nil, false
	}
	tx = &Transaction{Number: a.number, ContextSize: uint16(len(a.slots)), ContextFirst: uint16(a.cycle)}
	oldest := a.oldest
	for _, e := range want {
		var id slotID
		if id, oldest = a.takeSlot(oldest); a.slots[id].extent != NoExtent {
			evicted = append(evicted, a.slots[id].extent)
			delete(a.index, a.slots[id].extent)
		}
		a.slots[id].pending = true
		tx.Updates = append(tx.Updates, SlotUpdate{Slot: uint16(id), Extent: e})
	}
	tx.Context = a.context(tx)
	a.prepared = tx
	return tx, evicted, true
}

// Commit ends a prepared transaction that is durable: its extents are hot,
// without references, the last of them the most recently used.
func (a *ActivityLog) Commit(tx *Transaction) {
	a.endPrepared(tx)
	for _, u := range tx.Updates {
		id := slotID(u.Slot)
		if a.slots[id].extent != NoExtent {
			a.unlink(id)
		}
		a.slots[id].extent, a.slots[id].pending = u.Extent, false
		a.index[u.Extent] = id
		a.linkNewest(id)
	}
	if !mutant.On(mutant.NumberStands) {
		a.number++
	}
	if mutant.On(mutant.ContextSkipsSlot) {
		a.cycle++
	}
	if a.cycle += ContextSlots; a.cycle >= len(a.slots) {
		a.cycle = 0
	}
}

// Abort undoes a prepared transaction: the evicted extents are hot again and
// its number is used again. It is for a transaction that was never submitted.
// If a write of it was submitted and failed, the disk may hold it, and then
// the evicted extents are not covered after a crash: the disk must be given up.
func (a *ActivityLog) Abort(tx *Transaction) {
	a.endPrepared(tx)
	for _, u := range slices.Backward(tx.Updates) {
		id := slotID(u.Slot)
		s := &a.slots[id]
		s.pending = false
		if s.extent == NoExtent {
			a.free = append(a.free, id)
		} else {
			a.index[s.extent] = id
		}
	}
}

// HotExtents yields the hot extents in the order of their slots. The log must
// not change meanwhile.
func (a *ActivityLog) HotExtents() iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		for i := range a.slots {
			s := &a.slots[i]
			if s.extent != NoExtent && !s.pending && !yield(s.extent) {
				return
			}
		}
	}
}

// ExtentOf reports which extent holds a block.
func ExtentOf(block uint64) Extent { return Extent(block / ExtentBlocks) }

// Extents yields the extents that hold the blocks first to last, both included.
func Extents(first, last uint64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		for e := first / ExtentBlocks; e <= last/ExtentBlocks; e++ {
			if !yield(Extent(e)) {
				return
			}
		}
	}
}

// Blocks reports the first block of e and how many it holds; the last extent
// of a volume may reach past its end.
func (e Extent) Blocks() (first, n uint64) { return uint64(e) * ExtentBlocks, ExtentBlocks }

func (a *ActivityLog) checkWanted(want []Extent) {
	if len(want) > TransactionUpdatesMax {
		panic(fmt.Sprintf("bitmap: transaction of %d updates", len(want)))
	}
	for i, e := range want {
		if e == NoExtent || a.Hot(e) || slices.Contains(want[:i], e) {
			panic(fmt.Sprintf("bitmap: extent %d wanted twice, or hot already", e))
		}
	}
}

// takeSlot takes a free slot, or else the least recently used one at or after
// from that is neither pinned nor taken. next is where to look afterwards.
func (a *ActivityLog) takeSlot(from slotID) (id, next slotID) {
	if n := len(a.free); n > 0 {
		id = a.free[n-1]
		a.free = a.free[:n-1]
		return id, from
	}
	for a.slots[from].refs > 0 && !mutant.On(mutant.EvictPinned) {
		from = a.slots[from].newer
	}
	return from, a.slots[from].newer
}

// context copies the slots whose turn it is, with the updates of tx applied.
func (a *ActivityLog) context(tx *Transaction) []Extent {
	last := min(a.cycle+ContextSlots, len(a.slots))
	context := make([]Extent, 0, last-a.cycle)
	for i := a.cycle; i < last; i++ {
		context = append(context, a.slots[i].extent)
	}
	for _, u := range tx.Updates {
		if i := int(u.Slot); i >= a.cycle && i < last {
			context[i-a.cycle] = u.Extent
		}
	}
	return context
}

func (a *ActivityLog) endPrepared(tx *Transaction) {
	if tx == nil || tx != a.prepared {
		panic("bitmap: commit or abort of a transaction that is not prepared")
	}
	a.prepared = nil
}

func (a *ActivityLog) linkNewest(id slotID) {
	s := &a.slots[id]
	s.newer, s.older = noSlot, a.newest
	if a.newest != noSlot {
		a.slots[a.newest].newer = id
	} else {
		a.oldest = id
	}
	a.newest = id
}

func (a *ActivityLog) unlink(id slotID) {
	s := &a.slots[id]
	if s.newer != noSlot {
		a.slots[s.newer].older = s.older
	} else {
		a.newest = s.older
	}
	if s.older != noSlot {
		a.slots[s.older].newer = s.newer
	} else {
		a.oldest = s.newer
	}
}
