package core

import (
	"fmt"

	"replicad/internal/mutant"
	"replicad/wire"
)

// link is the state of the connection to the peer, whatever the volumes do.
type link struct {
	session   Session // of the current or last attempt
	up        bool
	dropping  bool // ActDrop is out
	token     bool // this node holds the resolve-conflicts token
	upSince   Time
	heard     Time // when anything last arrived
	heardData Time // when anything last arrived on the data channel
	pinged    Time // when the unanswered ping was sent
	pingOut   bool
	standing  bool // after this session: StandAlone
}

// maybeDial goes from Unconnected to WFConnection once everything the last
// session left behind is done: the peer's writes are on disk, and a new
// generation id is durable.
func (n *Node) maybeDial() bool {
	if n.conn() != Unconnected || n.link.up || n.frozen > 0 || !n.incoming.drained() {
		return false
	}
	n.link = link{session: n.link.session + 1}
	for _, v := range n.vols {
		v.lateAlone = false
	}
	n.changeAll(func(s *State) { s.Conn = WFConnection })
	n.act(Action{Kind: ActDial, Session: n.link.session})
	return true
}

// linkUp starts the handshake on a session whose two connections are authenticated.
func (n *Node) linkUp(s Session, token bool) {
	if s != n.link.session || n.conn() != WFConnection {
		n.act(Action{Kind: ActDrop, Session: s, Reason: DropAdmin})
		return
	}
	n.link.up, n.link.token = true, token
	n.link.upSince, n.link.heard, n.link.heardData = n.now, n.now, n.now
	n.openEpoch = epoch{number: n.openEpoch.number + 1}
	n.incoming.begin()
	n.changeAll(func(s *State) { s.Conn = WFReportParams })
	n.beginHandshake()
}

func (n *Node) linkRefused(s Session, why string) {
	if s != n.link.session || n.conn() != WFConnection {
		return
	}
	n.log(nil, LevelError, "connection refused: %s", why)
	n.changeAll(func(s *State) { s.Conn = Disconnecting })
	n.changeAll(func(s *State) { s.Conn = StandAlone })
}

// send emits a message of the current session.
func (n *Node) send(m wire.Msg, payload Buf) {
	if n.link.up && !n.link.dropping {
		n.act(Action{Kind: ActSend, Session: n.link.session, Msg: m, Buf: payload})
	}
}

// drop ends the session; linkDown does the rest when the owner reports it.
func (n *Node) drop(r DropReason) {
	if !n.link.up || n.link.dropping {
		return
	}
	n.link.dropping = true
	n.act(Action{Kind: ActDrop, Session: n.link.session, Reason: r})
}

// refusePeer ends the session for good: StandAlone.
func (n *Node) refusePeer() {
	n.link.standing = true
	n.drop(DropHandshake)
}

func (n *Node) protocolError(format string, args ...any) {
	n.log(nil, LevelError, "protocol error: %s", fmt.Sprintf(format, args...))
	n.drop(DropProtocol)
}

var lossStates = map[DropReason]Conn{
	DropBrokenPipe: BrokenPipe, DropTimeout: Timeout, DropPing: NetworkFailure, DropProtocol: ProtocolError,
	DropAdmin: Disconnecting, DropTearDown: TearDown, DropHandshake: Disconnecting, DropReconnect: NetworkFailure,
}

// linkDown cleans up after a session, whoever ended it. The order matters:
//
//  1. the states change, and with them a Primary starts a new generation and
//     freezes the data path until its id is durable;
//  2. what was sent but not confirmed becomes out-of-sync bits;
//  3. only then do the writes that waited for the peer lose that wait; they
//     complete after the thaw.
func (n *Node) linkDown(s Session, r DropReason) {
	if s != n.link.session || !n.link.up {
		return
	}
	if n.tornDown {
		r = DropTearDown
	}
	n.link.up, n.hs.done = false, false
	next := lossStates[r]
	if n.link.standing {
		next = Disconnecting
	}
	if next == StandAlone {
		next = NetworkFailure
	}
	for _, v := range n.vols {
		n.markLate(v)
	}
	n.changeAll(func(s *State) { s.Conn = next })
	n.loseUnacked()
	n.loseEpochs()
	n.abandonPeerWork()
	n.tornDown = false
	after := Unconnected
	if next == Disconnecting {
		after = StandAlone
	}
	n.changeAll(func(s *State) { s.Conn = after })
	n.commandLinkDown()
	n.writeBitmaps()
}

// markLate marks the peer's writes that have not reached our disk when the
// session ends while the peer has none, or was about to say so.
func (n *Node) markLate(v *volume) {
	v.lateAlone = v.st.PDisk < Inconsistent
	for i := range n.incoming.queue {
		if s, ok := n.incoming.queue[i].msg.Body.(*wire.State); ok && n.incoming.queue[i].msg.Vol == v.id && Disk(s.Disk) <= Failed {
			v.lateAlone = true
		}
	}
	if !v.lateAlone || mutant.On(mutant.LateWritesUnmarked) {
		v.lateAlone = false
		return
	}
	for o := v.index.head; o != nil; o = o.next {
		if o.kind == opPeerWrite {
			o.alone = true
			n.setBits(v, o.first, o.last)
		}
	}
}

// loseSync looks at a resync that this node was the source of. If the target
// may be UpToDate on its own account, it can be promoted, and our generation
// is the target's too: it must be left before this node takes writes alone.
// Otherwise the promoted target would take them for stray ones and discard
// them. A Primary leaves it at once, as when it loses an UpToDate peer; a
// Secondary when it is promoted.
func (n *Node) loseSync(v *volume, was Conn) {
	if v.st.Disk != UpToDate || v.gen.Bitmap == 0 || !n.targetMayBeGood(v, was) {
		return
	}
	if mutant.On(mutant.SharedNotLeft) {
		return
	}
	v.shared = true
	if v.st.Role == Primary {
		n.leaveShared(v)
		n.continueAlone(v)
	}
}

// leaveShared starts a new generation over one that the peer may have reached
// by the end of a resync. The resync's id goes to the history: a target that
// did not reach it is synced in full.
func (n *Node) leaveShared(v *volume) {
	v.gen.H1, v.gen.H2 = v.gen.Bitmap, v.gen.H1
	v.gen = v.gen.Rotate(n.newUUID(), n.role == Primary)
	v.shared = false
	n.log(v, LevelInfo, "new current UUID %s (the peer may have reached the old one)", v.gen)
}

// targetMayBeGood: it has not shown yet that it took the sync UUID, and held
// our generation before; or the end was only a barrier ack away.
func (n *Node) targetMayBeGood(v *volume, was Conn) bool {
	y := &v.sync
	source := was == SyncSource || was == WFBitMapS || was == StartingSyncS || was == PausedSyncS
	if source && !y.begun && masked(v.peerGen.Current) == masked(v.gen.Current) {
		return true
	}
	if was != SyncSource || !y.confirmed {
		return false
	}
	sent := y.ackedBits
	for o := v.index.head; o != nil; o = o.next {
		if o.kind == opSyncSource && o.seq != 0 {
			sent += o.blocks()
		}
	}
	return sent >= v.outOfSync()
}

// writeBitmaps saves the dirty pages of every disk, without hurry.
func (n *Node) writeBitmaps() {
	for _, v := range n.vols {
		if v.disk.bm != nil && v.st.Disk > Failed && v.disk.bm.DirtyPages() > 0 {
			n.writeBitmap(v, nil, func(bool) {})
		}
	}
}

// loseUnacked gives up waiting for the peer's answers: writes become
// out-of-sync bits, reads are tried again elsewhere. A write that the peer
// acked, but that our own disk has not answered, completes in the new
// generation too: the peer may lose it with its power.
func (n *Node) loseUnacked() {
	for _, o := range n.ops.all {
		if o.kind == opWrite && o.seq != 0 && o.session == n.link.session {
			o.lost = true
		}
	}
	waiting := make([]*op, 0, n.unacked.n)
	for o := n.unacked.head; o != nil; o = o.nextSent {
		waiting = append(waiting, o)
	}
	for _, o := range waiting {
		n.unacked.remove(o)
		switch o.kind {
		case opWrite:
			o.lost = true
			n.setBits(o.v, o.first, o.last)
			n.netDone(o, waitAck|waitSent, false)
		case opRead:
			n.readReply(o, false, 0)
		}
	}
}

// --- timers

func (n *Node) linkDeadline(d *deadline) {
	l := &n.link
	if !l.up || l.dropping {
		return
	}
	if !n.hs.done {
		d.add(l.upSince + 2*n.cfg.Net.Timeout)
	}
	if l.pingOut {
		d.add(l.pinged + n.cfg.Net.PingTimeout)
	} else {
		d.add(l.heard + n.cfg.Net.PingInt)
	}
	if limit := n.answerLimit(); limit > 0 {
		if n.unacked.head != nil {
			d.add(n.unacked.head.sent + limit)
		}
		if n.openEpoch.awaiting != 0 {
			d.add(n.openEpoch.awaitingSince + limit)
		}
		if n.exchanging() {
			d.add(n.link.heardData + limit)
		}
	}
	if !n.openEpoch.empty() && n.openEpoch.awaiting == 0 {
		d.add(n.openEpoch.since + n.cfg.Net.BarrierAge)
	}
}

// exchanging reports that a volume waits for the peer's next step before a resync.
func (n *Node) exchanging() bool {
	for _, v := range n.vols {
		if c := v.st.Conn; c > Connected && c < SyncSource {
			return true
		}
	}
	return false
}

// answerLimit is how long the oldest request may stay unanswered; 0 = for ever.
func (n *Node) answerLimit() Duration { return n.cfg.Net.Timeout * Duration(n.cfg.Net.KoCount) }

func (n *Node) linkTick() {
	l := &n.link
	if !l.up || l.dropping {
		return
	}
	limit := n.answerLimit()
	switch {
	case !n.hs.done && n.now >= l.upSince+2*n.cfg.Net.Timeout:
		n.log(nil, LevelError, "the peer did not finish the handshake in time")
		n.drop(DropTimeout)
	case l.pingOut && n.now >= l.pinged+n.cfg.Net.PingTimeout:
		n.log(nil, LevelError, "PingAck did not arrive in time.")
		n.drop(DropPing)
	case limit > 0 && n.unacked.head != nil && n.now >= n.unacked.head.sent+limit,
		limit > 0 && n.openEpoch.awaiting != 0 && n.now >= n.openEpoch.awaitingSince+limit:
		n.log(nil, LevelError, "the peer did not answer a request for %d ms, ko-count reached", limit/1e6)
		n.drop(DropTimeout)
	case limit > 0 && n.exchanging() && n.now >= l.heardData+limit:
		n.log(nil, LevelError, "the peer did not go on with the resync handshake for %d ms", limit/1e6)
		n.drop(DropTimeout)
	case !l.pingOut && n.now >= l.heard+n.cfg.Net.PingInt:
		n.ping()
	}
	if e := &n.openEpoch; !e.empty() && e.awaiting == 0 && n.now >= e.since+n.cfg.Net.BarrierAge {
		n.closeEpoch()
	}
}

func (n *Node) ping() {
	if n.link.pingOut || !n.link.up {
		return
	}
	n.link.pingOut, n.link.pinged = true, n.now
	n.send(wire.Msg{Kind: wire.KindPing}, 0)
}

// --- arrivals

// peerMessage takes a message of the current session. Whatever it says is
// checked: a peer can be wrong, and must not crash this node.
func (n *Node) peerMessage(e *Event) {
	if (e.Session != n.link.session && !mutant.On(mutant.StaleSessionAccepted)) || !n.link.up || n.link.dropping {
		n.release(e.Buf)
		return
	}
	n.link.heard, n.link.pingOut = n.now, false
	m := &e.Msg
	if !n.hs.done && !allowedInHandshake(m.Kind) {
		n.release(e.Buf)
		n.protocolError("message %d during the handshake", m.Kind)
		return
	}
	if m.Kind.Channel() == wire.ChannelData {
		n.link.heardData = n.now
		n.arrive(m, e.Buf)
		return
	}
	n.answer(m)
}

func (n *Node) release(b Buf) {
	if b != 0 {
		n.act(Action{Kind: ActRelease, Buf: b})
	}
}

func allowedInHandshake(k wire.Kind) bool {
	switch k {
	case wire.KindParams, wire.KindSizes, wire.KindUUIDs, wire.KindState, wire.KindPing, wire.KindPingAck:
		return true
	}
	return false
}

// answer handles the control channel: acks and replies.
func (n *Node) answer(m *wire.Msg) {
	switch m.Kind {
	case wire.KindRecvAck, wire.KindWriteAck:
		if o := n.bySeq(m.Seq, opWrite); o != nil {
			n.netDone(o, waitAck, true)
		}
	case wire.KindNegAck:
		n.negAck(m)
	case wire.KindBarrierAck:
		n.barrierAcked(m.Seq, m.Arg)
	case wire.KindResyncWriteAck:
		n.syncAcked(m, true)
	case wire.KindResyncNegAck:
		n.syncAcked(m, false)
	case wire.KindResyncNegReply:
		n.syncRefused(m)
	case wire.KindReadNegReply:
		if o := n.bySeq(m.Seq, opRead); o != nil && o.waits&waitAck != 0 {
			n.readReply(o, false, 0)
		}
	case wire.KindStateReply:
		n.stateReply(m.Seq, StateErr(int64(m.Arg)))
	case wire.KindPing:
		n.send(wire.Msg{Kind: wire.KindPingAck, Arg: m.Arg}, 0)
	case wire.KindPingAck:
	default:
		n.protocolError("unexpected message %d on the control channel", m.Kind)
	}
}

// negAck: the peer could not write a block, so its disk is gone; its report of
// that may still be behind bulk data on the other channel. The block is
// marked; the application does not fail as long as the local disk has it, but
// it hears so only on the generation that the peer does not have.
func (n *Node) negAck(m *wire.Msg) {
	v := n.findVolume(m.Vol)
	if v == nil || !n.validRange(v, m) {
		n.protocolError("negative ack for %d+%d of volume %d", m.Off, m.Len, m.Vol)
		return
	}
	if v.st.PDisk > Failed {
		n.change(v, func(s *State) { s.PDisk = Failed })
	}
	first, last := blockSpan(m.Off, m.Len)
	n.setBits(v, first, last) // protocol A and B may have completed it long ago
	n.loseTail(v)
	if o := n.bySeq(m.Seq, opWrite); o != nil && o.v == v {
		o.lost, o.nacked = true, true
		n.netDone(o, waitAck|waitSent, false)
	}
}

// framesSent: protocol A's promise begins when the frame was handed to the kernel.
func (n *Node) framesSent(s Session, seq uint64) {
	if s != n.link.session || !n.link.up {
		return
	}
	for o := n.unacked.head; o != nil && o.seq <= seq; {
		next := o.nextSent
		if o.kind == opWrite {
			n.netDone(o, waitSent, true)
		}
		o = next
	}
}

// validRange reports whether a message's byte range lies in the volume and is
// made of whole sectors.
func (n *Node) validRange(v *volume, m *wire.Msg) bool {
	end := m.Off + uint64(m.Len)
	return m.Len > 0 && end >= m.Off && end <= v.size && m.Off%512 == 0 && m.Len%512 == 0
}
