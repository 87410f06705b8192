package core

import (
	"replicad/bitmap"
	"replicad/internal/mutant"
	"replicad/wire"
)

// receiveSyncUUID starts the target. It is Inconsistent, durably, before the
// first foreign block or a mirrored write on top of one reaches its disk.
func (n *Node) receiveSyncUUID(v *volume, uuid uint64) {
	if v.st.Conn == Connected && (v.st.Disk < Inconsistent || v.st.PDisk < Inconsistent) {
		return // a disk failed while this was on its way
	}
	if v.st.Conn != WFSyncUUID || v.disk.bm == nil {
		n.protocolError("sync UUID out of turn")
		return
	}
	v.gen = v.gen.StartTarget(uuid)
	n.log(v, LevelInfo, "updated sync uuid %s", v.gen)
	s := n.link.session
	v.sync = resync{from: v.peerTuple(), total: v.outOfSync(), start: n.now, refilled: n.now}
	n.change(v, func(s *State) { s.Conn = SyncTarget })
	n.logBegan(v, "SyncTarget")
	if mutant.On(mutant.TargetNotDurable) {
		v.sync.running = true
		return
	}
	n.incoming.holds++
	n.saveSuper(v, func(ok bool) {
		n.incoming.holds--
		if ok && s == n.link.session && v.st.Conn == SyncTarget {
			v.sync.running = true
		}
		n.drainIncoming()
	})
}

// pulls reports whether the volume is a resync target that may ask for blocks.
func (n *Node) pulls(v *volume) bool {
	return v.sync.running && v.st.Conn == SyncTarget && n.connected() && !n.link.dropping && v.disk.bm != nil
}

// pumpResync asks for more blocks while depth and rate allow.
func (n *Node) pumpResync(v *volume) {
	if !n.pulls(v) {
		return
	}
	y := &v.sync
	y.refill(n.now, v.rate())
	y.starved = false
	for y.inFlight < v.cfg.ResyncDepth {
		first, count, ok := v.disk.bm.Next(y.cursor, syncRequestBlocks)
		if !ok {
			y.wrap(v.disk.bm.Count())
			return
		}
		count = min(count, syncRequestBlocks-first%syncRequestBlocks)
		if y.budget < bitmap.BlockSize {
			y.starved = true
			return
		}
		count = min(count, uint64(y.budget)/bitmap.BlockSize)
		y.cursor = first + count
		n.requestSync(v, first, count)
	}
}

// wrap starts another pass when blocks are left that nobody asked for: marked
// behind the cursor, or refused.
func (y *resync) wrap(dirty uint64) {
	if y.inFlight > 0 || dirty <= y.ackedBits || y.cursor == 0 {
		return
	}
	y.cursor, y.starved = 0, true // not before the next tick
}

func (v *volume) rate() uint64 {
	if v.cfg.CPlanAhead == 0 {
		return v.cfg.ResyncRate
	}
	return v.cfg.CMaxRate
}

// refill adds what the rate allows since the last time, at most a fifth of a
// second's worth (but always room for one block).
func (y *resync) refill(now Time, rate uint64) {
	elapsed := now - y.refilled
	y.refilled = now
	most := max(int64(rate/5), bitmap.BlockSize)
	y.budget = min(y.budget+int64(float64(rate)*float64(elapsed)/1e9), most)
	if y.cursor == 0 && y.inFlight == 0 && y.budget < bitmap.BlockSize {
		y.budget = min(most, int64(rate/10)+bitmap.BlockSize)
	}
}

func (y *resync) deadline(d *deadline) {
	if y.running && y.starved {
		d.add(y.refilled + syncTick)
	}
}

func (n *Node) requestSync(v *volume, first, count uint64) {
	o := n.newOp(opSyncTarget, v)
	o.verb = verbWrite
	off := first * bitmap.BlockSize
	o.setRange(off, uint32(min(count*bitmap.BlockSize, v.size-off)))
	v.sync.inFlight += uint64(o.len)
	v.sync.budget -= int64(o.len)
	v.ctr.Pending++
	if n.role == Primary && !n.enter(o) {
		return // started when our clients' writes are through
	}
	n.startSyncTarget(o)
}

// startSyncTarget sends the request, or, once the reply is here, writes it.
func (n *Node) startSyncTarget(o *op) {
	if o.held {
		n.writeSync(o)
		return
	}
	if o.session != n.link.session || !o.v.writable() {
		n.endSyncTarget(o)
		return
	}
	seq := n.newSeq(o)
	n.unacked.push(o)
	n.send(wire.Msg{Kind: wire.KindResyncRequest, Vol: o.v.id, Seq: seq, Off: o.off, Len: o.len}, 0)
}

func (n *Node) syncReply(v *volume, m *wire.Msg, buf Buf) {
	o := n.bySeq(m.Seq, opSyncTarget)
	if o == nil || o.v != v || o.off != m.Off || o.len != m.Len || o.held || (buf == 0 && m.Flags&wire.FlagZeroes == 0) {
		n.release(buf)
		n.protocolError("resync reply that nobody asked for")
		return
	}
	n.unacked.remove(o)
	if buf == 0 {
		o.verb = verbZero
	}
	o.buf, o.epoch = buf, m.Arg
	n.incoming.active++
	o.held = true // counted in active
	v.ctr.Received += uint64(o.len)
	if mutant.On(mutant.ResyncRacesWrites) {
		n.writeSync(o)
		return
	}
	if !o.indexed {
		n.enter(o)
	}
	if o.blockers == 0 {
		n.writeSync(o)
	}
}

func (n *Node) writeSync(o *op) {
	if !o.v.writable() {
		n.syncTargetWritten(o, IOError)
		return
	}
	n.diskAction(o)
}

// syncTargetWritten: a resync block is on our disk, though not yet stable.
func (n *Node) syncTargetWritten(o *op, r IOResult) {
	v := o.v
	if o.session == n.link.session && n.link.up {
		kind := wire.KindResyncWriteAck
		if r != IOOK {
			kind = wire.KindResyncNegAck
		}
		n.send(wire.Msg{Kind: kind, Vol: v.id, Seq: o.epoch, Off: o.off, Len: o.len}, 0)
		if r == IOOK {
			v.sync.acked[0] = append(v.sync.acked[0], span{o.first, o.blocks()})
			v.sync.ackedBits += o.blocks()
		}
	}
	if r == IOOK {
		v.peerWrote = true
	}
	if mutant.On(mutant.TargetClearsUnflushed) && v.disk.bm != nil {
		v.disk.bm.ClearRange(o.first, o.blocks())
	}
	n.endSyncTarget(o)
}

// endSyncTarget lets go of a resync block, written or not.
func (n *Node) endSyncTarget(o *op) {
	v := o.v
	if o.session == n.link.session {
		v.sync.inFlight -= min(uint64(o.len), v.sync.inFlight)
	}
	v.ctr.Pending--
	n.unacked.remove(o)
	if o.held {
		n.finishPeerOp(o)
		return
	}
	n.leave(o)
	n.freeOp(o)
}

// syncRefused: the source could not read a block; it stays out of sync.
func (n *Node) syncRefused(m *wire.Msg) {
	if o := n.bySeq(m.Seq, opSyncTarget); o != nil && o.buf == 0 && !o.held {
		n.log(o.v, LevelError, "the peer could not read %d+%d for the resync", o.off, o.len)
		n.endSyncTarget(o)
	}
}

// syncTargetStable clears the bits of all blocks written so far: a barrier
// that followed them has just been flushed. It reports whether the resync is
// complete.
func (n *Node) syncTargetStable(v *volume) bool {
	y := &v.sync
	if v.st.Conn != SyncTarget || !y.running || v.disk.bm == nil {
		return false
	}
	for _, s := range y.acked[0] {
		v.disk.bm.ClearRange(s.first, s.n)
	}
	y.acked[0], y.ackedBits = y.acked[0][:0], 0
	return y.inFlight == 0 && v.disk.bm.Count() == 0
}

// finishTarget makes this node's data as good as the source's was: one that has
// started a new generation since counts ours as lost.
func (n *Node) finishTarget(v *volume, then func(ok bool)) {
	v.gen = v.gen.FinishTarget(v.sync.from)
	v.crashed = false
	if n.role == Primary {
		v.exposed, v.unsure = v.gen.Current, false
	}
	n.logDone(v)
	n.change(v, func(s *State) { s.Conn, s.Disk = Connected, UpToDate })
	n.handler(v, "after-resync-target")
	v.sync = resync{}
	n.writeBitmap(v, nil, func(bool) {})
	n.saveSuper(v, func(ok bool) {
		n.sendState(v) // for a source whose disk died meanwhile: it takes part in no end of a resync
		then(ok)
	})
}

func (n *Node) logDone(v *volume) {
	seconds := max((n.now-v.sync.start)/1e9, 1)
	rate := v.sync.total * 4 / uint64(seconds)
	n.log(v, LevelInfo, "Resync done (total %d sec; paused 0 sec; %d K/sec)", seconds, rate)
	n.log(v, LevelInfo, "updated UUIDs %s", v.gen)
}
