package sim

import (
	"errors"

	"replicad/replica/core"
	"replicad/wire"
)

// damage is what happens to one frame on the wire, behind TCP's back: in a
// network card, a proxy, or memory that holds a socket's buffer.
type damage uint8

const (
	damageNone damage = iota
	damageFlip        // one bit
	damageCut         // some bytes of it are missing; what was sent next follows
	damageEnd         // the stream ends within it
)

// hurt damages a frame. From then on its bytes include the payload.
func (net *network) hurt(w *World, f *frame, d damage) {
	b := append([]byte(nil), f.bytes...)
	b = append(b, net.payloadBytes(f.data)...)
	switch d {
	case damageFlip:
		bit := w.rng.IntN(8 * len(b))
		if w.coin() {
			bit = w.rng.IntN(8 * wire.HeaderSize)
		}
		b[bit/8] ^= 1 << (bit % 8)
	default:
		kept := 1 + w.rng.IntN(len(b)-1)
		if w.coin() {
			kept = 1 + w.rng.IntN(wire.HeaderSize-1)
		}
		b = b[:kept]
	}
	f.bytes, f.data, f.hurt = b, nil, true
	w.tracef("frame %v is damaged (%d)", f.msg.Kind, d)
	if d == damageEnd {
		f.fin = true
	}
}

// receiveHurt reads a lane byte by byte, from its first damaged frame on. The
// receiver must refuse what it reads: nothing of it reaches the core (P13).
func (net *network) receiveHurt(w *World, l *link, r *node, f *frame, c int) {
	q := &l.lanes[1-r.id][c]
	q.broken = true
	q.rest = append(q.rest, f.bytes...)
	if !f.hurt {
		q.rest = append(q.rest, net.payloadBytes(f.data)...)
	}
	h, err := parseStream(q.rest, c)
	switch {
	case errors.Is(err, wire.ErrShort):
		w.reached.hit(markTruncated)
		return // the reader waits for the rest
	case err == nil:
		w.fail("P13", "node %s accepts a damaged frame as %+v", r.name(), h.Msg)
		return
	}
	w.reached.hit(markDamaged)
	w.tracef("%s refuses a frame: %v", r.name(), err)
	net.close(w, l, r.id, false)
	net.lose(w, l, r.id, core.DropProtocol)
}

// parseStream reads a whole frame, payload included, from the front of b.
func parseStream(b []byte, c int) (wire.Header, error) {
	h, err := wire.ParseHeader(b, channelOf(c))
	if err != nil {
		return h, err
	}
	b = b[wire.HeaderSize:]
	if len(b) < h.BodyLen+h.PayloadLen {
		return h, wire.ErrShort
	}
	if h.BodyLen > 0 {
		return h, h.Body(b[:h.BodyLen])
	}
	return h, h.VerifyPayload(b[:h.PayloadLen])
}

// garbled reports that a lane has lost a frame, though its receiver may still
// wait for the rest of it.
func (l *link) garbled() bool {
	return l.lanes[0][0].broken || l.lanes[0][1].broken || l.lanes[1][0].broken || l.lanes[1][1].broken
}

// lateFrame is one of a session that is over for its receiver. A shell that
// reads with two goroutines may report one; the core must know it by its number.
type lateFrame struct {
	session core.Session
	life    uint32
	node    int
	frame   frame
}

// keepLate lets some frames arrive at a node after the end of their session,
// some of them when the next one is up.
func (net *network) keepLate(w *World, l *link, i int) {
	if w.calm || !w.chance(w.opt.Late) {
		return
	}
	for c := range 2 {
		q := &l.lanes[1-i][c]
		for j := range min(len(q.wire), 4) {
			f := q.wire[j]
			if f.fin || f.hurt || q.broken {
				break
			}
			net.late = append(net.late, lateFrame{l.ends[i].session, w.nodes[i].life, i, f})
			w.clock.add(timer{at: w.now + w.between(10*microsecond, 100*millisecond), what: atLate, node: nobody})
		}
	}
}

// arriveLate hands one of the late frames, any of them, to its node.
func (net *network) arriveLate(w *World) {
	i := w.rng.IntN(len(net.late))
	x := net.late[i]
	net.late[i] = net.late[len(net.late)-1]
	net.late = net.late[:len(net.late)-1]
	n := w.nodes[x.node]
	if !n.up || n.life != x.life || n.frozenUntil > w.now {
		return
	}
	w.count.Faults[faultLate]++
	if net.whole() {
		w.reached.hit(markLate)
	}
	h, err := parse(x.frame.bytes, channelIndex(x.frame.msg.Kind))
	if err != nil {
		w.fail("wire", "sent %+v: %v", x.frame.msg, err)
		return
	}
	m := h.Msg
	if isMirrored(m.Kind) && w.coin() {
		n.event(core.Event{Kind: core.EvSent, Session: x.session, Seq: m.Seq})
	}
	ev := core.Event{Kind: core.EvPeer, Session: x.session, Msg: m}
	if len(x.frame.data) > 0 {
		ev.Buf = n.takePayload(&m, x.frame.data)
	}
	used := n.bufs.payloads()
	n.event(ev)
	if ev.Buf != 0 && w.failure == nil && n.bufs.payloads() >= used {
		w.fail("contract", "node %s keeps the payload of a message of session %d, which is over", n.name(), x.session)
	}
}
