package replica

import (
	"sync/atomic"

	"replicad/replica/core"
)

// gateShut is the bit of gate.state that says the gate is shut; the bits
// below it count the readers inside.
const gateShut = 1 << 62

// gate lets client reads of one volume bypass the core while the local disk is
// good. The core opens and shuts it; it changes the disk or role only after the
// last reader left, so a reader inside needs no lock.
type gate struct {
	state   atomic.Int64
	closing atomic.Uint32 // the core.Op that waits for the last reader, 0 = none
}

func (g *gate) init() { g.state.Store(gateShut) }

// enter reports whether the caller may read. It must call leave if so.
func (g *gate) enter() (ok bool, drained core.Op) {
	if g.state.Add(1)&gateShut == 0 {
		return true, 0
	}
	return false, g.leave()
}

// leave ends a visit. A result other than 0 makes the caller responsible for
// telling the core that the gate is closed.
func (g *gate) leave() (drained core.Op) {
	if g.state.Add(-1) == gateShut {
		return core.Op(g.closing.Swap(0))
	}
	return 0
}

// maybeOpen is a cheap guess for callers that will enter later.
func (g *gate) maybeOpen() bool { return g.state.Load()&gateShut == 0 }

// open lets readers in. Called with the resource's lock held.
func (g *gate) open() {
	for {
		old := g.state.Load()
		if old&gateShut == 0 || g.state.CompareAndSwap(old, old&^gateShut) {
			return
		}
	}
}

// shut keeps new readers out and reports whether none is inside. Otherwise
// exactly one leave returns op. Called with the resource's lock held.
func (g *gate) shut(op core.Op) bool {
	// op is published before the bit: a reader that finds the bit set and
	// itself last must find op too. Swap makes one of us the only finder.
	g.closing.Store(uint32(op))
	for {
		old := g.state.Load()
		if g.state.CompareAndSwap(old, old|gateShut) {
			break
		}
	}
	return g.state.Load() == gateShut && g.closing.Swap(0) != 0
}

const (
	// stripeShift is log2 of the bytes one stripe of an inflight index covers: 64 KiB.
	stripeShift = 16
	stripeCount = 4096
	// stripesWide is how many stripes a write may touch one by one. Longer
	// ones (trims) count in one place that every read looks at.
	stripesWide = 32
)

// inflight answers, without a lock, whether a range may overlap a client's
// write that has not been completed to its client. It may say yes wrongly (two
// ranges share a stripe), never no.
//
// Why reads that bypass the core are linearizable with it. A write W is
// entered before the core hears of it, so before its local disk write can
// begin, and leaves after the core completed it. A read R looks before and after
// its pread. If R returned bytes of W, W's disk write began before R's pread
// ended, so W's entry happened before R's second look, which therefore either
// sees W (then R's bytes are thrown away and R goes through the core, which
// makes it wait for W), or finds that W has been completed meanwhile: then R
// and W overlapped in time and R may return W's bytes. If R returned bytes
// older than W, then W had not been completed when R began, because a write is
// completed only after its local disk write, or after the gate was closed. So R
// never returns a write that a crash could still take back, nor misses one that
// was completed before R began. The first look only saves work.
type inflight struct {
	wide    atomic.Int32
	stripes [stripeCount]atomic.Int32
}

func stripeSpan(off uint64, n uint32) (first, last uint64) {
	return off >> stripeShift, (off + uint64(max(n, 1)) - 1) >> stripeShift
}

// add counts a write in (delta 1) or out (-1).
func (f *inflight) add(off uint64, n uint32, delta int32) {
	first, last := stripeSpan(off, n)
	if last-first >= stripesWide {
		f.wide.Add(delta)
		return
	}
	for s := first; s <= last; s++ {
		f.stripes[s%stripeCount].Add(delta)
	}
}

// overlaps reports whether a write may be under way in the range.
func (f *inflight) overlaps(off uint64, n uint32) bool {
	if f.wide.Load() != 0 {
		return true
	}
	first, last := stripeSpan(off, n)
	last = min(last, first+stripeCount-1)
	for s := first; s <= last; s++ {
		if f.stripes[s%stripeCount].Load() != 0 {
			return true
		}
	}
	return false
}
