package sim

import (
	"math/rand/v2"
	"slices"

	"replicad/replica/sim/oracle"
)

const (
	sectorSize   = oracle.SectorSize
	blockSectors = oracle.BlockSectors
	extentBlocks = oracle.ExtentBlocks
)

// content stands for the 512 bytes of a sector.
type content = oracle.Content

func contentOf(write, place uint32) content { return oracle.ContentOf(write, place) }

// disk is a backing device with a volatile cache. cache is what a reader sees
// now. A sector that was written since the last flush also has a history: a
// power cut leaves any one of those contents. Actions that were submitted but
// had no effect yet are remembered per sector, because a crash lets each of
// their sectors happen or not.
type disk struct {
	cache   []content
	history oracle.Sparse[sectorHistory]
	clock   uint64 // counts effects
	ills
}

type sectorHistory struct {
	older   []version // contents a power cut may bring back; the first is stable
	pending []content // submitted, not yet effective
	lost    bool      // a flush failed: no later one makes what is in the cache stable
}

type version struct {
	content content
	until   uint64 // the effect that replaced it
}

// reset makes the disk a new one of so many sectors. Memory is kept.
func (d *disk) reset(sectors int, garbage uint32) {
	d.cache = slices.Grow(d.cache[:0], sectors)[:sectors]
	for i := range d.cache {
		d.cache[i] = contentOf(garbage, uint32(i))
	}
	d.history.Reset(sectors)
	d.clock, d.ills = 0, ills{}
}

func (d *disk) sector(s uint32) *sectorHistory {
	h, fresh := d.history.Put(s)
	if fresh {
		*h = sectorHistory{older: h.older[:0], pending: h.pending[:0]}
	}
	return h
}

// submit notes that data is on its way to the sectors from first.
func (d *disk) submit(first uint32, data []content) {
	for i, c := range data {
		h := d.sector(first + uint32(i))
		h.pending = append(h.pending, c)
	}
}

// write lets one submitted content reach the cache.
func (d *disk) write(s uint32, c content) {
	h := d.sector(s)
	h.forget(c)
	h.lost = false
	d.clock++
	if d.cache[s] != c || len(h.older) > 0 {
		h.older = append(h.older, version{d.cache[s], d.clock})
	}
	d.cache[s] = c
}

func (h *sectorHistory) forget(c content) {
	if i := slices.Index(h.pending, c); i >= 0 {
		h.pending = slices.Delete(h.pending, i, i+1)
	}
}

// harden makes what sector s held when the clock stood at mark stable.
func (d *disk) harden(s uint32, mark uint64) {
	if h := d.history.Get(s); h != nil {
		h.harden(mark)
	}
}

func (h *sectorHistory) harden(mark uint64) {
	if h.lost {
		return
	}
	n := 0
	for n < len(h.older) && h.older[n].until <= mark {
		n++
	}
	h.older = slices.Delete(h.older, 0, n)
}

// flushed makes everything stable that was in the cache at mark.
func (d *disk) flushed(mark uint64) {
	sectors := d.history.Keys()
	for i := len(sectors) - 1; i >= 0; i-- { // a deletion moves only what was seen
		h := d.history.Get(sectors[i])
		h.harden(mark)
		if len(h.older) == 0 && len(h.pending) == 0 {
			d.history.Delete(sectors[i])
		}
	}
}

// flushFailed is what the kernel does with pages it could not write: it reports
// that once, calls them clean, and never tries again. A power cut may still
// bring back what they replaced, whatever a later flush says (P6).
func (d *disk) flushFailed() {
	for _, s := range d.history.Keys() {
		if h := d.history.Get(s); len(h.older) > 0 {
			h.lost = true
		}
	}
}

// reopened is a disk that is taken into use again. What a failed flush left in
// the cache may have been dropped meanwhile; what was not is stable by luck. It
// reports whether there was anything of that kind.
func (d *disk) reopened(r *rand.Rand) (doubtful bool) {
	for _, s := range d.history.Keys() {
		h := d.history.Get(s)
		if !h.lost {
			continue
		}
		doubtful = true
		if r.Uint64()&1 == 0 {
			d.cache[s] = h.older[r.IntN(len(h.older))].content
		}
		h.older, h.lost = h.older[:0], false
	}
	return doubtful
}

// kill is the end of the process: what was submitted happens or not, sector
// by sector; the operating system keeps its cache.
func (d *disk) kill(r *rand.Rand) {
	for _, s := range d.history.Keys() {
		h := d.history.Get(s)
		for len(h.pending) > 0 {
			if c := h.pending[0]; r.Uint64()&1 == 0 {
				d.write(s, c)
			} else {
				h.forget(c)
			}
		}
	}
}

// cut is the end of the machine: every sector falls back to what it held at
// any time since it was last stable.
func (d *disk) cut(r *rand.Rand) {
	d.kill(r)
	for _, s := range d.history.Keys() {
		if h := d.history.Get(s); len(h.older) > 0 && r.Uint64()%3 == 0 {
			d.cache[s] = h.older[r.IntN(len(h.older))].content
		}
	}
	d.history.Clear()
}

// Leaves calls f with every content that a crash of the process and the
// machine now could leave in sector s, the present one first, until f reports
// false.
func (d *disk) Leaves(s uint32, f func(content) bool) bool {
	if !f(d.cache[s]) {
		return false
	}
	h := d.history.Get(s)
	if h == nil {
		return true
	}
	for _, v := range h.older {
		if !f(v.content) {
			return false
		}
	}
	for _, c := range h.pending {
		if !f(c) {
			return false
		}
	}
	return true
}

// Unclean lists the sectors that a power cut may change.
func (d *disk) Unclean() []uint32 { return d.history.Keys() }
