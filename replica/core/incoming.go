package core

import (
	"replicad/internal/mutant"
	"replicad/wire"
)

// incoming is the receiving side of the data channel. Its messages are
// handled in order of arrival; while a barrier's flush runs, or a superblock
// must become durable first, they wait in a queue: no write of epoch n+1 is
// submitted before epoch n has drained and was flushed on every volume
// written in it.
type incoming struct {
	active   int    // mirrored and resync writes that were started and not finished
	mirrored int    // the mirrored ones among them
	reads    int    // disk reads for the peer in flight
	writes   uint64 // mirrored writes since the last barrier
	holds    int    // > 0: the queue waits for a durable superblock
	ops      int    // operations the peer caused
	failed   bool   // a write since the last barrier did not reach its disk
	barrier  *peerBarrier
	queue    []arrived
	ending   bool // draining is being looked at; guards against recursion
}

type peerBarrier struct {
	session Session
	number  uint64
	count   uint64
	flushes int // local flushes that must return; -1 = not begun
	failed  bool
}

type arrived struct {
	session Session
	msg     wire.Msg
	buf     Buf
}

func (in *incoming) begin() { in.writes, in.failed = 0, false }

// drained reports that nothing the peer sent is still on its way to disk.
func (in *incoming) drained() bool {
	return in.active == 0 && in.reads == 0 && in.barrier == nil && len(in.queue) == 0 && in.holds == 0
}

// writesDrained reports that every mirrored write that arrived is on disk; a
// resync may go on.
func (in *incoming) writesDrained() bool {
	if in.mirrored > 0 {
		return false
	}
	for i := range in.queue {
		if isMirrored(in.queue[i].msg.Kind) {
			return false
		}
	}
	return true
}

func (in *incoming) blocked() bool {
	return in.barrier != nil || in.holds > 0 || in.ops >= peerOpsMax
}

const (
	// peerOpsMax bounds the operations that the peer's messages may have under way.
	peerOpsMax = 4096
	// peerQueueMark is the queue length from which the owner stops reading the data channel.
	peerQueueMark = 1024
	// peerQueueMax is where a peer whose messages keep coming is cut off.
	peerQueueMax = 1 << 16
)

// Congested asks the owner to stop reading the data channel until a later
// Step has made room: more messages wait for their turn than is good. The
// control channel is read on, it carries what makes room.
func (n *Node) Congested() bool { return len(n.incoming.queue) >= peerQueueMark }

// arrive takes a message of the data channel.
func (n *Node) arrive(m *wire.Msg, buf Buf) {
	in := &n.incoming
	if m.Flags&wire.FlagWantRecvAck != 0 && isMirrored(m.Kind) && n.takes(m.Vol) {
		n.send(wire.Msg{Kind: wire.KindRecvAck, Vol: m.Vol, Seq: m.Seq}, 0)
	}
	overtakes := mutant.On(mutant.EpochOvertakes) && isMirrored(m.Kind) && len(in.queue) == 0 && in.holds == 0
	if !overtakes && (in.blocked() || len(in.queue) > 0) {
		if len(in.queue) >= peerQueueMax {
			n.release(buf)
			n.protocolError("more than %d messages wait", peerQueueMax)
			return
		}
		in.queue = append(in.queue, arrived{n.link.session, *m, buf})
		return
	}
	n.take(m, buf)
}

// takes reports that a write for the volume will be applied, as far as is known.
func (n *Node) takes(vol uint16) bool {
	v := n.findVolume(vol)
	return v != nil && v.writable()
}

func isMirrored(k wire.Kind) bool {
	return k == wire.KindData || k == wire.KindTrim || k == wire.KindZero
}

// drainIncoming handles queued messages for as long as nothing blocks them.
// Of a session that ended meanwhile only the writes still count: they were
// received, so they are applied.
func (n *Node) drainIncoming() {
	in := &n.incoming
	if in.ending {
		return
	}
	in.ending = true
	for len(in.queue) > 0 && !in.blocked() {
		a := in.queue[0]
		in.queue = popFront(in.queue)
		current := a.session == n.link.session && n.link.up
		switch {
		case current, isMirrored(a.msg.Kind) && !mutant.On(mutant.ReceivedWriteDropped):
			n.take(&a.msg, a.buf)
		case a.msg.Kind == wire.KindBarrier:
			n.takeBarrier(a.session, &a.msg)
		default:
			n.release(a.buf)
		}
	}
	in.ending = false
}

// take handles one message of the data channel in its turn.
func (n *Node) take(m *wire.Msg, buf Buf) {
	switch m.Kind {
	case wire.KindBarrier:
		n.takeBarrier(n.link.session, m)
		return
	case wire.KindParams, wire.KindStateReq:
		n.takeBody(nil, m)
		return
	}
	v := n.findVolume(m.Vol)
	if v == nil {
		n.release(buf)
		n.protocolError("message %d for volume %d, which is not configured", m.Kind, m.Vol)
		return
	}
	switch m.Kind {
	case wire.KindSyncUUID:
		n.receiveSyncUUID(v, m.Arg)
		return
	case wire.KindBitmapEnd:
		n.receiveBitmapEnd(v)
		return
	case wire.KindSizes, wire.KindUUIDs, wire.KindState, wire.KindBitmap:
		n.takeBody(v, m)
		return
	}
	n.takeRange(v, m, buf)
}

// takeBody handles the rare messages that carry a structure.
func (n *Node) takeBody(v *volume, m *wire.Msg) {
	switch body := m.Body.(type) {
	case *wire.Params:
		n.receiveParams(body)
	case *wire.StateReq:
		n.stateRequested(body)
	case *wire.Sizes:
		n.receiveSizes(v, body)
	case *wire.UUIDs:
		n.receiveUUIDs(v, body)
	case *wire.State:
		n.receiveState(v, body)
	case *wire.Bitmap:
		n.receiveBitmap(v, m, body)
	default:
		n.protocolError("message %d without its body", m.Kind)
	}
}

// takeRange handles the messages that name a byte range of a volume.
func (n *Node) takeRange(v *volume, m *wire.Msg, buf Buf) {
	if !n.validRange(v, m) {
		n.release(buf)
		n.protocolError("message %d names %d+%d, outside volume %d", m.Kind, m.Off, m.Len, v.id)
		return
	}
	switch m.Kind {
	case wire.KindData, wire.KindTrim, wire.KindZero:
		n.peerWrite(v, m, buf)
	case wire.KindOutOfSync:
		first, last := blockSpan(m.Off, m.Len)
		n.setBits(v, first, last)
	case wire.KindReadRequest:
		n.peerRead(v, m)
	case wire.KindReadReply:
		n.takeReadReply(v, m, buf)
	case wire.KindResyncRequest:
		n.syncRequested(v, m)
	case wire.KindResyncReply:
		n.syncReply(v, m, buf)
	default:
		n.release(buf)
		n.protocolError("unexpected message %d on the data channel", m.Kind)
	}
}

// --- mirrored writes

func (n *Node) peerWrite(v *volume, m *wire.Msg, buf Buf) {
	if n.role == Primary && n.link.up && !n.cfg.Net.AllowTwoPrimaries {
		n.release(buf)
		n.protocolError("mirrored write from the peer, though this node is Primary")
		return
	}
	o := n.newOp(opPeerWrite, v)
	switch m.Kind {
	case wire.KindTrim:
		o.verb = verbTrim
	case wire.KindZero:
		o.verb = verbZero
	default:
		o.verb = verbWrite
	}
	o.buf, o.seq, o.flags = buf, m.Seq, m.Flags
	o.noHole = m.Flags&wire.FlagNoHole != 0
	o.setRange(m.Off, m.Len)
	if v.alone() {
		o.alone = true
		n.setBits(v, o.first, o.last)
	}
	n.incoming.writes++
	n.incoming.active++
	n.incoming.mirrored++
	v.ctr.Unacked++
	if o.verb == verbWrite {
		v.ctr.Received += uint64(m.Len)
	}
	if n.enter(o) {
		n.startPeerWrite(o)
	}
}

// alone reports that the peer keeps no copy of what it sends.
func (v *volume) alone() bool { return v.st.PDisk < Inconsistent || v.lateAlone }

// startPeerWrite submits a mirrored write. While the Primary has no disk ours
// is the only one: then the write is marked out of sync, from the moment it
// arrives, and covered by the activity log like a Primary's own (DRBD 8.4
// receive_Data).
func (n *Node) startPeerWrite(o *op) {
	v := o.v
	if !v.writable() {
		n.peerWriteDone(o, IOError)
		return
	}
	if o.alone {
		if v.usesAL() && !o.pinned && !mutant.On(mutant.AloneWithoutLog) {
			if !v.pinRange(o.first, o.last) {
				v.disk.alWait = append(v.disk.alWait, o)
				return
			}
			o.pinned = true
		}
		n.setBits(v, o.first, o.last)
	}
	if mutant.On(mutant.AckBeforeWrite) {
		n.ackPeerWrite(o, IOOK)
	}
	n.diskAction(o)
}

func (n *Node) peerWriteDone(o *op, r IOResult) {
	v := o.v
	if !mutant.On(mutant.AckBeforeWrite) || r != IOOK {
		n.ackPeerWrite(o, r)
	}
	if r == IOOK {
		v.peerWrote = true
	} else {
		n.incoming.failed = true
		if o.flags&wire.FlagWantWriteAck == 0 || v.st.PDisk == UpToDate {
			n.fallBehind(v) // the Primary does without our answer
		}
	}
	v.ctr.Unacked--
	n.incoming.mirrored--
	n.finishPeerOp(o)
}

func (n *Node) ackPeerWrite(o *op, r IOResult) {
	if o.session != n.link.session {
		return
	}
	switch {
	case r != IOOK:
		n.send(wire.Msg{Kind: wire.KindNegAck, Vol: o.v.id, Seq: o.seq, Off: o.off, Len: o.len}, 0)
	case o.flags&wire.FlagWantWriteAck != 0:
		n.send(wire.Msg{Kind: wire.KindWriteAck, Vol: o.v.id, Seq: o.seq}, 0)
	}
}

// finishPeerOp ends a write that came from the peer, mirrored or resync.
func (n *Node) finishPeerOp(o *op) {
	n.release(o.buf)
	n.leave(o)
	if o.pinned {
		o.v.unpinRange(o.first, o.last)
	}
	n.freeOp(o)
	n.incoming.active--
	n.checkBarrier()
}

// --- barriers

func (n *Node) takeBarrier(s Session, m *wire.Msg) {
	in := &n.incoming
	if s == n.link.session && m.Arg != in.writes {
		n.protocolError("barrier %d counts %d writes, %d arrived", m.Seq, m.Arg, in.writes)
		return
	}
	in.barrier = &peerBarrier{session: s, number: m.Seq, count: m.Arg, flushes: -1}
	in.writes = 0
	n.checkBarrier()
}

// checkBarrier flushes once the epoch has drained, and acks once every flush
// has returned.
func (n *Node) checkBarrier() {
	b := n.incoming.barrier
	if b == nil || n.incoming.active > 0 || b.flushes != -1 {
		return
	}
	b.failed, n.incoming.failed = n.incoming.failed, false
	b.flushes = 1 // ours, so that immediate answers do not end it early
	for _, v := range n.vols {
		if !v.peerWrote || mutant.On(mutant.AckBarrierUnflushed) {
			continue
		}
		v.peerWrote = false
		if !v.writable() {
			b.failed = true
			continue
		}
		b.flushes++
		n.flushDisk(v, func(r IOResult) { n.barrierFlushed(b, r) })
	}
	n.barrierFlushed(b, IOOK)
}

func (n *Node) barrierFlushed(b *peerBarrier, r IOResult) {
	if r != IOOK {
		b.failed = true
	}
	b.flushes--
	if b.flushes > 0 {
		return
	}
	if b.failed {
		// Writes of this epoch were acked but may not be stable. Ending the
		// session makes the peer mark all of them.
		n.incoming.barrier = nil
		if b.session == n.link.session {
			n.drop(DropReconnect)
		}
		n.drainIncoming()
		return
	}
	n.settleTargets(b)
}

// settleTargets clears the bits of resync blocks that are stable now. A target
// that has nothing left becomes UpToDate, durably, before the source hears
// of it: if the source finished first and we crashed, our old generation id
// would ask for a full sync.
func (n *Node) settleTargets(b *peerBarrier) {
	b.flushes = 1
	if b.session == n.link.session {
		for _, v := range n.vols {
			if n.syncTargetStable(v) {
				b.flushes++
				n.finishTarget(v, func(ok bool) { n.targetSettled(b, ok) })
			}
		}
	}
	n.targetSettled(b, true)
}

func (n *Node) targetSettled(b *peerBarrier, ok bool) {
	b.failed = b.failed || !ok
	b.flushes--
	if b.flushes > 0 {
		return
	}
	n.incoming.barrier = nil
	if b.session == n.link.session && n.link.up {
		if b.failed {
			n.drop(DropReconnect)
		} else {
			n.send(wire.Msg{Kind: wire.KindBarrierAck, Seq: b.number, Arg: b.count}, 0)
		}
	}
	n.drainIncoming()
}

// --- reads for a peer without good data

func (n *Node) peerRead(v *volume, m *wire.Msg) {
	if v.st.Disk != UpToDate {
		n.send(wire.Msg{Kind: wire.KindReadNegReply, Vol: v.id, Seq: m.Seq}, 0)
		return
	}
	o := n.newOp(opPeerRead, v)
	o.verb, o.seq = verbRead, m.Seq
	o.setRange(m.Off, m.Len)
	n.incoming.reads++
	v.ctr.Unacked++
	if n.enter(o) {
		n.startPeerRead(o)
	}
}

func (n *Node) startPeerRead(o *op) {
	if !o.v.writable() {
		n.peerReadDone(o, IOError, 0)
		return
	}
	n.diskAction(o)
}

func (n *Node) peerReadDone(o *op, r IOResult, buf Buf) {
	if o.session == n.link.session {
		if r == IOOK {
			o.v.ctr.Sent += uint64(o.len)
			n.send(wire.Msg{Kind: wire.KindReadReply, Vol: o.v.id, Seq: o.seq, Off: o.off, Len: o.len}, buf)
		} else {
			n.send(wire.Msg{Kind: wire.KindReadNegReply, Vol: o.v.id, Seq: o.seq}, 0)
		}
	}
	n.release(buf)
	n.incoming.reads--
	o.v.ctr.Unacked--
	n.leave(o)
	n.freeOp(o)
}

func (n *Node) takeReadReply(v *volume, m *wire.Msg, buf Buf) {
	o := n.bySeq(m.Seq, opRead)
	if o == nil || o.off != m.Off || o.len != m.Len || o.v != v || o.waits&waitAck == 0 {
		n.release(buf)
		n.protocolError("read reply that nobody asked for")
		return
	}
	n.readReply(o, true, buf)
	n.release(buf)
}
