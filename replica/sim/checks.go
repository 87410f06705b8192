package sim

import (
	"slices"

	"replicad/replica/core"
)

// watchPause is the virtual time between two looks at what waits and counts.
const watchPause = 20 * millisecond

// commandTime is the longest a command may take while nothing is wrong: a
// promotion waits 30 s for a handshake, and commands run one after the other.
const commandTime = 100 * second

// concluded: node n's handshake has decided for a volume. When both ends of a
// session have, and both said what still held then, one verdict is the mirror
// image of the other (P17).
func (w *World) concluded(n *node, vol int, before core.State, verdict core.Conn) {
	for _, l := range w.net.links {
		if l.ends[n.id].state != endAlive || n.vols[vol].st.Disk <= core.Failed {
			continue // a disk may go between what it said and what it heard
		}
		if said := l.said[n.id][vol]; said.Disk != before.Disk || said.Role != before.Role {
			continue // a disk went while the two were talking
		}
		l.verdicts[n.id][vol] = verdict
		other := l.verdicts[1-n.id][vol]
		if other == 0 {
			continue
		}
		w.count.Checks++
		if other != mirrorOf(verdict) {
			w.fail("P17", "volume %d: node %s concludes %v, its peer %v", vol, n.name(), verdict, other)
			return
		}
		w.reached.hit(markMirrored)
	}
}

// mirrorOf is what the peer must conclude.
func mirrorOf(c core.Conn) core.Conn {
	switch c {
	case core.WFBitMapS:
		return core.WFBitMapT
	case core.WFBitMapT:
		return core.WFBitMapS
	}
	return c
}

// sessionBegins remembers what end i had sent and received before, and what it
// is going to say about itself.
func (net *network) sessionBegins(w *World, l *link, i int) {
	l.resets[i] = w.nodes[i].resets
	for vol, s := range w.nodes[i].core.Status().Volumes {
		l.sentAt[i][vol], l.gotAt[i][vol] = s.Counters.Sent, s.Counters.Received
		l.said[i][vol] = s.State
	}
}

// watch looks at everything that must not last, and at what only grows.
func (w *World) watch() {
	if w.script {
		return
	}
	w.noteDisturbance()
	for _, n := range w.nodes {
		if !n.up || n.frozenUntil > w.now || w.opt.DiskTimeout == 0 && n.diskHangs() {
			n.pausedAt = w.now
			continue
		}
		w.watchDisks(n)
		w.watchRequests(n)
		w.watchCommands(n)
	}
	w.clock.add(timer{at: w.now + watchPause, what: atWatch, node: nobody})
}

// diskHangs reports that a disk of the node answers nothing. Without
// disk-timeout that excuses every wait.
func (n *node) diskHangs() bool {
	return slices.ContainsFunc(n.vols, (*volume).hangs)
}

func (v *volume) hangs() bool { return v.disk.hung || v.meta.dev.hung }

// patience is how long a request may wait for the peer (P26): until ko-count
// ends the session, once for what it waits behind and once for itself, with
// room for a handshake between them and for the disk. 0 = for ever.
func (w *World) patience(n *node) core.Duration {
	o := &w.opt.Net
	if o.KoCount == 0 {
		return 0
	}
	limit := o.Timeout*core.Duration(o.KoCount) + o.PingInt + o.PingTimeout
	return 2*limit + 2*o.Timeout + 3*n.clock.late + 200*w.opt.DiskDelay + second
}

// requestPatience is until when requests may wait for the peer and for disks
// that hang, and how long from there; 0 = for ever. Where nothing but the disks
// is in trouble their timeouts bound it, also without a ko-count.
func (w *World) requestPatience(n *node, v *volume) (since core.Time, limit core.Duration) {
	o := &w.opt.Net
	since, limit = max(n.pausedAt, n.jumpedAt), w.patience(n)
	hang := w.diskPatience(n) + w.diskPatience(n.peer())
	switch {
	case w.opt.DiskTimeout > 0 && v.st.Disk <= core.Failed && v.st.Conn < core.Connected: // nothing to wait for but what hangs
		return max(since, v.strandedAt), hang + second + 200*w.opt.DiskDelay + 3*n.clock.late
	case w.opt.DiskTimeout > 0 && limit == 0:
		session := 2 * (o.PingInt + o.PingTimeout + o.Timeout)
		return max(since, w.disturbedAt, n.peer().jumpedAt), hang + session + 3*(n.clock.late+n.peer().clock.late) + 400*w.opt.DiskDelay + 2*second
	case v.st.Disk != core.UpToDate && !n.diskHangs():
		return 0, 0
	case n.diskHangs(): // of another volume, too: all wait for a new generation
		limit += hang + second
	}
	return since, limit
}

// noteDisturbance notes when something other than a disk was last in trouble.
func (w *World) noteDisturbance() {
	for _, n := range w.nodes {
		if !n.up || n.frozenUntil > w.now {
			w.disturbedAt = w.now
		}
	}
	if w.net.disturbed() || w.net.rate > 0 {
		w.disturbedAt = w.now
	}
}

// watchRequests checks P26: with a ko-count, a hung peer or network holds no
// request of a Primary whose own disk is good for longer than its patience.
func (w *World) watchRequests(n *node) {
	for i := range n.bufs.all {
		b := &n.bufs.all[i]
		if !b.used || b.request == nil {
			continue
		}
		since, limit := w.requestPatience(n, n.vols[b.vol])
		if limit == 0 {
			continue
		}
		w.count.Checks++
		if w.now-max(b.request.issued, since) > limit {
			w.fail("P26", "node %s request %d (kind %d, sector %d+%d) waits since %s: %s",
				n.name(), i+1, b.request.kind, b.first, len(b.data), stamp(b.request.issued), w.summary())
			return
		}
	}
}

// diskPatience is how long an action may stay unanswered before the disk is given
// up. If the process did not run just then, it waits once more; and a slow clock
// that stood still meanwhile lags by its drift on top.
func (w *World) diskPatience(n *node) core.Duration {
	return w.opt.DiskTimeout + w.opt.DiskTimeout/10 + second/4 + 2*n.clock.late + 2*watchPause
}

// watchDisks checks the other half of P26: with disk-timeout set, a disk that
// hangs is given up.
func (w *World) watchDisks(n *node) {
	limit := w.diskPatience(n)
	if w.opt.DiskTimeout == 0 {
		return
	}
	for _, o := range n.live {
		v := n.vols[o.vol]
		if v.st.Disk <= core.Failed {
			continue
		}
		w.count.Checks++
		if since := max(o.begun, n.pausedAt, n.jumpedAt); w.now-since > limit {
			w.fail("P26", "node %s volume %d: action %d of kind %d waits since %s, and the disk is not given up: %s",
				n.name(), v.id, o.id, o.kind, stamp(o.begun), w.summary())
			return
		}
	}
}

// watchCommands checks P25: a command is answered in bounded time. Without a
// ko-count a stalled connection excuses it.
func (w *World) watchCommands(n *node) {
	if w.opt.Net.KoCount == 0 && w.net.disturbed() || len(n.commands) == 0 {
		n.pausedAt = w.now
		return
	}
	for id := range n.commands {
		w.count.Checks++
		since, ok := w.seen[id]
		if !ok {
			w.seen[id] = w.now
			continue
		}
		if w.now-max(since, n.pausedAt) > commandTime {
			w.fail("P25", "node %s does not answer command %d: %s", n.name(), id, w.summary())
			return
		}
	}
}

// watchCounters checks after every event that a volume's counters only grow, but
// for an attach and a connect by command, where DRBD counts anew (P28).
func (w *World) watchCounters(n *node) {
	for vol, v := range n.vols {
		c := n.core.Counters(uint16(vol))
		old := v.counters
		w.count.Checks++
		fell := c.Written < old.Written || c.Read < old.Read || c.AL < old.AL || c.BM < old.BM || c.Sent < old.Sent || c.Received < old.Received
		if fell && n.resets == v.resets {
			w.fail("P28", "node %s volume %d: counters went from %+v to %+v", n.name(), vol, old, c)
		}
		v.counters, v.resets = c, n.resets
	}
}

// countersAgree checks at rest that what one end sent in the present session
// is what the other received (P28).
func (w *World) countersAgree(vol int) {
	i := slices.IndexFunc(w.net.links, func(l *link) bool {
		return l.ends[0].state == endAlive && l.ends[1].state == endAlive
	})
	if i < 0 {
		return
	}
	l := w.net.links[i]
	if l.resets != [2]int{w.nodes[0].resets, w.nodes[1].resets} {
		return
	}
	for i, n := range w.nodes {
		s, p := n.core.Counters(uint16(vol)), n.peer().core.Counters(uint16(vol))
		sent, got := s.Sent-l.sentAt[i][vol], p.Received-l.gotAt[1-i][vol]
		w.count.Checks++
		if sent != got {
			w.fail("P28", "volume %d at rest: node %s sent %d bytes in this session, its peer received %d", vol, n.name(), sent, got)
		}
	}
}
