package sim

import (
	"replicad/replica/core"
)

// operate is an operator at work, wise or not.
func (w *World) operate(f fault, n *node) {
	if !n.up || n.frozenUntil > w.now {
		return
	}
	vol := int32(w.rng.IntN(len(n.vols)))
	switch f {
	case faultPromote:
		n.command(core.Command{Kind: core.CmdPrimary, Vol: -1})
	case faultForce:
		n.command(core.Command{Kind: core.CmdPrimary, Vol: -1, Force: true})
	case faultDemote:
		n.demote()
	case faultSwitch:
		n.demote()
		n.peer().later(core.Command{Kind: core.CmdPrimary, Vol: -1})
	case faultFailover:
		n.crash(w.coin())
		n.peer().later(core.Command{Kind: core.CmdPrimary, Vol: -1})
	case faultLoseAndDie:
		w.loseAndDie()
	case faultConnect:
		n.command(core.Command{Kind: core.CmdConnect, Vol: -1, Discard: w.chance(0.1) && n.vols[0].st.Role != core.Primary})
	case faultTentative:
		n.command(core.Command{Kind: core.CmdConnect, Vol: -1, Tentative: true})
	case faultBothPromote, faultBothDiscard:
		w.both(f)
	case faultWrong:
		w.blunder(n)
	case faultConfig:
		w.reconfigure(n)
	case faultCommandCrash:
		w.blunder(n)
		n.after(w.between(microsecond, 4*w.opt.DiskDelay), atDie, uint64(w.rng.IntN(2)))
	case faultDisconnect:
		n.command(core.Command{Kind: core.CmdDisconnect, Vol: -1, Force: w.chance(0.2)})
	case faultDetach:
		n.command(core.Command{Kind: core.CmdDetach, Vol: vol, Force: w.chance(0.2)})
	case faultAttach:
		for _, v := range n.vols {
			n.attach(v.id)
		}
	case faultInvalidate:
		n.command(core.Command{Kind: core.CmdInvalidate, Vol: vol})
	case faultInvalidateRemote:
		n.command(core.Command{Kind: core.CmdInvalidateRemote, Vol: vol})
	case faultOutdate:
		n.command(core.Command{Kind: core.CmdOutdate, Vol: vol})
	}
}

// both gives the same wrong command to both nodes at once.
func (w *World) both(f fault) {
	up := w.nodes[0].up && w.nodes[1].up
	for _, n := range w.nodes {
		if !n.up || n.frozenUntil > w.now {
			continue
		}
		if f == faultBothPromote {
			n.command(core.Command{Kind: core.CmdPrimary, Vol: -1})
			continue
		}
		if n.vols[0].st.Role != core.Primary {
			n.command(core.Command{Kind: core.CmdDisconnect, Vol: -1})
			n.command(core.Command{Kind: core.CmdConnect, Vol: -1, Discard: true})
		}
	}
	if up {
		w.reached.hit([2]mark{markBothPromote, markBothDiscard}[f-faultBothPromote])
	}
}

// blunder is any command at any time, for any volume, also one that is not
// there, and often the same twice.
func (w *World) blunder(n *node) {
	kinds := []core.CommandKind{
		core.CmdPrimary, core.CmdSecondary, core.CmdConnect, core.CmdDisconnect, core.CmdDetach,
		core.CmdInvalidate, core.CmdInvalidateRemote, core.CmdOutdate,
	}
	c := core.Command{Kind: pick(w.rng, kinds...), Vol: pick(w.rng, int32(0), 0, 1, 7)}
	switch c.Kind {
	case core.CmdPrimary:
		c.Vol, c.Force = -1, w.opt.Weights[faultForce] > 0
	case core.CmdDisconnect, core.CmdDetach:
		c.Force = w.coin()
	case core.CmdConnect:
		c.Vol, c.Tentative = -1, w.chance(0.2)
	}
	if int(c.Vol) >= len(n.vols) {
		w.reached.hit(markUnknownVolume)
	}
	for range 1 + w.rng.IntN(2) {
		n.command(c)
	}
}

// reconfigure changes what may change while the resource runs; now and then
// to something that the peer does not agree with.
func (w *World) reconfigure(n *node) {
	c := w.opt.config()
	c.Net.PingInt = pick(w.rng, 100*millisecond, 400*millisecond)
	c.Net.PingTimeout = pick(w.rng, 40*millisecond, 100*millisecond)
	c.Net.BarrierBytes = pick(w.rng, uint64(64<<10), 1<<20)
	c.Net.BarrierAge = pick(w.rng, 5*millisecond, second)
	if w.chance(0.3) {
		c.Net.AfterSB1 = "discard-secondary"
	}
	for i := range c.Volumes {
		c.Volumes[i].ResyncRate = pick(w.rng, uint64(4<<20), 200<<20)
	}
	if n.vols[0].st.Conn == core.WFReportParams {
		w.reached.hit(markConfigHandshake)
	}
	n.command(core.Command{Kind: core.CmdConfig, Vol: -1, Config: &c})
}

// loseAndDie is the worst moment to lose a Primary: its link breaks, and it
// dies while it deals with that; then the other takes over.
func (w *World) loseAndDie() {
	for _, n := range w.nodes {
		if n.up && n.vols[0].st.Role == core.Primary {
			w.net.reset(w)
			n.after(w.between(10*microsecond, 4*w.opt.DiskDelay), atDie, uint64(w.rng.IntN(2)))
			n.peer().later(core.Command{Kind: core.CmdPrimary, Vol: -1})
			return
		}
	}
}

// demote sends the clients away, most of the time, and gives the command.
func (n *node) demote() {
	if n.w.chance(0.1) { // they hold it open: refused
		n.command(core.Command{Kind: core.CmdSecondary, Vol: -1})
		return
	}
	n.stopping = true
	n.later(core.Command{Kind: core.CmdSecondary, Vol: -1})
}

// later gives a command a little later, a demotion once no client waits.
func (n *node) later(c core.Command) {
	if !n.up {
		return
	}
	n.plans = append(n.plans, c)
	n.after(n.w.between(millisecond, 30*millisecond), atCommand, uint64(len(n.plans)-1))
}

func (n *node) runPlan(i int) {
	c := n.plans[i]
	if c.Kind == core.CmdSecondary && n.stopping {
		if n.bufs.requests() > 0 {
			n.after(5*millisecond, atCommand, uint64(i))
			return
		}
		n.closeAll()
	}
	n.command(c)
}
