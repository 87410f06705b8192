package core

import (
	"replicad/internal/mutant"
	"replicad/wire"
)

// clientRequest admits a client's request: it is refused at once, or enters
// the range index and is answered by exactly one ActComplete.
func (n *Node) clientRequest(e *Event) {
	v := n.volume(e.Vol)
	if r := n.admit(v, e); r != IOOK {
		n.act(Action{Kind: ActComplete, Vol: int32(v.id), Buf: e.Buf, Result: r})
		return
	}
	n.clientOps++
	v.ctr.App++
	if e.Kind == EvFlush {
		n.startFlush(v, e.Buf)
		return
	}
	o := n.newOp(opWrite, v)
	switch e.Kind {
	case EvRead:
		o.kind, o.verb = opRead, verbRead
	case EvWrite:
		o.verb = verbWrite
	case EvTrim:
		o.verb = verbTrim
	case EvZero:
		o.verb = verbZero
	}
	o.buf, o.fua, o.noHole = e.Buf, e.FUA, e.NoHole
	o.setRange(e.Off, e.Len)
	if n.enter(o) {
		n.start(o)
	}
}

func (n *Node) admit(v *volume, e *Event) IOResult {
	switch {
	case n.role != Primary:
		return IONotPrimary
	case e.Kind == EvFlush:
		return IOOK
	case e.Len == 0 || e.Off+uint64(e.Len) < e.Off || e.Off+uint64(e.Len) > v.size || e.Off%512 != 0 || e.Len%512 != 0:
		return IOInvalid
	}
	return IOOK
}

// complete answers the client and lets go of the operation.
func (n *Node) complete(o *op, r IOResult, src Buf) {
	v := o.v
	n.act(Action{Kind: ActComplete, Vol: int32(v.id), Buf: o.buf, Result: r, Src: src})
	n.clientOps--
	v.ctr.App--
	n.unacked.remove(o)
	n.leave(o)
	if o.pinned {
		v.unpinRange(o.first, o.last)
	}
	n.freeOp(o)
}

// --- writes

// startWrite begins a client's write whose range is free: it waits for a thaw
// and for its activity-log extents, then goes to both disks.
func (n *Node) startWrite(o *op) {
	if n.frozen > 0 && !mutant.On(mutant.WriteBeforeRotation) {
		n.frozenOps = append(n.frozenOps, o)
		return
	}
	if o.v.usesAL() && !o.pinned {
		if !o.v.pinRange(o.first, o.last) {
			o.v.disk.alWait = append(o.v.disk.alWait, o)
			return
		}
		o.pinned = true
	}
	n.submitWrite(o)
}

// submitWrite sends a write to the peer, or marks it out of sync, and to the
// local disk. The message goes first: the peer's disk is the longer way.
func (n *Node) submitWrite(o *op) {
	v := o.v
	local, mirrored := v.writable(), n.mirrors(v)
	if n.role != Primary || !n.dataAccessible(v) || (!local && !mirrored) {
		n.complete(o, n.refusal(), 0)
		return
	}
	n.submitted++
	good := v.st.Disk == UpToDate
	if mirrored {
		n.mirror(o, good)
	} else {
		n.markLocalOnly(o)
	}
	o.failed = !local
	if local {
		o.waits |= waitLocal
		n.diskAction(o)
	}
}

func (n *Node) refusal() IOResult {
	if n.role != Primary {
		return IONotPrimary
	}
	return IONoData
}

// dataAccessible reports whether this node can serve its clients: good data
// here, or at a connected peer.
func (n *Node) dataAccessible(v *volume) bool {
	return v.st.Disk == UpToDate || (v.st.PDisk == UpToDate && n.connected())
}

// mirrors reports whether writes are sent to the peer (DRBD 8.4
// drbd_should_do_remote): it is UpToDate, or it has a disk and takes part in
// a resync whose bitmap exchange has begun on a side that mirrors.
func (n *Node) mirrors(v *volume) bool {
	if !n.connected() {
		return false
	}
	c := v.st.Conn
	return v.st.PDisk == UpToDate || (v.st.PDisk >= Inconsistent && v.st.PDisk != DUnknown && c >= WFBitMapT && c < Ahead)
}

// sendsOutOfSync reports whether writes are not mirrored but announced, so
// that the peer's copy of the bitmap stays a superset (DRBD 8.4 drbd_should_send_out_of_sync).
func (n *Node) sendsOutOfSync(v *volume) bool {
	if mutant.On(mutant.ExchangeWritesUnannounced) && v.st.Conn == WFBitMapS {
		return false
	}
	return n.connected() && (v.st.Conn == WFBitMapS || v.st.Conn == StartingSyncS || v.st.Conn == Ahead)
}

func (n *Node) markLocalOnly(o *op) {
	n.setBits(o.v, o.first, o.last)
	if n.sendsOutOfSync(o.v) {
		n.send(wire.Msg{Kind: wire.KindOutOfSync, Vol: o.v.id, Off: o.off, Len: o.len}, 0)
	}
}

func (n *Node) setBits(v *volume, first, last uint64) {
	if v.disk.bm != nil && !mutant.On(mutant.SkipBit) {
		v.disk.bm.SetRange(first, last-first+1)
	}
}

var mirrorKinds = [...]wire.Kind{verbWrite: wire.KindData, verbTrim: wire.KindTrim, verbZero: wire.KindZero}

// mirror sends a write to the peer. Where ours is not a good disk the peer's is
// the only one: then it must have written the block, whatever the protocol.
func (n *Node) mirror(o *op, good bool) {
	v := o.v
	m := wire.Msg{Kind: mirrorKinds[o.verb], Vol: v.id, Seq: n.newSeq(o), Off: o.off, Len: o.len}
	if o.fua {
		m.Flags |= wire.FlagFUA
	}
	if o.noHole {
		m.Flags |= wire.FlagNoHole
	}
	switch {
	case n.cfg.Net.Protocol == 'C' || !good:
		m.Flags |= wire.FlagWantWriteAck
		o.waits |= waitAck
	case n.cfg.Net.Protocol == 'B':
		m.Flags |= wire.FlagWantRecvAck
		o.waits |= waitAck
	default:
		o.waits |= waitSent
	}
	o.session = n.link.session
	n.unacked.push(o)
	v.ctr.Pending++
	payload := Buf(0)
	if o.verb == verbWrite {
		payload = o.buf
		v.ctr.Sent += uint64(o.len)
	}
	n.send(m, payload)
	o.epoch = n.openEpoch.number // joining may close it
	n.joinEpoch(o)
	if o.fua && (n.cfg.Net.Protocol == 'C' || !good) && !mutant.On(mutant.FUAWithoutBarrier) {
		o.waits |= waitBarrier
		n.flushWait = append(n.flushWait, o)
		if !n.openEpoch.empty() {
			n.closeEpoch()
		}
	} else if o.fua {
		n.awaitClosing(o)
	}
}

// writeDone: the local part of a client's write ended.
func (n *Node) writeDone(o *op, r IOResult) {
	o.waits &^= waitLocal
	if r != IOOK && !o.failed && !o.noSpace {
		o.failed = true
		n.needPeersDisk(o)
	}
	n.maybeComplete(o)
}

// needPeersDisk: the local disk failed under a write. Where the protocol asked
// for no more than that it was sent or received, it now takes the barrier of
// its epoch to know that the peer has it.
func (n *Node) needPeersDisk(o *op) {
	if o.seq == 0 || o.lost || o.session != n.link.session || o.waits&waitBarrier != 0 || n.cfg.Net.Protocol == 'C' {
		return
	}
	e := &n.openEpoch
	if o.epoch != e.number && o.epoch != e.awaiting {
		return // acked meanwhile: remoteOK stands
	}
	o.remoteOK = false
	o.waits |= waitBarrier
	n.flushWait = append(n.flushWait, o)
	if o.epoch == e.number && !e.empty() {
		n.closeEpoch()
	}
}

// netDone ends one of the things a write waits for at the peer.
func (n *Node) netDone(o *op, w waits, ok bool) {
	if o.waits&w == 0 {
		return
	}
	if o.waits&(waitAck|waitSent)&w != 0 {
		o.v.ctr.Pending--
	}
	o.waits &^= w
	switch {
	case ok:
		o.remoteOK = !o.nacked
	case w&waitBarrier != 0:
		o.remoteOK = false // acked, but whether it is stable nobody knows
	}
	if o.waits&waitNet == 0 {
		n.unacked.remove(o)
	}
	n.maybeComplete(o)
}

// maybeComplete completes a write when nothing is awaited any more. One that
// owes its completion to the loss of the peer waits until the new generation
// id is durable: otherwise a crash just now would let the promoted peer
// discard it without noticing a split brain.
func (n *Node) maybeComplete(o *op) {
	if o.waits != 0 {
		return
	}
	if o.lost && n.frozen > 0 && !mutant.On(mutant.CompleteBeforeRotation) {
		n.lostOps = append(n.lostOps, o)
		return
	}
	if n.awaitsPeerID(o.v) {
		o.v.idOps = append(o.v.idOps, o)
		return
	}
	switch {
	case o.noSpace:
		n.complete(o, IONoSpace, 0)
	case o.borrowed && !o.remoteOK && o.v.st.Disk == UpToDate:
		n.flushHere(o) // the peer went, but the resync from it had ended
	case !o.remoteOK && (o.failed || (o.kind == opWrite && o.v.st.Disk != UpToDate)): // a copy on a bad disk does not count
		n.complete(o, IOError, 0)
	case !n.dataAccessible(o.v):
		n.complete(o, IONoData, 0) // both copies went away under it
	default:
		n.complete(o, IOOK, 0)
	}
}

// awaitsPeerID reports that the local disk is gone and the peer has not said
// yet that its new generation id is durable. What only the peer has must not
// complete before that: if both nodes crashed now and the disk that failed
// came back good, it would carry the same id as the peer's, and discard it.
func (n *Node) awaitsPeerID(v *volume) bool {
	return n.role == Primary && v.unsure && v.st.Disk <= Failed && v.st.PDisk == UpToDate && n.connected()
}

// releaseIDOps completes what waited for the peer's new generation id.
func (n *Node) releaseIDOps(v *volume) {
	if len(v.idOps) == 0 || n.awaitsPeerID(v) {
		return
	}
	waiting := v.idOps
	v.idOps = nil
	for _, o := range waiting {
		n.maybeComplete(o)
	}
}

// freeze stops the submission of client writes, and the completion of those
// that lost their peer, until as many thaws have come.
func (n *Node) freeze() { n.frozen++ }

func (n *Node) thaw() {
	n.frozen--
	if n.frozen > 0 {
		return
	}
	lost := n.lostOps
	n.lostOps = nil
	for _, o := range lost {
		n.maybeComplete(o)
	}
	n.ready = append(n.ready, n.frozenOps...)
	clear(n.frozenOps)
	n.frozenOps = n.frozenOps[:0]
}

// --- reads

// startRead serves a client's read from the local disk when its blocks are
// good there, else from the peer.
func (n *Node) startRead(o *op) {
	v := o.v
	switch {
	case n.role != Primary:
		n.complete(o, IONotPrimary, 0)
	case v.readableLocally(o.first, o.last) && !o.failed:
		o.waits = waitLocal
		n.diskAction(o)
	case n.connected() && v.st.PDisk == UpToDate && !o.remoteOK:
		o.waits = waitAck
		o.session = n.link.session
		n.unacked.push(o)
		v.ctr.Pending++
		n.send(wire.Msg{Kind: wire.KindReadRequest, Vol: v.id, Seq: n.newSeq(o), Off: o.off, Len: o.len}, 0)
	case o.failed || o.remoteOK:
		n.complete(o, IOError, 0)
	default:
		n.complete(o, IONoData, 0)
	}
}

// readableLocally reports whether the local copy of the blocks is good: the
// disk is UpToDate, or it is a resync target whose bitmap is complete and
// does not have them.
func (v *volume) readableLocally(first, last uint64) bool {
	if v.st.Disk == UpToDate {
		return true
	}
	syncing := v.st.Conn == SyncTarget || v.st.Conn == PausedSyncT
	return syncing && v.st.Disk == Inconsistent && (v.disk.bm.CountRange(first, last-first+1) == 0 || mutant.On(mutant.ReadInconsistent))
}

// readDone: the local disk answered a client's read, in buf where the read had
// memory of its own. A failed one is tried at the peer (DRBD 8.4 on-io-error
// detach).
func (n *Node) readDone(o *op, r IOResult, buf Buf) {
	o.waits = 0
	if r == IOOK {
		n.complete(o, IOOK, buf)
		n.release(buf)
		return
	}
	o.failed = true
	n.startRead(o)
}

// readReply: the peer answered a client's read. remoteOK on a read means that
// the peer was asked and could not.
func (n *Node) readReply(o *op, ok bool, src Buf) {
	o.v.ctr.Pending--
	o.waits = 0
	n.unacked.remove(o)
	if ok {
		o.v.ctr.Received += uint64(o.len)
		n.complete(o, IOOK, src)
		return
	}
	o.remoteOK = true
	n.startRead(o)
}

// --- flushes

// startFlush makes every write completed so far durable: on the local disk,
// and under protocol C on the peer's, by a barrier. It waits for no write
// that is still in flight.
func (n *Node) startFlush(v *volume, buf Buf) {
	o := n.newOp(opFlush, v)
	o.buf, o.lost = buf, n.frozen > 0
	if !n.dataAccessible(v) {
		n.complete(o, n.refusal(), 0)
		return
	}
	n.flushEpoch(o)
	n.flushHere(o)
}

// flushHere is the local part of a flush. While ours is no good disk only the
// peer's can make the flush succeed.
func (n *Node) flushHere(o *op) {
	v := o.v
	good := v.st.Disk == UpToDate
	o.borrowed = !good && o.waits != 0
	o.failed = o.borrowed
	if !v.writable() {
		n.maybeComplete(o)
		return
	}
	o.waits |= waitLocal
	n.flushDisk(v, func(r IOResult) {
		o.waits &^= waitLocal
		o.failed = o.failed || (good && r != IOOK)
		n.maybeComplete(o)
	})
}

// flushEpoch closes the open epoch for a flush, and makes the flush wait for
// the peer's ack where the protocol promises the peer's disk.
func (n *Node) flushEpoch(o *op) {
	epoch := n.openEpoch.number
	if n.openEpoch.empty() {
		epoch = n.openEpoch.awaiting
	}
	if epoch == 0 || !n.connected() || (mutant.On(mutant.FlushOwnEpochOnly) && n.openEpoch.empty()) {
		return
	}
	if (n.cfg.Net.Protocol == 'C' || o.v.st.Disk != UpToDate) && !mutant.On(mutant.FlushWithoutBarrier) {
		o.waits |= waitBarrier
		o.epoch = epoch
		o.session = n.link.session
		n.flushWait = append(n.flushWait, o)
	}
	if o.waits&waitBarrier == 0 {
		n.awaitClosing(o)
	} else if !n.openEpoch.empty() {
		n.closeEpoch()
	}
}
