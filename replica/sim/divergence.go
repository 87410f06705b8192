package sim

import (
	"slices"

	"replicad/replica/core"
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

// exposure lists the blocks of a volume whose contents may differ.
type exposure struct {
	listed []bool
	blocks []uint32
}

func (w *World) seedImages() {
	for range w.opt.Volumes {
		e := exposure{listed: make([]bool, w.opt.Blocks)}
		for b := range uint32(w.opt.Blocks) {
			e.listed[b] = true
			e.blocks = append(e.blocks, b)
		}
		w.exposed = append(w.exposed, e)
	}
	if !w.opt.Fresh {
		w.seedPair()
	}
	w.oracle.Begin([2][][]content{w.nodes[0].images(), w.nodes[1].images()})
}

// seedPair makes the nodes a pair that was synchronised and taken down.
func (w *World) seedPair() {
	for v := range w.opt.Volumes {
		size := w.opt.Blocks * blockSectors * sectorSize
		super := core.Super{Size: size, Flags: core.FlagConsistent | core.FlagWasUpToDate, PeerMaxIO: 1 << 20}
		super.Gen = core.Generation{Current: w.rng.Uint64() &^ 1, H1: w.rng.Uint64() &^ 1}
		for _, n := range w.nodes {
			n.vols[v].meta.super = super
			copy(n.vols[v].disk.cache, w.nodes[0].vols[v].disk.cache[:size/sectorSize])
		}
	}
}

// touched checks the blocks of a range after something happened to them.
func (w *World) touched(vol int, first, count uint32) {
	e := &w.exposed[vol]
	for b := first / blockSectors; b <= (first+count-1)/blockSectors && b < uint32(len(e.listed)); b++ {
		if !e.listed[b] {
			e.listed[b] = true
			e.blocks = append(e.blocks, b)
		}
		if !w.covered(vol, b) {
			w.uncovered(vol, b)
			return
		}
	}
}

// diverged checks every exposed block after the metadata changed.
func (w *World) diverged() {
	for vol := range w.exposed {
		e := &w.exposed[vol]
		kept := e.blocks[:0]
		for _, b := range e.blocks {
			switch {
			case w.marked(vol, b):
			case !w.mayDiffer(vol, b):
				e.listed[b] = false
				continue
			case !w.unrelated(vol):
				w.uncovered(vol, b)
				return
			}
			kept = append(kept, b)
		}
		e.blocks = kept
	}
}

func (w *World) covered(vol int, b uint32) bool {
	return w.marked(vol, b) || !w.mayDiffer(vol, b) || w.unrelated(vol)
}

func (w *World) marked(vol int, b uint32) bool {
	w.count.Checks++
	return w.nodes[0].vols[vol].meta.marks(uint64(b)) || w.nodes[1].vols[vol].meta.marks(uint64(b))
}

// mayDiffer reports whether a crash could leave the block with two contents.
func (w *World) mayDiffer(vol int, b uint32) bool {
	x, y := w.nodes[0].vols[vol].disk, w.nodes[1].vols[vol].disk
	for s := b * blockSectors; s < (b+1)*blockSectors; s++ {
		c := x.cache[s]
		same := func(d content) bool { return d == c }
		if !x.Leaves(s, same) || !y.Leaves(s, same) {
			return true
		}
	}
	return false
}

// unrelated reports that, whatever of the superblock writes in flight happens,
// the generation ids of the nodes will force a full sync or forbid any.
func (w *World) unrelated(vol int) bool {
	for _, a := range w.nodes[0].vols[vol].meta.supers() {
		for _, b := range w.nodes[1].vols[vol].meta.supers() {
			if !fullOrNothing(core.Compare(facts(a), facts(b), true), a, b) {
				return false
			}
		}
	}
	return true
}

func fullOrNothing(v core.Verdict, a, b *core.Super) bool {
	switch v.Result {
	case 2, -2, -1000:
		return true
	case -100:
		return (a.Flags^b.Flags)&core.FlagConsistent != 0
	}
	return v.Rule == 10 // both just created: nothing is good yet
}

func (m *metaStore) supers() []*core.Super {
	if m.superNext != nil {
		return []*core.Super{&m.super, m.superNext}
	}
	return []*core.Super{&m.super}
}

func facts(s *core.Super) core.Facts {
	return core.Facts{
		Gen:            s.Gen,
		CrashedPrimary: s.Flags&(core.FlagCrashedPrimary|core.FlagPrimaryInd) != 0,
		Inconsistent:   s.Flags&core.FlagConsistent == 0,
	}
}

func (w *World) uncovered(vol int, b uint32) {
	x, y := w.nodes[0].vols[vol], w.nodes[1].vols[vol]
	for s := b * blockSectors; s < (b+1)*blockSectors; s++ {
		left, right := w.possible(x.disk, s), w.possible(y.disk, s)
		if len(left) > 1 || len(right) > 1 || left[0] != right[0] {
			w.fail("P8", "volume %d block %d may differ after a crash and nothing says so: sector %d may hold %v on a, %v on b; metadata a %v %v, b %v %v",
				vol, b, s, left, right, x.meta.super, x.meta.superNext != nil, y.meta.super, y.meta.superNext != nil)
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
		return l.ends[0].state == endAlive && l.ends[1].state == endAlive
	})
}

func (w *World) mustBeEqual(vol int) {
	x, y := w.nodes[0].vols[vol].disk.cache, w.nodes[1].vols[vol].disk.cache
	for _, b := range w.exposed[vol].blocks {
		for s := b * blockSectors; s < (b+1)*blockSectors; s++ {
			if x[s] == y[s] {
				continue
			}
			w.count.Checks++
			if !w.onItsWay(vol, s) {
				w.fail("P11", "Connected UpToDate/UpToDate, but volume %d sector %d holds %s on a, %s on b", vol, s, w.oracle.Name(x[s]), w.oracle.Name(y[s]))
				return
			}
		}
	}
}

// onItsWay reports that a write of the sector has not reached both disks yet.
func (w *World) onItsWay(vol int, s uint32) bool {
	for _, n := range w.nodes {
		if n.pending(vol, s) {
			return true
		}
	}
	for _, l := range w.net.links {
		for i := range l.lanes {
			q := &l.lanes[i][0]
			if carries(q.outbox, vol, s) || carries(q.wire, vol, s) {
				return true
			}
		}
	}
	return false
}

func carries(frames []frame, vol int, s uint32) bool {
	for i := range frames {
		m := &frames[i].msg
		switch m.Kind {
		case wire.KindData, wire.KindTrim, wire.KindZero:
			if int(m.Vol) == vol && uint64(s)*sectorSize-m.Off < uint64(m.Len) {
				return true
			}
		}
	}
	return false
}

// pending reports that the node has a write of the sector that is not done:
// a client's, one submitted to the disk, or one from the peer.
func (n *node) pending(vol int, s uint32) bool {
	in := func(v int, first, count uint32) bool { return v == vol && s-first < count }
	for _, o := range n.live {
		if o.data != nil && in(o.vol, o.first, o.count) {
			return true
		}
	}
	for _, r := range n.received {
		if in(r.vol, r.first, r.count) {
			return true
		}
	}
	for i := range n.bufs.all {
		b := &n.bufs.all[i]
		if b.used && in(b.vol, b.first, uint32(len(b.data))) && (b.kind == uint8(wire.KindData) || b.request != nil && b.request.writes()) {
			return true
		}
	}
	return false
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
	x, y := w.nodes[0].vols[vol].disk.cache, w.nodes[1].vols[vol].disk.cache
	a, b := w.bitmapOf(w.nodes[0], vol), w.bitmapOf(w.nodes[1], vol)
	for _, block := range w.exposed[vol].blocks {
		s := block * blockSectors
		if slices.Equal(x[s:s+blockSectors], y[s:s+blockSectors]) || a.Test(uint64(block)) || b.Test(uint64(block)) {
			continue
		}
		if !w.unrelated(vol) {
			w.fail("P8", "the nodes are apart, volume %d block %d differs, and no bit in memory says so", vol, block)
			return
		}
	}
	w.reached.hit(markApartChecked)
}
