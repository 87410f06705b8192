package sim

import (
	"slices"

	"replicad/replica/core"
	"replicad/wire"
)

// network joins the two nodes. A link has two connections (lanes) each way;
// every lane is first in, first out, and knows nothing of the others. A frame
// waits in the sender's process (outbox) until it is handed to the kernel,
// then travels on its own even if the sender dies.
type network struct {
	cut        [2]bool    // frames sent by this node do not arrive
	stalled    [2][2]bool // ... on one connection only; by sender and channel
	rate       uint64     // bytes per second of each lane, 0 = no limit
	links      []*link
	nextLink   uint64
	connecting bool // a timer for the next attempt is set
	payload    []byte
	verified   uint64
	damage     [2][2]damage // what happens to the next frame of a lane
	late       []lateFrame  // frames of sessions that are over, still to arrive
	spare      [][]byte     // header buffers to use again
}

// link is one session's pair of connections. The two ends need not agree on
// whether it lives: one may have lost it without the other's knowing.
type link struct {
	id         uint64
	ends       [2]end
	lanes      [2][2]lane       // by sender and channel
	lag        [2]core.Duration // extra delay of a channel: how far the two race apart
	silentTill core.Time        // until then nobody tells an end that the other is gone
	resetAfter int              // frames until it breaks, 0 = never
	verdicts   [2][]core.Conn   // by end and volume: what the handshake decided
	said       [2][]core.State  // by end and volume: its state when the session began
	sentAt     [2][]uint64      // by end and volume: counters when the session began
	gotAt      [2][]uint64
	resets     [2]int
}

type endState uint8

const (
	endWaiting endState = iota // the node was not told yet
	endAlive
	endClosing // the node dropped it, or it broke; EvLinkDown is due
	endGone
)

type end struct {
	session core.Session
	state   endState
	token   bool
	raced   bool // comes up although the node stopped dialling
	reason  core.DropReason
}

type lane struct {
	outbox  []frame
	wire    []frame
	rest    []byte    // bytes that followed a damaged frame and make no whole frame yet
	broken  bool      // the receiver reads rest: frames have lost their borders
	last    core.Time // arrival of the last frame on the wire
	writing bool      // a timer will hand the outbox to the kernel
	moving  bool      // a timer will deliver the first frame
}

type frame struct {
	at    core.Time
	fin   bool // the sender closed the connection
	hurt  bool // bytes, which include the payload, are not what was sent
	bytes []byte
	data  []content
	msg   wire.Msg
}

func laneArg(l *link, sender, channel int) uint64 {
	return l.id<<2 | uint64(sender)<<1 | uint64(channel)
}

func (net *network) find(id uint64) *link {
	for _, l := range net.links {
		if l.id == id {
			return l
		}
	}
	return nil
}

func (net *network) laneOf(arg uint64) (l *link, sender, channel int) {
	return net.find(arg >> 2), int(arg >> 1 & 1), int(arg & 1)
}

// endOf finds the link on which node n runs the session.
func (net *network) endOf(n int, s core.Session) *link {
	if s == 0 {
		return nil
	}
	for _, l := range net.links {
		if e := &l.ends[n]; e.session == s && e.state != endGone {
			return l
		}
	}
	return nil
}

// --- connecting

// dialled makes sure that an attempt to connect will happen.
func (net *network) dialled(w *World) {
	if !net.connecting {
		net.connecting = true
		w.clock.add(timer{at: w.now + w.between(500*microsecond, 20*millisecond), what: atConnect, node: nobody})
	}
}

// connect tries to join the nodes, which takes all four lanes.
func (net *network) connect(w *World) {
	net.connecting = false
	a, b := w.nodes[0], w.nodes[1]
	if a.dial == 0 && b.dial == 0 {
		return
	}
	net.dialled(w)
	if net.disturbed() || !a.up || !b.up || net.takeOffer(w) {
		return
	}
	for i, n := range w.nodes {
		if n.dial != 0 && w.nodes[1-i].dial == 0 {
			net.dialAlone(w, i)
			return
		}
	}
	switch {
	case net.pendingEnd(0) || net.pendingEnd(1):
	case w.chance(w.opt.Crossing) && !w.calm:
		net.cross(w)
	default:
		net.establish(w)
	}
}

// disturbed reports that some lane lets nothing through.
func (net *network) disturbed() bool {
	return net.blocked(0, 0) || net.blocked(0, 1) || net.blocked(1, 0) || net.blocked(1, 1)
}

// blocked reports that frames of a lane do not get through.
func (net *network) blocked(sender, c int) bool { return net.cut[sender] || net.stalled[sender][c] }

func (net *network) pendingEnd(n int) bool {
	return slices.ContainsFunc(net.links, func(l *link) bool { return l.ends[n].state < endGone })
}

// dialAlone: node i dials and its peer does not. If that one still believes in
// a session that i has lost, the dial ends it; the new session may then be up
// at i before the peer's core has asked for one, and is kept for it a while.
func (net *network) dialAlone(w *World, i int) {
	for _, l := range net.links {
		if l.ends[1-i].state != endAlive || l.ends[i].state != endGone || w.now < l.silentTill {
			continue
		}
		net.lose(w, l, 1-i, core.DropBrokenPipe)
		if w.coin() && !net.pendingEnd(i) {
			offer := net.newLink(w)
			offer.ends[i].session = w.nodes[i].dial
			net.comeUp(w, offer, i)
			w.clock.add(timer{at: w.now + w.between(millisecond, second), what: atWithdraw, node: nobody, arg: offer.id})
		}
		return
	}
}

// takeOffer gives a session that is kept for a node to it, once its core asks.
func (net *network) takeOffer(w *World) bool {
	for _, l := range net.links {
		for i, n := range w.nodes {
			if e := &l.ends[i]; e.state == endWaiting && e.session == 0 && n.dial != 0 && !net.believes(i) {
				e.session = n.dial
				net.comeUp(w, l, i)
				w.reached.hit(markOfferTaken)
				return true
			}
		}
	}
	return false
}

// believes reports that node n runs a session, or is about to.
func (net *network) believes(n int) bool {
	return slices.ContainsFunc(net.links, func(l *link) bool {
		return l.ends[n].state < endGone && l.ends[n].session != 0
	})
}

// withdraw ends a session that was kept for a node and not taken.
func (net *network) withdraw(w *World, id uint64) {
	l := net.find(id)
	if l == nil {
		return
	}
	for i := range l.ends {
		if e := &l.ends[i]; e.state == endWaiting && e.session == 0 {
			e.state = endGone
			net.close(w, l, i, true)
		}
	}
	net.sweep()
}

func (net *network) newLink(w *World) *link {
	net.nextLink++
	l := &link{id: net.nextLink}
	token := w.coin()
	for i := range l.ends {
		l.ends[i].token = token == (i == 0)
		l.verdicts[i], l.said[i] = make([]core.Conn, w.opt.Volumes), make([]core.State, w.opt.Volumes)
		l.sentAt[i], l.gotAt[i] = make([]uint64, w.opt.Volumes), make([]uint64, w.opt.Volumes)
	}
	if !w.calm {
		if w.chance(w.opt.Skew) {
			l.lag[w.rng.IntN(2)] = w.between(millisecond, 60*millisecond)
			w.count.Faults[faultSkew]++
		}
		if w.chance(w.opt.EarlyReset) {
			l.resetAfter = 1 + w.rng.IntN(14)
		}
	}
	net.links = append(net.links, l)
	return l
}

func (net *network) comeUp(w *World, l *link, i int) {
	w.clock.add(timer{
		at: w.now + w.between(100*microsecond, 10*millisecond), what: atUp,
		node: int8(i), life: w.nodes[i].life, arg: l.id<<1 | uint64(i),
	})
}

func (net *network) establish(w *World) {
	l := net.newLink(w)
	for i, n := range w.nodes {
		l.ends[i].session = n.dial
		net.comeUp(w, l, i)
	}
}

// cross is what crossing dials must never settle on, and what two reboots
// come to: each node takes another of two sessions for the one that counts.
// Nobody is at the other end of either, and both may hold the token.
func (net *network) cross(w *World) {
	w.count.Faults[faultCrossing]++
	w.reached.hit(markDuplicate)
	silent := w.now
	if w.coin() {
		silent += w.between(millisecond, 3*w.opt.Net.Timeout)
	}
	for i, n := range w.nodes {
		l := net.newLink(w)
		l.silentTill = silent
		l.ends[i].session, l.ends[1-i].state = n.dial, endGone
		net.comeUp(w, l, i)
	}
}

func (net *network) endUp(w *World, arg uint64) {
	l, i := net.find(arg>>1), int(arg&1)
	if l == nil || l.ends[i].state != endWaiting {
		return
	}
	n, e := w.nodes[i], &l.ends[i]
	if n.dial != e.session && !e.raced {
		e.state = endGone
		net.close(w, l, i, true)
		net.sweep()
		return
	}
	e.state = endAlive
	n.epochs.clear()
	n.received = nil
	if n.dial == e.session {
		n.dial = 0
	}
	net.sessionBegins(w, l, i)
	for _, v := range n.vols {
		v.compared = comparison{}
	}
	n.event(core.Event{Kind: core.EvLinkUp, Session: e.session, Token: e.token})
	for c := range 2 {
		net.move(w, l, 1-i, c)
	}
}

// stopDial ends dialling; a session that is about to come up may still do so.
func (net *network) stopDial(w *World, n *node) {
	if l := net.endOf(n.id, n.dial); l != nil && l.ends[n.id].state == endWaiting && w.coin() {
		l.ends[n.id].raced = true
		w.reached.hit(markStopDialRace)
	}
	n.dial = 0
}

// --- ending

// drop carries out ActDrop.
func (net *network) drop(w *World, n *node, s core.Session, reason core.DropReason) {
	l := net.endOf(n.id, s)
	if l == nil || l.ends[n.id].state != endAlive {
		if l == nil {
			w.fail("contract", "node %s drops session %d, which it does not have", n.name(), s)
		}
		return
	}
	orderly := reason == core.DropAdmin || reason == core.DropTearDown || reason == core.DropHandshake
	net.close(w, l, n.id, orderly)
	net.lose(w, l, n.id, reason)
}

// lose tells node n, a little later, that its end is gone.
func (net *network) lose(w *World, l *link, n int, reason core.DropReason) {
	e := &l.ends[n]
	if e.state == endWaiting {
		e.state = endGone
		net.sweep()
		return
	}
	if e.state != endAlive {
		return
	}
	e.state, e.reason = endClosing, reason
	at := w.now + w.between(10*microsecond, 2*millisecond)
	w.clock.add(timer{at: at, what: atDown, node: int8(n), life: w.nodes[n].life, arg: l.id<<1 | uint64(n)})
}

func (net *network) endDown(w *World, arg uint64) {
	l, i := net.find(arg>>1), int(arg&1)
	if l == nil || l.ends[i].state != endClosing {
		return
	}
	e := &l.ends[i]
	e.state = endGone
	if e.reason == core.DropPing || e.reason == core.DropTimeout {
		if l.ends[1-i].state == endGone {
			w.reached.hit(markHalfOpen)
		}
	}
	net.keepLate(w, l, i)
	net.sweep()
	w.nodes[i].event(core.Event{Kind: core.EvLinkDown, Session: e.session, Reason: e.reason})
}

// bury tells the peer of a node that came back that the old session is gone.
func (net *network) bury(w *World, n *node) {
	for _, l := range slices.Clone(net.links) {
		if l.ends[n.id].state == endGone && w.now >= l.silentTill {
			net.lose(w, l, 1-n.id, core.DropBrokenPipe)
		}
	}
}

// close ends what sender sends: all of it arrives, or of each lane some
// prefix, and then the end of the stream.
func (net *network) close(w *World, l *link, sender int, orderly bool) {
	for c := range 2 {
		q := &l.lanes[sender][c]
		if orderly {
			net.toWire(w, l, sender, c, len(q.outbox))
		} else {
			q.wire = q.wire[:w.rng.IntN(len(q.wire)+1)]
		}
		q.outbox = nil
		q.last = max(q.last, w.now+w.between(10*microsecond, w.opt.LinkDelay))
		q.wire = append(q.wire, frame{at: q.last, fin: true})
		net.move(w, l, sender, c)
	}
}

// crash ends the sessions of a node. After a power cut nobody tells the peer.
func (net *network) crash(w *World, n *node, power bool) {
	for _, l := range slices.Clone(net.links) {
		if l.ends[n.id].state == endGone {
			continue
		}
		l.ends[n.id].state = endGone
		if !power {
			net.close(w, l, n.id, false)
			continue
		}
		l.silentTill = w.now + w.silence()
		for c := range 2 {
			q := &l.lanes[n.id][c]
			q.outbox = nil
			q.wire = q.wire[:w.rng.IntN(len(q.wire)+1)]
		}
	}
	n.dial = 0
	net.sweep()
}

// silence draws for how long nobody tells an end that the other is gone.
func (w *World) silence() core.Duration {
	if !w.chance(w.opt.Silence) {
		return 0
	}
	return w.between(10*millisecond, 5*second)
}

// reset breaks the present links at both ends.
func (net *network) reset(w *World) {
	for _, l := range slices.Clone(net.links) {
		net.resetLink(w, l)
	}
}

func (net *network) resetLink(w *World, l *link) {
	for i := range 2 {
		if l.ends[i].state == endAlive {
			net.close(w, l, i, false)
		}
	}
	for i := range 2 {
		net.lose(w, l, i, core.DropBrokenPipe)
	}
}

// halfOpen breaks the links at one end; the other goes on believing in it.
func (net *network) halfOpen(w *World, n int) {
	for _, l := range slices.Clone(net.links) {
		if l.ends[n].state != endAlive {
			continue
		}
		l.silentTill = w.now + w.between(10*millisecond, 5*second)
		for c := range 2 {
			q := &l.lanes[n][c]
			q.outbox, q.wire = nil, q.wire[:w.rng.IntN(len(q.wire)+1)]
		}
		net.lose(w, l, n, core.DropBrokenPipe)
	}
}

// sweep forgets links that are gone at both ends.
func (net *network) sweep() {
	net.links = slices.DeleteFunc(net.links, func(l *link) bool {
		return l.ends[0].state == endGone && l.ends[1].state == endGone
	})
}

// idle reports that no frame is on its way.
func (net *network) idle() bool {
	if len(net.late) > 0 {
		return false
	}
	for _, l := range net.links {
		for i := range l.lanes {
			for c := range l.lanes[i] {
				if q := &l.lanes[i][c]; l.ends[1-i].state != endGone && len(q.outbox)+len(q.wire) > 0 {
					return false
				}
			}
		}
	}
	return true
}
