package main

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"replicad/internal/cable"
	"replicad/internal/ledger"
	"replicad/nbd"
)

// killRounds is how often each kill is tried.
func killRounds(t *testing.T) int {
	text := os.Getenv("REPLICAD_KILL_ROUNDS")
	if text == "" {
		return 2
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// writer is a client under whose writes daemons die: single blocks at random,
// now and then a flush, everything in the ledger.
type writer struct {
	c      *nbd.Client
	led    *ledger.Ledger
	blocks int64
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	err    error
	failed chan struct{} // closed with the first error
	begin  sync.Once
	begun  chan struct{} // closed with the first write that completes
}

const writerTasks = 8

func newLedger(t *testing.T, c *nbd.Client, blocks int64) *ledger.Ledger {
	t.Helper()
	led := ledger.New()
	buf := make([]byte, ledger.BlockSize)
	for i := range blocks {
		if _, err := c.ReadAt(buf, i*ledger.BlockSize); err != nil {
			t.Fatal(err)
		}
		led.Baseline(i*ledger.BlockSize, buf)
	}
	return led
}

func startWriter(c *nbd.Client, led *ledger.Ledger, blocks int64, seed uint64) *writer {
	w := &writer{c: c, led: led, blocks: blocks, failed: make(chan struct{}), begun: make(chan struct{})}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	for task := range int64(writerTasks) {
		w.wg.Go(func() {
			if err := w.write(ctx, task, rand.New(rand.NewPCG(seed, uint64(task)))); err != nil {
				w.fail(err)
			}
		})
	}
	return w
}

func (w *writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		close(w.failed)
	}
}

func (w *writer) write(ctx context.Context, task int64, r *rand.Rand) error {
	buf := make([]byte, ledger.BlockSize)
	for n := 1; ctx.Err() == nil; n++ {
		fill(buf, r)
		off := (r.Int64N(w.blocks/writerTasks)*writerTasks + task) * ledger.BlockSize
		completed := w.led.Issue(off, buf)
		if _, err := w.c.WriteAt(buf, off); err != nil {
			return err
		}
		completed()
		w.begin.Do(func() { close(w.begun) })
		if n%100 == 0 {
			covered := w.led.Flush()
			if err := w.c.Flush(); err != nil {
				return err
			}
			covered()
		}
	}
	return nil
}

// awaitFailure waits until the writer has noticed that its server is gone.
func (w *writer) awaitFailure(t *testing.T) {
	t.Helper()
	select {
	case <-w.failed:
	case <-time.After(daemonPatience):
		t.Fatal("the client does not notice that its server is gone")
	}
	_ = w.stop()
}

// awaitFirst waits until a write has completed: there is nothing to lose before.
func (w *writer) awaitFirst(t *testing.T) {
	t.Helper()
	select {
	case <-w.begun:
	case <-w.failed:
		t.Fatalf("the first write failed: %v", w.stop())
	case <-time.After(daemonPatience):
		t.Fatal("no write completes")
	}
}

// stop ends the writer and returns why it had ended before, if it had.
func (w *writer) stop() error {
	w.cancel()
	w.wg.Wait()
	return w.err
}

// ledgerBlocks is the part of the device the writers use: more than a hot
// extent, less than all.
const ledgerBlocks = 4096

// TestKill kills daemons under load, again and again, and holds what is left
// against what the clients saw.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	for _, protocol := range []string{"A", "B", "C"} {
		for _, victim := range []string{"primary", "secondary", "both"} {
			t.Run(protocol+"-"+victim, func(t *testing.T) {
				t.Parallel()
				k := newKillTest(t, protocol)
				for round := range killRounds(t) {
					k.round(round, victim)
				}
			})
		}
	}
}

// killTest is a pair with a cable of some length between its nodes, so that
// bytes are on the way when somebody dies.
type killTest struct {
	*pair
	t        *testing.T
	protocol string
	cable    *cable.Cable
	led      *ledger.Ledger
	primary  *testNode
	other    *testNode
	size     uint64
}

func newKillTest(t *testing.T, protocol string) *killTest {
	p := newPair(t, shortTempDir(t))
	k := &killTest{pair: p, t: t, protocol: protocol, cable: cable.New(), primary: p.be1(), other: p.be2()}
	t.Cleanup(func() { _ = k.cable.Close() })
	k.layCable("32")
	for _, n := range []*testNode{p.be1(), p.be2()} {
		n.must("create-md", "r0")
		k.start(n)
	}
	p.be1().must("wait-connect", "--timeout", "15", "r0")
	p.be1().must("primary", "--force", "r0")
	p.settle()
	k.cable.SetLength(time.Millisecond)
	c := k.primary.dial()
	k.size = c.Size()
	k.led = newLedger(t, c, ledgerBlocks)
	k.primary.hangUp()
	return k
}

// layCable gives each node a disk of so many MiB and a configuration in which
// the other is at the cable's end.
func (k *killTest) layCable(size string) {
	if err := k.write(map[string]string{"PROTOCOL": k.protocol, "SIZE": size}); err != nil {
		k.t.Fatal(err)
	}
	for i, n := range []*testNode{k.be1(), k.be2()} {
		peer := 1 - i
		reached, err := k.cable.Plug(k.ports[peer])
		if err != nil {
			k.t.Fatal(err)
		}
		n.config = filepath.Join(k.dir, n.letter+".conf")
		text := k.configText(map[string]string{"ADDR" + strconv.Itoa(peer+1): reached})
		if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *killTest) start(n *testNode) {
	k.t.Helper()
	if err := n.start(); err != nil {
		k.t.Fatal(err)
	}
}

// round runs a load, kills, looks at what is left, and brings the pair back.
func (k *killTest) round(round int, victim string) {
	k.t.Helper()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	w := startWriter(k.primary.dial(), k.led, ledgerBlocks, seed)
	w.awaitFirst(k.t)
	time.Sleep(time.Duration(100+r.IntN(400)) * time.Millisecond)
	k.t.Logf("round %d, seed %d: killing %s, Primary is %s", round, seed, victim, k.primary.name)
	switch victim {
	case "primary":
		k.killPrimary(w, round%2 == 0)
	case "secondary":
		k.killSecondary(w)
	case "both":
		k.killBoth(w)
	}
	k.settle()
	k.sameDisks(k.primary, k.size)
	c := k.primary.dial()
	if err := k.led.Adopt(c); err != nil {
		k.t.Fatal(err)
	}
	k.primary.hangUp()
}

// killPrimary kills the Primary and promotes the other node, on which every
// completed write has to be as the protocol promises. With the cable cut first,
// what is on the way is lost; otherwise the kernel still sends what it has.
func (k *killTest) killPrimary(w *writer, cutFirst bool) {
	k.t.Helper()
	if cutFirst {
		k.cable.SetCut(true)
	}
	k.primary.kill()
	k.cable.SetCut(true)
	w.awaitFailure(k.t)
	k.primary.client.Abort()
	k.promote(k.other)
	k.check(k.other.dial(), k.protocol == "A")
	k.other.hangUp()
	k.cable.SetCut(false)
	k.start(k.primary)
	k.primary, k.other = k.other, k.primary
}

// promote promotes a node that has yet to notice that it is alone.
func (k *killTest) promote(n *testNode) {
	k.t.Helper()
	deadline := time.Now().Add(daemonPatience)
	for {
		_, stderr, code := n.run("primary", "r0")
		if code == 0 {
			return
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("%s cannot be promoted: %s\n%s", n.name, stderr, n.log())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// killSecondary kills the Secondary; the clients must hardly notice.
func (k *killTest) killSecondary(w *writer) {
	k.t.Helper()
	k.other.kill()
	if err := k.primary.await(waiting, "cstate", "r0"); err != nil {
		k.t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	k.start(k.other)
	k.other.must("wait-sync", "--timeout", "15", "r0")
	if err := w.stop(); err != nil {
		k.t.Fatalf("a client was failed: %v\n%s", err, k.primary.log())
	}
	k.check(k.primary.client, false)
	k.primary.hangUp()
}

// killBoth kills both at once; whoever is made Primary afterwards has to have
// what was promised.
func (k *killTest) killBoth(w *writer) {
	k.t.Helper()
	k.primary.kill()
	k.other.kill()
	w.awaitFailure(k.t)
	k.primary.client.Abort()
	k.start(k.other)
	k.start(k.primary)
	k.settle()
	k.primary.must("primary", "r0")
	k.check(k.primary.dial(), k.protocol != "C")
	k.primary.hangUp()
}

// check holds the device against the ledger. Where a tail may be lost, what is
// left must be closed under "completed before issued".
func (k *killTest) check(c *nbd.Client, mayLose bool) {
	k.t.Helper()
	f, err := k.led.Compare(c)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Logf("%+v", f)
	switch {
	case f.Completed == 0:
		k.t.Fatal("no write completed, so nothing was checked")
	case f.Foreign > 0:
		k.t.Fatalf("%d blocks hold what nobody wrote there; files in %s", f.Foreign, k.dir)
	case f.Disorder > 0:
		k.t.Fatalf("%d writes are there although an earlier one is lost; files in %s", f.Disorder, k.dir)
	case f.Lost > 0 && !mayLose:
		k.t.Fatalf("%d completed writes are lost, %d of them flushed; files in %s", f.Lost, f.LostSafe, k.dir)
	}
}
