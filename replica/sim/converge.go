package sim

import (
	"slices"

	"replicad/replica/core"
)

// Limits of phase two, in virtual time.
const (
	settleTime   = 20 * second  // for everything to come to rest after an operator's step
	convergeTime = 400 * second // for the whole of phase two
)

// Events of phase one.
const (
	stepsMin = 1000
	stepsMax = 1500
)

// Run simulates one seed and returns what it did, and the broken promise if any.
func Run(opt Options, trace func(string)) (Counts, marks, *Failure) {
	return new(Runner).Run(opt, trace)
}

// Run simulates one seed and returns what it did, and the broken promise if any.
func (r *Runner) Run(opt Options, trace func(string)) (Counts, marks, *Failure) {
	w := newWorld(&r.spare, opt, trace)
	defer w.giveBack()
	w.accidents = opt.Accidents
	w.tracef("options %+v", opt)
	for _, n := range w.nodes {
		n.start()
	}
	first := w.nodes[w.rng.IntN(2)]
	first.later(core.Command{Kind: core.CmdPrimary, Vol: -1, Force: opt.Fresh})
	w.clock.add(timer{at: w.now + w.between(millisecond, 3*w.opt.Pause), what: atChaos, node: nobody})
	w.clock.add(timer{at: w.now, what: atWatch, node: nobody})
	w.run(1000*second, w.enough)
	if w.failure == nil {
		w.converge()
	}
	return w.count, w.reached, w.failure
}

// enough ends phase one: every accident has happened, and there was something
// for them to happen to; or the run gets long.
func (w *World) enough() bool {
	return w.accidents <= 0 && w.count.Steps >= stepsMin || w.count.Steps >= stepsMax
}

// converge is phase two: nothing breaks any more; an operator who knows the
// manual brings the pair back, and it must end identical and up to date.
func (w *World) converge() {
	w.tracef("phase two")
	w.calm = true
	w.opt.Rate, w.opt.ResyncMax = 1<<40, 64<<20 // what is left is to be copied soon
	w.opt.LinkDelay, w.opt.DiskDelay = min(w.opt.LinkDelay, 300*microsecond), min(w.opt.DiskDelay, 300*microsecond)
	limit := w.now + convergeTime
	w.healAll()
	for _, l := range slices.Clone(w.net.links) {
		if l.garbled() { // a receiver may wait for ever for the rest of a frame that nobody misses
			w.net.resetLink(w, l)
		}
	}
	for _, n := range w.nodes {
		n.repair()
	}
	for w.failure == nil && !w.becomesGood() {
		if w.failure != nil {
			return
		}
		if w.now > limit {
			w.fail("P25", "no convergence: %s", w.summary())
			return
		}
		w.mend()
	}
	if w.failure == nil {
		w.run(w.now+settleTime, w.quiet)
		w.finalCheck()
	}
}

// becomesGood waits for the pair to be good, at most settleTime, or until
// nothing but pings has happened for a while.
func (w *World) becomesGood() bool {
	const step = 2500 * millisecond // more than any timeout of a link
	for limit := w.now + settleTime; w.now < limit; {
		before := w.progress()
		if w.run(w.now+step, w.good) {
			return true
		}
		if w.failure != nil || w.quiet() && w.progress() == before {
			return false
		}
	}
	return false
}

// repair makes a node's hardware good and its process run.
func (n *node) repair() {
	for _, v := range n.vols {
		n.heal(v)
	}
	n.clock.late, n.w.opt.Spike = 0, 0
	if !n.up {
		n.start()
		return
	}
	c := n.w.opt.config()
	n.command(core.Command{Kind: core.CmdConfig, Vol: -1, Config: &c})
}

// good reports that both nodes are Connected UpToDate/UpToDate and nothing waits.
func (w *World) good() bool {
	for vol := range w.exposed {
		if !w.inSync(vol) {
			return false
		}
	}
	return w.quiet()
}

// quiet reports that no request, command or action is waiting for an answer.
func (w *World) quiet() bool {
	for _, n := range w.nodes {
		if len(n.live) > 0 || len(n.commands) > 0 || n.bufs.used() {
			return false
		}
	}
	return w.net.idle()
}

// mend is the operator's next step when the pair stands still.
func (w *World) mend() {
	w.tracef("mend: %s", w.summary())
	for _, n := range w.nodes {
		for _, v := range n.vols {
			if v.st.Disk == core.Diskless {
				n.attach(v.id)
			}
		}
	}
	w.run(w.now+second, w.quiet)
	if w.failure != nil || w.good() {
		return
	}
	alone := w.nodes[0].standsAlone() || w.nodes[1].standsAlone()
	w.rounds++
	switch {
	case alone && w.rounds > 1 && w.retire():
	case w.noGoodData():
		w.mends++
		w.forceOne()
	case alone && w.joins > 1:
		w.resolve()
	default:
		w.joins++
		for _, n := range w.nodes {
			if n.standsAlone() {
				n.command(core.Command{Kind: core.CmdConnect, Vol: -1})
			}
		}
	}
}

// retire demotes a Primary that has no good data and refuses its own old disk.
func (w *World) retire() bool {
	for _, n := range w.nodes {
		for _, v := range n.vols {
			if v.st.Role == core.Primary && v.st.Disk < core.Consistent && v.st.Conn == core.StandAlone {
				n.giveUp()
				w.run(w.now+second, w.quiet)
				n.command(core.Command{Kind: core.CmdConnect, Vol: -1})
				return true
			}
		}
	}
	return false
}

// giveUp sends the clients away and demotes a node.
func (n *node) giveUp() {
	n.stopping = true
	n.closeAll()
	n.command(core.Command{Kind: core.CmdSecondary, Vol: -1})
}

func (n *node) standsAlone() bool { return n.vols[0].st.Conn == core.StandAlone }

// noGoodData reports that no node has good data of some volume.
func (w *World) noGoodData() bool {
	for vol := range w.exposed {
		if !slices.ContainsFunc(w.nodes[:], func(n *node) bool { return n.vols[vol].st.Disk >= core.Consistent }) {
			return true
		}
	}
	return false
}

// forceOne declares a node's data good, preferring one whose disk is not new
// and not half overwritten.
func (w *World) forceOne() {
	n := w.nodes[w.mends%2]
	for i, x := range w.nodes {
		if w.nodes[1-i].vols[0].st.Role == core.Primary {
			continue
		}
		if w.mends <= 2 && !slices.ContainsFunc(x.vols, func(v *volume) bool { return v.virgin || v.st.Disk < core.Outdated }) {
			n = x
		}
	}
	w.reached.hit(markForced)
	n.command(core.Command{Kind: core.CmdPrimary, Vol: -1, Force: true})
}

// resolve is the manual cure of a split brain: one side gives up its data; if
// even that is refused the data is unrelated, and its metadata is made anew.
func (w *World) resolve() {
	victim := w.nodes[w.rng.IntN(2)]
	if slices.ContainsFunc(victim.peer().vols, func(v *volume) bool { return v.st.Disk < core.UpToDate }) {
		victim = victim.peer()
	}
	w.tracef("%s gives up its data", victim.name())
	victim.giveUp()
	for _, n := range w.nodes {
		if !n.standsAlone() {
			n.command(core.Command{Kind: core.CmdDisconnect, Vol: -1})
		}
	}
	w.run(w.now+second, w.quiet)
	w.mends++
	if w.mends > 3 {
		w.recreate(victim)
	}
	victim.command(core.Command{Kind: core.CmdConnect, Vol: -1, Discard: true})
	victim.peer().command(core.Command{Kind: core.CmdConnect, Vol: -1})
	w.reached.hit(markManual)
}

func (w *World) recreate(n *node) {
	w.tracef("%s gets new metadata", n.name())
	for _, v := range n.vols {
		n.command(core.Command{Kind: core.CmdDetach, Vol: int32(v.id), Force: true})
	}
	w.run(w.now+second, w.quiet)
	for _, v := range n.vols {
		if v.attached {
			continue
		}
		v.meta.createMD()
		v.virgin = true
		w.oracle.Replaced(w.stamp(), n.id, v.id, v.disk.cache)
		n.attach(v.id)
	}
}

// finalCheck demands what the end must look like (P11, P25).
func (w *World) finalCheck() {
	if w.failure != nil {
		return
	}
	if !w.good() {
		w.fail("P25", "not quiet: %s", w.summary())
		return
	}
	for vol := range w.exposed {
		w.finalVolume(vol)
	}
}

func (w *World) finalVolume(vol int) {
	var gens [2]core.Generation
	for i, n := range w.nodes {
		s := n.core.Status()
		v := &s.Volumes[vol]
		gens[i] = v.Gen
		if v.OutOfSync != 0 || v.Counters.App != 0 || v.Counters.Pending != 0 || v.Counters.Unacked != 0 {
			w.fail("P11", "node %s volume %d at rest: %d bytes out of sync, counters %+v", n.name(), vol, v.OutOfSync, v.Counters)
		}
		if v.State != n.vols[vol].st {
			w.fail("contract", "node %s volume %d: status %v, announced state %v", n.name(), vol, v.State, n.vols[vol].st)
		}
	}
	if gens[0].Current&^1 != gens[1].Current&^1 {
		w.fail("P11", "volume %d at rest: generations %v and %v", vol, gens[0], gens[1])
	}
	w.countersAgree(vol)
	x, y := w.nodes[0].vols[vol].disk.cache, w.nodes[1].vols[vol].disk.cache
	for s := range w.opt.Blocks * blockSectors {
		if x[s] != y[s] {
			w.fail("P11", "volume %d at rest: sector %d holds %s on a, %s on b", vol, s, w.oracle.Name(x[s]), w.oracle.Name(y[s]))
			return
		}
	}
	for i, n := range w.nodes {
		w.oracle.Holds(w.stamp(), i, vol, 0, uint32(w.opt.Blocks*blockSectors), n.vols[vol].disk.cache, "P2", "at rest")
	}
}
