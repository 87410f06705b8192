package crashtest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/internal/figure"
	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/disk/disktest"
)

var powerSeed = flag.Uint64("power.seed", 0, "TestPower runs the rounds of this seed alone, of each protocol")

const (
	roundsAtOnce   = 6
	episodesMax    = 3
	recoveriesMax  = 3 // power cuts of a node that is coming back
	roundsByHand   = 3 // of each protocol, unless REPLICAD_POWER_ROUNDS says more
	powerSeedFirst = 1
)

// TestPower cuts the power of whole machines under load and at the awkward
// moments, and checks the promises of docs/GUARANTEES.md for each protocol. The
// number of rounds of each protocol is taken from REPLICAD_POWER_ROUNDS. The
// course of a round is planned by its seed; goroutines and sockets add chance of
// their own, so a seed that failed may have to be run several times.
func TestPower(t *testing.T) {
	rounds := roundsByHand
	if s := os.Getenv("REPLICAD_POWER_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("REPLICAD_POWER_ROUNDS: %v", err)
		}
		rounds = n
	}
	first := uint64(powerSeedFirst)
	if *powerSeed != 0 {
		first, rounds = *powerSeed, 1
	}
	var wg sync.WaitGroup
	var tally tally
	room := make(chan struct{}, roundsAtOnce)
	for i := range rounds {
		for _, protocol := range []byte("ABC") {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				seed := first + uint64(i)
				t.Run(fmt.Sprintf("%c/%d", protocol, seed), func(t *testing.T) { powerRound(t, protocol, seed, &tally) })
			})
		}
	}
	wg.Wait()
	tally.print()
}

// tally counts what happened in all rounds.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *tally) add(name string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[name] += n
}

func (c *tally) print() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range c.counts {
		figure.Print("power-"+name, n)
	}
}

// round is one pair and what befalls it.
type round struct {
	*pair
	t       *testing.T
	rng     *rand.Rand
	knobs   knobs
	book    *book
	load    *load
	tally   *tally
	primary int
}

// episode is one course of events, from a synchronised pair with a Primary
// under load to a synchronised pair again.
type episode struct {
	name string
	run  func(*round)
}

var episodes = []episode{
	{"secondary", (*round).loseSecondary},
	{"primary-takeover", (*round).losePrimaryTakeOver},
	{"primary-return", (*round).losePrimaryReturn},
	{"both-return", (*round).loseBothReturn},
	{"both-takeover", (*round).loseBothTakeOver},
	{"resync", (*round).loseInResync},
	{"demotion", (*round).loseInDemotion},
	{"link-then-primary", (*round).loseLinkThenPrimary},
}

func powerRound(t *testing.T, protocol byte, seed uint64, c *tally) {
	rng := rand.New(rand.NewPCG(seed, uint64(protocol)))
	r := &round{t: t, rng: rng, book: newBook(), knobs: drawKnobs(rng, protocol), tally: c}
	plan := make([]episode, 1+rng.IntN(episodesMax))
	var names strings.Builder
	for i := range plan {
		plan[i] = episodes[rng.IntN(len(episodes))]
		names.WriteString(" " + plan[i].name)
	}
	begin := time.Now()
	defer func() {
		if r.load != nil {
			r.book.end(&r.load.life)
			r.load.stop.Store(true)
		}
		if t.Failed() {
			t.Logf("seed %d, protocol %c, after %v:%s\n%+v", seed, protocol, time.Since(begin).Round(time.Millisecond), names.String(), r.knobs)
		}
	}()
	r.pair = newPair(t, r.knobs)
	r.promote(rng.IntN(2))
	for _, e := range plan {
		r.log.note("--- %s, Primary is %s", e.name, r.nodes[r.primary].name)
		e.run(r)
		r.calm()
		if t.Failed() {
			return
		}
		c.add("cuts-"+e.name, 1)
		r.promote(rng.IntN(2))
	}
	r.load.end()
	r.leaveInOrder()
	c.add("rounds", 1)
	c.add("writes", len(r.book.writes)-1)
}

func (r *round) n(i int) *node { return r.nodes[i] }

func (r *round) promote(i int) {
	r.t.Helper()
	n := r.n(i)
	n.must("primary", n.Primary(n.ctx(), false))
	r.primary = i
	r.load = startLoad(n, r.book, r.rng.Uint64())
	r.waitForWrites(20 + r.rng.IntN(150))
}

// waitForWrites lets the clients work until they have completed so many more
// writes, or there is no power.
func (r *round) waitForWrites(k int) {
	r.t.Helper()
	last := r.load.done.Load()
	want, deadline := last+int64(k), time.Now().Add(patience)
	for ; r.load.done.Load() < want; time.Sleep(200 * time.Microsecond) {
		if r.t.Failed() || r.n(r.primary).machine.Off() {
			return
		}
		if now := r.load.done.Load(); now > last { // slow is not stuck
			last, deadline = now, time.Now().Add(patience)
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("clients get no answers (%s, %s)", r.n(0).state(), r.n(1).state())
		}
	}
}

// --- power

// arm prepares the death of a machine, for when its power goes.
func (r *round) arm(i int) {
	n, l := r.n(i), r.load
	mine := i == r.primary
	n.machine.OnCut(func() {
		if mine {
			r.book.end(&l.life)
		}
		r.net.kill(i, r.knobs.silent)
		r.log.note("%s has no power", n.name)
	})
}

// cut makes a machine lose power: at once, or at one of its next operations.
func (r *round) cut(i int) {
	r.t.Helper()
	m := r.n(i).machine
	r.arm(i)
	switch r.rng.IntN(5) {
	case 0:
		m.CutPower()
	case 1:
		m.CutPowerAt(disktest.Sync, r.rng.IntN(3))
	case 2:
		m.CutPowerAt(disktest.WriteDurable, r.rng.IntN(6))
	default:
		m.CutPowerAfter(r.rng.IntN(60))
	}
	for end := time.Now().Add(300 * time.Millisecond); !m.Off(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(end) {
			m.CutPower() // not so many operations came
		}
	}
}

// bringBack returns power to dead machines, some of which lose it again before
// they are up, or soon after.
func (r *round) bringBack(dead ...int) {
	r.t.Helper()
	for _, i := range dead {
		if i == r.primary {
			r.load.end()
		}
		r.n(i).bury()
	}
	for _, i := range dead {
		r.restart(i, r.rng.IntN(recoveriesMax+1))
	}
}

// restart crashes and boots a machine. It is armed to fail again at most again times.
func (r *round) restart(i, again int) {
	r.t.Helper()
	n := r.n(i)
	for {
		n.machine.Crash(r.rng)
		r.net.revive(i)
		r.arm(i)
		if again > 0 && r.rng.IntN(2) == 0 {
			n.machine.CutPowerAfter(r.rng.IntN(40))
			r.tally.add("cuts-recovery", 1)
		}
		again--
		if n.boot() {
			return
		}
		n.bury()
	}
}

// settle waits until the pair is synchronised, and brings back who loses power
// meanwhile. It returns false on a split brain.
func (r *round) settle() bool {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		for i, n := range r.nodes {
			if n.machine.Off() {
				if i == r.primary && !r.load.life.over {
					r.t.Fatalf("%s lost power and its clients do not know", n.name)
				}
				n.bury()
				r.restart(i, 0)
			}
		}
		a, b := r.n(0).now(), r.n(1).now()
		switch {
		case inSync(a) && inSync(b):
			for _, n := range r.nodes {
				n.machine.CutPowerAfter(-1)
			}
			if !r.n(0).machine.Off() && !r.n(1).machine.Off() {
				return true
			}
		case a.Conn == core.StandAlone || b.Conn == core.StandAlone:
			for _, n := range r.nodes {
				n.machine.CutPowerAfter(-1)
			}
			if !r.n(0).machine.Off() && !r.n(1).machine.Off() {
				return false
			}
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the pair does not come together: %s, %s", r.n(0).state(), r.n(1).state())
		}
	}
}

func (r *round) mustSettle(what string) {
	r.t.Helper()
	if !r.settle() {
		r.t.Fatalf("%s: a node went StandAlone: %s, %s", what, r.n(0).state(), r.n(1).state())
	}
}

// --- checks

// checks are the promises that hold in a situation, beside that nothing is
// there that nobody wrote.
type checks struct {
	completed bool // P2, P3: every completed write is there
	flushed   bool // P1: what a flush covered is there
	closed    bool // P4: closed under "completed before issued"
	epochs    bool // P4 after a power cut of the peer too: whole epochs, and some of the next
}

// check holds a node's disk against the book.
func (r *round) check(n *node, what string, c checks) finding {
	r.t.Helper()
	f := r.book.compare(n.image())
	for _, x := range []struct {
		on   bool
		name string
		text string
	}{
		{true, "content that nobody wrote", f.foreign},
		{c.completed, "a completed write is lost", f.lost},
		{c.flushed, "a flushed write is lost", f.unsafe},
		{c.closed, "not closed under \"completed before issued\"", f.disorder},
		{c.epochs, "a later epoch without an earlier one", f.epochs},
	} {
		if x.on && x.text != "" {
			r.t.Errorf("%s: %s: %s: %s", n.name, what, x.name, x.text)
		}
	}
	return f
}

// whole is what must hold where nothing may be lost.
var whole = checks{completed: true, flushed: true, closed: true, epochs: true}

// calm ends the load, demotes, and demands that the pair is one: nothing
// completed is lost, images and generations are the same and no block is marked.
func (r *round) calm() {
	r.t.Helper()
	r.load.end()
	for _, n := range r.nodes {
		n.machine.CutPowerAfter(-1)
		n.must("secondary", n.Secondary(n.ctx()))
	}
	r.mustSettle("at rest")
	a, b := r.n(0), r.n(1)
	r.check(a, "at rest", whole)
	r.check(b, "at rest", whole)
	x, y := a.image(), b.image()
	for s := range len(x) / sectorSize {
		if [sectorSize]byte(x[s*sectorSize:]) != [sectorSize]byte(y[s*sectorSize:]) {
			idA, _ := identify(x[s*sectorSize:][:sectorSize], uint32(s))
			idB, _ := identify(y[s*sectorSize:][:sectorSize], uint32(s))
			r.t.Errorf("after the resync sector %d differs: %s has %d %+v, %s has %d %+v", s, a.name, idA, r.book.entry(idA), b.name, idB, r.book.entry(idB))
			break
		}
	}
	va, vb := a.Status().Volumes[0], b.Status().Volumes[0]
	if va.OutOfSync != 0 || vb.OutOfSync != 0 || va.Gen.Current|1 != vb.Gen.Current|1 {
		r.t.Errorf("at rest: %s, %s, generations %x and %x", a.state(), b.state(), va.Gen.Current, vb.Gen.Current)
	}
	r.book.adopt(x)
}

func (b *book) entry(id uint32) entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	if int(id) >= len(b.writes) {
		return entry{}
	}
	return b.writes[id]
}

// leaveInOrder closes both nodes and cuts their power: an orderly end owes
// everything that completed to both disks.
func (r *round) leaveInOrder() {
	r.t.Helper()
	first := r.n(r.primary)
	for _, n := range []*node{first, r.n(1 - r.primary)} {
		size := n.Volume(0).Size()
		n.must("close", n.Close(n.ctx()))
		n.machine.OnCut(nil)
		n.machine.Crash(r.rng)
		p := make([]byte, size)
		if _, err := n.data.ReadAt(p, 0); err != nil {
			r.t.Fatal(err)
		}
		if f := r.book.compare(p); f.lost != "" || f.foreign != "" {
			r.t.Errorf("%s was left in order, and after a power cut: %s%s", n.name, f.lost, f.foreign)
		}
	}
}

// takeOver promotes the node that is left and checks what it holds.
func (r *round) takeOver(i int, what string, c checks) finding {
	r.t.Helper()
	n := r.n(i)
	n.await("the loss of the peer", alone)
	n.must("primary", n.Primary(n.ctx(), false))
	f := r.check(n, what, c)
	r.book.adopt(n.image())
	r.primary = i
	r.load = startLoad(n, r.book, r.rng.Uint64())
	r.waitForWrites(r.rng.IntN(40))
	return f
}

// mustRefuse checks P14: without UpToDate data nobody is promoted.
func (r *round) mustRefuse(n *node) {
	r.t.Helper()
	if n.now().Disk == core.UpToDate {
		return
	}
	err := n.Primary(n.ctx(), false)
	if _, refused := errors.AsType[*replica.StateError](err); !refused {
		r.t.Errorf("%s was promoted without good data: %v (%s)", n.name, err, n.state())
	}
}

// kept is what holds of the disk of a node that was Secondary and kept
// its power when the Primary lost its own.
func (r *round) kept() checks {
	if r.knobs.protocol == 'A' {
		return checks{closed: true, epochs: true}
	}
	return whole
}
