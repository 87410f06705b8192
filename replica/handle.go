package replica

import "replicad/replica/core"

// Handle is one client's way to a volume.
//
// Submit and Drain belong to one goroutine, the client connection's reader.
// Completions come from any goroutine. Close is called once, when every
// submitted request has been completed.
type Handle struct {
	v     *Volume
	b     batch
	reads []IO // to be tried past the core at the next Drain
}

// Submit queues a request; Drain starts it. It waits, and then drains by itself,
// while the resource is full.
func (h *Handle) Submit(io IO) {
	p, result := planFor(&io)
	if p.pieces == 0 {
		io.Done.Complete(result)
		return
	}
	if io.Op == OpRead && h.v.gate.maybeOpen() {
		h.reads = append(h.reads, io)
		return
	}
	h.queue(&io, p)
}

// queue claims admission and hands the request to the next step of the core.
func (h *Handle) queue(io *IO, p plan) {
	room := &h.v.r.room
	if !room.try(p.pieces, p.bytes) {
		// What this goroutine has queued must not wait for its own completion.
		h.b.run()
		room.wait(p.pieces, p.bytes)
	}
	h.b.submit(h.v, io, p)
}

// Drain starts what was submitted: the peer gets all writes in one message
// batch first, then the local disk is read and written.
func (h *Handle) Drain() {
	if len(h.b.events) > 0 {
		h.b.stepAndSend()
	}
	if len(h.reads) > 0 {
		h.drainReads()
	}
	h.b.perform()
	h.b.run()
}

// drainReads serves the queued reads past the core where that is possible.
func (h *Handle) drainReads() {
	slow := h.reads[:0]
	for i := range h.reads {
		if !h.fastRead(&h.reads[i]) {
			slow = append(slow, h.reads[i])
		}
	}
	h.reads = h.reads[:0]
	if len(slow) == 0 {
		return
	}
	// Admission may wait, so what the last step asked for comes first.
	h.b.perform()
	for i := range slow {
		p, _ := planFor(&slow[i])
		h.queue(&slow[i], p)
		slow[i] = IO{}
	}
}

// fastRead tries to serve a read from the local page cache on this goroutine.
// See inflight for why the result is linearizable.
func (h *Handle) fastRead(io *IO) bool {
	v := h.v
	if !v.mayBypass(io.Off, io.Len) || !h.b.enterGate(v) {
		return false
	}
	k := v.back
	ok := k.buffered
	if ok {
		_, err := k.data.ReadAt(io.Data, int64(io.Off))
		ok = err == nil && !v.inflight.overlaps(io.Off, io.Len)
	}
	h.b.leaveGate(v)
	if !ok {
		return false
	}
	v.reads.Add(uint64(io.Len))
	done := io.Done
	*io = IO{}
	done.Complete(core.IOOK)
	return true
}

// mayBypass reports whether a read has a chance to bypass the core.
func (v *Volume) mayBypass(off uint64, n uint32) bool {
	return off+uint64(n) <= v.limit.Load() && !v.failed.Load() && !v.inflight.overlaps(off, n)
}

func (b *batch) enterGate(v *Volume) bool {
	ok, drained := v.gate.enter()
	b.gateDrained(v, drained)
	return ok
}

func (b *batch) leaveGate(v *Volume) { b.gateDrained(v, v.gate.leave()) }

func (b *batch) gateDrained(v *Volume, op core.Op) {
	if op != 0 {
		b.add(core.Event{Kind: core.EvGateClosed, Vol: v.number, Op: op})
	}
}

// fastReadPiece serves a piece of a read from a disk without page cache, on a
// worker, or brings it to the core. The worker entered the gate for it.
func (b *batch) fastReadPiece(op diskOp) {
	v := op.vol
	data := b.r.bufs.slot(op.buf).data
	if v.mayBypass(op.off, op.len) && b.enterGate(v) {
		_, err := v.back.data.ReadAt(data, int64(op.off))
		ok := err == nil && !v.inflight.overlaps(op.off, op.len)
		b.leaveGate(v)
		if ok {
			v.reads.Add(uint64(op.len))
			b.r.finishPiece(op.buf, core.IOOK)
			return
		}
	}
	b.add(core.Event{Kind: core.EvRead, Vol: v.number, Buf: op.buf, Off: op.off, Len: op.len})
}

// Close gives up the handle. A request that has not been completed is a bug of
// the caller.
func (h *Handle) Close() {
	// Counting down cannot be refused.
	_ = h.v.changeOpeners(-1)
}
