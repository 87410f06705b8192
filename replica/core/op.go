package core

import (
	"fmt"
	"slices"

	"replicad/bitmap"
	"replicad/internal/mutant"
)

type opKind uint8

const (
	opFree       opKind = iota
	opWrite             // a client's write, trim or zero
	opRead              // a client's read
	opFlush             // a client's flush
	opPeerWrite         // a mirrored write, trim or zero from the peer
	opPeerRead          // a read for the peer, which has no good disk
	opSyncSource        // a resync block, held from the request to the target's ack
	opSyncTarget        // a resync block, from the request (Primary) or the reply (Secondary) until written
	opInternal          // a disk, metadata, gate or handler action with a continuation
	opOrphan            // a disk action that was given up; only its number is still taken
)

// forPeer reports whether the peer's messages cause operations of this kind.
func (k opKind) forPeer() bool { return k == opPeerWrite || k == opPeerRead || k == opSyncSource }

// verb says what an operation does to the disk.
type verb uint8

const (
	verbRead verb = iota
	verbWrite
	verbTrim
	verbZero
)

// waits are the things an operation can wait for before it is complete.
type waits uint8

const (
	waitLocal   waits = 1 << iota // the local disk
	waitSent                      // protocol A: the frame was handed to the kernel
	waitAck                       // protocol B and C, and reads by the peer
	waitBarrier                   // FUA and flush under protocol C: the epoch is stable at the peer
	waitClosed                    // FUA and flush under protocol A and B: the epoch's barrier is on its way
)

const waitNet = waitSent | waitAck | waitBarrier

// op is one operation in flight.
type op struct {
	id   Op
	kind opKind
	verb verb
	v    *volume

	buf         Buf
	off         uint64
	len         uint32
	first, last uint64 // blocks touched, inclusive
	fua, noHole bool

	seq      uint64 // of the message that the peer will answer
	epoch    uint64 // whose ack ends waitBarrier
	session  Session
	sent     Time
	begun    Time // when its disk or metadata action was emitted
	waits    waits
	failed   bool // the local part failed
	remoteOK bool // the peer has it
	lost     bool // the peer was lost before it answered
	pinned   bool // holds references on its activity-log extents
	held     bool // a peer's write that must wait for a flush
	alone    bool // a peer's write of which the peer has no copy: marked and logged like our own
	nacked   bool // the peer said it could not write it
	noSpace  bool // the local disk is full
	borrowed bool // a flush that began while only the peer's disk was good
	queued   bool // in a queue that will start it
	indexed  bool
	blockers int // earlier overlapping operations
	flags    uint16

	onDisk   bool // its disk or metadata action is not answered
	timed    bool // that action works on memory of its own and may be given up
	orphaned bool // that action was given up (disktimeout.go)

	prev, next         *op // range index, in order of arrival
	prevSent, nextSent *op // unacked list, in order of sending
	then               func(IOResult, Buf)
}

// opTable hands out operations and finds them by number. Freed operations are
// reused, so that steady traffic allocates nothing.
type opTable struct {
	all  []*op
	free []*op
}

// opsMax bounds the operations in flight; the low bits of a sequence number name one.
const opsMax = 1 << 16

func (t *opTable) get(id Op) *op {
	if id == 0 || int(id) > len(t.all) || t.all[id-1].kind == opFree {
		panic(fmt.Sprintf("core: completion of operation %d, which is not in flight", id))
	}
	return t.all[id-1]
}

func (n *Node) newOp(kind opKind, v *volume) *op {
	t := &n.ops
	if len(t.free) == 0 {
		if len(t.all) == opsMax-1 {
			panic("core: more operations in flight than opsMax; the edge must admit fewer")
		}
		o := &op{id: Op(len(t.all) + 1)}
		t.all = append(t.all, o)
		t.free = append(t.free, o)
	}
	o := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	*o = op{id: o.id, kind: kind, v: v, session: n.link.session}
	if kind.forPeer() {
		n.incoming.ops++
	}
	return o
}

func (n *Node) freeOp(o *op) {
	if o.indexed || o.queued {
		panic("core: operation freed while queued")
	}
	if o.kind.forPeer() {
		n.incoming.ops--
	}
	if o.orphaned {
		*o = op{id: o.id, kind: opOrphan, v: o.v}
		return
	}
	*o = op{id: o.id}
	n.ops.free = append(n.ops.free, o)
}

// setRange notes which bytes, and so which blocks, the operation touches.
func (o *op) setRange(off uint64, length uint32) {
	o.off, o.len = off, length
	o.first = off / bitmap.BlockSize
	o.last = o.first
	if length > 0 {
		o.last = (off + uint64(length) - 1) / bitmap.BlockSize
	}
	if mutant.On(mutant.UnalignedLastBlock) {
		o.last = o.first + uint64(length-min(length, 1))/bitmap.BlockSize
	}
}

func (o *op) blocks() uint64 { return o.last - o.first + 1 }

// newSeq numbers a message that the peer answers: a counter above the
// operation's number, so that an answer finds its operation without a map and
// numbers grow within a session.
func (n *Node) newSeq(o *op) uint64 {
	n.nextSeq++
	o.seq = n.nextSeq<<16 | uint64(o.id)
	o.sent = n.now
	return o.seq
}

// bySeq finds the operation a peer's answer is about; nil if there is none:
// the peer may be wrong or hostile.
func (n *Node) bySeq(seq uint64, kinds ...opKind) *op {
	id := int(seq & (opsMax - 1))
	if id == 0 || id > len(n.ops.all) {
		return nil
	}
	o := n.ops.all[id-1]
	if (o.seq != seq || o.session != n.link.session) && !mutant.On(mutant.StaleSeqAccepted) {
		return nil
	}
	if slices.Contains(kinds, o.kind) {
		return o
	}
	return nil
}

// metaAction starts bookkeeping for a flush or a metadata action, which a hung
// disk may leave unanswered.
func (n *Node) metaAction(v *volume, then func(IOResult)) *op {
	o := n.internal(v, func(r IOResult, _ Buf) { then(r) })
	o.timed = true
	n.watchAction(o)
	return o
}

// internal starts bookkeeping for an action with a continuation.
func (n *Node) internal(v *volume, then func(IOResult, Buf)) *op {
	o := n.newOp(opInternal, v)
	o.then = then
	if v != nil {
		v.disk.running++
	}
	return o
}

// opDone handles the completion of a disk, metadata, gate or handler action.
func (n *Node) opDone(e *Event) {
	o := n.ops.get(e.Op)
	if o.v != nil && e.Kind != EvHandlerDone {
		o.v.disk.running--
	}
	if o.orphaned || o.kind == opOrphan {
		n.orphanDone(o, e.Buf)
		return
	}
	n.actionEnded(o, e)
}

// actionEnded tells the operation how its action ended.
func (n *Node) actionEnded(o *op, e *Event) {
	o.onDisk = false
	if o.kind == opInternal {
		then := o.then
		n.freeOp(o)
		then(e.Result, e.Buf)
		return
	}
	n.diskDone(o, e)
}

// diskDone routes the end of a disk action to the operation that wanted it.
func (n *Node) diskDone(o *op, e *Event) {
	v := o.v
	switch {
	case e.Result == IOOK:
		n.countDisk(v, o)
	case e.Result == IONoSpace && o.kind == opWrite && !(n.connected() && v.st.PDisk == UpToDate):
		// The file system below a sparse image is full, and no other disk can
		// serve: better to tell the client than to give up the only disk. With
		// a good peer the disk is dropped like any that fails, and the client
		// notices nothing.
		o.noSpace = true
		v.disk.unflushed = true // a part of it may be in the cache
		n.setBits(v, o.first, o.last)
		if o.seq != 0 && o.session == n.link.session && n.link.up {
			// A resync target took the write that we did not. An answer that is
			// on its way would clear the mark with those of the resync: meet anew.
			n.abortSync(v)
			n.drop(DropReconnect)
		}
	default:
		n.diskFailed(v, fmt.Sprintf("%s at %d+%d", verbNames[o.verb], o.off, o.len))
	}
	switch o.kind {
	case opWrite:
		n.writeDone(o, e.Result)
	case opRead:
		n.readDone(o, e.Result, e.Buf)
	case opPeerWrite:
		n.peerWriteDone(o, e.Result)
	case opPeerRead:
		n.peerReadDone(o, e.Result, e.Buf)
	case opSyncSource:
		n.syncSourceRead(o, e.Result, e.Buf)
	case opSyncTarget:
		n.syncTargetWritten(o, e.Result)
	default:
		panic(fmt.Sprintf("core: disk completion for an operation of kind %d", o.kind))
	}
}

var verbNames = [...]string{verbRead: "read", verbWrite: "write", verbTrim: "discard", verbZero: "write zeroes"}

func (n *Node) countDisk(v *volume, o *op) {
	if o.verb == verbRead {
		v.ctr.Read += uint64(o.len)
		return
	}
	v.ctr.Written += uint64(o.len)
	if !o.fua {
		v.disk.unflushed = true
	}
}

// diskAction emits the disk action of o; its completion comes back by o's number.
func (n *Node) diskAction(o *op) {
	o.v.disk.running++
	n.watchAction(o)
	o.timed = o.v.cfg.DiskTimeout > 0
	a := Action{Vol: int32(o.v.id), Op: o.id, Off: o.off, Len: o.len, Buf: o.buf, FUA: o.fua, NoHole: o.noHole, Timed: o.timed}
	switch o.verb {
	case verbRead:
		a.Kind = ActDiskRead
		if o.timed {
			a.Buf = 0
		}
	case verbWrite:
		a.Kind = ActDiskWrite
	case verbTrim:
		a.Kind = ActDiskTrim
	case verbZero:
		a.Kind = ActDiskZero
	}
	n.act(a)
}

func blockSpan(off uint64, length uint32) (first, last uint64) {
	return off / bitmap.BlockSize, (off + uint64(length) - 1) / bitmap.BlockSize
}
