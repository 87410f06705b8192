package sim

import (
	"math/bits"
	"slices"

	"replicad/replica/core"
	"replicad/replica/meta"
	"replicad/replica/sim/oracle"
	"replicad/wire"
)

// P8, no silent divergence, is checked in two forms.
//
// The crash form holds at every instant. Take any two contents that the disks
// could be left with if both nodes crashed now: processes killed or power
// cut, so for every sector any content since its last flush, and any write
// that was submitted and not answered, happened or not. If they differ in a
// block, then that block is surely marked in the metadata of one of the nodes
// as it would be found after the crash: by a bit of the stored bitmap, or by
// a hot extent of the stored activity log together with the stored primary
// indicator, or by the full-sync flag. What a metadata write in flight might
// undo does not count. No write is excused: one that reached a disk before
// its activity-log transaction was stable breaks this. The only other cover
// is a pair of generation ids that forces a full sync, or refuses to connect
// for want of any relation.
//
// The same rule covers P9: a bit may leave the stored bitmap only when no
// crash can make the block differ any more.
//
// The memory form holds when the two nodes are apart and at rest: a block that
// differs is marked in the bitmap in memory of one of them, because that is
// what they will exchange when they meet.
//
// And while both nodes call both disks UpToDate and are Connected, a sector
// may differ only where a write is on its way: not answered to its client, in
// a lane, held by the receiving core, or submitted to a disk (P11).

// exposure is what is known of the blocks of a volume, 64 to a word, so that
// looking after every event is cheap.
type exposure struct {
	listed  []uint64 // a crash may leave it different; a superset
	differs []uint64 // its contents differ now
	scratch [2][]uint64
}

func has(set []uint64, block uint32) bool { return set[block/64]>>(block%64)&1 != 0 }

func put(set []uint64, block uint32, yes bool) {
	set[block/64] &^= 1 << (block % 64)
	if yes {
		set[block/64] |= 1 << (block % 64)
	}
}

// each calls f with every block of a word until f reports false.
func each(word uint64, first int, f func(block uint32) bool) bool {
	for ; word != 0; word &= word - 1 {
		if !f(uint32(first*64 + bits.TrailingZeros64(word))) {
			return false
		}
	}
	return true
}

func (w *World) seedImages() {
	for range w.opt.Volumes {
		n := (w.opt.Blocks + 63) / 64
		w.exposed = append(w.exposed, exposure{listed: make([]uint64, n), differs: make([]uint64, n)})
	}
	if !w.opt.Fresh {
		w.seedPair()
	}
	for vol := range w.exposed {
		for b := range uint32(w.opt.Blocks) {
			put(w.exposed[vol].listed, b, true)
		}
	}
	w.recompare()
	w.oracle.Begin([2][][]content{w.nodes[0].images(), w.nodes[1].images()})
}

// seedPair makes the nodes a pair that was synchronised and taken down.
func (w *World) seedPair() {
	for v := range w.opt.Volumes {
		size := w.opt.Blocks * blockSectors * sectorSize
		current, h1 := w.rng.Uint64()&^1, w.rng.Uint64()&^1
		for _, n := range w.nodes {
			n.vols[v].meta.seed(func(s *meta.Super) {
				s.LaSize, s.PeerMaxBio = meta.SectorsOf(int64(size)), 1<<20
				s.Current, s.History[0] = meta.UUID(current), meta.UUID(h1)
				s.Flags |= meta.FlagConsistent | meta.FlagWasUpToDate
			})
			copy(n.vols[v].disk.cache, w.nodes[0].vols[v].disk.cache[:size/sectorSize])
		}
	}
}

func (w *World) disks(vol int) (x, y *disk) {
	return w.nodes[0].vols[vol].disk, w.nodes[1].vols[vol].disk
}

// recompare looks again at the blocks that a crash or a new disk may have changed.
func (w *World) recompare() {
	for vol := range w.exposed {
		e := &w.exposed[vol]
		for i, word := range e.listed {
			each(word, i, func(b uint32) bool { w.compare(vol, b); return true })
		}
	}
}

func (w *World) compare(vol int, b uint32) {
	x, y := w.disks(vol)
	s, end := b*blockSectors, (b+1)*blockSectors
	put(w.exposed[vol].differs, b, !slices.Equal(x.cache[s:end], y.cache[s:end]))
}

// touched checks the blocks of a range after something happened to them.
func (w *World) touched(vol int, first, count uint32) {
	e := &w.exposed[vol]
	m := w.marks(vol)
	last := min((first+count-1)/blockSectors, uint32(w.opt.Blocks)-1)
	for b := first / blockSectors; b <= last; b++ {
		w.count.Checks++
		put(e.listed, b, true)
		w.compare(vol, b)
		if !has(m[0].Sure(), b) && !has(m[1].Sure(), b) && w.mayDiffer(vol, b) && !oracle.Unrelated(m[0], m[1]) {
			w.uncovered(vol, b)
			return
		}
	}
}

func (w *World) marks(vol int) [2]*oracle.Marks {
	return [2]*oracle.Marks{w.nodes[0].vols[vol].meta.marks, w.nodes[1].vols[vol].meta.marks}
}

// diverged checks every exposed block after the metadata changed.
func (w *World) diverged() {
	for vol := range w.exposed {
		e, m := &w.exposed[vol], w.marks(vol)
		w.mustReplay(vol, m)
		if oracle.Unrelated(m[0], m[1]) {
			continue
		}
		x, y := m[0].Sure(), m[1].Sure()
		for i := range e.listed {
			w.count.Checks += bits.OnesCount64(e.listed[i])
			if !each(e.listed[i]&^x[i]&^y[i], i, func(b uint32) bool { return w.unmarked(vol, b) }) {
				return
			}
		}
	}
}

// unmarked drops a block that nothing marks from the list, if it cannot differ.
func (w *World) unmarked(vol int, b uint32) bool {
	if w.mayDiffer(vol, b) {
		w.uncovered(vol, b)
		return false
	}
	put(w.exposed[vol].listed, b, false)
	return true
}

// mustReplay checks that a restart could read every activity log it needs.
func (w *World) mustReplay(vol int, m [2]*oracle.Marks) {
	for i := range m {
		if m[i].Stuck() {
			w.fail("P10", "node %s volume %d: a crash now may leave an activity log that cannot be read", w.nodes[i].name(), vol)
		}
	}
}

// mayDiffer reports whether a crash could leave the block with two contents.
func (w *World) mayDiffer(vol int, b uint32) bool {
	x, y := w.disks(vol)
	for s := b * blockSectors; s < (b+1)*blockSectors; s++ {
		c := x.cache[s]
		same := func(d content) bool { return d == c }
		if !x.Leaves(s, same) || !y.Leaves(s, same) {
			return true
		}
	}
	return false
}

func (w *World) uncovered(vol int, b uint32) {
	x, y := w.disks(vol)
	m := w.marks(vol)
	for s := b * blockSectors; s < (b+1)*blockSectors; s++ {
		left, right := w.possible(x, s), w.possible(y, s)
		if len(left) > 1 || len(right) > 1 || left[0] != right[0] {
			w.fail("P8", "volume %d block %d may differ after a crash and nothing says so: sector %d may hold %v on a, %v on b; superblocks a %v, b %v",
				vol, b, s, left, right, m[0].Supers(), m[1].Supers())
			return
		}
	}
}

// possible names what a crash may leave in a sector.
func (w *World) possible(d *disk, s uint32) (names []string) {
	d.Leaves(s, func(c content) bool {
		if name := w.oracle.Name(c); !slices.Contains(names, name) {
			names = append(names, name)
		}
		return true
	})
	return names
}

// --- connected and apart

// afterEvent checks what must hold between events.
func (w *World) afterEvent() {
	for vol := range w.exposed {
		switch {
		case w.inSync(vol):
			w.mustBeEqual(vol)
		case w.apart(vol):
			w.mustBeMarked(vol)
		}
	}
}

// inSync reports that both nodes call the volume Connected UpToDate/UpToDate.
func (w *World) inSync(vol int) bool {
	for _, n := range w.nodes {
		s := &n.vols[vol].st
		if !n.up || s.Conn != core.Connected || s.Disk != core.UpToDate || s.PDisk != core.UpToDate {
			return false
		}
	}
	return w.net.whole()
}

// whole reports that one link is alive at both ends.
func (net *network) whole() bool {
	return slices.ContainsFunc(net.links, func(l *link) bool {
		return l.ends[0].state == endAlive && l.ends[1].state == endAlive && !l.garbled()
	})
}

func (w *World) mustBeEqual(vol int) {
	x, y := w.disks(vol)
	for i, word := range w.exposed[vol].differs {
		w.count.Checks++
		each(word, i, func(b uint32) bool {
			p := part{vol: vol, first: b * blockSectors}
			for s := range uint32(blockSectors) {
				w.count.Checks++
				if x.cache[p.first+s] != y.cache[p.first+s] {
					p.left |= 1 << s
				}
			}
			if w.strike(&p); p.left == 0 {
				return true
			}
			s := p.first + uint32(bits.TrailingZeros32(p.left))
			w.fail("P11", "Connected UpToDate/UpToDate, but volume %d sector %d holds %s on a, %s on b", vol, s, w.oracle.Name(x.cache[s]), w.oracle.Name(y.cache[s]))
			return false
		})
	}
}

// part is some sectors of one block.
type part struct {
	vol   int
	first uint32 // of the block
	left  uint32 // a bit for each sector that is meant
}

// strike removes the sectors of a range.
func (p *part) strike(vol int, first, count uint32) {
	from, end := max(first, p.first), min(first+count, p.first+blockSectors)
	if vol == p.vol && from < end {
		p.left &^= 1<<(end-p.first) - 1<<(from-p.first)
	}
}

// strike removes the sectors of which a write has not reached both disks yet.
func (w *World) strike(p *part) {
	for _, n := range w.nodes {
		if p.left == 0 {
			return
		}
		n.strike(p)
	}
	for _, l := range w.net.links {
		for i := range l.lanes {
			strikeCarried(l.lanes[i][0].outbox, p)
			strikeCarried(l.lanes[i][0].wire, p)
		}
	}
}

func strikeCarried(frames []frame, p *part) {
	for i := range frames {
		if m := &frames[i].msg; isMirrored(m.Kind) {
			p.strike(int(m.Vol), uint32(m.Off/sectorSize), m.Len/sectorSize)
		}
	}
}

// strike removes the sectors of which the node has a write that is not done: a
// client's, one submitted to the disk, or one from the peer.
func (n *node) strike(p *part) {
	for _, o := range n.live {
		if o.data != nil {
			p.strike(o.vol, o.first, o.count)
		}
	}
	for _, r := range n.received {
		p.strike(r.vol, r.first, r.count)
	}
	for i := range n.bufs.all {
		b := &n.bufs.all[i]
		if b.used && (b.kind == uint8(wire.KindData) || b.request != nil && b.request.writes()) {
			p.strike(b.vol, b.first, uint32(len(b.data)))
		}
	}
}

// apart reports that the nodes have no link, not even a rest of one, and that
// nothing moves on either.
func (w *World) apart(vol int) bool {
	for _, n := range w.nodes {
		s := &n.vols[vol].st
		if !n.up || s.Conn > core.WFConnection || s.Disk < core.Inconsistent || n.w.bitmapOf(n, vol) == nil {
			return false
		}
		if len(n.live) > 0 || n.bufs.used() || len(n.received) > 0 {
			return false
		}
	}
	return true
}

func (b *buffers) used() bool { return len(b.free) < len(b.all) }

func (w *World) mustBeMarked(vol int) {
	e := &w.exposed[vol]
	for i, n := range w.nodes {
		bm := w.bitmapOf(n, vol)
		e.scratch[i] = bm.AppendWords(e.scratch[i][:0], 0, bm.WordCount())
	}
	a, b := e.scratch[0], e.scratch[1]
	for i, word := range e.differs {
		w.count.Checks++
		if i < min(len(a), len(b)) {
			word &^= a[i] | b[i]
		}
		each(word, i, func(block uint32) bool {
			if !oracle.Unrelated(w.marks(vol)[0], w.marks(vol)[1]) {
				w.fail("P8", "the nodes are apart, volume %d block %d differs, and no bit in memory says so", vol, block)
			}
			return false
		})
	}
	w.reached.hit(markApartChecked)
}
