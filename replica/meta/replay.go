package meta

import (
	"fmt"
	"slices"

	"replicad/bitmap"
	"replicad/internal/mutant"
)

// ring is the activity log as read from disk: for each transaction number
// modulo the number of blocks the record found there.
type ring []ringBlock

type ringBlock struct {
	tx  *bitmap.Transaction // nil: initialised, or bad
	bad bool
}

// parseRing decodes the log area, whose blocks read returns. It keeps none.
func parseRing(g ALGeometry, read func(block int) ([]byte, error)) (ring, error) {
	r := make(ring, g.Blocks())
	for i := range r {
		data, err := read(g.position(uint32(i)))
		if err != nil {
			return nil, fmt.Errorf("read activity log: %w", err)
		}
		tx, err := ParseALBlock(data)
		r[i] = ringBlock{tx: tx, bad: err != nil}
	}
	return r, nil
}

// initialised reports that the ring holds no transaction and no damage.
func (r ring) initialised() bool {
	return !slices.ContainsFunc(r, func(b ringBlock) bool { return b.bad || b.tx != nil })
}

func (r ring) bad() (n int) {
	for _, b := range r {
		if b.bad {
			n++
		}
	}
	return n
}

// hotExtents returns, sorted, every extent that was hot after the newest
// transaction.
//
// One bad block is what a crash during the write of the next transaction
// leaves: nothing was written under that transaction, so it does not count.
// The bad block must then be the one that the next transaction overwrites.
// Anything else may hide a hot extent and is refused.
func (r ring) hotExtents() ([]bitmap.Extent, error) {
	newest, found := r.newest()
	if !found {
		return nil, r.checkEmpty()
	}
	count, err := r.checkSequence(newest)
	if err != nil {
		return nil, err
	}
	hot := map[uint16]bitmap.Extent{}
	for age := count - 1; age >= 0; age-- {
		if mutant.On(mutant.ReplaySkipsNewest) && age == 0 {
			break
		}
		replay(hot, r.aged(newest, age).tx)
	}
	return sortedExtents(hot), nil
}

// newest returns the number of the newest transaction. Numbers may wrap.
func (r ring) newest() (number uint32, found bool) {
	for _, b := range r {
		if b.tx == nil {
			continue
		}
		newer := int32(b.tx.Number-number) > 0
		if mutant.On(mutant.ReplayNewestByValue) {
			newer = b.tx.Number > number
		}
		if !found || newer {
			number, found = b.tx.Number, true
		}
	}
	return number, found
}

// aged returns the block of the transaction age steps older than newest.
func (r ring) aged(newest uint32, age int) ringBlock {
	n := len(r)
	at := (int(newest%uint32(n)) - age + n) % n
	return r[at]
}

// checkEmpty judges a ring without a transaction: at most the very first one
// was being written. Its number need not be 0: the kernel driver goes on
// counting when it attaches again.
func (r ring) checkEmpty() error {
	if r.bad() > 1 {
		return r.damaged("no transaction can be read")
	}
	return nil
}

// checkSequence walks from the newest block to the oldest and returns how many
// transactions there are. They must be consecutive; initialised blocks can
// only follow the oldest one.
func (r ring) checkSequence(newest uint32) (count int, err error) {
	for age := range len(r) {
		b := r.aged(newest, age)
		switch {
		case b.bad && age == len(r)-1:
		case b.bad:
			return 0, r.damaged(fmt.Sprintf("transaction %d cannot be read", newest-uint32(age)))
		case b.tx == nil:
		case (count < age || b.tx.Number != newest-uint32(age)) && !mutant.On(mutant.NumberUnchecked):
			return 0, r.damaged(fmt.Sprintf("transaction %d is missing", newest-uint32(age)))
		default:
			count++
		}
	}
	return count, nil
}

func (r ring) damaged(reason string) error {
	return &ALDamagedError{Bad: r.bad(), Blocks: len(r), Reason: reason}
}

// replay applies one transaction to the table of slots: first the piece of
// context, then the changes.
func replay(hot map[uint16]bitmap.Extent, tx *bitmap.Transaction) {
	for i, extent := range tx.Context {
		hot[tx.ContextFirst+uint16(i)] = extent
	}
	for _, u := range tx.Updates {
		hot[u.Slot] = u.Extent
	}
}

func sortedExtents(hot map[uint16]bitmap.Extent) []bitmap.Extent {
	var extents []bitmap.Extent
	for _, extent := range hot {
		if extent != bitmap.NoExtent {
			extents = append(extents, extent)
		}
	}
	slices.Sort(extents)
	return slices.Compact(extents)
}
