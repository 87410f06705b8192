package sim

import (
	"encoding/binary"
	"reflect"
	"slices"

	"replicad/replica/core"
	"replicad/wire"
)

// This file moves frames: from the sender's core to its process's outbox, to
// the wire, to the receiver's parser and core.

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
		f.data = b.data // which never changes
	}
	bytes, err := wire.AppendMsg(net.header(), &f.msg, net.payloadBytes(f.data))
	if err != nil {
		w.fail("wire", "node %s sends %+v: %v", n.name(), a.Msg, err)
		return
	}
	f.bytes = bytes
	c := channelIndex(a.Msg.Kind)
	q := &l.lanes[n.id][c]
	q.outbox = append(q.outbox, f)
	net.write(w, l, n, c)
}

// header returns an empty buffer for a frame's header.
func (net *network) header() []byte {
	if last := len(net.spare) - 1; last >= 0 {
		b := net.spare[last]
		net.spare = net.spare[:last]
		return b[:0]
	}
	return make([]byte, 0, wire.HeaderSize)
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

// socketFrames is how many frames a socket takes while nothing, or little, gets through.
const socketFrames = 12

// flushOutbox hands the outbox of a lane to the kernel, or what fits.
func (net *network) flushOutbox(w *World, arg uint64) {
	l, sender, c := net.laneOf(arg)
	if l == nil {
		return
	}
	q := &l.lanes[sender][c]
	q.writing = false
	count := len(q.outbox)
	if net.blocked(sender, c) || net.rate > 0 {
		count = min(count, max(0, socketFrames-len(q.wire)))
		if count < len(q.outbox) {
			w.reached.hit(markSocketFull)
		}
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
		q.last = max(q.last, w.now+w.transit()+l.lag[c])
		if net.rate > 0 {
			size := uint64(len(f.bytes) + len(f.data)*sectorSize)
			q.last += core.Duration(size * uint64(second) / net.rate)
		}
		f.at = q.last
		if d := net.damage[sender][c]; d != damageNone && !w.calm {
			net.damage[sender][c] = damageNone
			net.hurt(w, &f, d)
		}
		q.wire = append(q.wire, f)
		if isMirrored(f.msg.Kind) {
			seq = f.msg.Seq
		}
	}
	q.outbox = slices.Delete(q.outbox, 0, count)
	return seq
}

func isMirrored(k wire.Kind) bool {
	return k == wire.KindData || k == wire.KindTrim || k == wire.KindZero
}

// transit draws how long a frame travels. A spike is a segment sent again.
func (w *World) transit() core.Duration {
	d := w.between(10*microsecond, w.opt.LinkDelay)
	if w.chance(w.opt.LinkSpike) && !w.calm {
		w.count.Faults[faultSpike]++
		d *= 50
	}
	return d
}

// move sets the timer that delivers the first frame of a lane, if it can move.
func (net *network) move(w *World, l *link, sender, c int) {
	q := &l.lanes[sender][c]
	if q.moving || len(q.wire) == 0 || net.blocked(sender, c) || l.ends[1-sender].state == endWaiting {
		return
	}
	q.moving = true
	w.clock.add(timer{at: max(q.wire[0].at, w.now), what: atDeliver, node: nobody, arg: laneArg(l, sender, c)})
}

// heal lets frames of a sender pass again, on both connections.
func (net *network) heal(w *World, sender int) {
	net.cut[sender] = false
	for c := range 2 {
		net.stalled[sender][c] = false
		for _, l := range net.links {
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
	case len(q.wire) == 0 || net.blocked(sender, c) || e.state == endWaiting:
		return
	case e.state == endGone:
		q.wire = nil
		if w.now >= l.silentTill && r.up && !net.disturbed() {
			net.lose(w, l, sender, core.DropBrokenPipe) // the kernel there knows of no such connection
		}
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
	q.wire = slices.Delete(q.wire, 0, 1)
	if net.rate > 0 {
		net.write(w, l, w.nodes[sender], c)
	}
	if f.fin {
		q.wire = nil
		net.lose(w, l, r.id, core.DropBrokenPipe)
		return
	}
	net.receive(w, l, r, &f, c)
	net.countFrame(w, l)
	net.move(w, l, sender, c)
}

// countFrame breaks a link that was to live for so many frames only.
func (net *network) countFrame(w *World, l *link) {
	if l.resetAfter == 0 {
		return
	}
	if l.resetAfter--; l.resetAfter == 0 && !w.calm {
		w.count.Faults[faultEarlyReset]++
		for _, n := range w.nodes {
			if l.ends[n.id].state == endAlive && n.vols[0].st.Conn == core.WFReportParams {
				w.reached.hit(markEarlyReset)
			}
		}
		net.resetLink(w, l)
	}
}

// resume lets a node's reader try again to hand over what it held back.
func (net *network) resume(w *World, r *node) {
	r.heldBack = false
	for _, l := range net.links {
		net.move(w, l, 1-r.id, 0)
	}
}

// receive parses a frame as the receiver does and hands it to the core.
func (net *network) receive(w *World, l *link, r *node, f *frame, c int) {
	w.count.Messages++
	q := &l.lanes[1-r.id][c]
	if f.hurt || q.broken {
		net.receiveHurt(w, l, r, f, c)
		return
	}
	h, err := parse(f.bytes, c)
	if err == nil {
		err = net.verify(&h, f)
	}
	if err != nil || !sameMessage(&h.Msg, &f.msg) {
		w.fail("wire", "sent %+v, received %+v: %v", f.msg, h.Msg, err)
		return
	}
	ev := core.Event{Kind: core.EvPeer, Session: l.ends[r.id].session, Msg: h.Msg}
	if len(f.data) > 0 {
		ev.Buf = r.takePayload(&h.Msg, f.data)
	}
	net.spare = append(net.spare, f.bytes)
	if u, ok := h.Msg.Body.(*wire.UUIDs); ok && int(h.Msg.Vol) < len(r.vols) {
		r.vols[h.Msg.Vol].compared.heard = *u
	}
	r.arrived(&h.Msg)
	r.event(ev)
}

// parse reads the bytes of a frame, without its payload, from a lane.
func parse(b []byte, c int) (wire.Header, error) {
	h, err := wire.ParseHeader(b, channelOf(c))
	if err == nil && h.BodyLen > 0 {
		err = h.Body(b[wire.HeaderSize:])
	}
	return h, err
}

func channelOf(c int) wire.Channel {
	if c == 1 {
		return wire.ChannelControl
	}
	return wire.ChannelData
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
