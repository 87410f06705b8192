package core

import "replicad/internal/mutant"

// rangeIndex keeps the operations that touch a volume's blocks in order of
// arrival. An operation may start when no earlier one that it conflicts with
// is left: so overlapping writes reach both disks in one order, a read waits
// for a write that is not complete, and resync and mirrored writes of a block
// never race. Whoever came first goes first: the order is total, so
// operations cannot wait for each other in a circle.
//
// It is a plain list: with the few hundred operations that admission lets in,
// a scan costs less than keeping a tree.
type rangeIndex struct {
	head, tail *op
	n          int
}

// conflict reports whether b must wait for a, both of one volume.
func conflict(a, b *op) bool {
	if mutant.On(mutant.ConflictMissesEqualEnds) && a.first != b.first && (a.first >= b.last || b.first >= a.last) {
		return false
	}
	return a.first <= b.last && b.first <= a.last && (!a.readsOnly() || !b.readsOnly())
}

// readsOnly reports that o only looks at its range: it may run beside others
// that do.
func (o *op) readsOnly() bool {
	return o.kind == opRead || o.kind == opPeerRead || o.kind == opSyncSource
}

// enter puts o at the end of its volume's index. It reports whether o may
// start at once; otherwise o is made ready when the last one before it leaves.
func (n *Node) enter(o *op) bool {
	x := &o.v.index
	for p := x.head; p != nil; p = p.next {
		if conflict(p, o) {
			o.blockers++
		}
	}
	o.prev = x.tail
	if x.tail != nil {
		x.tail.next = o
	} else {
		x.head = o
	}
	x.tail = o
	x.n++
	o.indexed = true
	return o.blockers == 0
}

// leave takes o out of the index and makes ready whoever waited for it alone.
func (n *Node) leave(o *op) {
	if !o.indexed {
		return
	}
	for p := o.next; p != nil; p = p.next {
		if conflict(o, p) {
			p.blockers--
			if p.blockers == 0 {
				n.ready = append(n.ready, p)
			}
		}
	}
	x := &o.v.index
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		x.head = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		x.tail = o.prev
	}
	o.prev, o.next, o.indexed = nil, nil, false
	x.n--
}

// start begins an operation whose turn has come.
func (n *Node) start(o *op) {
	switch o.kind {
	case opWrite:
		n.startWrite(o)
	case opRead:
		n.startRead(o)
	case opPeerWrite:
		n.startPeerWrite(o)
	case opPeerRead:
		n.startPeerRead(o)
	case opSyncSource:
		n.startSyncSource(o)
	case opSyncTarget:
		n.startSyncTarget(o)
	}
}

// opList is a list of operations in the order their messages were sent.
type opList struct {
	head, tail *op
	n          int
}

func (l *opList) push(o *op) {
	o.prevSent = l.tail
	if l.tail != nil {
		l.tail.nextSent = o
	} else {
		l.head = o
	}
	l.tail = o
	l.n++
}

func (l *opList) remove(o *op) {
	if o.prevSent == nil && o.nextSent == nil && l.head != o {
		return
	}
	if o.prevSent != nil {
		o.prevSent.nextSent = o.nextSent
	} else {
		l.head = o.nextSent
	}
	if o.nextSent != nil {
		o.nextSent.prevSent = o.prevSent
	} else {
		l.tail = o.prevSent
	}
	o.prevSent, o.nextSent = nil, nil
	l.n--
}
