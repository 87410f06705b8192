package sim

import (
	"errors"
	"slices"

	"replicad/replica/core"
	"replicad/replica/sim/oracle"
	"replicad/wire"
)

// --- disk actions

// startDisk submits a disk action. Its effect and its answer come later, in
// any order with others.
func (n *node) startDisk(a *core.Action) {
	v := n.vols[a.Vol]
	o := &action{id: a.Op, kind: a.Kind, vol: v.id, buf: a.Buf, first: uint32(a.Off / sectorSize), count: a.Len / sectorSize, fua: a.FUA}
	if b := n.bufs.get(a.Buf); b != nil {
		o.client = b.request != nil
	}
	if !n.enlist(o) || !n.inside(o, a, v) || !n.holdBuffer(o, v, a.Timed) {
		return
	}
	if a.Timed { // it works on memory of its own: the buffer is free to go
		o.buf = 0
	}
	switch a.Kind {
	case core.ActDiskTrim, core.ActDiskZero:
		o.data = make([]content, o.count)
		n.begins(v.id, o.first, o.count)
	case core.ActDiskFlush:
		o.mark = v.disk.clock
	}
	if o.data != nil {
		n.beginWrite(o, v)
	}
	o.short = v.disk.short
	o.result = v.disk.strike(transferOf(a.Kind), o.first, o.count)
	n.schedule(o, &v.disk.ills)
}

func transferOf(k core.ActionKind) transfer {
	switch k {
	case core.ActDiskRead:
		return reading
	case core.ActDiskFlush:
		return flushing
	}
	return writing
}

// enlist files an action that will be answered.
func (n *node) enlist(o *action) bool {
	if n.ops[o.id] != nil || o.id == 0 {
		n.w.fail("contract", "node %s starts operation %d, which is in flight", n.name(), o.id)
		return false
	}
	o.begun = n.w.now
	n.ops[o.id] = o
	n.live = append(n.live, o)
	return true
}

func (n *node) inside(o *action, a *core.Action, v *volume) bool {
	end := a.Off + uint64(a.Len)
	ok := v.attached && a.Off%sectorSize == 0 && a.Len%sectorSize == 0 && end <= v.size
	if a.Kind != core.ActDiskFlush {
		ok = ok && a.Len > 0
	}
	if !ok {
		n.w.fail("contract", "node %s volume %d (attached %v, %d bytes): disk action %d at %d+%d", n.name(), v.id, v.attached, v.size, a.Kind, a.Off, a.Len)
	}
	return ok
}

// holdBuffer finds the data of a write and marks its buffer in use.
func (n *node) holdBuffer(o *action, v *volume, timed bool) bool {
	needs := o.kind == core.ActDiskWrite || o.kind == core.ActDiskRead && o.buf != 0
	if !needs {
		return true
	}
	b := n.bufs.get(o.buf)
	if b == nil || len(b.data) != int(o.count) || b.vol != v.id || b.first != o.first {
		n.w.fail("buffers", "node %s operation %d names buffer %d, which does not hold sector %d+%d of volume %d", n.name(), o.id, o.buf, o.first, o.count, v.id)
		return false
	}
	if !timed {
		b.writers++
	}
	if o.kind == core.ActDiskWrite {
		o.data = b.data // which never changes
		o.resync = b.kind == uint8(wire.KindResyncReply)
	}
	return true
}

// beginWrite submits a write to the disk and checks what must hold by now.
func (n *node) beginWrite(o *action, v *volume) {
	if !o.client && !o.resync {
		m, before := n.epochs.begin(v.id, o.first, o.count)
		if m != nil {
			m.write = o.data[0].Write()
			n.mustBeStable(before, "submits a write that came after")
		}
		o.mirror = m
	}
	if !o.resync {
		n.w.oracle.Submitted(n.w.stamp(), n.id, v.id, o.first, o.data)
	}
	if o.resync {
		n.w.oracle.ResyncWrites(v.id, n.id)
	}
	if o.resync && !v.meta.marks.Never(oracle.FlagConsistent) {
		n.w.fail("P14", "node %s volume %d writes a resync block while its metadata calls the disk consistent", n.name(), v.id)
	}
	v.disk.submit(o.first, o.data)
	n.w.touched(v.id, o.first, o.count)
}

func (n *node) latency() core.Duration {
	d := n.w.between(10*microsecond, n.w.opt.DiskDelay)
	if n.w.chance(n.w.opt.Spike) {
		d *= 50
	}
	return d
}

// diskEffect is the moment at which an action touches the disk.
func (n *node) diskEffect(id core.Op) {
	o := n.ops[id]
	v := n.vols[o.vol]
	o.effect = true
	switch {
	case o.data != nil:
		n.writeEffect(o, v)
	case o.kind == core.ActDiskRead && !o.fails():
		n.readEffect(o, v)
	case o.kind == core.ActDiskFlush && o.fails():
		v.disk.flushFailed()
	case o.kind == core.ActDiskFlush:
		v.disk.flushed(o.mark)
	}
	n.after(n.w.between(microsecond, 20*microsecond), atDiskDone, uint64(id))
}

// writeEffect lets the sectors reach the cache; of a failed write, some; of a
// short one, the first.
func (n *node) writeEffect(o *action, v *volume) {
	end := 0
	if o.short {
		end = n.w.rng.IntN(len(o.data))
	}
	for i, c := range o.data {
		s := o.first + uint32(i)
		if o.fails() && (o.short && i >= end || !o.short && n.w.coin()) {
			v.disk.sector(s).forget(c)
			continue
		}
		v.disk.write(s, c)
		if o.fua && !o.fails() {
			v.disk.harden(s, v.disk.clock)
		}
	}
	if o.mirror != nil {
		o.mirror.done, o.mirror.failed, o.mirror.mark = true, o.fails(), v.disk.clock
	}
	n.w.touched(v.id, o.first, o.count)
}

func (n *node) readEffect(o *action, v *volume) {
	data := v.disk.cache[o.first : o.first+o.count]
	if o.buf != 0 {
		copy(n.bufs.get(o.buf).data, data)
		return
	}
	m := wire.Msg{Kind: wire.KindResyncReply, Vol: uint16(v.id), Off: uint64(o.first) * sectorSize, Len: o.count * sectorSize}
	o.payload = n.takePayload(&m, slices.Clone(data))
}

func (n *node) diskDone(id core.Op) {
	o := n.retire(id)
	e := core.Event{Kind: core.EvDiskDone, Op: id, Buf: o.payload, Result: o.result}
	if o.fails() {
		n.w.reached.hit(markDiskError)
	}
	if b := n.bufs.get(o.buf); b != nil && b.writers > 0 {
		b.writers--
	}
	if v := n.vols[o.vol]; v.st.Disk == core.Failed && n.w.opt.DiskTimeout > 0 && n.w.now-o.begun > n.w.opt.DiskTimeout {
		n.w.reached.hit(markLateAnswer)
	}
	n.event(e)
	n.maybeDetached(n.vols[o.vol])
}

// retire takes an answered action off the books.
func (n *node) retire(id core.Op) *action {
	o := n.ops[id]
	delete(n.ops, id)
	n.live = slices.DeleteFunc(n.live, func(p *action) bool { return p == o })
	return o
}

// --- metadata actions

func (n *node) startMeta(a *core.Action) {
	v := n.vols[a.Vol]
	o := &action{id: a.Op, kind: a.Kind, vol: v.id}
	if !n.enlist(o) {
		return
	}
	m := v.meta
	if !v.attached || m.store == nil {
		n.w.fail("contract", "node %s volume %d: metadata action %d without a disk", n.name(), v.id, a.Kind)
		return
	}
	if n.inFlight(a.Kind, v.id) > 1 && a.Kind != core.ActMetaBitmap {
		n.w.fail("contract", "node %s volume %d: two metadata actions of kind %d at once", n.name(), v.id, a.Kind)
	}
	if a.Kind == core.ActMetaAL {
		n.checkTransaction(v, a)
	}
	m.dev.begin()
	err := m.write(a)
	o.meta = m.dev.end()
	switch {
	case err == nil:
	case errors.Is(err, errMetaFull):
		o.result = core.IONoSpace
	case m.dev.struck:
		o.result = core.IOError
	default:
		n.w.fail("contract", "node %s volume %d: metadata action %d: %v", n.name(), v.id, a.Kind, err)
	}
	n.w.metaMoved(v, o)
	n.schedule(o, &m.dev.ills)
}

// settleDelay is from the moment at which a metadata write is in the device's
// cache to the one at which it is stable and answered.
const settleDelay = 5 * microsecond

func (n *node) inFlight(kind core.ActionKind, vol int) (count int) {
	for _, o := range n.live {
		if o.kind == kind && o.vol == vol {
			count++
		}
	}
	return count
}

func (n *node) checkTransaction(v *volume, a *core.Action) {
	if a.Tx.Number != v.meta.number {
		n.w.fail("contract", "node %s volume %d: activity-log transaction %d, expected %d", n.name(), v.id, a.Tx.Number, v.meta.number)
	}
	for _, u := range a.Tx.Updates {
		if int(u.Slot) >= len(v.meta.used) {
			n.w.fail("contract", "node %s volume %d: activity-log slot %d", n.name(), v.id, u.Slot)
			return
		}
		if v.meta.used[u.Slot] && n.bufs.requests() > 1 {
			n.w.reached.hit(markEviction)
		}
		v.meta.used[u.Slot] = true
	}
}

// metaDone goes on with a metadata action: first what it wrote reaches the
// device's cache, then it is stable and answered.
func (n *node) metaDone(id core.Op) {
	o := n.ops[id]
	v := n.vols[o.vol]
	dev := v.meta.dev
	if !o.effect {
		o.effect = true
		for i := range o.meta {
			dev.effect(&o.meta[i])
		}
		o.mark = dev.clock
		n.w.metaMoved(v, o)
		n.after(settleDelay, atMetaDone, uint64(id))
		return
	}
	n.retire(id)
	e := core.Event{Kind: core.EvMetaDone, Op: id, Result: o.result}
	if o.kind == core.ActMetaAL && !o.fails() {
		v.meta.number++
	}
	for i := range o.meta {
		dev.settle(&o.meta[i], o.mark)
	}
	n.w.metaMoved(v, o)
	n.event(e)
	n.maybeDetached(v)
}

// metaMoved tells the oracle that sectors an action writes have changed, or
// that a crash may leave something else in them.
func (w *World) metaMoved(v *volume, o *action) {
	for i := range o.meta {
		if op := &o.meta[i]; op.sync {
			v.meta.marks.RefreshAll(v.meta.dev)
		} else {
			v.meta.marks.Refresh(v.meta.dev, op.first, uint32(len(op.data)))
		}
	}
	w.diverged()
}

// metaChanged is metaMoved for what is not an action of the core.
func (w *World) metaChanged(v *volume, first, count uint32) {
	v.meta.marks.Refresh(v.meta.dev, first, count)
	w.diverged()
}

// --- gate and detach

// closeGate stops reads that bypass the core; it answers when none is left.
func (n *node) closeGate(a *core.Action) {
	v := n.vols[a.Vol]
	v.gate = false
	if v.gateOp != 0 {
		n.w.fail("contract", "node %s volume %d: gate closed twice", n.name(), v.id)
	}
	v.gateOp = a.Op
	n.drainGate(v)
}

func (n *node) drainGate(v *volume) {
	if v.gateOp != 0 && v.readers == 0 {
		n.after(n.w.between(microsecond, 20*microsecond), atGate, uint64(v.gateOp))
		v.gateOp = 0
	}
}

func (n *node) gateClosed(op core.Op) {
	n.event(core.Event{Kind: core.EvGateClosed, Op: op})
}

// maybeDetached answers ActDetach once nothing runs on the disk.
func (n *node) maybeDetached(v *volume) {
	running := slices.ContainsFunc(n.live, func(o *action) bool { return o.vol == v.id })
	if v.leaving && !running && v.readers == 0 {
		v.leaving = false
		n.after(n.w.between(microsecond, millisecond), atDetached, uint64(v.id))
	}
}

func (n *node) detached(vol int) {
	v := n.vols[vol]
	v.attached, v.meta.store = false, nil
	n.event(core.Event{Kind: core.EvDetached, Vol: uint16(vol)})
}
