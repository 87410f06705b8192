package replica

import (
	"sync/atomic"

	"replicad/replica/core"
)

// What the core takes in one piece (core.EvWrite). Cutting at multiples of these
// keeps a data write inside one 4 MiB extent and a trim inside one 64 MiB range.
const (
	dataPiece = 1 << 20
	trimPiece = 64 << 20
	// requestBytesMax is the longest read or write.
	requestBytesMax = 64 << 20
	// piecesMax is how many pieces a request can have: 64 MiB of data, or a
	// 4 GiB trim, not aligned.
	piecesMax = 65
)

// request is a client's request while the core works on its pieces.
type request struct {
	r      *Resource
	done   Completer
	left   atomic.Int32  // pieces without their last reference dropped
	result atomic.Uint32 // core.IOResult: the first one that is not IOOK
	pieces int
	bytes  int64
	first  core.Buf // chain of pieces through slot.next
	next   *request // free list
}

// plan is how a request is cut.
type plan struct {
	kind   core.EventKind
	unit   uint64
	pieces int
	bytes  int64 // claimed of the admission
}

// planFor checks a request and says how to cut it. Pieces 0 means that there
// is nothing to do: result is the answer.
func planFor(io *IO) (p plan, result core.IOResult) {
	switch io.Op {
	case OpRead:
		p = plan{kind: core.EvRead, unit: dataPiece, bytes: int64(io.Len)}
	case OpWrite:
		p = plan{kind: core.EvWrite, unit: dataPiece, bytes: int64(io.Len)}
	case OpTrim:
		p = plan{kind: core.EvTrim, unit: trimPiece}
	case OpZero:
		p = plan{kind: core.EvZero, unit: trimPiece}
	case OpFlush:
		return plan{kind: core.EvFlush, unit: trimPiece, pieces: 1}, core.IOOK
	default:
		return plan{}, core.IOInvalid
	}
	if p.bytes > requestBytesMax || p.bytes > 0 && len(io.Data) != int(io.Len) || io.Off > 1<<62 || (io.Off|uint64(io.Len))%512 != 0 {
		return plan{}, core.IOInvalid
	}
	if io.Len > 0 {
		p.pieces = int((io.Off+uint64(io.Len)-1)/p.unit-io.Off/p.unit) + 1
	}
	return p, core.IOOK
}

// newRequest takes a request and its pieces; admission has been claimed.
func (r *Resource) newRequest(io *IO, p plan) *request {
	q := r.bufs.request()
	q.r, q.done = r, io.Done
	q.pieces, q.bytes = p.pieces, p.bytes
	q.left.Store(int32(p.pieces))
	q.result.Store(uint32(core.IOOK))
	return q
}

// submit cuts a request into pieces and adds their events to the batch. Admission
// for it has been claimed.
func (b *batch) submit(v *Volume, io *IO, p plan) {
	q := b.r.newRequest(io, p)
	if io.Op == OpFlush {
		buf := b.r.bufs.clientPiece(q, v, 0, 0, nil)
		b.add(core.Event{Kind: p.kind, Vol: v.number, Buf: buf})
		return
	}
	end := io.Off + uint64(io.Len)
	for off := io.Off; off < end; {
		n := min(p.unit-off%p.unit, end-off)
		var data []byte
		if io.Data != nil {
			data = io.Data[off-io.Off:][:n]
		}
		buf := b.r.bufs.clientPiece(q, v, off, uint32(n), data)
		if io.Op != OpRead {
			b.r.bufs.enterInflight(buf)
		}
		if io.Op == OpRead && v.direct.Load() && v.gate.maybeOpen() {
			v.work.push(diskOp{job: jobFastRead, vol: v, buf: buf, off: off, len: uint32(n)})
			off += n
			continue
		}
		b.add(core.Event{
			Kind: p.kind, Vol: v.number, Buf: buf, Off: off, Len: uint32(n),
			FUA: io.FUA && io.Op != OpRead, NoHole: io.NoHole,
		})
		off += n
	}
}

// clientPiece makes a slot of the table stand for a piece of q.
func (b *buffers) clientPiece(q *request, v *Volume, off uint64, n uint32, data []byte) core.Buf {
	buf := b.piece()
	s := &b.slots[buf]
	s.req, s.vol, s.off, s.len, s.data, s.mark = q, v, off, n, data, false
	s.next, q.first = uint32(q.first), buf
	return buf
}

// enterInflight counts a piece of a write among those that reads must not overtake.
func (b *buffers) enterInflight(n core.Buf) {
	s := &b.slots[n]
	s.mark = true
	s.vol.inflight.add(s.off, s.len, 1)
}

// complete answers a piece of a client's request on the core's behalf.
func (r *Resource) complete(a *core.Action) {
	s := r.bufs.slot(a.Buf)
	if a.Src != 0 && a.Result == core.IOOK {
		copy(s.data, r.bufs.slot(a.Src).data)
	}
	r.finishPiece(a.Buf, a.Result)
}

// finishPiece records the result of a piece and drops the core's reference. The
// request completes when no message and no disk operation uses its memory any more.
func (r *Resource) finishPiece(buf core.Buf, result core.IOResult) {
	s := r.bufs.slot(buf)
	if s.mark {
		s.mark = false
		s.vol.inflight.add(s.off, s.len, -1)
	}
	if result != core.IOOK {
		s.req.result.CompareAndSwap(uint32(core.IOOK), uint32(result))
	}
	r.bufs.release(buf)
}

// pieceDone is called when nobody uses a piece any more. The last one answers the client.
func (q *request) pieceDone() {
	if q.left.Add(-1) > 0 {
		return
	}
	r, done, result := q.r, q.done, core.IOResult(q.result.Load())
	pieces, bytes := q.pieces, q.bytes
	r.bufs.freeRequest(q)
	// The client hears first: room given back may start other work.
	done.Complete(result)
	r.room.give(pieces, bytes)
}

// request takes a request from the free list.
func (b *buffers) request() *request {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.requests
	if q == nil {
		return new(request)
	}
	b.requests = q.next
	q.next = nil
	return q
}

// freeRequest gives back a request and all its pieces.
func (b *buffers) freeRequest(q *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := uint32(q.first); n != 0; {
		s := &b.slots[n]
		next := s.next
		s.req, s.vol, s.data = nil, nil, nil
		s.next, b.freePiece = b.freePiece, n
		n = next
	}
	q.first, q.done = 0, nil
	q.next, b.requests = b.requests, q
}
