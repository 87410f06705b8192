package sim

import (
	"encoding/binary"
	"reflect"
	"slices"

	"replicad/replica/core"
	"replicad/wire"
)

// network joins the two nodes. A link has two connections (lanes) each way;
// every lane is first in, first out, and knows nothing of the others. A frame
// waits in the sender's process (outbox) until it is handed to the kernel,
// then travels on its own even if the sender dies.
type network struct {
	cut        [2]bool // frames sent by this node do not arrive
	links      []*link
	nextLink   uint64
	connecting bool // a timer for the next attempt is set
	payload    []byte
	verified   uint64
}

type link struct {
	id    uint64
	ends  [2]end
	lanes [2][2]lane // by sender and channel
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
	last    core.Time // arrival of the last frame on the wire
	writing bool      // a timer will hand the outbox to the kernel
	moving  bool      // a timer will deliver the first frame
}

type frame struct {
	at    core.Time
	fin   bool // the sender closed the connection
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

// connect tries to join the nodes. A node that still believes in a session
// whose other end is gone loses it when its peer dials again.
func (net *network) connect(w *World) {
	net.connecting = false
	a, b := w.nodes[0], w.nodes[1]
	if a.dial == 0 && b.dial == 0 {
		return
	}
	net.dialled(w)
	if net.cut[0] || net.cut[1] || !a.up || !b.up {
		return
	}
	for i, n := range w.nodes {
		if n.dial != 0 && w.nodes[1-i].dial == 0 {
			net.breakHalfOpen(w, 1-i)
			return
		}
	}
	if net.pendingEnd(0) || net.pendingEnd(1) {
		return
	}
	net.establish(w)
}

func (net *network) pendingEnd(n int) bool {
	return slices.ContainsFunc(net.links, func(l *link) bool { return l.ends[n].state < endGone })
}

func (net *network) breakHalfOpen(w *World, n int) {
	for _, l := range net.links {
		if l.ends[n].state == endAlive && l.ends[1-n].state == endGone {
			net.lose(w, l, n, core.DropBrokenPipe)
		}
	}
}

func (net *network) establish(w *World) {
	net.nextLink++
	l := &link{id: net.nextLink}
	token := w.coin()
	for i, n := range w.nodes {
		l.ends[i] = end{session: n.dial, token: token == (i == 0)}
		arg := l.id<<1 | uint64(i)
		w.clock.add(timer{at: w.now + w.between(100*microsecond, 10*millisecond), what: atUp, node: int8(i), life: n.life, arg: arg})
	}
	net.links = append(net.links, l)
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
	net.sweep()
	w.nodes[i].event(core.Event{Kind: core.EvLinkDown, Session: e.session, Reason: e.reason})
}

// bury tells the peer of a node that came back that the old session is gone.
func (net *network) bury(w *World, n *node) {
	for _, l := range slices.Clone(net.links) {
		if l.ends[n.id].state == endGone {
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
		for c := range 2 {
			q := &l.lanes[n.id][c]
			q.outbox = nil
			q.wire = q.wire[:w.rng.IntN(len(q.wire)+1)]
		}
	}
	n.dial = 0
	net.sweep()
}

// reset breaks the present link at both ends.
func (net *network) reset(w *World) {
	for _, l := range slices.Clone(net.links) {
		for i := range 2 {
			if l.ends[i].state == endAlive {
				net.close(w, l, i, false)
			}
		}
		for i := range 2 {
			net.lose(w, l, i, core.DropBrokenPipe)
		}
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

// --- moving frames

func (net *network) send(w *World, n *node, a *core.Action) {
	l := net.endOf(n.id, a.Session)
	if l == nil || l.ends[n.id].state != endAlive {
		return
	}
	f := frame{msg: a.Msg}
	if a.Msg.HasPayload() {
		b := n.bufs.get(a.Buf)
		if b == nil || len(b.data) != int(a.Msg.Len/sectorSize) {
			w.fail("buffers", "node %s sends %v with buffer %d, which does not hold it", n.name(), a.Msg.Kind, a.Buf)
			return
		}
		f.data = slices.Clone(b.data)
	}
	bytes, err := wire.AppendMsg(nil, &f.msg, net.payloadBytes(f.data))
	if err != nil {
		w.fail("wire", "node %s sends %+v: %v", n.name(), a.Msg, err)
		return
	}
	f.bytes = bytes
	c := channelIndex(a.Msg.Kind)
	if h, err := parse(bytes, c); err != nil || !sameMessage(&h.Msg, &a.Msg) {
		w.fail("wire", "sent %+v, parsed %+v: %v", a.Msg, h.Msg, err)
	}
	q := &l.lanes[n.id][c]
	q.outbox = append(q.outbox, f)
	net.write(w, l, n, c)
}

func channelIndex(k wire.Kind) int {
	if k.Channel() == wire.ChannelControl {
		return 1
	}
	return 0
}

// payloadBytes spells contents as bytes, in a buffer used again by the next call.
func (net *network) payloadBytes(data []content) []byte {
	if net.payload == nil {
		net.payload = make([]byte, wire.PayloadMax)
	}
	for i, c := range data {
		binary.LittleEndian.PutUint32(net.payload[i*sectorSize:], uint32(c))
	}
	return net.payload[:len(data)*sectorSize]
}

func (net *network) write(w *World, l *link, n *node, c int) {
	q := &l.lanes[n.id][c]
	if q.writing || len(q.outbox) == 0 {
		return
	}
	q.writing = true
	at := w.now + w.between(microsecond, 30*microsecond)
	w.clock.add(timer{at: at, what: atWrite, node: int8(n.id), life: n.life, arg: laneArg(l, n.id, c)})
}

// socketFrames is how many frames a socket takes while nothing gets through.
const socketFrames = 12

// flushOutbox hands the outbox of a lane to the kernel.
func (net *network) flushOutbox(w *World, arg uint64) {
	l, sender, c := net.laneOf(arg)
	if l == nil {
		return
	}
	q := &l.lanes[sender][c]
	q.writing = false
	count := len(q.outbox)
	if net.cut[sender] {
		count = min(count, max(0, socketFrames-len(q.wire)))
	}
	seq := net.toWire(w, l, sender, c, count)
	net.move(w, l, sender, c)
	n := w.nodes[sender]
	if seq != 0 && w.opt.Protocol == 'A' && l.ends[sender].state == endAlive {
		n.event(core.Event{Kind: core.EvSent, Session: l.ends[sender].session, Seq: seq})
	}
}

func (net *network) toWire(w *World, l *link, sender, c, count int) (seq uint64) {
	q := &l.lanes[sender][c]
	for _, f := range q.outbox[:count] {
		q.last = max(q.last, w.now+w.between(10*microsecond, w.opt.LinkDelay))
		f.at = q.last
		q.wire = append(q.wire, f)
		if k := f.msg.Kind; k == wire.KindData || k == wire.KindTrim || k == wire.KindZero {
			seq = f.msg.Seq
		}
	}
	q.outbox = q.outbox[count:]
	return seq
}

// move sets the timer that delivers the first frame of a lane, if it can move.
func (net *network) move(w *World, l *link, sender, c int) {
	q := &l.lanes[sender][c]
	if q.moving || len(q.wire) == 0 || net.cut[sender] || l.ends[1-sender].state == endWaiting {
		return
	}
	q.moving = true
	w.clock.add(timer{at: max(q.wire[0].at, w.now), what: atDeliver, node: nobody, arg: laneArg(l, sender, c)})
}

// heal lets frames of a sender pass again.
func (net *network) heal(w *World, sender int) {
	net.cut[sender] = false
	for _, l := range net.links {
		for c := range 2 {
			net.write(w, l, w.nodes[sender], c)
			net.move(w, l, sender, c)
		}
	}
}

func (net *network) deliver(w *World, arg uint64) {
	l, sender, c := net.laneOf(arg)
	if l == nil {
		return
	}
	q, r := &l.lanes[sender][c], w.nodes[1-sender]
	q.moving = false
	e := &l.ends[r.id]
	switch {
	case len(q.wire) == 0 || net.cut[sender] || e.state == endWaiting:
		return
	case e.state == endGone:
		q.wire = nil
		return
	case r.frozenUntil > w.now:
		q.moving = true
		w.clock.add(timer{at: r.frozenUntil, what: atDeliver, node: nobody, arg: arg})
		return
	case c == 0 && (len(q.wire[0].data) > 0 && r.bufs.payloads() >= w.opt.Window || r.core.Congested()):
		r.heldBack = true // until a payload is released, or there is room
		return
	}
	f := q.wire[0]
	q.wire = q.wire[1:]
	if f.fin {
		q.wire = nil
		net.lose(w, l, r.id, core.DropBrokenPipe)
		return
	}
	net.receive(w, r, e, &f, c)
	net.move(w, l, sender, c)
}

// resume lets a node's reader try again to hand over what it held back.
func (net *network) resume(w *World, r *node) {
	r.heldBack = false
	for _, l := range net.links {
		net.move(w, l, 1-r.id, 0)
	}
}

// receive parses a frame as the receiver does and hands it to the core.
func (net *network) receive(w *World, r *node, e *end, f *frame, c int) {
	w.count.Messages++
	h, err := parse(f.bytes, c)
	if err == nil {
		err = net.verify(&h, f)
	}
	if err != nil {
		w.fail("wire", "sent %+v, received: %v", f.msg, err)
		return
	}
	ev := core.Event{Kind: core.EvPeer, Session: e.session, Msg: h.Msg}
	if len(f.data) > 0 {
		ev.Buf = r.takePayload(&h.Msg, f.data)
	}
	r.arrived(&h.Msg)
	r.event(ev)
}

// parse reads the bytes of a frame from a lane.
func parse(b []byte, c int) (wire.Header, error) {
	channel := wire.ChannelData
	if c == 1 {
		channel = wire.ChannelControl
	}
	h, err := wire.ParseHeader(b, channel)
	if err == nil && h.BodyLen > 0 {
		err = h.Body(b[wire.HeaderSize:])
	}
	return h, err
}

// verify checks the hash of every eighth payload: hashing costs most of a run.
func (net *network) verify(h *wire.Header, f *frame) error {
	if net.verified++; h.PayloadLen == 0 || net.verified%8 != 0 {
		return nil
	}
	return h.VerifyPayload(net.payloadBytes(f.data))
}

func sameMessage(a, b *wire.Msg) bool {
	x, y := *a, *b
	x.Body, y.Body = nil, nil
	if x != y {
		return false
	}
	return a.Body == nil && b.Body == nil || reflect.DeepEqual(a.Body, b.Body)
}
