package sim

import (
	"slices"

	"replicad/replica/core"
	"replicad/wire"
)

// incomingEpochs follows the mirrored writes a node received: a barrier may
// be acknowledged only when every write before it is on stable storage, and
// no write after a barrier may be submitted earlier than that.
type incomingEpochs struct {
	open   []*mirrored
	closed []closedEpoch
}

type closedEpoch struct {
	number uint64
	writes []*mirrored
}

// mirrored is one write, trim or zero that arrived from the peer.
type mirrored struct {
	vol          int
	first, count uint32
	begun, done  bool
	failed       bool
	seq          uint64 // the message
	write        uint32 // 0: unknown, zeroes
	mark         uint64 // the disk's clock after its effect
}

func (e *incomingEpochs) clear() { *e = incomingEpochs{} }

func (e *incomingEpochs) mirrored(m *wire.Msg) {
	e.open = append(e.open, &mirrored{vol: int(m.Vol), first: uint32(m.Off / sectorSize), count: m.Len / sectorSize, seq: m.Seq})
}

func (e *incomingEpochs) barrier(number uint64) {
	e.closed = append(e.closed, closedEpoch{number, e.open})
	e.open = nil
}

// begin finds the write that a disk action carries out, and the closed epochs
// that came before it.
func (e *incomingEpochs) begin(vol int, first, count uint32) (m *mirrored, before []closedEpoch) {
	match := func(m *mirrored) bool { return !m.begun && m.vol == vol && m.first == first && m.count == count }
	for i, c := range e.closed {
		if at := slices.IndexFunc(c.writes, match); at >= 0 {
			c.writes[at].begun = true
			return c.writes[at], e.closed[:i]
		}
	}
	if at := slices.IndexFunc(e.open, match); at >= 0 {
		e.open[at].begun = true
		return e.open[at], e.closed
	}
	return nil, nil
}

// refused notes that the sender was told to do without a write.
func (e *incomingEpochs) refused(seq uint64) {
	lists := [][]*mirrored{e.open}
	for _, c := range e.closed {
		lists = append(lists, c.writes)
	}
	for _, writes := range lists {
		for _, m := range writes {
			if m.seq == seq {
				m.begun, m.failed = true, true
			}
		}
	}
}

// sends checks what a message promises before it leaves.
func (n *node) sends(a *core.Action) {
	switch a.Msg.Kind {
	case wire.KindData, wire.KindTrim, wire.KindZero:
		n.noteSent(&a.Msg)
	case wire.KindNegAck:
		n.epochs.refused(a.Msg.Seq)
	}
	if a.Msg.Kind != wire.KindBarrierAck {
		return
	}
	e := &n.epochs
	for len(e.closed) > 0 && e.closed[0].number <= a.Msg.Seq {
		if e.closed[0].number == a.Msg.Seq && int(a.Msg.Arg) != len(e.closed[0].writes) {
			n.w.fail("P4", "node %s acknowledges epoch %d with %d writes, it has %d", n.name(), a.Msg.Seq, a.Msg.Arg, len(e.closed[0].writes))
		}
		n.mustBeStable(e.closed[:1], "acknowledges the barrier of")
		n.w.acknowledged(n, e.closed[0].writes)
		e.closed = e.closed[1:]
	}
}

// noteSent notes that a client's write was sent to the peer.
func (n *node) noteSent(m *wire.Msg) {
	first, count := uint32(m.Off/sectorSize), m.Len/sectorSize
	for i := range n.bufs.all {
		if r := n.bufs.all[i].request; r != nil && r.writes() && r.vol == int(m.Vol) && r.first == first && r.count == count {
			r.sent = true
		}
	}
}

// mustBeStable checks that the writes of the epochs would survive a power cut.
func (n *node) mustBeStable(epochs []closedEpoch, does string) {
	for _, c := range epochs {
		for _, m := range c.writes {
			v := n.vols[m.vol]
			if m.failed || v.st.Disk < core.Inconsistent {
				continue
			}
			if !m.done || !v.disk.stable(m) {
				n.w.fail("P4", "node %s %s epoch %d, but its write at sector %d+%d of volume %d is not stable",
					n.name(), does, c.number, m.first, m.count, m.vol)
				return
			}
		}
	}
}

// stable reports that a power cut brings back nothing older than m.
func (d *disk) stable(m *mirrored) bool {
	for s := m.first; s < m.first+m.count; s++ {
		if h := d.history.Get(s); h != nil && len(h.older) > 0 && h.older[0].until <= m.mark {
			return false
		}
	}
	return true
}
