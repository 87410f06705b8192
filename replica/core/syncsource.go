package core

import (
	"replicad/internal/mutant"
	"replicad/wire"
)

// startSource opens the resync: our new bitmap id first, durably, then the
// message that lets the target begin. From that message on writes are
// mirrored instead of announced.
//
// Before that our own disk is flushed: of some blocks only the target's bitmap
// knows that they differ, and it forgets them when its copies are stable. Ours
// must be by then. (What we write later is covered by the activity log, or, on
// a Secondary, by the Primary's memory of unconfirmed blocks.)
func (n *Node) startSource(v *volume) {
	s := n.link.session
	current := func() bool { return s == n.link.session && n.link.up && v.st.Conn == WFBitMapS }
	n.flushDisk(v, func(r IOResult) {
		if r != IOOK || !current() {
			return
		}
		syncUUID := n.openSource(v)
		if mutant.On(mutant.SyncUUIDNotDurable) {
			n.saveSuper(v, func(bool) {})
			n.announceSource(v, syncUUID)
			return
		}
		n.saveSuper(v, func(ok bool) {
			if ok && current() {
				n.announceSource(v, syncUUID)
			}
		})
	})
}

func (n *Node) openSource(v *volume) (syncUUID uint64) {
	old := v.gen
	v.gen, syncUUID = old.StartSource(n.newUUID())
	v.gen = v.gen.keepAncestor(old, v.peerGen.Current)
	v.sync.opened = true
	n.log(v, LevelInfo, "updated sync UUID %s", v.gen)
	return syncUUID
}

func (n *Node) announceSource(v *volume, syncUUID uint64) {
	n.sendUUIDs(v)
	n.send(wire.Msg{Kind: wire.KindSyncUUID, Vol: v.id, Arg: syncUUID}, 0)
	n.syncRuns++
	v.sync = resync{running: true, source: true, run: n.syncRuns, total: v.outOfSync(), start: n.now}
	n.change(v, func(s *State) { s.Conn = SyncSource })
	n.logBegan(v, "SyncSource")
	n.maybeConfirm(v)
}

func (n *Node) syncRequested(v *volume, m *wire.Msg) {
	if v.st.Conn != SyncSource || v.st.Disk != UpToDate {
		n.send(wire.Msg{Kind: wire.KindResyncNegReply, Vol: v.id, Seq: m.Seq, Off: m.Off, Len: m.Len}, 0)
		return
	}
	v.sync.begun = true
	o := n.newOp(opSyncSource, v)
	o.verb = verbRead
	o.epoch = m.Seq // the target's number; ours goes out with the reply
	o.setRange(m.Off, m.Len)
	v.ctr.Unacked++
	if mutant.On(mutant.ResyncOvertakesWrite) || n.enter(o) {
		n.startSyncSource(o)
	}
}

func (n *Node) startSyncSource(o *op) {
	if o.session != n.link.session || !o.v.writable() {
		n.refuseSync(o)
		return
	}
	n.incoming.reads++
	n.diskAction(o)
}

func (n *Node) refuseSync(o *op) {
	if o.session == n.link.session {
		n.send(wire.Msg{Kind: wire.KindResyncNegReply, Vol: o.v.id, Seq: o.epoch, Off: o.off, Len: o.len}, 0)
	}
	n.endSyncSource(o)
}

func (n *Node) endSyncSource(o *op) {
	o.v.ctr.Unacked--
	n.unacked.remove(o)
	n.leave(o)
	n.freeOp(o)
}

// syncSourceRead: the block is read; it stays held until the target has it.
func (n *Node) syncSourceRead(o *op, r IOResult, buf Buf) {
	n.incoming.reads--
	if r != IOOK || o.session != n.link.session || !n.link.up {
		n.release(buf)
		n.refuseSync(o)
		return
	}
	m := wire.Msg{Kind: wire.KindResyncReply, Vol: o.v.id, Seq: o.epoch, Off: o.off, Len: o.len, Arg: n.newSeq(o)}
	o.v.ctr.Sent += uint64(o.len)
	n.unacked.push(o)
	n.send(m, buf)
	n.release(buf)
}

// syncAcked: the target wrote a block, or could not.
func (n *Node) syncAcked(m *wire.Msg, ok bool) {
	o := n.bySeq(m.Seq, opSyncSource)
	if o == nil || o.off != m.Off || o.len != m.Len {
		n.protocolError("resync ack that nobody waits for")
		return
	}
	v := o.v
	s := span{o.first, o.blocks()}
	length := uint64(o.len)
	n.endSyncSource(o)
	if !ok || !v.sync.running {
		return
	}
	v.sync.acked[0] = append(v.sync.acked[0], s)
	v.sync.ackedBits += s.n
	if n.openEpoch.empty() {
		n.openEpoch.since = n.now
	}
	n.openEpoch.resync = true
	n.openEpoch.bytes += length
	if mutant.On(mutant.ClearOnAck) {
		v.disk.bm.ClearRange(s.first, s.n)
	}
	n.maybeConfirm(v)
}

// maybeConfirm sends a barrier when every dirty block is acked, or enough of them are.
func (n *Node) maybeConfirm(v *volume) {
	if v.sync.ackedBits >= v.outOfSync() || n.openEpoch.bytes >= n.cfg.Net.BarrierBytes {
		n.openEpoch.resync = true
		n.closeEpoch()
	}
}

// barrierSent moves the blocks acked so far under the barrier that is now out.
func (y *resync) barrierSent() {
	if !y.running || !y.source {
		return
	}
	y.acked[0], y.acked[1] = y.acked[1][:0], y.acked[0]
	y.confirmed = true
}

// syncSourceStable: the barrier is acked, the blocks under it are stable at the
// target. Before their bits go, our own copies must be stable too: a power cut
// here would otherwise bring back old blocks that nothing marks.
func (n *Node) syncSourceStable(v *volume) {
	y := &v.sync
	if v.st.Conn != SyncSource || !y.confirmed {
		return
	}
	spans, run := y.acked[1], y.run
	y.acked[1] = nil
	if mutant.On(mutant.ClearOnStaleAck) {
		spans, y.acked[0] = append(spans, y.acked[0]...), nil
	}
	n.flushDisk(v, func(r IOResult) {
		if r == IOOK && v.sync.run == run && v.st.Conn == SyncSource {
			n.clearSynced(v, spans)
		}
	})
}

func (n *Node) clearSynced(v *volume, spans []span) {
	for _, s := range spans {
		v.disk.bm.ClearRange(s.first, s.n)
		v.sync.ackedBits -= s.n
	}
	if v.disk.bm.Count() == 0 {
		n.finishSource(v)
	}
}

func (n *Node) finishSource(v *volume) {
	v.gen = v.gen.FinishSource()
	v.peerGen = wire.UUIDs{Current: masked(v.gen.Current), H1: v.gen.H1, H2: v.gen.H2}
	n.logDone(v)
	n.change(v, func(s *State) { s.Conn, s.PDisk = Connected, UpToDate })
	v.sync = resync{}
	n.writeBitmap(v, nil, func(bool) { n.saveSuper(v, func(bool) {}) })
}
