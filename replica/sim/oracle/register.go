package oracle

import (
	"fmt"
	"slices"
	"strings"
)

// register is the set of acceptable contents of every sector of one view of a
// volume. Sectors without candidates of their own hold what base says.
type register struct {
	base  []Content
	since int64
	cands Sparse[[]cand]
	kept  []keptCand // of copyFrom
	slab  []cand     // memory for sectors that have no candidates yet
}

// candsCommon is how many candidates most sectors get by with.
const candsCommon = 4

// list returns the candidates of a sector. The pointer is good until the next
// call.
func (r *register) list(s uint32) *[]cand {
	list, fresh := r.put(s)
	if fresh {
		*list = append(*list, cand{content: r.base[s], done: r.since, real: true})
	}
	return list
}

// put returns the candidates of a sector, an empty list if it has none.
func (r *register) put(s uint32) (list *[]cand, fresh bool) {
	list, fresh = r.cands.Put(s)
	if !fresh {
		return list, false
	}
	if cap(*list) == 0 {
		if len(r.slab) < candsCommon {
			r.slab = make([]cand, 1024*candsCommon)
		}
		*list, r.slab = r.slab[:0:candsCommon], r.slab[candsCommon:]
	}
	*list = (*list)[:0]
	return list, true
}

// keptCand is a write in flight that outlives what else a register knows.
type keptCand struct {
	sector uint32
	cand
}

// cand is an acceptable content.
type cand struct {
	done    int64 // when its write completed, the largest number while it has not
	gone    int64 // when it stopped being acceptable, 0 = it is
	content Content
	pending int16 // writes in flight that would leave it
	real    bool  // it may be there: it was submitted here, or completed
}

const never = int64(1) << 62

// reset makes the register a new one that is exactly what an image holds.
func (r *register) reset(image []Content, now int64) {
	r.cands.Reset(len(image))
	r.rebase(image, now)
}

// rebase makes the register exactly what an image holds.
func (r *register) rebase(image []Content, now int64) {
	r.base, r.since = append(r.base[:0], image...), now
	r.cands.Clear()
}

// copyFrom makes r what o is, but keeps its own writes in flight.
func (r *register) copyFrom(o *register) {
	r.kept = r.kept[:0]
	for _, s := range r.cands.Keys() {
		for _, c := range *r.cands.Get(s) {
			if c.pending > 0 && c.gone == 0 {
				r.kept = append(r.kept, keptCand{s, c})
			}
		}
	}
	r.since = o.since
	r.cands.Clear()
	copy(r.base, o.base) // disks may differ in size; the common part counts
	for _, s := range o.cands.Keys() {
		if int(s) >= len(r.base) {
			continue
		}
		list, _ := r.put(s)
		*list = append(*list, *o.cands.Get(s)...)
		for i := range *list {
			(*list)[i].real = true // mirrored writes went to both
		}
	}
	for _, k := range r.kept {
		x := r.find(k.sector, k.content)
		x.pending, x.real, x.done, x.gone = max(x.pending, k.pending), true, k.done, 0
	}
}

func (r *register) get(s uint32) []cand {
	if list := r.cands.Get(s); list != nil {
		return *list
	}
	return []cand{{content: r.base[s], done: r.since, real: true}}
}

// find returns the candidate, adding it if need be. The pointer is good until
// the next call.
func (r *register) find(s uint32, c Content) *cand {
	list := r.list(s)
	for i := range *list {
		if x := &(*list)[i]; x.content == c {
			return x
		}
	}
	*list = append(*list, cand{content: c, done: never, gone: -1})
	return &(*list)[len(*list)-1]
}

// submit makes c a candidate because a write of it was issued. Nobody has seen
// c before, unless it is zeroes. It returns how many candidates there are.
func (r *register) submit(s uint32, c Content) int {
	list := r.list(s)
	if c != 0 {
		*list = append(*list, cand{content: c, done: never, pending: 1})
		return len(*list)
	}
	x := r.find(s, c)
	if x.gone != 0 {
		x.gone, x.done, x.real = 0, never, false
	}
	x.pending++
	return len(*list)
}

// compact forgets what stopped being acceptable before any read that is
// still running began.
func (r *register) compact(s uint32, oldestRead int64) {
	list := r.cands.Get(s)
	*list = slices.DeleteFunc(*list, func(x cand) bool { return x.gone > 0 && x.gone < oldestRead })
}

// settle notes that a write of c, issued at that time, completed.
func (r *register) settle(s uint32, c Content, issued, now int64) {
	x := r.find(s, c)
	x.gone, x.done, x.real = 0, now, true
	x.pending = max(0, x.pending-1)
	retire(*r.list(s), c, issued, now)
}

// retire removes what was complete before the given time.
func retire(list []cand, keep Content, before, now int64) {
	for i := range list {
		x := &list[i]
		if x.content != keep && x.gone == 0 && x.pending == 0 && x.done < before {
			x.gone = now
		}
	}
}

// leave notes that a write of c ended without this view being promised it.
// It stays acceptable if it may have got here.
func (r *register) leave(s uint32, c Content, now int64, maybe bool) {
	x := r.find(s, c)
	x.real = x.real || maybe
	x.pending = max(0, x.pending-1)
	if x.pending == 0 || x.real {
		x.done = now
	}
	if x.pending == 0 && !x.real {
		x.gone = now
	}
}

// touch notes that c was submitted to the disk of this view.
func (r *register) touch(s uint32, c Content, done int64) {
	x := r.find(s, c)
	x.real = true
	if x.gone != 0 {
		x.gone = 0
		x.done = done
		if done == 0 {
			x.done = never
		}
	}
}

// restore makes c acceptable as if it had just been written.
func (r *register) restore(s uint32, c Content, now int64) {
	if r.cands.Get(s) == nil && r.base[s] == c {
		return
	}
	x := r.find(s, c)
	x.gone, x.done, x.real = 0, now, true
}

// allows reports whether c is acceptable, or was at since or later.
func (r *register) allows(s uint32, c Content, since int64) bool {
	list := r.cands.Get(s)
	if list == nil {
		return r.base[s] == c
	}
	for i := range *list {
		if x := &(*list)[i]; x.content == c {
			return x.gone == 0 || x.gone > 0 && x.gone >= since
		}
	}
	return false
}

// observe notes that a read issued at that time returned c: what was complete
// before the read began and is not c can never be seen again, and neither can
// what was complete before c's own write was issued.
func (r *register) observe(s uint32, c Content, readIssued, now, writeIssued int64) {
	if r.cands.Get(s) == nil {
		return
	}
	x := r.find(s, c)
	if x.gone != 0 {
		return
	}
	if x.pending == 0 {
		retire(*r.list(s), c, readIssued, now)
	} else {
		retire(*r.list(s), c, writeIssued, now)
	}
}

// Name describes a content.
func (o *Oracle) Name(c Content) string {
	switch {
	case c == 0:
		return "zeroes"
	case o.writes[c.Write()].node < 0:
		return fmt.Sprintf("garbage %d", c.Write())
	}
	w := &o.writes[c.Write()]
	return fmt.Sprintf("write %d.%d (node %d, sector %d+%d, issued %s, done %s)", c.Write(), uint32(c)&(1<<placeBits-1), w.node, w.first, w.count, nanos(w.issued), nanos(w.done))
}

func (o *Oracle) names(list []cand) string {
	var names []string
	for _, x := range list {
		if x.gone == 0 {
			names = append(names, o.Name(x.content))
		}
	}
	return strings.Join(names, " | ")
}

func nanos(t int64) string { return fmt.Sprintf("%.6f", float64(t)/1e9) }
