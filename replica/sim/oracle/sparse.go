package oracle

// Sparse holds a T for few of many sectors. Looking one up costs two array
// accesses; most of a simulated run is such look-ups.
type Sparse[T any] struct {
	slot  []int32  // per sector: its place below, counted from 1; 0: none
	keys  []uint32 // in the order they came, but for what Delete moves
	items []T
}

// NewSparse returns an empty set for so many sectors.
func NewSparse[T any](sectors int) Sparse[T] { return Sparse[T]{slot: make([]int32, sectors)} }

// Reset makes the set an empty one for so many sectors. Memory is kept.
func (p *Sparse[T]) Reset(sectors int) {
	p.Clear()
	if cap(p.slot) < sectors {
		p.slot = make([]int32, sectors)
	}
	p.slot = p.slot[:sectors] // what lies beyond is zero too
}

// Get returns the item of a sector, nil if it has none. The pointer is good
// until the next Put or Delete.
func (p *Sparse[T]) Get(sector uint32) *T {
	if int(sector) >= len(p.slot) || p.slot[sector] == 0 {
		return nil
	}
	return &p.items[p.slot[sector]-1]
}

// Put returns the item of a sector, which it adds if need be. A fresh item may
// hold what a deleted one left, so that its memory is used again.
func (p *Sparse[T]) Put(sector uint32) (item *T, fresh bool) {
	if at := p.slot[sector]; at != 0 {
		return &p.items[at-1], false
	}
	n := len(p.keys)
	p.keys = append(p.keys, sector)
	if cap(p.items) > n {
		p.items = p.items[:n+1]
	} else {
		var zero T
		p.items = append(p.items, zero)
	}
	p.slot[sector] = int32(n + 1)
	return &p.items[n], true
}

// Delete removes a sector's item. The last one takes its place.
func (p *Sparse[T]) Delete(sector uint32) {
	at, last := int(p.slot[sector])-1, len(p.keys)-1
	p.items[at], p.items[last] = p.items[last], p.items[at]
	p.keys[at] = p.keys[last]
	p.slot[p.keys[at]] = int32(at + 1)
	p.slot[sector] = 0
	p.keys, p.items = p.keys[:last], p.items[:last]
}

// Clear removes every item.
func (p *Sparse[T]) Clear() {
	for _, sector := range p.keys {
		p.slot[sector] = 0
	}
	p.keys, p.items = p.keys[:0], p.items[:0]
}

// Keys lists the sectors that have an item. The slice belongs to the set.
func (p *Sparse[T]) Keys() []uint32 { return p.keys }
