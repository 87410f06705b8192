package core

// A disk that hangs answers neither with data nor with an error. With
// disk-timeout set (DRBD 8.4, drbd.conf(5)), an action that it leaves
// unanswered for that long is given up, and the disk with it: it becomes
// Failed, everything that waits for it goes on as after an I/O error, and
// clients are served by the peer. The disk becomes Diskless, and can be
// attached again, only when the last action was answered after all: until
// then a late write could still reach it.
//
// What was given up may still happen. So every action works on memory of its
// own (Action.Timed), which the owner keeps until the answer, and no read
// bypasses the core.

// watchAction notes that an action of o begins.
func (n *Node) watchAction(o *op) {
	o.onDisk, o.begun = true, n.now
	if d := &o.v.disk; d.watch == 0 && o.v.cfg.DiskTimeout > 0 {
		d.watch = n.now + o.v.cfg.DiskTimeout
	}
}

// diskTick gives the disk up if its oldest action is overdue, also if it has
// failed otherwise meanwhile. To find that
// one takes a look at every operation, so it is done once per timeout and not
// with every action.
func (n *Node) diskTick(v *volume) {
	d, limit := &v.disk, v.cfg.DiskTimeout
	if d.watch == 0 || n.now < d.watch {
		return
	}
	late := n.now - d.watch
	d.watch = 0
	if limit == 0 || v.st.Disk == Diskless {
		return
	}
	for _, o := range n.ops.all {
		if o.v == v && o.onDisk && (d.watch == 0 || o.begun+limit < d.watch) {
			d.watch = o.begun + limit
		}
	}
	switch {
	case d.watch == 0 || n.now < d.watch:
	case late > limit/2:
		// A tick this late says that this process did not run. What hung was
		// not the disk, or it will be overdue once more.
		d.watch = n.now + limit
	default:
		n.log(v, LevelError, "local disk did not answer for %d ms (disk-timeout), giving it up", limit/1e6)
		n.diskFailed(v, "timeout")
		n.giveUpActions(v)
	}
}

// giveUpActions ends, as failed, every action on a failed disk that has memory
// of its own.
func (n *Node) giveUpActions(v *volume) {
	var hung []*op
	for _, o := range n.ops.all {
		if o.v == v && o.onDisk && o.timed {
			hung = append(hung, o)
		}
	}
	v.disk.watch, v.disk.hung = 0, true
	for _, o := range hung {
		o.orphaned = true
		n.actionEnded(o, &Event{Kind: EvDiskDone, Op: o.id, Result: IOError})
	}
}

// orphanDone takes the late answer of an action that was given up. The
// operation may still wait for the peer; if it does not, its number is free
// again.
func (n *Node) orphanDone(o *op, buf Buf) {
	n.release(buf)
	o.orphaned = false
	if o.kind == opOrphan {
		n.freeOp(o)
	}
}
