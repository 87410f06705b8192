package replica

import (
	"errors"
	"sync"

	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/meta"
)

// inlineMax is the longest operation on the page cache that the goroutine at
// hand does itself: handing it over would cost more.
const inlineMax = 256 << 10

// backing is an attached disk with its metadata.
type backing struct {
	data     disk.Device
	md       disk.Device // the same device when internal
	path     string      // of data, as configured at the attach
	metaPath string
	internal bool
	store    *meta.Store // belongs to the volume's metadata writer
	buffered bool        // operations end in the page cache
	slots    int         // activity-log extents
}

// close releases the devices.
func (k *backing) close() error {
	err := k.data.Close()
	if !k.internal {
		err = errors.Join(err, k.md.Close())
	}
	return err
}

// diskOp is an operation for a disk worker.
type diskOp struct {
	kind   core.ActionKind // a disk action, 0 for the other jobs below
	job    job
	fua    bool
	noHole bool
	timed  bool // it may be given up before it ends: no memory of a client's
	vol    *Volume
	op     core.Op
	buf    core.Buf // held until the operation ends; 0 with a copy
	len    uint32
	off    uint64
	copied *[]byte // what to write, in memory of ours
}

// path is the name of the disk that the operation is for.
func (op *diskOp) path() string {
	if k := op.vol.back; k != nil {
		return k.path
	}
	return ""
}

// job is work for a disk worker that the core did not ask for.
type job uint8

const (
	jobAction   job = iota // kind says what to do
	jobFastRead            // a client's read of buf that bypasses the core
	jobClose               // close the detached disk of vol
)

// workQueue hands operations to the disk workers. It grows to the number of
// operations in flight, which admission and the payload budgets bound, so
// pushing never waits.
type workQueue struct {
	mu    sync.Mutex
	ready sync.Cond
	ring  []diskOp // len is a power of two
	head  int
	count int
	ended bool
}

func (q *workQueue) init() {
	q.ready.L = &q.mu
	q.ring = make([]diskOp, 256)
}

func (q *workQueue) push(op diskOp) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count == len(q.ring) {
		q.grow()
	}
	q.ring[(q.head+q.count)&(len(q.ring)-1)] = op
	q.count++
	q.ready.Signal()
}

func (q *workQueue) grow() {
	bigger := make([]diskOp, 2*len(q.ring))
	n := copy(bigger, q.ring[q.head:])
	copy(bigger[n:], q.ring[:q.head])
	q.ring, q.head = bigger, 0
}

// pop waits for an operation; false means that the queue ended and is empty.
func (q *workQueue) pop() (diskOp, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count == 0 {
		if q.ended {
			return diskOp{}, false
		}
		q.ready.Wait()
	}
	op := q.ring[q.head]
	q.ring[q.head] = diskOp{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	return op, true
}

// end makes pop return false once the queue is empty.
func (q *workQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.ready.Broadcast()
}

// diskWorker is the body of one worker goroutine.
func (v *Volume) diskWorker() {
	b := batch{r: v.r, inline: true}
	for {
		op, ok := v.work.pop()
		if !ok {
			return
		}
		switch op.job {
		case jobFastRead:
			b.fastReadPiece(op)
		case jobClose:
			b.closeBacking(op.vol)
		default:
			b.diskOp(op)
		}
		b.run()
	}
}

// diskAction starts a disk action: here, if it is short, or on a worker.
func (b *batch) diskAction(a *core.Action) {
	v := b.r.volume(uint16(a.Vol))
	op := diskOp{kind: a.Kind, fua: a.FUA, noHole: a.NoHole, timed: a.Timed, vol: v, op: a.Op, buf: a.Buf, len: a.Len, off: a.Off}
	switch {
	case a.Buf != 0 && a.Timed && b.r.bufs.isClient(a.Buf):
		op.copyOut(&b.r.copies, b.r.bufs.slot(a.Buf).data)
	case a.Buf != 0:
		b.r.bufs.hold(a.Buf)
	}
	if b.inline && op.short() {
		b.diskOp(op)
		return
	}
	v.work.push(op)
}

// short reports an operation that normally ends in the page cache.
func (op *diskOp) short() bool {
	if op.timed || op.vol.back == nil || !op.vol.back.buffered || op.len > inlineMax || op.buf == 0 {
		return false
	}
	return op.kind == core.ActDiskRead || op.kind == core.ActDiskWrite && !op.fua
}

// diskOp performs an operation and adds its completion, unless it has to wait
// for a buffer.
func (b *batch) diskOp(op diskOp) {
	if op.kind == core.ActDiskRead && op.buf == 0 {
		b.readForPeer(op)
		return
	}
	result := b.r.transfer(&op, op.buf)
	if op.buf != 0 {
		b.r.bufs.release(op.buf)
	}
	if op.copied != nil {
		b.r.copies.put(op.copied)
	}
	b.add(core.Event{Kind: core.EvDiskDone, Vol: op.vol.number, Op: op.op, Result: result})
}

// readForPeer reads into a buffer of ours, which the core then owns.
func (b *batch) readForPeer(op diskOp) {
	e := core.Event{Kind: core.EvDiskDone, Vol: op.vol.number, Op: op.op, Result: core.IOInvalid}
	if op.len <= payloadMax {
		buf, parked := b.r.bufs.readBuffer(op)
		if parked {
			return
		}
		e.Buf = buf
		if e.Result = b.r.transfer(&op, buf); e.Result != core.IOOK {
			b.r.bufs.release(buf)
			e.Buf = 0
		}
	}
	b.add(e)
}

// transfer performs op on the volume's disk.
func (r *Resource) transfer(op *diskOp, buf core.Buf) core.IOResult {
	k := op.vol.back
	if k == nil {
		return core.IOError
	}
	var data []byte
	switch {
	case op.copied != nil:
		data = *op.copied
	case buf != 0:
		data = r.bufs.slot(buf).data
	}
	err := k.do(op, data)
	result := resultOf(err)
	op.vol.note(op, result, err)
	return result
}

// do performs one operation. A trim becomes zeroes: what reads back after a
// discard may differ between two disks, and both nodes must hold the same bytes.
func (k *backing) do(op *diskOp, data []byte) (err error) {
	off, n := int64(op.off), int64(op.len)
	switch op.kind {
	case core.ActDiskRead:
		_, err = k.data.ReadAt(data, off)
	case core.ActDiskWrite:
		if op.fua {
			_, err = k.data.WriteDurable(data, off)
		} else {
			_, err = k.data.WriteAt(data, off)
		}
	case core.ActDiskTrim, core.ActDiskZero:
		err = k.data.WriteZeroes(off, n, op.noHole)
		if err == nil && op.fua {
			err = k.data.Sync()
		}
	case core.ActDiskFlush:
		err = k.data.Sync()
	}
	return err
}

// resultOf classifies a device's error. An unknown error is an I/O error.
func resultOf(err error) core.IOResult {
	switch {
	case err == nil:
		return core.IOOK
	case disk.NoSpace(err):
		return core.IONoSpace
	default:
		return core.IOError
	}
}

var opNames = map[core.ActionKind]string{
	core.ActDiskRead: "read", core.ActDiskWrite: "write", core.ActDiskTrim: "trim",
	core.ActDiskZero: "zero", core.ActDiskFlush: "flush",
}

// diskFailed notes a failed operation. Reads that bypass the core stop at
// once: between now and the detach the disk must not be believed. The first
// error is logged, with its cause, which the core does not see.
func (v *Volume) diskFailed(op *diskOp, err error) {
	if !v.failed.Swap(true) {
		v.r.log.Error("local I/O error", "volume", v.number, "disk", op.path(), "op", opNames[op.kind],
			"offset", op.off, "bytes", op.len, "err", err)
	}
}
