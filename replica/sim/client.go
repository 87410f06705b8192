package sim

import (
	"replicad/replica/core"
	"replicad/wire"
)

// client issues requests to one volume of one node while that is Primary.
type client struct {
	vol      int
	inFlight int
}

// busyRequests is how many requests of a run are made in haste; after them
// the clients slow down, so that runs with many accidents do not get long.
const busyRequests = 200

// request is a client's request that is not answered.
type request struct {
	kind         core.EventKind
	vol          int
	first, count uint32
	fua          bool
	write        uint32 // its number, for writes, trims and zeroes
	issued       core.Time
	client       int // -1: a script
	fast         bool
	sent         bool   // to the peer, in some session
	peerLife     uint32 // the peer's process when it was issued
	answer       func(core.IOResult, []content)
}

func (r *request) writes() bool { return r.kind != core.EvRead && r.kind != core.EvFlush }

func (r *request) overlaps(vol int, first, count uint32) bool {
	return r.vol == vol && r.first < first+count && first < r.first+r.count
}

func (n *node) startClients() {
	n.clients = nil
	if n.w.script || n.w.calm {
		return
	}
	for i := range n.w.opt.Clients {
		n.clients = append(n.clients, client{vol: n.w.rng.IntN(n.w.opt.Volumes)})
		n.after(n.w.between(microsecond, n.w.opt.Think), atClient, uint64(i))
	}
}

// clientTurn lets a client ask for something, if it may.
func (n *node) clientTurn(i int) {
	w := n.w
	if w.calm {
		return
	}
	pause := w.opt.Think
	if w.count.Requests > busyRequests {
		pause = max(pause, 30*millisecond)
	}
	c := &n.clients[i]
	if n.vols[c.vol].st.Role != core.Primary || n.stopping {
		pause += 2 * millisecond
	} else if c.inFlight < w.opt.Depth {
		n.open(n.vols[c.vol])
		r := w.drawRequest(c.vol)
		r.client = i
		c.inFlight++
		n.issue(r)
	}
	n.after(w.between(10*microsecond, pause), atClient, uint64(i))
}

func (n *node) open(v *volume) {
	if v.opens == 0 {
		v.opens = 1
		n.event(core.Event{Kind: core.EvOpen, Vol: uint16(v.id), Arg: 1})
	}
}

// closeAll tells the core that no client holds a volume open any more.
func (n *node) closeAll() {
	for _, v := range n.vols {
		if v.opens > 0 {
			v.opens = 0
			n.event(core.Event{Kind: core.EvOpen, Vol: uint16(v.id)})
		}
	}
}

// drawRequest draws what a client asks for.
func (w *World) drawRequest(vol int) *request {
	m := &w.opt.Mix
	r := &request{vol: vol}
	x := w.rng.IntN(m.Write + m.Read + m.Trim + m.Zero + m.Flush)
	switch {
	case x < m.Write:
		r.kind, r.fua = core.EvWrite, w.chance(m.FUA)
	case x < m.Write+m.Read:
		r.kind = core.EvRead
	case x < m.Write+m.Read+m.Trim:
		r.kind = core.EvTrim
	case x < m.Write+m.Read+m.Trim+m.Zero:
		r.kind = core.EvZero
	default:
		r.kind = core.EvFlush
		return r
	}
	w.drawRange(r)
	return r
}

// drawRange places a request near one of a few blocks, most of them at the
// borders of activity-log extents, so that requests often meet.
func (w *World) drawRange(r *request) {
	end := uint32(w.opt.Blocks * blockSectors)
	hot := uint32(w.hotBlock(w.rng.IntN(w.opt.Hot)) * blockSectors)
	first := min(end-1, hot+uint32(w.rng.IntN(96)))
	count := uint32(1+w.rng.IntN(4)) * blockSectors
	if w.chance(w.opt.Mix.Unaligned) {
		count = uint32(1 + w.rng.IntN(24))
	} else {
		first -= first % blockSectors
	}
	if w.chance(w.opt.Mix.Big) {
		count = uint32(16+w.rng.IntN(48)) * blockSectors
	}
	limit := uint32(extentBlocks * blockSectors)
	if r.kind == core.EvTrim || r.kind == core.EvZero {
		if w.chance(w.opt.Mix.Huge) {
			count = uint32(w.rng.IntN(int(end))) + 1
		}
		limit *= uint32(w.opt.Slots)
		r.first, r.count = first, min(count, end-first, limit-first%(extentBlocks*blockSectors))
		return
	}
	r.first, r.count = first, min(count, end-first, limit-first%limit)
}

func (w *World) hotBlock(i int) uint64 {
	extents := (w.opt.Blocks + extentBlocks - 1) / extentBlocks
	border := uint64(i) % extents * extentBlocks
	return min(w.opt.Blocks-1, max(border, 6)-6+uint64(i)/extents*40)
}

// issue hands a request to the node, or serves a read past the core when the
// gate is open and no write overlaps it.
func (n *node) issue(r *request) {
	w := n.w
	id := n.bufs.take(w.rng.IntN)
	b := &n.bufs.all[id-1]
	b.request, b.vol, b.first = r, r.vol, r.first
	b.data = make([]content, r.count)
	r.issued, r.peerLife = w.now, n.peer().life
	if r.writes() {
		r.write = w.oracle.Issue(w.stamp(), n.id, r.vol, r.first, r.count, r.kind != core.EvWrite)
		if r.kind == core.EvWrite {
			for i := range b.data {
				b.data[i] = contentOf(r.write, uint32(i))
			}
		}
	}
	if r.kind == core.EvRead {
		w.oracle.Reading(int64(r.issued))
	}
	v := n.vols[r.vol]
	if r.kind == core.EvRead && v.gate && !n.writing(r) {
		r.fast = true
		v.readers++
		n.after(n.latency(), atFastRead, uint64(id))
		return
	}
	e := core.Event{Kind: r.kind, Vol: uint16(r.vol), Buf: id, FUA: r.fua, Off: uint64(r.first) * sectorSize, Len: r.count * sectorSize}
	n.event(e)
}

// writing reports whether a write that is not complete overlaps r.
func (n *node) writing(r *request) bool {
	for i := range n.bufs.all {
		b := &n.bufs.all[i]
		if b.used && b.request != nil && b.request.writes() && b.request.overlaps(r.vol, r.first, r.count) {
			return true
		}
	}
	return false
}

// fastReadDone ends a read that bypassed the core.
func (n *node) fastReadDone(id core.Buf) {
	b := n.bufs.get(id)
	v := n.vols[b.vol]
	v.readers--
	if v.disk.strike(reading, b.first, b.request.count) != core.IOOK || v.disk.hung { // a real shell sends a failed one the slow way
		b.request.fast = false
		n.event(core.Event{Kind: core.EvRead, Vol: uint16(b.vol), Buf: id, Off: uint64(b.first) * sectorSize, Len: b.request.count * sectorSize})
	} else {
		copy(b.data, v.disk.cache[b.first:b.first+b.request.count])
		n.answer(id, core.IOOK, b.data)
	}
	n.drainGate(v)
	n.maybeDetached(v)
}

// complete carries out ActComplete.
func (n *node) complete(a *core.Action) {
	b := n.bufs.get(a.Buf)
	if b == nil || b.request == nil || b.request.fast {
		n.w.fail("requests", "node %s completes request %d, which is not waiting", n.name(), a.Buf)
		return
	}
	if b.writers > 0 {
		n.w.fail("buffers", "node %s completes request %d while a disk action uses its buffer", n.name(), a.Buf)
		return
	}
	data := b.data
	if a.Src != 0 {
		src := n.bufs.get(a.Src)
		if src == nil || len(src.data) != len(b.data) || src.first != b.first || src.vol != b.vol {
			n.w.fail("buffers", "node %s answers read %d from buffer %d, which does not hold it", n.name(), a.Buf, a.Src)
			return
		}
		data = src.data
		if src.kind == uint8(wire.KindReadReply) {
			n.w.reached.hit(markRemoteRead)
		}
	}
	n.answer(a.Buf, a.Result, data)
}

// answer gives a client its result and asks the oracle what it thinks of it.
func (n *node) answer(id core.Buf, result core.IOResult, data []content) {
	b := n.bufs.get(id)
	r := b.request
	n.bufs.release(id)
	n.w.count.Requests++
	if r.client >= 0 {
		n.clients[r.client].inFlight--
	}
	n.w.answered(n, r, result, data)
	if r.kind == core.EvRead {
		n.w.oracle.ReadDone(int64(r.issued))
	}
	if r.answer != nil {
		r.answer(result, data)
	}
}
