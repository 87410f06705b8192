package oracle

import "slices"

// Oracle knows what the two disks and every reader may show. It learns only
// of requests, their answers, and of events that may discard data; it knows
// nothing of how the core works.
//
// Per volume it keeps, sector by sector, the set of acceptable contents
//   - of each node's disk (image), and
//   - of the device as the clients of a Primary see it (logical).
//
// A write is a candidate from its issue. When it completes, every candidate
// that was complete before it was issued is gone. P7: a read returns a
// candidate that was one at some time between its issue and its answer.
//
// What a completed write is owed (the promises of the design):
//   - Disks that must hold it are those the Primary counted as good when it
//     answered: its own if UpToDate, the peer's if connected and UpToDate
//     (or a resync target, which gets every write).
//   - P2, protocol C: both caches hold it, so killing processes loses nothing.
//   - P3, protocol B: the peer holds it once it drained what it received.
//   - P4, protocol A: what the peer holds is closed under "completed before
//     issued" (closure); what an acknowledged barrier covers is there.
//   - P1: a completed FLUSH or FUA, protocol C: no power cut of either node
//     brings back anything older than a write completed before it (durable).
//
// P16: writes that completed on one disk only are that disk's own history
// (lineage). A resync may overwrite a disk only if the source has all of its
// history, or after a command that says so.
type Oracle struct {
	fail     func(property, format string, args ...any)
	protocol byte
	writes   []write // by number; 0 is unused
	inFlight []uint32
	vols     []*volumeOracle
	tokens   int
	reads    []int64 // when the reads in flight were issued

	spare     []*register // to use again
	spareVols []*volumeOracle
}

// candsMax is how many candidates of a sector are kept before old ones are swept.
const candsMax = 8

type write struct {
	vol          int
	first, count uint32
	zero         bool
	node         int
	issued, done int64 // done: 0 = not (successfully) completed
}

type volumeOracle struct {
	image   [2]*register
	logical [2]*register
	history [2]Sparse[[]uint32] // each Primary's writes to a sector since the last promotion, as issued
	lineage [2]lineage
}

// lineage names the writes that only one disk was promised to hold.
type lineage struct {
	tokens  []int
	open    bool // the last token still stands for new writes
	broken  bool // the disk is being overwritten, or was and that never finished
	allowed bool // a command allows to discard it at the next connect
	given   bool // it was declared bad
}

// Reset makes the oracle, a new one or one that was used, that of a run under
// protocol A, B or C. fail is called for each broken promise, with its number in
// the list of invariants. Memory is kept.
func (o *Oracle) Reset(protocol byte, fail func(property, format string, args ...any)) {
	for _, v := range o.vols {
		for i := range v.image {
			o.discard(v.image[i])
			o.discard(v.logical[i])
		}
		o.spareVols = append(o.spareVols, v)
	}
	*o = Oracle{
		fail: fail, protocol: protocol, writes: append(o.writes[:0], write{}),
		inFlight: o.inFlight[:0], vols: o.vols[:0], reads: o.reads[:0], spare: o.spare, spareVols: o.spareVols,
	}
}

// register returns one that is exactly what an image holds.
func (o *Oracle) register(image []Content, now int64) *register {
	r := &register{}
	if last := len(o.spare) - 1; last >= 0 {
		r, o.spare = o.spare[last], o.spare[:last]
	}
	r.reset(image, now)
	return r
}

func (o *Oracle) discard(r *register) {
	if r != nil {
		o.spare = append(o.spare, r)
	}
}

// volume returns an empty volume of so many sectors.
func (o *Oracle) volume(sectors int) *volumeOracle {
	v := &volumeOracle{}
	if last := len(o.spareVols) - 1; last >= 0 {
		v, o.spareVols = o.spareVols[last], o.spareVols[:last]
	}
	*v = volumeOracle{history: v.history}
	for i := range v.history {
		v.history[i].Reset(sectors)
	}
	return v
}

func (v *volumeOracle) forgetHistory() {
	for i := range v.history {
		v.history[i].Clear()
	}
}

// writers lists the writes of a sector that a Primary issued.
func (v *volumeOracle) writers(node int, s uint32) []uint32 {
	if list := v.history[node].Get(s); list != nil {
		return *list
	}
	return nil
}

// Garbage takes the number of a write that was never made, for the initial
// content of a disk.
func (o *Oracle) Garbage() uint32 {
	o.writes = append(o.writes, write{node: -1})
	return uint32(len(o.writes) - 1)
}

// Begin tells the oracle what the disks hold at the start.
func (o *Oracle) Begin(images [2][][]Content) {
	for v := range images[0] {
		vo := o.volume(max(len(images[0][v]), len(images[1][v])))
		for i := range images {
			vo.image[i] = o.register(images[i][v], 0)
		}
		o.vols = append(o.vols, vo)
	}
}

// --- requests

// Issue numbers a write and makes it a candidate everywhere.
func (o *Oracle) Issue(now int64, node, vol int, first, count uint32, zero bool) uint32 {
	o.writes = append(o.writes, write{vol: vol, first: first, count: count, zero: zero, node: node, issued: now})
	id := uint32(len(o.writes) - 1)
	o.inFlight = append(o.inFlight, id)
	v := o.vols[vol]
	for s := range count {
		c := o.Written(id, s)
		writers, fresh := v.history[node].Put(first + s)
		if fresh {
			*writers = (*writers)[:0]
		}
		*writers = append(*writers, id)
		for _, r := range [...]*register{v.logical[node], v.image[0], v.image[1]} {
			if r == nil {
				continue
			}
			if r.submit(first+s, c) > candsMax {
				r.compact(first+s, o.oldestRead(now))
			}
		}
	}
	return id
}

// Reading notes a read that begins: what it may return is kept until ReadDone.
func (o *Oracle) Reading(issued int64) { o.reads = append(o.reads, issued) }

// ReadDone notes that a read issued at that time was answered.
func (o *Oracle) ReadDone(issued int64) {
	if i := slices.Index(o.reads, issued); i >= 0 {
		o.reads = slices.Delete(o.reads, i, i+1)
	}
}

func (o *Oracle) oldestRead(now int64) int64 {
	for _, issued := range o.reads {
		now = min(now, issued)
	}
	return now
}

// Written is what write id leaves in its sector number place.
func (o *Oracle) Written(id, place uint32) Content {
	if o.writes[id].zero {
		return 0
	}
	return ContentOf(id, place)
}

// Completed notes a successful answer; holds says which disks must have it. tail
// says that it is of those that protocols A and B may lose with the Primary
// without a word: sent before the peer was lost, and not there.
func (o *Oracle) Completed(now int64, id uint32, holds [2]bool, tail bool) {
	w := &o.writes[id]
	o.endFlight(id)
	w.done = now
	v := o.vols[w.vol]
	for s := range w.count {
		c := o.Written(id, s)
		if r := v.logical[w.node]; r != nil {
			r.settle(w.first+s, c, w.issued, now)
		}
		for i, r := range v.image {
			if holds[i] && (o.protocol != 'A' || i == w.node) {
				r.settle(w.first+s, c, w.issued, now)
			} else {
				r.leave(w.first+s, c, now, holds[i])
			}
		}
	}
	for i := range holds {
		if holds[i] && !holds[1-i] && !tail {
			o.solo(v, i)
		}
	}
}

// Failed notes an unsuccessful answer: the write may have happened or not.
func (o *Oracle) Failed(now int64, id uint32) {
	w := &o.writes[id]
	o.endFlight(id)
	v := o.vols[w.vol]
	for s := range w.count {
		for _, r := range []*register{v.logical[w.node], v.image[0], v.image[1]} {
			if r != nil {
				r.leave(w.first+s, o.Written(id, s), now, true)
			}
		}
	}
}

func (o *Oracle) endFlight(id uint32) {
	if i := slices.Index(o.inFlight, id); i >= 0 {
		o.inFlight = slices.Delete(o.inFlight, i, i+1)
	}
}

// Read checks what a client was told (P7).
func (o *Oracle) Read(now, issued int64, node, vol int, first uint32, data []Content) {
	r := o.vols[vol].logical[node]
	if r == nil {
		o.fail("P7", "node %d answers a read of sector %d+%d, and is no Primary", node, first, len(data))
		return
	}
	for i, c := range data {
		s := first + uint32(i)
		if !r.allows(s, c, issued) {
			o.fail("P7", "node %d volume %d sector %d reads as %s; acceptable: %s", node, vol, s, o.Name(c), o.names(r.get(s)))
			return
		}
		if c != 0 {
			r.observe(s, c, issued, now, o.writes[c.Write()].issued)
		}
	}
}

// --- disks

// Submitted notes that a disk was given contents of a write: from now on they
// may be there.
func (o *Oracle) Submitted(now int64, node, vol int, first uint32, data []Content) {
	for i, c := range data {
		done := now
		if c != 0 {
			done = o.writes[c.Write()].done
		}
		o.vols[vol].image[node].touch(first+uint32(i), c, done)
	}
}

// Acknowledged notes that node said a mirrored write is stable.
func (o *Oracle) Acknowledged(now int64, node int, id uint32) {
	w := &o.writes[id]
	if o.protocol != 'A' || w.node == node {
		return
	}
	for s := range w.count {
		o.vols[w.vol].image[node].settle(w.first+s, o.Written(id, s), w.issued, now)
	}
}

// Holds checks that a disk's cache has the sectors as they must be now (P2).
func (o *Oracle) Holds(now int64, node, vol int, first, count uint32, cache []Content, property, when string) {
	r := o.vols[vol].image[node]
	for s := first; s < first+count; s++ {
		if !r.allows(s, cache[s], now+1) { // not what this very event replaced
			o.fail(property, "%s: node %d volume %d sector %d holds %s; acceptable: %s", when, node, vol, s, o.Name(cache[s]), o.names(r.get(s)))
			return
		}
	}
}

// Durable checks that no crash of node brings back what a completed flush
// issued at before has replaced (P1). only, if not 0, is the one write that
// counts: a completed FUA.
func (o *Oracle) Durable(primary, node, vol int, d Disk, before int64, only uint32) {
	sectors := d.Unclean()
	if only != 0 {
		w := &o.writes[only]
		sectors = make([]uint32, 0, w.count)
		for s := range w.count {
			sectors = append(sectors, w.first+s)
		}
	}
	for _, s := range sectors {
		d.Leaves(s, func(c Content) bool {
			if id := o.superseded(primary, vol, s, c, before, only); id != 0 {
				o.fail("P1", "flush done, but after a power cut node %d volume %d sector %d may hold %s, older than %s", node, vol, s, o.Name(c), o.Name(ContentOf(id, 0)))
				return false
			}
			return true
		})
	}
}

// superseded finds a write of sector s that completed before the given time
// and that surely came after content c; 0 if there is none.
func (o *Oracle) superseded(primary, vol int, s uint32, c Content, before int64, only uint32) uint32 {
	for _, id := range o.vols[vol].writers(primary, s) {
		w := &o.writes[id]
		if only != 0 && id != only || only == 0 && (w.done == 0 || w.done >= before) {
			continue
		}
		if c == o.Written(id, s-w.first) {
			continue
		}
		if o.older(vol, s, c, w) {
			return id
		}
	}
	return 0
}

// older reports that content c of sector s was surely there before w. What
// another Primary wrote was: it is what w's Primary began with.
func (o *Oracle) older(vol int, s uint32, c Content, w *write) bool {
	if c != 0 {
		x := &o.writes[c.Write()]
		return x.node != w.node || x.done != 0 && x.done < w.issued
	}
	for _, id := range o.vols[vol].writers(w.node, s) { // any of the writes of zeroes may have made it
		x := &o.writes[id]
		if x.zero && (x.done == 0 || x.done >= w.issued) {
			return false
		}
	}
	return true
}

// Closure checks (P4) that the writes visible in an image are closed under
// "completed before issued": no write of the other node is missing that
// Completed before one that is there was issued.
func (o *Oracle) Closure(node, vol int, image []Content) {
	missing, visible := int64(1)<<62, int64(-1)
	var lost, seen uint32
	history := &o.vols[vol].history[1-node]
	for _, s := range history.Keys() {
		c := image[s]
		for _, id := range *history.Get(s) {
			w := &o.writes[id]
			if c == o.Written(id, s-w.first) {
				if c != 0 && w.issued > visible {
					visible, seen = w.issued, id
				}
				continue
			}
			if w.done != 0 && w.done < missing && o.older(vol, s, c, w) {
				missing, lost = w.done, id
			}
		}
	}
	if missing < visible {
		o.fail("P4", "node %d volume %d holds %s but lacks %s, which completed before that was issued", node, vol, o.Name(ContentOf(seen, 0)), o.Name(ContentOf(lost, 0)))
	}
}

// Crashed notes the end of a node: its clients are gone, its disks hold what
// they hold. whole says which of them must still be acceptable as they are.
func (o *Oracle) Crashed(now int64, node int, whole []bool, images [][]Content) {
	for _, id := range slices.Clone(o.inFlight) {
		if o.writes[id].node == node {
			o.abandon(now, id)
		}
	}
	for vol, v := range o.vols {
		o.endView(v, node)
		if whole[vol] {
			o.Holds(now, node, vol, 0, uint32(len(images[vol])), images[vol], "P2", "after a kill")
		}
		v.image[node].rebase(images[vol], now)
		v.lineage[node].open = false
	}
}

// SettleFor takes a disk as it is: the source of its resync died, so what it
// had is only known by what arrived.
func (o *Oracle) SettleFor(now int64, node, vol int, image []Content) {
	o.vols[vol].image[node].rebase(image, now)
}

// Reverted notes a power cut of the only good disk that a living Primary
// serves from: what was not flushed may be gone for its clients.
func (o *Oracle) Reverted(now int64, primary, vol int, image []Content) {
	r := o.vols[vol].logical[primary]
	for s, c := range image {
		if r != nil && s < len(r.base) {
			r.restore(uint32(s), c, now)
		}
	}
}

// abandon ends a write whose Primary is gone: the peer may get it yet.
func (o *Oracle) abandon(now int64, id uint32) {
	w := &o.writes[id]
	o.endFlight(id)
	for s := range w.count {
		for _, r := range o.vols[w.vol].image {
			r.leave(w.first+s, o.Written(id, s), now, true)
		}
	}
}

// --- roles and resync

// Promoted begins the view of a new Primary's clients: the content of the
// disk it serves from, which must be acceptable unless it was forced.
func (o *Oracle) Promoted(now int64, node, vol, source int, image []Content, strict bool) {
	v := o.vols[vol]
	if strict {
		o.Holds(now, source, vol, 0, uint32(len(image)), image, "P3", "at promotion")
	}
	if source == node {
		v.image[node].rebase(image, now)
	}
	o.endView(v, node)
	v.logical[node] = o.register(image, now)
	v.forgetHistory()
}

// Demoted ends the view of a Primary's clients.
func (o *Oracle) Demoted(node, vol int) { o.endView(o.vols[vol], node) }

func (o *Oracle) endView(v *volumeOracle, node int) {
	o.discard(v.logical[node])
	v.logical[node] = nil
}

// Forced notes that the operator declared a node's disk good.
func (o *Oracle) Forced(node, vol int) {
	l := &o.vols[vol].lineage[node]
	l.broken, l.allowed, l.given, l.open = false, false, false, false
}

// solo notes a write that only one disk holds.
func (o *Oracle) solo(v *volumeOracle, node int) {
	l := &v.lineage[node]
	if l.open {
		return
	}
	o.tokens++
	l.tokens = append(l.tokens, o.tokens)
	l.open = true
}

// Allow notes that a command lets a resync overwrite a node's disk.
func (o *Oracle) Allow(node, vol int, yes bool) { o.vols[vol].lineage[node].allowed = yes }

// Given notes that a disk was declared bad, or that it is not after all: the
// crash came before that was on record.
func (o *Oracle) Given(vol, node int, yes bool) { o.vols[vol].lineage[node].given = yes }

// Replaced notes that a node has a new, empty disk.
func (o *Oracle) Replaced(now int64, node, vol int, image []Content) {
	v := o.vols[vol]
	v.image[node].rebase(image, now)
	v.lineage[node] = lineage{broken: true}
}

// ResyncStarts checks P16 and P14: the target loses nothing that the source
// lacks, and the source is whole.
func (o *Oracle) ResyncStarts(vol, source, target int) {
	v := o.vols[vol]
	from, to := &v.lineage[source], &v.lineage[target]
	if from.broken {
		o.fail("P14", "volume %d: node %d is the source of a resync, and its own disk was left half overwritten", vol, source)
	}
	if !to.broken && !to.allowed && !to.given {
		for _, t := range to.tokens {
			if !slices.Contains(from.tokens, t) {
				o.fail("P16", "volume %d: a resync overwrites node %d, which completed writes that node %d never had (history %d)", vol, target, source, t)
			}
		}
	}
}

// ResyncWrites notes that the target begins to be overwritten.
func (o *Oracle) ResyncWrites(vol, target int) {
	o.vols[vol].lineage[target].broken = true
}

// ResyncEnds makes the target's disk what the source's is. Under protocols A
// and B the source completes writes that the target does not have on its disk
// yet: then what is there is acceptable too.
func (o *Oracle) ResyncEnds(now int64, vol, source, target int, image []Content) {
	v := o.vols[vol]
	v.image[target].copyFrom(v.image[source])
	for s := range image {
		if o.protocol != 'C' && !v.image[target].allows(uint32(s), image[s], now) {
			v.image[target].restore(uint32(s), image[s], now)
		}
	}
	v.lineage[target] = lineage{tokens: slices.Clone(v.lineage[source].tokens)}
	v.lineage[source].open = false
}

// Made reports whether a write of this run made c, and not what was on the
// disks before.
func (o *Oracle) Made(c Content) bool { return o.writes[c.Write()].node >= 0 }

// FirstWrite is the number of the first write that was really made.
func (o *Oracle) FirstWrite() uint32 {
	for i := range o.writes {
		if i > 0 && o.writes[i].node >= 0 {
			return uint32(i)
		}
	}
	return uint32(len(o.writes))
}
