package crashtest

import (
	"time"

	"replicad/replica"
)

// loseSecondary: the Primary goes on, and nothing is lost.
func (r *round) loseSecondary() {
	other := 1 - r.primary
	r.cut(other)
	r.waitForWrites(r.rng.IntN(40))
	r.bringBack(other)
	r.waitForWrites(r.rng.IntN(10))
	r.mustSettle("return of the Secondary")
	r.check(r.n(r.primary), "loss of the Secondary", checks{}) // under load: only what nobody wrote
}

// losePrimaryTakeOver: the peer is promoted, the old Primary returns as target.
func (r *round) losePrimaryTakeOver() {
	old := r.primary
	r.cut(old)
	r.load.end()
	r.takeOver(1-old, "takeover", r.kept())
	r.n(old).bury()
	r.restart(old, r.rng.IntN(recoveriesMax+1))
	r.mustSettle("return of the old Primary")
}

// losePrimaryReturn: nobody is promoted, the old Primary comes back and its
// blocks win, older ones too; but not older than a flush.
func (r *round) losePrimaryReturn() {
	old := r.primary
	r.cut(old)
	r.bringBack(old)
	r.mustSettle("return of the Primary")
	r.check(r.n(old), "return of the Primary", checks{flushed: true, epochs: true})
	r.book.adopt(r.n(old).image())
}

// loseBothReturn: both come back; the one that was Primary is the source.
func (r *round) loseBothReturn() {
	old := r.primary
	r.cutBoth()
	r.bringBack(old, 1-old)
	r.mustSettle("return of both")
	r.check(r.n(old), "return of both", checks{flushed: true, epochs: true})
	r.book.adopt(r.n(old).image())
}

// cutBoth: the Primary first, or at the same time as far as anybody can tell.
func (r *round) cutBoth() {
	r.arm(1 - r.primary)
	r.cut(r.primary)
	if r.rng.IntN(2) == 0 {
		time.Sleep(time.Duration(r.rng.Int64N(int64(3 * time.Millisecond))))
	}
	r.n(1 - r.primary).machine.CutPower()
	r.load.end()
}

// loseBothTakeOver: only the Secondary comes back and is promoted. Of each
// protocol it has whole epochs and some of the next; under C all that was flushed.
func (r *round) loseBothTakeOver() {
	old := r.primary
	r.cutBoth()
	r.n(1 - old).bury()
	r.restart(1-old, r.rng.IntN(recoveriesMax+1))
	for r.n(1 - old).machine.Off() {
		r.n(1 - old).bury()
		r.restart(1-old, 0)
	}
	r.n(1 - old).machine.CutPowerAfter(-1)
	if r.n(1 - old).machine.Off() {
		r.n(1 - old).bury()
		r.restart(1-old, 0)
	}
	r.takeOver(1-old, "takeover after the loss of both", checks{flushed: r.knobs.protocol == 'C', epochs: true})
	r.n(old).bury()
	r.restart(old, r.rng.IntN(recoveriesMax+1))
	r.mustSettle("return of the old Primary after the loss of both")
}

// loseInResync: the link is cut and heals, and while the pair resynchronises the
// source, the target or both lose power.
func (r *round) loseInResync() {
	source, target := r.primary, 1-r.primary
	r.net.setCut(true, false)
	r.waitForWrites(20 + r.rng.IntN(80))
	victim := r.rng.IntN(3)
	for _, v := range []struct {
		node int
		hit  bool
	}{{source, victim != 1}, {target, victim != 0}} {
		if v.hit {
			r.arm(v.node)
			r.n(v.node).machine.CutPowerAfter(r.rng.IntN(80))
		}
	}
	r.net.setCut(false, false)
	hit := func(i int) bool { return r.n(i).machine.Off() }
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if victim != 1 == hit(source) && victim != 0 == hit(target) {
			break
		}
	}
	for i, n := range r.nodes {
		n.machine.CutPowerAfter(-1)
		if !n.machine.Off() && (i == source && victim != 1 || i == target && victim != 0) {
			n.machine.CutPower()
		}
	}
	switch victim {
	case 0:
		r.n(target).await("the loss of the source", alone)
		r.mustRefuse(r.n(target))
		r.bringBack(source)
	case 1:
		r.waitForWrites(r.rng.IntN(20))
		r.bringBack(target)
	default:
		r.bringBack(source, target)
	}
	r.mustSettle("return after a resync that was cut")
	if victim != 1 {
		r.check(r.n(source), "return of the source", checks{flushed: true, epochs: true})
		r.book.adopt(r.n(source).image())
	}
}

// loseInDemotion: without clients the Primary is demoted and loses power
// meanwhile, or just afterwards.
func (r *round) loseInDemotion() {
	old := r.primary
	n := r.n(old)
	r.load.end()
	r.arm(old)
	n.machine.CutPowerAfter(r.rng.IntN(12))
	promised := checks{flushed: true, epochs: true}
	if err := n.Secondary(n.ctx()); err == nil && !n.machine.Off() {
		promised = whole
	}
	n.machine.CutPower()
	if r.rng.IntN(2) == 0 {
		r.takeOver(1-old, "takeover during a demotion", r.kept())
		r.n(old).bury()
		r.restart(old, r.rng.IntN(recoveriesMax+1))
		r.mustSettle("return of the node that was being demoted")
		return
	}
	r.bringBack(old)
	r.mustSettle("return of the node that was being demoted")
	r.check(n, "return of the node that was being demoted", promised)
	r.book.adopt(n.image())
}

// loseLinkThenPrimary: the Primary goes on alone for a moment and then loses
// power; the peer is promoted. If the Primary completed writes that the peer
// lacks, the two may not come together again without being told.
func (r *round) loseLinkThenPrimary() {
	old := r.primary
	r.net.setCut(true, r.knobs.silent)
	if r.rng.IntN(2) == 0 {
		r.waitForWrites(r.rng.IntN(30))
	}
	r.cut(old)
	r.load.end()
	r.net.setCut(false, false)
	f := r.takeOver(1-old, "takeover after the link was cut", checks{epochs: true})
	r.n(old).bury()
	r.restart(old, r.rng.IntN(recoveriesMax+1))
	if r.settle() {
		if f.missing > 0 && r.knobs.protocol != 'A' {
			r.t.Errorf("%d completed sectors were discarded without a word, for example: %s", f.missing, f.lost)
		}
		return
	}
	r.tally.add("split-brains", 1)
	r.resolve(old)
	r.mustSettle("return of the victim of a split brain")
}

// resolve ends a split brain as an operator does: one side gives up its data.
func (r *round) resolve(victim int) {
	for _, n := range r.nodes {
		n.must("disconnect", n.Disconnect(n.ctx(), true))
	}
	for _, n := range r.nodes {
		n.must("connect", n.Connect(n.ctx(), replica.ConnectOptions{DiscardMyData: n.id == victim}))
	}
}
