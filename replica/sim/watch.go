package sim

import (
	"slices"

	"replicad/bitmap"
	"replicad/replica/core"
	"replicad/replica/sim/oracle"
)

// bitmapOf returns the bitmap a core works with, nil when it has no disk or
// offers no view of it.
func (w *World) bitmapOf(n *node, vol int) *bitmap.Bitmap {
	if v, ok := any(n.core).(interface {
		OutOfSync(vol uint16) *bitmap.Bitmap
	}); ok {
		return v.OutOfSync(uint16(vol))
	}
	return nil
}

func (w *World) stamp() int64 { return int64(w.now) }

// targeting reports the states in which a node is, or is about to be, overwritten.
func targeting(c core.Conn) bool {
	return c == core.WFBitMapT || c == core.WFSyncUUID || c == core.SyncTarget || c == core.PausedSyncT || c == core.StartingSyncT
}

func sourcing(c core.Conn) bool { return c == core.SyncSource || c == core.PausedSyncS }

// stateChanged tells the oracle what a state change means for the data, and
// checks the rules about roles.
func (w *World) stateChanged(n *node, v *volume, old, now core.State) {
	w.markState(n, v, old, now)
	if now.Disk <= core.Failed && now.Conn < core.Connected && (old.Disk > core.Failed || old.Conn >= core.Connected) {
		v.strandedAt = w.now
	}
	if now.Disk == core.UpToDate && old.Disk < core.UpToDate && old.Disk >= core.Inconsistent && !targeting(old.Conn) && w.forcing(n) {
		v.forced = true
	}
	if old.Role != now.Role {
		w.roleChanged(n, v, now)
	}
	if n.up && now.Role == core.Primary {
		w.onePrimary(n, v)
	}
	if targeting(now.Conn) && !targeting(old.Conn) {
		v.syncLife = n.peer().life
		w.oracle.ResyncStarts(v.id, 1-n.id, n.id)
	}
	if p := n.peer().vols[v.id]; now.Role == core.Primary && old.Disk == core.UpToDate && now.Disk < core.UpToDate && p.tainted {
		w.oracle.Reverted(w.stamp(), n.id, v.id, p.disk.cache)
	}
	if now.Disk == core.Inconsistent && old.Disk > core.Inconsistent {
		w.oracle.Given(v.id, n.id, true)
	}
	if now.Conn == core.Connected && old.Conn == core.WFReportParams {
		w.oracle.Allow(n.id, v.id, false)
		n.discards = false
	}
	if now.Conn == core.Connected {
		w.resyncEnded(n, v, old, now)
	}
	if now.Disk == core.UpToDate && v.virgin && !w.forcing(n) {
		w.fail("P20", "node %s volume %d lost its metadata and calls itself UpToDate", n.name(), v.id)
	}
}

// resyncEnded notes the end of a resync, which is the target's: it is UpToDate
// before its source hears of it. By then the target may have written alone, or
// lost its power.
func (w *World) resyncEnded(n *node, v *volume, old, now core.State) {
	if old.Conn != core.SyncTarget || now.Disk != core.UpToDate {
		return
	}
	p := n.peer()
	v.virgin, v.tainted = false, p.vols[v.id].tainted
	w.oracle.ResyncEnds(w.stamp(), v.id, 1-n.id, n.id, v.disk.cache)
	if !p.up || p.life != v.syncLife || p.vols[v.id].st.Conn < core.Connected {
		w.oracle.SettleFor(w.stamp(), n.id, v.id, v.disk.cache)
	}
}

// onePrimary checks P15: never two Primaries in a connected pair.
func (w *World) onePrimary(n *node, v *volume) {
	p := n.peer()
	s, t := &v.st, &p.vols[v.id].st
	if p.up && t.Role == core.Primary && s.Conn >= core.Connected && t.Conn >= core.Connected && w.net.whole() {
		w.fail("P15", "volume %d: both nodes are Primary and connected: %v and %v", v.id, *s, *t)
	}
}

func (w *World) forcing(n *node) bool {
	for _, c := range n.commands {
		if c.Kind == core.CmdPrimary && c.Force {
			return true
		}
	}
	return false
}

func (w *World) roleChanged(n *node, v *volume, now core.State) {
	if now.Role == core.Primary {
		w.promoted(n, v, now)
		return
	}
	if n.up {
		for i := range n.bufs.all {
			if b := &n.bufs.all[i]; b.used && b.request != nil && b.vol == v.id && b.request.writes() {
				w.fail("requests", "node %s is Secondary with an unanswered write %d", n.name(), i+1)
				return
			}
		}
	}
	w.oracle.Demoted(n.id, v.id)
}

// promoted checks P14 and what the new Primary's clients will see.
func (w *World) promoted(n *node, v *volume, now core.State) {
	forced := v.forced
	v.forced = false
	source := n
	switch {
	case now.Disk == core.UpToDate:
	case now.Conn >= core.Connected && now.PDisk == core.UpToDate:
		source = n.peer()
		if d := source.vols[v.id].st.Disk; source.up && d > core.Failed && d < core.Consistent {
			w.fail("P14", "node %s volume %d becomes Primary on its peer's disk, which is %v", n.name(), v.id, d)
			return
		}
	case !forced:
		w.fail("P14", "node %s volume %d is Primary without access to good data: %v", n.name(), v.id, now)
		return
	}
	if forced {
		v.virgin = false
		w.oracle.Forced(n.id, v.id)
	}
	for _, o := range n.live {
		if o.mirror != nil && o.vol == v.id && now.Disk > core.Failed {
			w.fail("P4", "node %s volume %d is Primary while a write of the old Primary is on its way to the disk", n.name(), v.id)
			return
		}
	}
	image := source.vols[v.id].disk.cache
	tainted := source.vols[v.id].tainted
	if !tainted && !forced {
		w.oracle.Closure(source.id, v.id, image)
	}
	w.oracle.Promoted(w.stamp(), n.id, v.id, source.id, image, !forced)
	v.tainted = false
	if p := n.peer(); !p.up {
		w.reached.hit(markFailover)
	}
}

// --- answers

// good says which disks the Primary counts on for a write it answers now.
func (v *volume) good() (own, peer, peerWhole bool) {
	s := &v.st
	own = s.Disk == core.UpToDate
	peerWhole = s.Conn >= core.Connected && s.PDisk == core.UpToDate
	syncing := sourcing(s.Conn) || s.Conn == core.SyncTarget || s.Conn == core.PausedSyncT
	return own, peerWhole || syncing && s.PDisk >= core.Inconsistent, peerWhole
}

// answered judges the answer to a client's request.
func (w *World) answered(n *node, r *request, result core.IOResult, data []content) {
	v := n.vols[r.vol]
	if result == core.IOOK && v.st.Disk == core.Failed && v.hangs() {
		w.reached.hit(markServedDespiteHang)
	}
	switch {
	case result != core.IOOK:
		w.refused(n, v, r, result)
	case r.kind == core.EvRead:
		w.oracle.Read(w.stamp(), int64(r.issued), n.id, r.vol, r.first, data)
	case r.kind == core.EvFlush:
		w.flushed(n, v, int64(r.issued), 0)
	default:
		w.wrote(n, v, r)
	}
}

func (w *World) wrote(n *node, v *volume, r *request) {
	own, peer, whole := v.good()
	if !own && !peer {
		w.fail("P2", "node %s answers write %d, and counts no good disk: %v", n.name(), r.write, v.st)
		return
	}
	var holds [2]bool
	holds[n.id], holds[1-n.id] = own, peer
	if own != peer {
		w.tracef("write %d at sector %d+%d of volume %d is good on one disk only: %v", r.write, r.first, r.count, r.vol, holds)
	}
	shared := own && !peer && w.sharesGeneration(n, v) || peer && !own && w.sharesGeneration(n.peer(), v)
	tail := r.sent && w.opt.Protocol != 'C'
	w.oracle.Completed(w.stamp(), r.write, holds, shared && tail)
	if shared && own && !tail {
		w.aloneInGeneration(n, r)
	}
	if own {
		w.oracle.Holds(w.stamp(), n.id, r.vol, r.first, r.count, v.disk.cache, "P2", "write answered")
	}
	p := n.peer()
	if whole && w.opt.Protocol == 'C' && p.up && p.life == r.peerLife {
		w.oracle.Holds(w.stamp(), p.id, r.vol, r.first, r.count, p.vols[r.vol].disk.cache, "P2", "write answered")
	}
	if r.fua {
		w.flushed(n, v, int64(r.issued), r.write)
	}
}

// aloneInGeneration: a write that completed on this disk alone must be of a
// generation that the other, as its metadata would say after a crash, does not
// have: otherwise the other could be promoted and would later discard the
// write without noticing a split brain (P16). Under A and B a write that was
// sent before the loss may end so: that is their promise.
func (w *World) aloneInGeneration(n *node, r *request) {
	theirs := n.peer().vols[r.vol].disk.cache
	has := true // the peer may have acked it before it was lost
	for s := range r.count {
		has = has && theirs[r.first+s] == w.oracle.Written(r.write, s)
	}
	if !has {
		w.fail("P16", "node %s answers write %d alone, in a generation that its peer has too", n.name(), r.write)
	}
}

// sharesGeneration reports that after a crash the peer may call data of a
// generation good that is n's too.
func (w *World) sharesGeneration(n *node, v *volume) bool {
	const good = oracle.FlagConsistent | oracle.FlagWasUpToDate
	for _, own := range n.vols[v.id].meta.marks.Supers() {
		for _, other := range n.peer().vols[v.id].meta.marks.Supers() {
			if other.Has(good) && other.Current&^1 == own.Current&^1 && own.Current&^1 != core.UUIDJustCreated {
				return true
			}
		}
	}
	return false
}

// flushed checks P1 for a flush, or for the one FUA write only.
func (w *World) flushed(n *node, v *volume, issued int64, only uint32) {
	own, _, whole := v.good()
	p := n.peer()
	if own {
		w.oracle.Durable(n.id, n.id, v.id, v.disk, issued, only)
	}
	if whole && w.opt.Protocol == 'C' && p.up {
		w.oracle.Durable(n.id, p.id, v.id, p.vols[v.id].disk, issued, only)
		w.reached.hit(markFlushBoth)
	}
}

// refused judges an error: a Primary with a healthy disk has no reason for one.
func (w *World) refused(n *node, v *volume, r *request, result core.IOResult) {
	if r.writes() {
		w.oracle.Failed(w.stamp(), r.write)
	}
	if v.st.Role == core.Primary && v.st.Disk == core.UpToDate && w.opt.Weights[faultDiskError] == 0 && !w.script {
		w.fail("P7", "node %s volume %d refuses a request (%d) although its disk is good: %v", n.name(), v.id, result, v.st)
	}
	w.reached.hit(markRefused)
}

// acknowledged: node said that these mirrored writes are stable.
func (w *World) acknowledged(n *node, writes []*mirrored) {
	for _, m := range writes {
		if m.write != 0 && !m.failed && m.done {
			w.oracle.Acknowledged(w.stamp(), n.id, m.write)
		}
	}
}

// whole says which of a node's disks must hold every completed write when its
// process is killed: an UpToDate one, of the Primary or under protocol C.
func (n *node) whole(power bool) []bool {
	whole := make([]bool, len(n.vols))
	for i, v := range n.vols {
		whole[i] = !power && v.st.Disk == core.UpToDate && (v.st.Role == core.Primary || n.w.opt.Protocol == 'C')
	}
	return whole
}

// ordered notes that a command may discard data.
func (w *World) ordered(n *node, c *core.Command, yes bool) {
	for _, v := range n.vols {
		if c.Vol != -1 && int(c.Vol) != v.id {
			continue
		}
		switch {
		case c.Kind == core.CmdInvalidate, c.Kind == core.CmdConnect && c.Discard:
			n.discards = n.discards || c.Kind == core.CmdConnect
			w.oracle.Allow(n.id, v.id, yes || n.discards)
		case c.Kind == core.CmdInvalidateRemote:
			w.oracle.Allow(1-n.id, v.id, yes || n.peer().discards)
		}
	}
}

// commandAnswered goes on with what an operator does after a command.
func (w *World) commandAnswered(n *node, c *core.Command, a *core.Action) {
	if refusedBy(a.Err) && (c.Kind != core.CmdConnect || !c.Discard) {
		w.ordered(n, c, false)
	}
	if c.Kind == core.CmdConnect && c.Discard && a.Err == core.Success {
		w.ordered(n, c, true) // it waited behind others, and the nodes may have met meanwhile
	}
	if c.Kind == core.CmdSecondary {
		n.stopping = slices.ContainsFunc(n.commandList(), func(c core.Command) bool { return c.Kind == core.CmdSecondary })
	}
	if c.Kind == core.CmdPrimary && refusedBy(a.Err) {
		w.reached.hit(markPromotionRefused)
	}
	n.lastErr, n.lastText = a.Err, a.Text
}

func (n *node) commandList() []core.Command {
	var list []core.Command
	for _, c := range n.commands {
		list = append(list, c)
	}
	return list
}
