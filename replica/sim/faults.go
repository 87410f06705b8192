package sim

import (
	"replicad/replica/core"
)

// fault is something that goes wrong, or that an operator does.
type fault uint8

const (
	faultCut fault = iota
	faultCutOneWay
	faultHeal
	faultReset
	faultKill
	faultPower
	faultBothDown
	faultStart
	faultFreeze
	faultDiskError
	faultNewDisk
	faultPromote
	faultDemote
	faultSwitch
	faultFailover
	faultLoseAndDie
	faultConnect
	faultDisconnect
	faultDetach
	faultAttach
	faultInvalidate
	faultInvalidateRemote
	faultOutdate
	faultForce
	faultEnd
)

var faultNames = [faultEnd]string{
	"cut", "cut-one-way", "heal", "reset", "kill", "power", "both-down", "start", "freeze", "disk-error", "new-disk",
	"promote", "demote", "switch", "failover", "lose-and-die", "connect", "disconnect", "detach", "attach", "invalidate",
	"invalidate-remote", "outdate", "force",
}

var faultWeights = [faultEnd]int{
	faultCut: 6, faultCutOneWay: 4, faultHeal: 14, faultReset: 6, faultKill: 6, faultPower: 5, faultBothDown: 2,
	faultStart: 14, faultFreeze: 2, faultDiskError: 3, faultNewDisk: 2, faultPromote: 12, faultDemote: 4,
	faultSwitch: 4, faultFailover: 3, faultLoseAndDie: 4, faultConnect: 8, faultDisconnect: 3, faultDetach: 3, faultAttach: 8,
	faultInvalidate: 2, faultInvalidateRemote: 2, faultOutdate: 1, faultForce: 1,
}

// chaosTurn makes one accident happen and sets the time of the next.
func (w *World) chaosTurn() {
	if w.calm {
		return
	}
	w.accidents--
	if w.accidents <= 0 {
		return
	}
	f := w.drawFault()
	n := w.nodes[w.rng.IntN(2)]
	w.count.Faults[f]++
	w.tracef("accident %s at %s", faultNames[f], n.name())
	w.inflict(f, n)
	w.clock.add(timer{at: w.now + w.between(100*microsecond, w.opt.Pause), what: atChaos, node: nobody})
}

func (w *World) drawFault() fault {
	total := 0
	for _, x := range w.opt.Weights {
		total += x
	}
	x := w.rng.IntN(total)
	for f := range w.opt.Weights {
		if x -= w.opt.Weights[f]; x < 0 {
			return fault(f)
		}
	}
	return faultHeal
}

func (w *World) inflict(f fault, n *node) {
	switch f {
	case faultCut:
		w.net.cut = [2]bool{true, true}
	case faultCutOneWay:
		w.net.cut[n.id] = true
	case faultHeal:
		w.healAll()
	case faultReset:
		w.net.reset(w)
	case faultKill, faultPower:
		if n.up {
			n.crash(f == faultPower)
		}
	case faultBothDown:
		w.bothDown()
	case faultStart:
		for _, n := range w.nodes {
			if !n.up {
				n.start()
			}
		}
	case faultFreeze:
		n.freeze(w.between(millisecond, 400*millisecond))
	case faultDiskError:
		w.breakDisk(n)
	case faultNewDisk:
		w.newDisk(n)
	default:
		w.operate(f, n)
	}
}

func (w *World) healAll() {
	for i := range w.nodes {
		w.net.heal(w, i)
	}
}

// bothDown is the power failure of the room.
func (w *World) bothDown() {
	power := w.coin()
	for _, n := range w.nodes {
		if n.up {
			n.crash(power)
		}
	}
}

func (n *node) freeze(d core.Duration) {
	n.frozenUntil = n.w.now + d
	n.after(d, atThaw, 0)
}

// newDisk replaces the disk of a node that is down or detached: what was on
// it is gone, and so is the metadata. Only one of the two is ever replaced
// while the other is good, so that the data survives somewhere.
func (w *World) newDisk(n *node) {
	v := n.vols[w.rng.IntN(len(n.vols))]
	if v.attached || n.peer().vols[v.id].virgin {
		return
	}
	sectors := uint64(len(v.disk.cache))
	v.disk = newDisk(sectors, w.oracle.Garbage())
	v.meta.createMD()
	v.virgin = true
	w.oracle.Replaced(w.stamp(), n.id, v.id, v.disk.cache)
	w.touched(v.id, 0, uint32(w.opt.Blocks*blockSectors))
}

// operate is an operator at work, wise or not.
func (w *World) operate(f fault, n *node) {
	if !n.up {
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
