package crashtest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

const sectorSize = 512

// book is what clients know of their writes, sector by sector: when each was
// issued and when its completion arrived, and the same of flushes. It knows
// nothing of nodes, epochs or generations.
type book struct {
	mu      sync.Mutex
	clock   int64
	writes  []entry             // by number; 0 is what was there before everything: zeroes
	touched map[uint32]bool     // sectors that were ever written
	base    map[uint32]uint32   // what was there at the last adopt
	history map[uint32][]uint32 // writes of a sector since base, as issued
	flushes []span              // completed ones since base
}

type entry struct {
	first, count uint32 // sectors
	zero, fua    bool
	span
}

// span is when something was issued and when its completion arrived, 0 if it
// did not.
type span struct{ issued, done int64 }

func newBook() *book {
	return &book{
		writes: make([]entry, 1), touched: map[uint32]bool{}, base: map[uint32]uint32{}, history: map[uint32][]uint32{},
	}
}

// life is one Primary's time as such: when it is over, completions count no more.
type life struct{ over bool }

func (b *book) end(l *life) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.over = true
}

// issue notes a write and returns its number.
func (b *book) issue(first, count uint32, zero, fua bool) uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock++
	b.writes = append(b.writes, entry{first: first, count: count, zero: zero, fua: fua, span: span{issued: b.clock}})
	id := uint32(len(b.writes) - 1)
	for s := first; s < first+count; s++ {
		b.touched[s] = true
		b.history[s] = append(b.history[s], id)
	}
	return id
}

// completed notes a success, and reports whether the client was still there to
// see it.
func (b *book) completed(l *life, id uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.over {
		return false
	}
	b.clock++
	b.writes[id].done = b.clock
	return true
}

// beginFlush returns when the flush was issued, endFlush takes it back.
func (b *book) beginFlush() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock++
	return b.clock
}

func (b *book) endFlush(l *life, issued int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.over {
		return false
	}
	b.clock++
	b.flushes = append(b.flushes, span{issued, b.clock})
	return true
}

// fill makes the content of sector s as write id leaves it.
func fill(p []byte, id, s uint32) {
	binary.LittleEndian.PutUint32(p, id)
	binary.LittleEndian.PutUint32(p[4:], s)
	x := uint64(id)<<32 | uint64(s)
	for i := 8; i < sectorSize; i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

// identify returns which write left a sector like this, 0 for zeroes.
func identify(p []byte, s uint32) (id uint32, ok bool) {
	var want [sectorSize]byte
	if [sectorSize]byte(p) == want {
		return 0, true
	}
	id = binary.LittleEndian.Uint32(p)
	fill(want[:], id, s)
	return id, id != 0 && [sectorSize]byte(p) == want
}

// finding is what an image shows. Each text is an example, empty if there is none.
type finding struct {
	foreign  string // content that nobody wrote there
	lost     string // a completed write that is not there, nor a later one
	unsafe   string // the same, although a flush had covered it
	disorder string // a write that is there although one is lost that completed before it was issued
	epochs   string // the same, where a flush had covered the lost one before the other was issued
	missing  int    // completed writes lost, counted by sectors
}

// earliest is the lost write that completed first, and what it came before.
type earliest struct {
	at int64
	id uint32
}

func (e *earliest) lower(at int64, id uint32) {
	if e.id == 0 || at < e.at {
		*e = earliest{at, id}
	}
}

// compare holds an image against the book.
func (b *book) compare(image []byte) finding {
	b.mu.Lock()
	defer b.mu.Unlock()
	var f finding
	var lost, covered earliest
	newest := uint32(0) // of what is there, the write issued last
	for s := range b.touched {
		history := b.history[s]
		id, ok := identify(image[int(s)*sectorSize:][:sectorSize], s)
		shown := b.explain(id, s)
		if !ok || len(shown) == 0 {
			f.foreign = fmt.Sprintf("sector %d holds %#x, written by none of %v", s, id, history)
			continue
		}
		for _, w := range history {
			e := &b.writes[w]
			if e.done == 0 || slices.Contains(shown, w) || !b.allOlder(shown, e.issued) {
				continue
			}
			f.missing++
			f.lost = fmt.Sprintf("sector %d: write %d %+v is lost, %v is there", s, w, *e, shown)
			at := b.coveredAt(e)
			if at != 0 {
				f.unsafe = f.lost + fmt.Sprintf(", and a flush had covered it at %d", at)
				covered.lower(at, w)
			}
			lost.lower(e.done, w)
		}
		if id != 0 && id != b.base[s] && (newest == 0 || b.writes[id].issued > b.writes[newest].issued) {
			newest = id
		}
	}
	if lost.id != 0 && newest != 0 && lost.at < b.writes[newest].issued {
		f.disorder = fmt.Sprintf("write %d %+v is there, and %d %+v is lost", newest, b.writes[newest], lost.id, b.writes[lost.id])
	}
	if covered.id != 0 && newest != 0 && covered.at < b.writes[newest].issued {
		f.epochs = fmt.Sprintf("write %d %+v is there, and %d %+v is lost, which a flush had covered at %d",
			newest, b.writes[newest], covered.id, b.writes[covered.id], covered.at)
	}
	return f
}

// explain returns the writes that may have left this content in sector s: one, or
// any that wrote zeroes. Number 0 stands for what was there before.
func (b *book) explain(id, s uint32) (shown []uint32) {
	if id == b.base[s] {
		shown = append(shown, 0)
	}
	for _, w := range b.history[s] {
		if w == id || id == 0 && b.writes[w].zero {
			shown = append(shown, w)
		}
	}
	return shown
}

// allOlder reports that whatever left the content was over before then.
func (b *book) allOlder(shown []uint32, then int64) bool {
	return !slices.ContainsFunc(shown, func(w uint32) bool {
		return w != 0 && (b.writes[w].done == 0 || b.writes[w].done >= then)
	})
}

// coveredAt returns when the client first knew that a completed write was
// durable, 0 if it never did.
func (b *book) coveredAt(e *entry) int64 {
	at := int64(0)
	if e.fua {
		at = e.done
	}
	for _, f := range b.flushes {
		if f.issued > e.done && (at == 0 || f.done < at) {
			at = f.done
		}
	}
	return at
}

// adopt takes an image for the truth: writes that got no answer are there or
// not, and that is final.
func (b *book) adopt(image []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.history {
		b.base[s], _ = identify(image[int(s)*sectorSize:][:sectorSize], s)
	}
	b.history, b.flushes = map[uint32][]uint32{}, nil
}
