package core

import (
	"fmt"

	"replicad/bitmap"
	"replicad/internal/mutant"
)

// localDisk is what the core knows of a volume's backing disk and its
// metadata area. While Diskless all of it is zero but running.
type localDisk struct {
	bytes   uint64 // usable bytes
	user    uint64 // configured size limit, 0 = none
	bm      *bitmap.Bitmap
	al      *bitmap.ActivityLog
	running int  // disk and metadata actions not answered
	watch   Time // when to look for actions that hang (disktimeout.go); 0 = nothing to look for
	leaving bool // ActDetach is due or out
	hung    bool // given up by disk-timeout: an older superblock write may still land
	behind  bool // a write that the peer counts as done is missing here

	attaching *Attachment // until the attach command is answered
	ready     bool        // its metadata is up to date

	// A write that completed since the last flush began.
	unflushed    bool
	flushing     bool
	flushWaiters []func(IOResult)
	flushNext    []func(IOResult)

	alWait   []*op // writes that need cold extents, in order
	alBusy   bool  // a transaction, or the bitmap write before it, is under way
	alHeld   []bitmap.Extent
	alPaused bool // shown as flag s: every bit is set and stable, nobody can write or clear one

	super  superWriter
	bitmap bitmapWriter
}

// writable reports whether the local disk takes writes.
func (v *volume) writable() bool {
	d := v.st.Disk
	return v.disk.bm != nil && d >= Negotiating && d != DUnknown
}

// --- flush

// flushDisk makes the volume's completed writes durable and calls then. All
// who ask while one flush runs share the next (group commit); with nothing
// written since the last one the answer is immediate.
func (n *Node) flushDisk(v *volume, then func(IOResult)) {
	d := &v.disk
	switch {
	case d.flushing && mutant.On(mutant.FlushJoinsRunning):
		d.flushWaiters = append(d.flushWaiters, then)
	case d.flushing:
		d.flushNext = append(d.flushNext, then)
	case !d.unflushed, mutant.On(mutant.SkipDiskFlush):
		then(IOOK)
	default:
		d.flushWaiters = append(d.flushWaiters, then)
		n.startDiskFlush(v)
	}
}

func (n *Node) startDiskFlush(v *volume) {
	d := &v.disk
	d.flushing, d.unflushed = true, false
	o := n.metaAction(v, func(r IOResult) { n.diskFlushed(v, r) })
	n.act(Action{Kind: ActDiskFlush, Vol: int32(v.id), Op: o.id})
}

// diskFlushed answers the waiters. A failed flush is never retried: the
// kernel may have dropped the pages it could not write.
func (n *Node) diskFlushed(v *volume, r IOResult) {
	d := &v.disk
	d.flushing = false
	if r != IOOK {
		n.diskFailed(v, "flush")
	}
	waiters := d.flushWaiters
	d.flushWaiters, d.flushNext = d.flushNext, nil
	if len(d.flushWaiters) > 0 {
		if v.writable() {
			n.startDiskFlush(v)
		} else {
			waiters = append(waiters, d.flushWaiters...)
			d.flushWaiters = nil
			r = IOError
		}
	}
	for _, then := range waiters {
		then(r)
	}
}

// --- activity log

// usesAL reports whether a write needs its extents in the activity log.
func (v *volume) usesAL() bool {
	return v.disk.al != nil && v.writable() && v.cfg.ALUpdates && !mutant.On(mutant.NoActivityLog)
}

// pinRange takes a reference on every extent of the range, or on none.
func (v *volume) pinRange(first, last uint64) bool {
	al := v.disk.al
	from, to := bitmap.ExtentOf(first), bitmap.ExtentOf(last)
	for e := from; e <= to; e++ {
		if !al.Pin(e) {
			for u := from; u < e; u++ {
				al.Unpin(u)
			}
			return false
		}
	}
	return true
}

func (v *volume) unpinRange(first, last uint64) {
	if v.disk.al == nil {
		return
	}
	for e := bitmap.ExtentOf(first); e <= bitmap.ExtentOf(last); e++ {
		v.disk.al.Unpin(e)
	}
}

// kickAL starts a transaction for the writes that wait for cold extents, if
// none is under way. Up to 64 extents share one; a write takes all of its
// extents or none.
func (n *Node) kickAL(v *volume) {
	d := &v.disk
	if len(d.alWait) == 0 || d.alBusy {
		return
	}
	if !v.usesAL() {
		n.releaseALWait(v)
		return
	}
	want := n.chooseExtents(v)
	if len(want) == 0 {
		n.unholdExtents(v)
		if d.alWait[0].extentsHot() { // became hot meanwhile
			n.releaseALWait(v)
			return
		}
		if !v.sent[0].empty() || !v.sent[1].empty() {
			n.closeEpoch() // blocks sent but not confirmed keep their extents hot
		}
		return
	}
	tx, evicted, ok := d.al.Prepare(want)
	if !ok {
		panic("core: activity log refuses extents that were counted as available")
	}
	d.alBusy = true
	n.coolExtents(v, evicted, func(ok bool) { n.writeTransaction(v, tx, ok) })
}

// coolExtents makes everything durable that the log will no longer vouch for:
// the completed writes themselves, which a power cut could take from this
// disk though the peer has them, and the bitmap pages that cover them. A
// write that is in flight holds its extent, so what completed is all there is.
func (n *Node) coolExtents(v *volume, extents []bitmap.Extent, then func(ok bool)) {
	if len(extents) == 0 || mutant.On(mutant.CoolUnflushed) {
		n.writeBitmap(v, pagesOf(extents), then)
		return
	}
	n.flushDisk(v, func(r IOResult) {
		if r != IOOK {
			then(false)
			return
		}
		n.writeBitmap(v, pagesOf(extents), then)
	})
}

func (o *op) extentsHot() bool {
	for e := bitmap.ExtentOf(o.first); e <= bitmap.ExtentOf(o.last); e++ {
		if !o.v.disk.al.Hot(e) {
			return false
		}
	}
	return true
}

// chooseExtents lists the cold extents of as many waiting writes as fit, in
// order. Extents of theirs that are hot are held until the transaction ends,
// so that it does not evict them.
func (n *Node) chooseExtents(v *volume) []bitmap.Extent {
	d := &v.disk
	var want []bitmap.Extent
	chosen := make(map[bitmap.Extent]bool)
	for _, o := range d.alWait {
		var cold, hot []bitmap.Extent
		for e := bitmap.ExtentOf(o.first); e <= bitmap.ExtentOf(o.last); e++ {
			switch {
			case chosen[e]:
			case d.al.Pin(e):
				hot = append(hot, e)
			default:
				cold = append(cold, e)
			}
		}
		if need := len(want) + len(cold); need > bitmap.TransactionUpdatesMax || need > d.al.Available() {
			for _, e := range hot {
				d.al.Unpin(e)
			}
			break
		}
		d.alHeld = append(d.alHeld, hot...)
		for _, e := range cold {
			chosen[e] = true
		}
		want = append(want, cold...)
	}
	return want
}

func (n *Node) unholdExtents(v *volume) {
	for _, e := range v.disk.alHeld {
		v.disk.al.Unpin(e)
	}
	v.disk.alHeld = v.disk.alHeld[:0]
}

// pagesOf lists the bitmap pages that cover the extents.
func pagesOf(extents []bitmap.Extent) map[int]bool {
	pages := make(map[int]bool, len(extents))
	for _, e := range extents {
		first, _ := e.Blocks()
		pages[int(first/bitmap.PageBits)] = true
	}
	return pages
}

// writeTransaction makes the chosen extents hot on stable storage, once those
// they replace may cool.
func (n *Node) writeTransaction(v *volume, tx *bitmap.Transaction, ok bool) {
	if !ok {
		n.transactionDone(v, tx, IOError)
		return
	}
	v.ctr.AL++
	o := n.metaAction(v, func(r IOResult) { n.transactionDone(v, tx, r) })
	n.act(Action{Kind: ActMetaAL, Vol: int32(v.id), Op: o.id, Tx: tx})
}

func (n *Node) transactionDone(v *volume, tx *bitmap.Transaction, r IOResult) {
	d := &v.disk
	d.alBusy = false
	if d.al == nil {
		return
	}
	if r == IOOK {
		d.al.Commit(tx)
	} else {
		d.al.Abort(tx)
		n.diskFailed(v, "activity-log write")
	}
	n.unholdExtents(v)
	n.releaseALWait(v)
}

// releaseALWait lets the waiting writes try again; those whose extents are
// still cold come back in the same order.
func (n *Node) releaseALWait(v *volume) {
	waiting := v.disk.alWait
	v.disk.alWait = nil
	for _, o := range waiting {
		n.start(o)
	}
}

// --- superblock

// superWriter keeps at most one superblock write in flight; who asks
// meanwhile shares the next.
type superWriter struct {
	busy    bool
	flags   MetaFlags // as last handed out
	writing Super     // content of the write in flight
	current []func(ok bool)
	next    []func(ok bool)
}

// saveSuper writes the superblock as it is now and calls then once it is
// durable, with false if the disk failed or is not there.
func (n *Node) saveSuper(v *volume, then func(ok bool)) {
	w := &v.disk.super
	if v.disk.bm == nil || (v.st.Disk == Failed && (!v.disk.behind || v.disk.hung)) {
		then(false)
		return
	}
	if w.busy && (w.writing == v.superNow() || (mutant.On(mutant.SuperJoinedByID) && w.writing.Gen == v.gen)) {
		w.current = append(w.current, then) // what is on its way says it all
		return
	}
	w.next = append(w.next, then)
	if !w.busy {
		n.startSuper(v)
	}
}

// superNow is the superblock's content as the state is now.
func (v *volume) superNow() Super {
	return Super{Gen: v.gen, Flags: v.metaFlags(), Size: v.size, PeerMaxIO: 1 << 20}
}

func (n *Node) startSuper(v *volume) {
	w := &v.disk.super
	w.busy = true
	w.current, w.next = w.next, nil
	w.writing = v.superNow()
	w.flags = w.writing.Flags
	s := w.writing
	o := n.metaAction(v, func(r IOResult) { n.superDone(v, r) })
	n.act(Action{Kind: ActMetaSuper, Vol: int32(v.id), Op: o.id, Super: &s})
}

func (n *Node) superDone(v *volume, r IOResult) {
	w := &v.disk.super
	callers := w.current
	w.busy, w.current = false, nil
	if r != IOOK {
		n.diskFailed(v, "superblock write") // may try once more, to say that it is behind
	}
	if len(w.next) > 0 && !w.busy {
		if r == IOOK && (v.st.Disk != Failed || v.disk.behind) {
			n.startSuper(v)
		} else {
			callers = append(callers, w.next...)
			w.next, r = nil, IOError
		}
	}
	for _, then := range callers {
		then(r == IOOK)
	}
}

// --- bitmap pages

type bitmapWriter struct {
	busy  bool
	queue []bitmapJob
}

type bitmapJob struct {
	pages map[int]bool // nil = every page
	then  func(ok bool)
}

// writeBitmap makes the dirty ones among pages (nil: all) durable, as they are when the
// write starts, and calls then. Jobs run one after the other, so that a page
// is never written twice at once.
func (n *Node) writeBitmap(v *volume, pages map[int]bool, then func(ok bool)) {
	d := &v.disk
	if d.bm == nil || v.st.Disk == Failed {
		then(false)
		return
	}
	if mutant.On(mutant.BitmapAnsweredEarly) && !anyDirty(d.bm, pages) {
		then(true)
		return
	}
	d.bitmap.queue = append(d.bitmap.queue, bitmapJob{pages, then})
	if !d.bitmap.busy {
		n.nextBitmapJob(v)
	}
}

func (n *Node) nextBitmapJob(v *volume) {
	d := &v.disk
	for len(d.bitmap.queue) > 0 && !d.bitmap.busy {
		job := popJob(&d.bitmap.queue)
		if d.bm == nil || v.st.Disk == Failed {
			job.then(false)
			continue
		}
		images := dirtyImages(d.bm, job.pages)
		if len(images) == 0 || mutant.On(mutant.SkipBitmapWrite) {
			job.then(true)
			continue
		}
		d.bitmap.busy = true
		v.ctr.BM += uint64(len(images))
		o := n.metaAction(v, func(r IOResult) {
			if mutant.On(mutant.PageCleanTooLate) {
				for _, image := range images {
					d.bm.MarkClean(image.Page)
				}
			}
			n.bitmapDone(v, job, r)
		})
		n.act(Action{Kind: ActMetaBitmap, Vol: int32(v.id), Op: o.id, Pages: images})
	}
}

func popJob(q *[]bitmapJob) bitmapJob {
	job := (*q)[0]
	*q = (*q)[1:]
	return job
}

// anyDirty reports whether one of the pages (nil: all) is dirty; a planted bug asks it.
func anyDirty(bm *bitmap.Bitmap, pages map[int]bool) bool {
	for p, ok := bm.NextDirtyPage(0); ok; p, ok = bm.NextDirtyPage(p + 1) {
		if pages == nil || pages[p] {
			return true
		}
	}
	return false
}

func dirtyImages(bm *bitmap.Bitmap, pages map[int]bool) []PageImage {
	var images []PageImage
	for p, ok := bm.NextDirtyPage(0); ok; p, ok = bm.NextDirtyPage(p + 1) {
		if pages != nil && !pages[p] {
			continue
		}
		data := make([]byte, bitmap.PageSize)
		bm.CopyPage(p, data)
		if !mutant.On(mutant.PageCleanTooLate) {
			bm.MarkClean(p)
		}
		images = append(images, PageImage{Page: p, Data: data})
	}
	return images
}

func (n *Node) bitmapDone(v *volume, job bitmapJob, r IOResult) {
	v.disk.bitmap.busy = false
	if r != IOOK {
		n.diskFailed(v, "bitmap write")
	}
	job.then(r == IOOK)
	n.nextBitmapJob(v)
}

// --- failure and detach

// diskFailed reacts to an error of the backing disk: it is detached, and its
// work goes on at the peer (DRBD 8.4 on-io-error detach).
func (n *Node) diskFailed(v *volume, what string) {
	if v.st.Disk <= Failed {
		return
	}
	n.log(v, LevelError, "local disk failed (%s), detaching", what)
	if n.connected() && v.st.Peer == Primary && v.st.PDisk == UpToDate {
		n.fallBehind(v)
	}
	n.dropDisk(v)
}

// fallBehind puts on record, if the disk still takes it, that the Primary's
// writes went on without this disk, and that what it has is not even all of
// what came before some point: that it is Outdated. Should it come back while
// the Primary is out of reach, nothing else says so. (DRBD 8.4 calls it
// UpToDate then.)
func (n *Node) fallBehind(v *volume) {
	if v.disk.bm != nil && !v.disk.behind {
		v.disk.behind = true
		n.saveSuper(v, func(bool) {})
	}
}

// dropDisk makes the disk Failed; it becomes Diskless once nothing runs on it any more.
func (n *Node) dropDisk(v *volume) {
	n.change(v, func(s *State) { s.Disk = Failed })
	n.sendState(v)
	v.disk.leaving = true
	n.abortSync(v)
}

// finishDetach closes a failed disk whose last action was answered.
func (n *Node) finishDetach(v *volume) {
	d := &v.disk
	if !d.leaving || v.st.Disk > Failed || d.running > 0 || d.bm == nil {
		return
	}
	for len(d.bitmap.queue) > 0 {
		popJob(&d.bitmap.queue).then(false)
	}
	for i := range v.sent {
		v.sent[i].release(v)
	}
	d.al, d.bm = nil, nil
	for o := v.index.head; o != nil; o = o.next {
		o.pinned = false
	}
	n.act(Action{Kind: ActDetach, Vol: int32(v.id)})
}

func (n *Node) detached(v *volume) {
	if v.st.Disk > Failed {
		panic(fmt.Sprintf("core: volume %d detached while %v", v.id, v.st.Disk))
	}
	v.disk = localDisk{}
	n.incoming.failed = n.incoming.failed || v.peerWrote
	v.peerWrote = false
	n.change(v, func(s *State) { s.Disk = Diskless })
	n.sendState(v)
}
