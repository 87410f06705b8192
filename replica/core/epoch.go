package core

import (
	"replicad/bitmap"
	"replicad/internal/mutant"
	"replicad/wire"
)

// epoch groups mirrored writes between barriers. Unlike DRBD, which closes an
// epoch at every completion, ours follow the client's flushes: a barrier costs
// the Secondary an fdatasync.
//
// At most one barrier awaits its ack; flushes that come meanwhile share the
// next one (group commit).
type epoch struct {
	number        uint64 // of the open epoch
	count         uint64 // mirrored writes in it
	bytes         uint64 // mirrored and resync bytes in it
	since         Time   // when its first write was sent
	resync        bool   // blocks that are not mirrored writes of this epoch wait for a barrier: resync blocks, or what an earlier session sent
	awaiting      uint64 // number of the epoch whose ack is due; 0 = none
	awaitingCount uint64
	awaitingSince Time
	wanted        bool // another barrier is wanted once the ack is here
}

func (e *epoch) empty() bool { return e.count == 0 && !e.resync }

// joinEpoch adds a mirrored write to the open epoch: until a later barrier is
// acked its blocks are remembered, so that they can be marked out of sync.
func (n *Node) joinEpoch(o *op) {
	e := &n.openEpoch
	if e.empty() {
		e.since = n.now
	}
	e.count++
	e.bytes += uint64(o.len)
	if o.v.disk.bm != nil && !mutant.On(mutant.ForgetSent) {
		o.v.sent[0].add(o.v, o.first, o.last, o.pinned)
	}
	if e.bytes >= n.cfg.Net.BarrierBytes {
		n.closeEpoch()
	}
}

// closeEpoch sends a barrier, or remembers that one is wanted after the ack
// of the one before.
func (n *Node) closeEpoch() {
	e := &n.openEpoch
	if e.awaiting != 0 {
		e.wanted = true
		return
	}
	n.sendBarrier()
}

// awaitClosing ends the open epoch for a flush or FUA write that does not wait
// for the peer's disk (protocol A and B). It completes when its barrier is on
// its way: what the client writes after that is in a later epoch, and never on
// the peer's disk without what the flush covered.
func (n *Node) awaitClosing(o *op) {
	if n.openEpoch.empty() {
		return
	}
	n.closeEpoch()
	if n.openEpoch.empty() || mutant.On(mutant.FlushKeepsEpochOpen) {
		return
	}
	o.waits |= waitClosed
	n.closeWait = append(n.closeWait, o)
}

// endClosing releases those who wait for the open epoch's barrier, which was
// sent, or lost with the link.
func (n *Node) endClosing(lost bool) {
	done := n.closeWait
	n.closeWait = nil
	for _, o := range done {
		o.waits &^= waitClosed
		o.lost = o.lost || lost
		n.maybeComplete(o)
	}
}

func (n *Node) sendBarrier() {
	e := &n.openEpoch
	e.wanted = false
	if !n.connected() {
		return
	}
	n.send(wire.Msg{Kind: wire.KindBarrier, Seq: e.number, Arg: e.count}, 0)
	e.awaiting, e.awaitingCount, e.awaitingSince = e.number, e.count, n.now
	e.number++
	e.count, e.bytes, e.resync = 0, 0, false
	for _, v := range n.vols {
		v.sent[0], v.sent[1] = v.sent[1], v.sent[0]
		v.sync.barrierSent()
	}
	n.endClosing(false)
}

// barrierAcked: the epoch is on the peer's stable storage.
func (n *Node) barrierAcked(number, count uint64) {
	e := &n.openEpoch
	if e.awaiting == 0 || number != e.awaiting || count != e.awaitingCount {
		n.protocolError("barrier ack %d (%d writes), expected %d (%d)", number, count, e.awaiting, e.awaitingCount)
		return
	}
	e.awaiting = 0
	for _, v := range n.vols {
		if v.tail <= number {
			v.tail = 0
		}
		v.sent[1].release(v)
		n.syncSourceStable(v)
	}
	n.endFlushes(number, true)
	if e.wanted && !e.empty() {
		n.sendBarrier()
	}
}

// endFlushes releases the flushes and FUA writes that waited for epochs up to
// number.
func (n *Node) endFlushes(number uint64, ok bool) {
	kept := n.flushWait[:0]
	done := make([]*op, 0, 8)
	for _, o := range n.flushWait {
		if o.epoch <= number {
			done = append(done, o)
		} else {
			kept = append(kept, o)
		}
	}
	clear(n.flushWait[len(kept):])
	n.flushWait = kept
	for _, o := range done {
		o.lost = o.lost || !ok
		n.netDone(o, waitBarrier, ok)
	}
}

// loseEpochs turns every block that was sent but not confirmed as stable into
// an out-of-sync bit.
func (n *Node) loseEpochs() {
	for _, v := range n.vols {
		n.loseTail(v)
		n.loseSent(v)
	}
	e := &n.openEpoch
	*e = epoch{number: e.number + 1}
	n.endFlushes(e.number, false)
	n.endClosing(true)
}

// noteTail notes, as a Primary's disk goes, what completed under protocol A and
// is on its way to the peer. A peer that agreed to a detach had it by then.
func (n *Node) noteTail(v *volume) {
	if n.cfg.Net.Protocol != 'A' || !n.connected() || n.cmd.detaches(v) {
		return
	}
	if v.tail = n.openEpoch.awaiting; n.openEpoch.count > 0 {
		v.tail = n.openEpoch.number
	}
}

// loseTail notes that the peer will not have it. Its data is older than what
// our clients saw, and the disk that has it must not become its target unasked.
func (n *Node) loseTail(v *volume) {
	if v.tail != 0 {
		v.tail, v.tailLost = 0, true
		n.log(v, LevelError, "writes that were on their way to the peer are lost there, and the local disk is gone")
	}
}

func (n *Node) loseSent(v *volume) {
	for i := range v.sent {
		if !mutant.On(mutant.DropSentOnLoss) {
			v.sent[i].mark(v.disk.bm)
		}
		v.sent[i].release(v)
	}
}

// genSet remembers, per hot activity-log extent, which blocks were sent in
// one generation of epochs: 1,024 bits an extent.
type genSet struct {
	extents map[bitmap.Extent]*sentExtent
	spare   []*sentExtent
}

type sentExtent struct {
	bits   [bitmap.ExtentBlocks / 64]uint64
	pinned bool
}

func (g *genSet) add(v *volume, first, last uint64, pinned bool) {
	if g.extents == nil {
		g.extents = make(map[bitmap.Extent]*sentExtent)
	}
	for e := bitmap.ExtentOf(first); e <= bitmap.ExtentOf(last); e++ {
		x := g.extents[e]
		if x == nil {
			x = g.take()
			g.extents[e] = x
		}
		if pinned && !x.pinned && !mutant.On(mutant.CoolBeforeBarrier) {
			x.pinned = v.disk.al.Pin(e)
		}
		base, _ := e.Blocks()
		from, to := max(first, base)-base, min(last, base+bitmap.ExtentBlocks-1)-base
		for b := from; b <= to; b++ {
			x.bits[b/64] |= 1 << (b % 64)
		}
	}
}

func (g *genSet) take() *sentExtent {
	if len(g.spare) == 0 {
		return &sentExtent{}
	}
	x := g.spare[len(g.spare)-1]
	g.spare = g.spare[:len(g.spare)-1]
	return x
}

func (g *genSet) empty() bool { return len(g.extents) == 0 }

// mark sets the remembered blocks in bm.
func (g *genSet) mark(bm *bitmap.Bitmap) {
	if bm == nil {
		return
	}
	for e, x := range g.extents {
		base, _ := e.Blocks()
		bm.OrWords(int(base/64), x.bits[:])
	}
}

// release forgets the blocks and lets their extents cool.
func (g *genSet) release(v *volume) {
	for e, x := range g.extents {
		if x.pinned && v.disk.al != nil {
			v.disk.al.Unpin(e)
		}
		*x = sentExtent{}
		g.spare = append(g.spare, x)
		delete(g.extents, e)
	}
}
