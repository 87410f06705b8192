// Package sim runs two real replication cores in a simulated world: a clock,
// a network with delay, cuts and half-open links, disks that lose unflushed
// writes and tear, clients, operators and accidents. Every message goes
// through the real wire codec. All randomness comes from one seed, so a
// failure replays exactly.
//
// A run has two phases. In the first, anything may break; after every event
// the oracle (package oracle, divergence.go) compares what happened with what was
// promised. In the second, nothing breaks any more and the pair must converge
// to two identical, up-to-date disks, or stand still and be mended as an
// operator would.
//
// The package is for tests. It knows no real disk, socket or clock, starts no
// goroutine, and a World belongs to one goroutine; several Worlds may run at
// the same time.
package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"replicad/replica/core"
	"replicad/replica/sim/oracle"
)

// Durations of virtual time.
const (
	microsecond = core.Duration(1e3)
	millisecond = 1e3 * microsecond
	second      = 1e3 * millisecond
)

// World is one simulated pair.
type World struct {
	spare  *spare
	opt    Options
	rng    *rand.Rand
	lies   *rand.Rand // draws apart: lies are told to copies and change nothing
	now    core.Time
	clock  clock
	nodes  [2]*node
	net    network
	oracle *oracle.Oracle
	calm   bool // phase two: no more faults, no new requests
	script bool // driven by a script: nothing happens by itself

	trace                func(line string)
	count                Counts
	failure              *Failure
	reached              marks
	nextCmd              uint64
	seen                 map[uint64]core.Time // when the watch first saw a command
	exposed              []exposure
	disturbedAt          core.Time // when a network or a process was last in trouble
	accidents            int       // left to happen
	rounds, mends, joins int       // what the operator tried in phase two
	handlers             []string  // configured handlers that ran, for scripts
	lines                []string  // log lines since the script last asked
}

// Counts tells how much a run did.
type Counts struct {
	Steps    int // events handed to a core
	Requests int // client requests answered
	Messages int // messages that went through the codec
	Checks   int // blocks and sectors the oracle compared
	Faults   [faultEnd]int
	Ills     [illEnd]int // of faultDiskError
	Lies     [lieEnd]int // told about metadata at rest

	Noticed, Unnoticed int // lies that were refused, and those that nobody can notice
}

func (c *Counts) add(o *Counts) {
	c.Steps += o.Steps
	c.Requests += o.Requests
	c.Messages += o.Messages
	c.Checks += o.Checks
	for i := range c.Faults {
		c.Faults[i] += o.Faults[i]
	}
	for i := range c.Lies {
		c.Lies[i] += o.Lies[i]
	}
	c.Noticed += o.Noticed
	c.Unnoticed += o.Unnoticed
	for i := range c.Ills {
		c.Ills[i] += o.Ills[i]
	}
}

// Failure is a broken promise.
type Failure struct {
	Seed     uint64
	At       core.Time
	Property string // the number in the list of invariants, or a word
	Text     string
}

func (f *Failure) Error() string {
	return fmt.Sprintf("seed %d at %s: %s: %s", f.Seed, stamp(f.At), f.Property, f.Text)
}

// newWorld builds a pair whose nodes are down, from the memory of earlier ones.
func newWorld(s *spare, opt Options, trace func(string)) *World {
	w := &World{
		spare: s,
		opt:   opt,
		rng:   rand.New(rand.NewPCG(opt.Seed, 0x7265706c69636164)),
		trace: trace,
		seen:  make(map[uint64]core.Time),
		lies:  rand.New(rand.NewPCG(opt.Seed, 0x6c696573)),
	}
	w.oracle = &s.oracle
	w.oracle.Reset(opt.Protocol, w.fail)
	w.net.payload, w.net.spare = s.payload, s.headers
	for i := range w.nodes {
		w.nodes[i] = newNode(w, i)
	}
	w.seedImages()
	return w
}

// fail notes the first broken promise; the run ends after the current event.
func (w *World) fail(property, format string, args ...any) {
	if w.failure == nil {
		w.failure = &Failure{Seed: w.opt.Seed, At: w.now, Property: property, Text: fmt.Sprintf(format, args...)}
		w.tracef("FAIL %s: %s", property, w.failure.Text)
	}
}

// run advances the world until done reports true, nothing is left to happen,
// a promise breaks or limit is reached. It reports whether done did.
func (w *World) run(limit core.Time, done func() bool) bool {
	for w.failure == nil {
		if done != nil && done() {
			return true
		}
		t, ok := w.clock.next()
		if !ok || t.at > limit {
			w.now = max(w.now, limit)
			return false
		}
		w.clock.pop()
		w.now = t.at
		w.fire(&t)
	}
	return false
}

// fire handles one timer. A panic of a core is a failure like any other.
func (w *World) fire(t *timer) {
	defer func() {
		if r := recover(); r != nil {
			w.fail("panic", "%v\n%s", r, debug.Stack())
		}
	}()
	if t.node >= 0 {
		n := w.nodes[t.node]
		if t.life != n.life {
			return
		}
		if n.frozenUntil > w.now && t.what != atThaw {
			w.clock.add(timer{at: n.frozenUntil, what: t.what, node: t.node, life: t.life, arg: t.arg})
			return
		}
	}
	w.dispatch(t)
	if w.opt.StepCrash > 0 && w.count.Steps >= w.opt.StepCrash {
		w.stepCrash(t)
	}
	if w.failure == nil {
		w.afterEvent()
	}
}

// stepCrash kills the node whose event was the one drawn for it.
func (w *World) stepCrash(t *timer) {
	w.opt.StepCrash = 0
	if t.node >= 0 && w.nodes[t.node].up && !w.calm {
		w.count.Faults[faultStepCrash]++
		w.nodes[t.node].crash(w.coin())
	}
}

func (w *World) dispatch(t *timer) {
	switch t.what {
	case atTick:
		w.nodes[t.node].tick(core.Time(t.arg))
	case atDiskEffect:
		w.nodes[t.node].diskEffect(core.Op(t.arg))
	case atDiskDone:
		w.nodes[t.node].diskDone(core.Op(t.arg))
	case atMetaDone:
		w.nodes[t.node].metaDone(core.Op(t.arg))
	case atGate:
		w.nodes[t.node].gateClosed(core.Op(t.arg))
	case atDetached:
		w.nodes[t.node].detached(int(t.arg))
	case atHandler:
		w.nodes[t.node].event(core.Event{Kind: core.EvHandlerDone, Op: core.Op(t.arg)})
	case atAttach:
		w.nodes[t.node].attach(int(t.arg))
	case atCommand:
		w.nodes[t.node].runPlan(int(t.arg))
	case atFastRead:
		w.nodes[t.node].fastReadDone(core.Buf(t.arg))
	case atClient:
		w.nodes[t.node].clientTurn(int(t.arg))
	case atWrite:
		w.net.flushOutbox(w, t.arg)
	case atDeliver:
		w.net.deliver(w, t.arg)
	case atConnect:
		w.net.connect(w)
	case atUp:
		w.net.endUp(w, t.arg)
	case atDown:
		w.net.endDown(w, t.arg)
	case atChaos:
		w.chaosTurn()
	case atLate:
		w.net.arriveLate(w)
	case atWithdraw:
		w.net.withdraw(w, t.arg)
	case atWatch:
		w.watch()
	case atThaw:
	case atDie:
		if !w.calm {
			w.nodes[t.node].crash(t.arg == 1)
		}
	}
}

// between draws a duration from lo to hi, short ones more often.
func (w *World) between(lo, hi core.Duration) core.Duration {
	if hi <= lo {
		return lo
	}
	x := w.rng.Float64()
	return lo + core.Duration(x*x*float64(hi-lo))
}

// chance reports true with probability p.
func (w *World) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

func (w *World) coin() bool { return w.rng.Uint64()&1 == 0 }
