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

	// Network and time.
	faultStall
	faultHalfOpen
	faultNarrow
	faultDamage
	faultRefuse
	faultClock
	faultSuspend
	// Operators, and crashes at bad moments.
	faultBothPromote
	faultBothDiscard
	faultWrong
	faultConfig
	faultTentative
	faultRecoveryCrash
	faultCommandCrash
	// Not drawn by weight: a rate of its own decides.
	faultCrossing
	faultSkew
	faultEarlyReset
	faultSpike
	faultLate
	faultStepCrash

	faultEnd
)

var faultNames = [faultEnd]string{
	"cut", "cut-one-way", "heal", "reset", "kill", "power", "both-down", "start", "freeze", "disk-error", "new-disk",
	"promote", "demote", "switch", "failover", "lose-and-die", "connect", "disconnect", "detach", "attach", "invalidate",
	"invalidate-remote", "outdate", "force",
	"stall-one-socket", "half-open", "narrow", "damage", "refuse-link", "clock-jump", "suspend",
	"both-promote", "both-discard", "wrong-command", "config", "tentative", "recovery-crash", "command-crash",
	"crossing-dials", "lane-skew", "early-reset", "delay-spike", "late-frame", "step-crash",
}

var faultWeights = [faultEnd]int{
	faultCut: 6, faultCutOneWay: 4, faultHeal: 14, faultReset: 6, faultKill: 6, faultPower: 5, faultBothDown: 2,
	faultStart: 14, faultFreeze: 2, faultDiskError: 3, faultNewDisk: 2, faultPromote: 12, faultDemote: 4,
	faultSwitch: 4, faultFailover: 3, faultLoseAndDie: 4, faultConnect: 8, faultDisconnect: 3, faultDetach: 3, faultAttach: 8,
	faultInvalidate: 6, faultInvalidateRemote: 6, faultOutdate: 1, faultForce: 1,
	faultStall: 6, faultHalfOpen: 4, faultNarrow: 3, faultDamage: 4, faultRefuse: 2, faultClock: 3, faultSuspend: 2,
	faultBothPromote: 3, faultBothDiscard: 2, faultWrong: 6, faultConfig: 3, faultTentative: 1,
	faultRecoveryCrash: 3, faultCommandCrash: 3,
}

// families are faults that a seed has together or not at all, so that one
// trouble does not hide another.
var families = [][]fault{
	{faultCut, faultCutOneWay, faultReset},
	{faultStall, faultHalfOpen, faultNarrow},
	{faultDamage},
	{faultRefuse},
	{faultClock, faultSuspend, faultFreeze},
	{faultKill, faultPower, faultBothDown, faultFailover, faultLoseAndDie},
	{faultRecoveryCrash, faultCommandCrash},
	{faultWrong, faultBothPromote, faultBothDiscard, faultTentative},
	{faultConfig},
	{faultDetach, faultInvalidate, faultInvalidateRemote, faultOutdate, faultDisconnect},
}

// helps are what still happens once the accidents of a run are over and there
// was little for them to happen to.
var helps = []fault{faultHeal, faultStart, faultPromote, faultConnect, faultAttach}

// chaosTurn makes one accident happen and sets the time of the next.
func (w *World) chaosTurn() {
	if w.calm {
		return
	}
	w.accidents--
	if w.accidents < 0 && w.count.Steps >= stepsMin {
		return
	}
	f := w.drawFault()
	if w.accidents < 0 && w.chance(0.7) {
		f = pick(w.rng, helps...)
	} else {
		w.count.Faults[f]++ // help is not counted
	}
	n := w.nodes[w.rng.IntN(2)]
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
	case faultSuspend:
		w.suspend(n)
	case faultClock:
		n.jumpClock(w.between(millisecond, 12*3600*second))
	case faultStall, faultHalfOpen, faultNarrow, faultDamage, faultRefuse:
		w.disturb(f, n)
	case faultRecoveryCrash:
		w.dieInRecovery(n)
	case faultDiskError:
		w.breakDisk(n)
	case faultNewDisk:
		w.newDisk(n)
	default:
		w.operate(f, n)
	}
}

func (w *World) healAll() {
	w.net.rate = 0
	for i := range w.nodes {
		w.net.heal(w, i)
	}
	for _, l := range w.net.links {
		l.lag, l.silentTill = [2]core.Duration{}, 0
	}
}

// disturb is what a network does other than to lose everything.
func (w *World) disturb(f fault, n *node) {
	c := w.rng.IntN(2)
	switch f {
	case faultStall:
		w.net.stalled[n.id][c] = true
		if w.coin() {
			w.net.stalled[1-n.id][c] = true
		}
		if w.net.whole() && !w.net.cut[0] && !w.net.cut[1] && !w.net.stalled[0][1-c] && !w.net.stalled[1][1-c] {
			w.reached.hit([2]mark{markDataStall, markControlStall}[c])
		}
	case faultHalfOpen:
		w.net.halfOpen(w, n.id)
	case faultNarrow:
		w.net.rate = uint64(pick(w.rng, 125_000, 1_000_000, 10_000_000))
	case faultDamage:
		w.net.damage[n.id][c] = damage(1 + w.rng.IntN(3))
	case faultRefuse:
		if n.up && n.dial != 0 && n.frozenUntil <= w.now {
			s := n.dial
			n.dial = 0
			n.event(core.Event{Kind: core.EvLinkRefused, Session: s, Text: "the peer says: wrong secret"})
			w.reached.hit(markLinkRefused)
		}
	}
}

// suspend is a virtual machine that is stopped for longer than every timeout.
// Its clock may have stood still, or gone on.
func (w *World) suspend(n *node) {
	if n.frozenUntil > w.now {
		return
	}
	d := w.between(second/2, 4*second)
	n.freeze(d)
	if w.coin() {
		n.clock.jump(w.now, -d)
	}
	if n.up {
		w.reached.hit(markLongFreeze)
	}
}

// jumpClock: a suspended machine comes back, and for it no time had passed.
func (n *node) jumpClock(d core.Duration) {
	if !n.up || n.frozenUntil > n.w.now {
		return
	}
	n.clock.jump(n.w.now, d)
	n.jumpedAt = n.w.now
	n.tickAt = 0
	n.setTick()
	if n.w.net.whole() && d > 2*n.w.opt.Net.Timeout {
		n.w.reached.hit(markClockJump)
	}
}

// drawClock gives a process a clock of its own.
func (w *World) drawClock(node int) nodeClock {
	c := nodeClock{base: core.Time(w.rng.Int64N(1 << 40)), since: w.now, ppm: w.opt.Drift[node]}
	if !w.calm {
		c.late = w.opt.TickLate[node]
	}
	return c
}

// dieInRecovery kills a node soon after its next start, or at once starts it
// for that.
func (w *World) dieInRecovery(n *node) {
	if n.up {
		n.crash(w.coin())
	}
	n.start()
	n.after(w.between(10*microsecond, 8*w.opt.DiskDelay), atDie, uint64(w.rng.IntN(2)))
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
	if n.frozenUntil > n.w.now {
		return
	}
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
	v.disk.reset(len(v.disk.cache), w.oracle.Garbage())
	v.meta.createMD()
	v.virgin = true
	w.oracle.Replaced(w.stamp(), n.id, v.id, v.disk.cache)
	w.touched(v.id, 0, uint32(w.opt.Blocks*blockSectors))
}
