package core

import (
	"replicad/bitmap"
	"replicad/wire"
)

// resync is one volume's share of a running resynchronisation.
//
// The target pulls: it asks for runs of out-of-sync blocks, the source holds
// each from the read to the target's ack. Bits are cleared on both ends only
// after a barrier that follows the ack was acknowledged: the target's page
// cache is not stable storage.
//
// Who holds a block, and when (a rule for each side, so that nobody waits in a
// circle): the source from the request on. A target that is Primary from its
// request on, because its own clients could overwrite the block meanwhile; a
// Secondary target from the reply on, because mirrored writes that the source
// sent before the reply must pass first.
type resync struct {
	running   bool   // target: requests may go out; source: the sync UUID is out
	total     uint64 // bits at the start
	start     Time
	cursor    uint64 // target: where the next request starts
	inFlight  uint64 // target: bytes asked for and not written
	budget    int64  // target: bytes it may ask for now
	refilled  Time
	starved   bool // the budget stops the next request
	source    bool
	run       uint64 // tells this resync from others
	begun     bool   // source: the target asked for a block, so it is Inconsistent by now
	confirmed bool   // source: the barrier out now was sent after the resync began
	acked     [2][]span
	ackedBits uint64
}

type span struct{ first, n uint64 }

const (
	syncRequestBlocks = 256 // 1 MiB
	syncTick          = Duration(50e6)
)

// --- bitmap exchange

// becomeSource begins as WFBitMapS: with the whole device dirty, durably, for a
// full sync, then with our bitmap.
func (n *Node) becomeSource(v *volume, full bool) {
	v.sync = resync{}
	if !full {
		n.sendBitmap(v)
		return
	}
	s := n.link.session
	n.setAllBits(v, func(ok bool) {
		if ok && s == n.link.session && v.st.Conn == WFBitMapS {
			n.sendBitmap(v)
		}
	})
}

func (n *Node) becomeTarget(v *volume, full bool) {
	v.sync = resync{}
	if full {
		n.incoming.holds++ // the source's bitmap waits
		n.setAllBits(v, func(bool) {
			n.incoming.holds--
			n.drainIncoming()
		})
	}
}

// setAllBits marks the whole device, durably. The full-sync flag in the
// superblock makes an attach repeat it if we crash half way.
func (n *Node) setAllBits(v *volume, then func(ok bool)) {
	v.fullSync = true
	v.disk.bm.SetAll()
	n.log(v, LevelInfo, "Writing the whole bitmap, full sync required after drbd_sync_handshake.")
	n.saveSuper(v, func(ok bool) {
		if !ok {
			then(false)
			return
		}
		n.writeBitmap(v, nil, func(ok bool) {
			if ok {
				v.fullSync = false
			}
			n.saveSuper(v, func(saved bool) { then(ok && saved) })
		})
	})
}

// sendBitmap sends every page that has a bit set, then the end mark.
func (n *Node) sendBitmap(v *volume) {
	bm := v.disk.bm
	const words = bitmap.PageBits / 64
	for w := 0; w < bm.WordCount(); w += words {
		count := min(words, bm.WordCount()-w)
		first := uint64(w) * 64
		bits := min(uint64(count)*64, bm.Bits()-first)
		if bm.CountRange(first, bits) == 0 {
			continue
		}
		body := &wire.Bitmap{Words: bm.Words(w, count)}
		n.send(wire.Msg{Kind: wire.KindBitmap, Vol: v.id, Off: first, Len: uint32(bits), Body: body}, 0)
	}
	n.send(wire.Msg{Kind: wire.KindBitmapEnd, Vol: v.id}, 0)
}

func (n *Node) receiveBitmap(v *volume, m *wire.Msg, b *wire.Bitmap) {
	if c := v.st.Conn; v.disk.bm == nil || (c != WFBitMapS && c != WFBitMapT) || m.Off%64 != 0 {
		n.protocolError("bitmap out of turn")
		return
	}
	v.disk.bm.OrWords(int(m.Off/64), b.Words)
}

func (n *Node) receiveBitmapEnd(v *volume) {
	switch v.st.Conn {
	case WFBitMapT:
		n.sendBitmap(v)
		n.change(v, func(s *State) { s.Conn = WFSyncUUID })
	case WFBitMapS:
		n.startSource(v)
	default:
		n.protocolError("end of bitmap out of turn")
	}
}

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

func (n *Node) logBegan(v *volume, as string) {
	bits := v.sync.total
	n.log(v, LevelInfo, "Began resync as %s (will sync %d KB [%d bits set]).", as, bits*4, bits)
}

// receiveSyncUUID starts the target. It is Inconsistent, durably, before the
// first foreign block or a mirrored write on top of one reaches its disk.
func (n *Node) receiveSyncUUID(v *volume, uuid uint64) {
	if v.st.Conn != WFSyncUUID || v.disk.bm == nil {
		n.protocolError("sync UUID out of turn")
		return
	}
	v.gen = v.gen.StartTarget(uuid)
	n.log(v, LevelInfo, "updated sync uuid %s", v.gen)
	s := n.link.session
	v.sync = resync{total: v.outOfSync(), start: n.now, refilled: n.now}
	n.change(v, func(s *State) { s.Conn = SyncTarget })
	n.logBegan(v, "SyncTarget")
	if mutant(MutTargetNotDurable) {
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

// --- target

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
	if o == nil || o.v != v || o.off != m.Off || o.len != m.Len || o.buf != 0 || (buf == 0 && m.Flags&wire.FlagZeroes == 0) {
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

// finishTarget makes this node's data as good as the source's.
func (n *Node) finishTarget(v *volume, then func(ok bool)) {
	p := &v.peerGen
	v.gen = v.gen.FinishTarget(Generation{Current: p.Current, Bitmap: p.Bitmap, H1: p.H1, H2: p.H2})
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

// --- source

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
	if n.enter(o) {
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
	if mutant(MutResyncNotHeld) {
		n.leave(o)
	}
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
	if mutant(MutClearOnAck) {
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
	n.writeBitmap(v, nil, func(bool) {})
	n.saveSuper(v, func(bool) {})
}

// --- the end of a session

// abandonPeerWork forgets what the lost peer was to answer. Writes that
// arrived from it still reach the disk.
func (n *Node) abandonPeerWork() {
	for _, v := range n.vols {
		v.sync = resync{}
	}
	for i := range n.ops.all {
		n.abandon(n.ops.all[i])
	}
	n.drainIncoming()
}

func (n *Node) abandon(o *op) {
	switch o.kind {
	case opSyncTarget:
		if !o.held { // no reply arrived: nothing is on its way to our disk
			n.unready(o)
			o.v.ctr.Pending--
			n.unacked.remove(o)
			n.leave(o)
			n.freeOp(o)
		}
	case opSyncSource:
		if o.seq != 0 { // read and sent
			n.endSyncSource(o)
		} else if o.blockers > 0 || n.unready(o) {
			n.endSyncSource(o)
		}
	case opPeerRead:
		if o.blockers > 0 || n.unready(o) {
			n.peerReadDone(o, IOError, 0)
		}
	}
}

// unready takes an operation out of the queue of those whose turn has come.
func (n *Node) unready(o *op) bool {
	for i, r := range n.ready {
		if r == o {
			n.ready = append(n.ready[:i], n.ready[i+1:]...)
			return true
		}
	}
	return false
}

// abortSync ends a volume's resync because a disk is gone.
func (n *Node) abortSync(v *volume) { v.sync = resync{} }
