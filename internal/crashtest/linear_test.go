package crashtest

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replicad/internal/figure"
	"replicad/nbd"
	"replicad/replica/core"
	"replicad/replica/disk/disktest"
)

var linearSeed = flag.Uint64("linear.seed", 0, "TestLinearizability runs the round of this seed alone")

const (
	linearRounds  = 4 // unless REPLICAD_LINEAR_ROUNDS says more
	linearClients = 4
	linearEvents  = 5
	answersMax    = 1200 // in one round: what the checker can do in time
)

// TestLinearizability: clients on connections of their own read and write the
// same few blocks of a pair of protocol C while the link is cut, disks fail,
// nodes are killed and the device moves between the nodes. Each block must have
// behaved like one register. Its number of rounds is taken from
// REPLICAD_LINEAR_ROUNDS.
func TestLinearizability(t *testing.T) {
	rounds, first := linearRounds, uint64(1)
	if s := os.Getenv("REPLICAD_LINEAR_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("REPLICAD_LINEAR_ROUNDS: %v", err)
		}
		rounds = n
	}
	if *linearSeed != 0 {
		rounds, first = 1, *linearSeed
	}
	var wg sync.WaitGroup
	var histories, operations, failovers atomic.Int64
	room := make(chan struct{}, roundsAtOnce)
	for i := range rounds {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			t.Run(fmt.Sprint(first+uint64(i)), func(t *testing.T) {
				r := newLinearRound(t, first+uint64(i))
				r.run()
				r.history.mustBeLinearizable(t)
				histories.Add(int64(len(r.history.blocks)))
				operations.Add(int64(r.history.count))
				failovers.Add(int64(r.failovers))
			})
		})
	}
	wg.Wait()
	figure.Print("linearizability-histories", histories.Load())
	figure.Print("linearizability-operations", operations.Load())
	figure.Print("linearizability-failovers", failovers.Load())
}

// linearRound is a pair, its clients, and what happens to them.
type linearRound struct {
	served
	rng       *rand.Rand
	history   *history
	clients   sync.WaitGroup
	stop      atomic.Bool
	answers   atomic.Int64
	primary   int
	failovers int
}

func newLinearRound(t *testing.T, seed uint64) *linearRound {
	rng := rand.New(rand.NewPCG(seed, 33))
	k := drawKnobs(rng, 'C')
	p := newPair(t, k)
	r := &linearRound{served: served{pair: p, t: t, dir: t.TempDir()}, rng: rng, history: newHistory(), primary: rng.IntN(2)}
	return r
}

func (r *linearRound) begin() {
	r.t.Helper()
	n := r.nodes[r.primary]
	n.must("primary", n.Primary(n.ctx(), false))
	r.serve(n)
	for i := range linearClients {
		c := &client{
			id: i, s: &r.served, history: r.history, stop: &r.stop, answers: &r.answers,
			rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(i))),
		}
		r.clients.Go(c.run)
	}
	r.t.Cleanup(func() {
		r.stop.Store(true)
		r.sendAway()
		r.clients.Wait()
	})
}

// run lets events happen to clients at work, then compares the disks.
func (r *linearRound) run() {
	r.t.Helper()
	r.begin()
	events := []struct {
		name string
		run  func()
	}{
		{"cut", r.cutLink},
		{"kill the Secondary", r.killSecondary},
		{"EIO on the Primary", func() { r.failDisk(r.primary) }},
		{"EIO on the Secondary", func() { r.failDisk(1 - r.primary) }},
		{"detach", r.detach},
		{"switch over", r.switchOver},
		{"failover", r.failOver},
		{"failover", r.failOver},
	}
	for range linearEvents {
		r.work(20 + r.rng.IntN(60))
		e := events[r.rng.IntN(len(events))]
		r.log.note("--- %s, Primary is %s", e.name, r.nodes[r.primary].name)
		e.run()
		if r.rng.IntN(3) == 0 {
			r.synchronised()
		}
		if r.t.Failed() || r.answers.Load() > answersMax {
			break
		}
	}
	r.work(30)
	r.synchronised()
	r.stop.Store(true)
	r.sendAway()
	r.clients.Wait()
	n := r.nodes[r.primary]
	n.must("secondary", n.Secondary(n.ctx()))
	a, b := r.nodes[0].image(), r.nodes[1].image()
	if !bytes.Equal(a, b) {
		r.t.Error("the two disks differ at the end")
	}
	for block := blocksFirst; block <= blocksFirst+clientBlocks; block++ {
		p := a[block*blockBytes:][:blockBytes]
		r.history.add(linearClients, block, access{value: valueOf(p, block)}, r.history.clock.Add(1), false)
	}
}

// work waits until the clients got so many more answers.
func (r *linearRound) work(k int) {
	r.t.Helper()
	want := r.answers.Load() + int64(k)
	for deadline := time.Now().Add(patience); r.answers.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("clients get no answers (%s, %s)", r.nodes[0].state(), r.nodes[1].state())
		}
	}
}

// linger waits for so many answers, but not for long: a Primary that was being
// resynchronised and loses its peer has no data to answer from.
func (r *linearRound) linger(k int) {
	want := r.answers.Load() + int64(k)
	for end := time.Now().Add(200 * time.Millisecond); r.answers.Load() < want && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (r *linearRound) synchronised() {
	r.t.Helper()
	for _, n := range r.nodes {
		n.await("the pair to be in sync", inSync)
	}
}

func (r *linearRound) cutLink() {
	r.net.setCut(true, r.nodes[0].knobs.silent)
	r.linger(r.rng.IntN(40))
	r.net.setCut(false, false)
}

// kill ends a node's process; what it wrote stays in the page cache.
func (r *linearRound) kill(i int) {
	n := r.nodes[i]
	if i != r.primary {
		n.machine.OnCut(func() { r.net.kill(i, n.knobs.silent) })
	}
	n.machine.Kill()
}

func (r *linearRound) restart(i int) {
	r.t.Helper()
	n := r.nodes[i]
	n.bury()
	r.net.revive(i)
	if !n.boot() {
		r.t.Fatalf("%s does not boot", n.name)
	}
}

func (r *linearRound) killSecondary() {
	i := 1 - r.primary
	r.kill(i)
	r.linger(r.rng.IntN(40))
	r.restart(i)
}

// failOver kills the Primary under its clients and promotes the other.
func (r *linearRound) failOver() {
	r.t.Helper()
	r.synchronised()
	old := r.primary
	r.kill(old)
	next := r.nodes[1-old]
	next.await("the loss of the Primary", alone)
	next.must("primary", next.Primary(next.ctx(), false))
	r.failovers++
	r.sendAway() // what is left of them at the ghost
	r.primary = 1 - old
	r.serve(next)
	r.work(r.rng.IntN(40))
	r.restart(old)
}

func (r *linearRound) switchOver() {
	r.t.Helper()
	r.synchronised()
	r.sendAway()
	old, next := r.nodes[r.primary], r.nodes[1-r.primary]
	old.must("secondary", old.Secondary(old.ctx()))
	next.must("primary", next.Primary(next.ctx(), false))
	r.primary = next.id
	r.serve(next)
}

// failDisk lets a disk fail until it is detached, and attaches it again.
func (r *linearRound) failDisk(i int) {
	r.t.Helper()
	r.synchronised()
	n := r.nodes[i]
	ops := []disktest.Op{disktest.Any, disktest.AnyWrite, disktest.Sync, disktest.Read}
	n.data.Inject(disktest.Fault{Ops: ops[r.rng.IntN(len(ops))], Skip: r.rng.IntN(10), Sticky: true, Err: unix.EIO})
	for end := time.Now().Add(200 * time.Millisecond); n.now().Disk == core.UpToDate && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	n.data.ClearFaults()
	r.work(r.rng.IntN(30))
	r.attach(n)
}

func (r *linearRound) detach() {
	r.t.Helper()
	r.synchronised()
	n := r.nodes[r.rng.IntN(2)]
	n.must("detach", n.Detach(n.ctx(), 0, false))
	r.work(r.rng.IntN(40))
	r.attach(n)
}

// attach brings back a disk that was detached, or is about to be.
func (r *linearRound) attach(n *node) {
	r.t.Helper()
	n.await("the end of a detach", func(s core.State) bool { return s.Disk != core.Failed })
	if n.now().Disk != core.Diskless {
		return
	}
	_, err := n.Attach(n.ctx(), 0)
	n.must("attach", err)
}

// TestStaleReadsAreNoticed puts a server between the clients and a healthy pair
// that now and then answers a read with what the block held earlier.
func TestStaleReadsAreNoticed(t *testing.T) {
	r := newLinearRound(t, 1)
	r.wrap = func(e nbd.Export) nbd.Export { return &forgetful{Export: e, seen: map[uint64][]byte{}} }
	r.begin()
	r.work(400)
	r.stop.Store(true)
	r.sendAway()
	r.clients.Wait()
	for _, verdict := range r.history.check() {
		if verdict == "Illegal" {
			return
		}
	}
	t.Error("stale reads went unnoticed")
}

// forgetful is an export whose reads may be answered from the past.
type forgetful struct {
	nbd.Export
	mu    sync.Mutex
	seen  map[uint64][]byte
	reads int
}

// Open implements nbd.Export.
func (f *forgetful) Open(info nbd.ClientInfo) (nbd.Handler, error) {
	h, err := f.Export.Open(info)
	return &forgetfulHandler{Handler: h, f: f}, err
}

type forgetfulHandler struct {
	nbd.Handler
	f *forgetful
}

// Serve implements nbd.Handler.
func (h *forgetfulHandler) Serve(r *nbd.Request) {
	if r.Op == nbd.OpWrite {
		h.f.mu.Lock()
		if h.f.seen[r.Offset] == nil {
			h.f.seen[r.Offset] = slices.Clone(r.Data[:blockBytes])
		}
		h.f.mu.Unlock()
	}
	if r.Op == nbd.OpRead && r.Length == blockBytes && h.f.recall(r) {
		r.Reply(nil)
		return
	}
	h.Handler.Serve(r)
}

// recall fills in what was written there first, at every tenth read.
func (f *forgetful) recall(r *nbd.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	old := f.seen[r.Offset]
	return f.reads%10 == 0 && copy(r.Data, old) == blockBytes
}
