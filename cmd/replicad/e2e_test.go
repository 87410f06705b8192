package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"replicad/internal/cable"
	"replicad/internal/ctl"
	"replicad/internal/ledger"
	"replicad/internal/reqtool"
	"replicad/nbd"
)

// Whole systems: two daemons that are processes, real clients, real kills.

var (
	connected = regexp.MustCompile(`cs:Connected ro:\S+ ds:UpToDate/UpToDate`)
	waiting   = regexp.MustCompile(`^WFConnection\n$`)
)

// newSystem makes a pair that is Connected, UpToDate/UpToDate, with be1 Primary.
func newSystem(t *testing.T, vars map[string]string) *pair {
	t.Helper()
	p := newPair(t, shortTempDir(t))
	if err := p.write(vars); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*testNode{p.be1(), p.be2()} {
		n.must("create-md", "r0")
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	p.be1().must("wait-connect", "--timeout", "15", "r0")
	p.be1().must("primary", "--force", "r0")
	p.settle()
	return p
}

// shortTempDir is TempDir with a path short enough for unix sockets.
func shortTempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "rd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			_ = os.RemoveAll(dir)
		}
	})
	return dir
}

// settle waits until both nodes are UpToDate and connected.
func (p *pair) settle() {
	p.t.Helper()
	for _, n := range []*testNode{p.be1(), p.be2()} {
		if err := n.await(connected, "status"); err != nil {
			p.t.Fatal(err)
		}
	}
}

// client opens the device of a node for the rest of the test.
func (n *testNode) dial() *nbd.Client {
	n.p.t.Helper()
	c, err := n.open()
	if err != nil {
		n.p.t.Fatal(err)
	}
	n.client = c
	return c
}

// hangUp closes the node's client.
func (n *testNode) hangUp() {
	n.p.t.Helper()
	if err := n.client.Close(); err != nil {
		n.p.t.Fatal(err)
	}
	n.client = nil
}

// sameDisks demotes the Primary, which drains and flushes both nodes under
// every protocol, compares the data areas of the disks, and promotes it again.
func (p *pair) sameDisks(primary *testNode, size uint64) {
	p.t.Helper()
	awaitNoClient(p.t, primary)
	primary.must("secondary", "r0")
	if a, b := p.diskSum(p.be1(), size), p.diskSum(p.be2(), size); a != b {
		p.t.Fatalf("the disks differ; the files are in %s", p.dir)
	}
	primary.must("primary", "r0")
}

func (p *pair) diskSum(n *testNode, size uint64) [32]byte {
	p.t.Helper()
	f, err := os.Open(n.file("img"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.CopyN(h, f, int64(size)); err != nil {
		p.t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// TestPairByHand is the first hour: an ext4 image goes onto the Primary with
// qemu-img and comes back from the promoted Secondary with nbdcopy.
func TestPairByHand(t *testing.T) {
	qemuImg, nbdcopy, nbdinfo := reqtool.Path(t, "qemu-img"), reqtool.Path(t, "nbdcopy"), reqtool.Path(t, "nbdinfo")
	mkfs := reqtool.Path(t, "mkfs.ext4")
	p := newSystem(t, map[string]string{"SIZE": "64"})
	image, back := filepath.Join(p.dir, "some.ext4"), filepath.Join(p.dir, "back.img")
	if err := truncate(image, 60<<20); err != nil {
		t.Fatal(err)
	}
	tool(t, mkfs, "-q", "-F", "-d", "testdata", image)
	tool(t, qemuImg, "convert", "-n", "-f", "raw", "-O", "raw", image, p.be1().uri())
	if info := tool(t, nbdinfo, "--json", p.be1().uri()); !strings.Contains(info, `"can_flush": true`) || !strings.Contains(info, `"can_fua": true`) {
		t.Errorf("nbdinfo does not see flush and FUA: %s", info)
	}
	awaitNoClient(t, p.be1())
	p.be1().must("secondary", "r0")
	p.be2().must("primary", "r0")
	tool(t, nbdcopy, p.be2().uri(), back)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:len(want)], want) {
		t.Fatal("what nbdcopy read from the promoted Secondary is not what qemu-img wrote to the Primary")
	}
	p.sameDisks(p.be2(), uint64(len(got)))
}

// tool runs an outside program that has to succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	text, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(name), err, text)
	}
	return string(text)
}

// awaitNoClient waits until a client that has left is gone for the daemon too.
func awaitNoClient(t testing.TB, n *testNode) {
	t.Helper()
	deadline := time.Now().Add(daemonPatience)
	for {
		r, err := ctl.NewClient(n.file("ctl")).Resource(t.Context(), "r0")
		if err != nil {
			t.Fatal(err)
		}
		if r.Volumes[0].Openers == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d clients are still there", n.name, r.Volumes[0].Openers)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestQemuIO checks patterns, zeroes and trims through qemu's client.
func TestQemuIO(t *testing.T) {
	qemuIO := reqtool.Path(t, "qemu-io")
	p := newSystem(t, nil)
	out := tool(t, qemuIO, "-f", "raw", "-d", "unmap", p.be1().uri(),
		"-c", "write -P 0xaa 0 1M", "-c", "write -f -P 0xbb 1M 64k", "-c", "write -z 512k 64k", "-c", "discard 0 128k",
		"-c", "flush", "-c", "read -P 0xbb 1M 64k", "-c", "read -P 0 512k 64k", "-c", "read -P 0xaa 256k 256k", "-c", "read -P 0 0 128k")
	if strings.Contains(out, "failed") {
		t.Fatalf("qemu-io: %s", out)
	}
	size := p.be1().dial().Size()
	p.be1().hangUp()
	p.sameDisks(p.be1(), size)
}

// TestFioVerify has fio write and verify at queue depth through several connections.
func TestFioVerify(t *testing.T) {
	fio := reqtool.Path(t, "fio")
	if help, err := exec.Command(fio, "--enghelp").CombinedOutput(); err != nil || !strings.Contains(string(help), "nbd") {
		t.Skip("fio has no nbd engine here")
	}
	p := newSystem(t, nil)
	out := tool(t, fio, "--name=verify", "--ioengine=nbd", "--uri="+p.be1().uri(), "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0",
		"--blockalign=512", "--iodepth=16", "--size=16M", "--verify=crc32c", "--do_verify=1", "--fsync=64")
	if strings.Contains(out, "verify: bad") {
		t.Fatalf("fio: %s", out)
	}
	awaitNoClient(t, p.be1())
	size := p.be1().dial().Size()
	p.be1().hangUp()
	p.sameDisks(p.be1(), size)
}

// TestSameBlocks has two connections write the same blocks as fast as they
// can: both disks end up the same, whatever it is.
func TestSameBlocks(t *testing.T) {
	for _, protocol := range []string{"A", "B", "C"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			p := newSystem(t, map[string]string{"PROTOCOL": protocol})
			var both sync.WaitGroup
			for i := range 2 {
				c, err := p.be1().open()
				if err != nil {
					t.Fatal(err)
				}
				both.Go(func() {
					defer func() { _ = c.Close() }()
					if err := hammer(c, uint64(i), 2*time.Second); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			size := p.be1().dial().Size()
			p.be1().hangUp()
			p.sameDisks(p.be1(), size)
		})
	}
}

// hammer keeps 16 writes to a few blocks in flight.
func hammer(c *nbd.Client, seed uint64, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var all sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			buf := make([]byte, 16<<10)
			for ctx.Err() == nil && errs[i] == nil {
				n := 512 * (1 + r.IntN(len(buf)/512))
				fill(buf[:n], r)
				_, errs[i] = c.WriteAt(buf[:n], 512*r.Int64N(64))
			}
		})
	}
	all.Wait()
	return errors.Join(append(errs, c.Flush())...)
}

func fill(p []byte, r *rand.Rand) {
	for i := 0; i+8 <= len(p); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
}

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
	w := &writer{c: c, led: led, blocks: blocks}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	for task := range int64(writerTasks) {
		w.wg.Go(func() {
			if err := w.write(ctx, task, rand.New(rand.NewPCG(seed, uint64(task)))); err != nil {
				w.mu.Lock()
				w.err = err
				w.mu.Unlock()
			}
		})
	}
	return w
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
	k.layCable()
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

// layCable gives each node a configuration in which the other is at the
// cable's end.
func (k *killTest) layCable() {
	if err := k.write(map[string]string{"PROTOCOL": k.protocol}); err != nil {
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
	if err := w.stop(); err == nil {
		k.t.Fatal("the clients did not notice")
	}
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
	if err := w.stop(); err == nil {
		k.t.Fatal("the clients did not notice")
	}
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

// TestStopWithClients ends a daemon that has clients under way: they are told
// ESHUTDOWN, everything that completed is there, and the exit code is 0.
func TestStopWithClients(t *testing.T) {
	p := newSystem(t, nil)
	c := p.be1().dial()
	led := newLedger(t, c, ledgerBlocks)
	w := startWriter(c, led, ledgerBlocks, 1)
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	code, err := p.be1().stop()
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v\n%s", code, err, p.be1().log())
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("stopping took %s", d)
	}
	if err := w.stop(); err == nil {
		t.Error("the client was not told")
	} else if !errors.Is(err, nbd.ESHUTDOWN) && !strings.Contains(err.Error(), "closed") && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the client was told %v", err)
	}
	p.be1().client.Abort()
	p.be2().must("primary", "r0")
	f, err := led.Compare(p.be2().dial())
	if err != nil {
		t.Fatal(err)
	}
	if f.Lost != 0 || f.Foreign != 0 || f.Completed == 0 {
		t.Errorf("after an orderly stop: %+v", f)
	}
}

// TestDemoWords makes sure that the demo's command line is taken.
func TestDemoWords(t *testing.T) {
	out, err := exec.Command("replicad", "demo", "--size", "1M").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "size must be between") {
		t.Errorf("demo --size 1M: %v: %s", err, out)
	}
}

// TestDemo has the demo tell its story.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	began := time.Now()
	out := tool(t, "replicad", "demo", "--size", "48M")
	if d := time.Since(began); d > time.Minute {
		t.Errorf("the demo took %s", d)
	}
	for _, want := range []string{"None was lost.", "e2fsck -fy ends clean", "are lost: the price of not waiting", "everything was as told", "sync'ed:"} {
		if !strings.Contains(out, want) && (want != "e2fsck -fy ends clean" || hasTool("e2fsck")) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
}

func hasTool(name string) bool {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// TestDemoInterrupted makes sure that an impatient user leaves no daemon behind.
func TestDemoInterrupted(t *testing.T) {
	dir := shortTempDir(t)
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		work := filepath.Join(dir, how.String())
		cmd := exec.Command("replicad", "demo", "--size", "32M", "--dir", work)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(work, "b.ctl")
		awaitThat(t, "the demo's daemons run", func() bool {
			_, err := ctl.NewClient(socket).Daemon(t.Context())
			return err == nil
		})
		if err := cmd.Process.Signal(how); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("an interrupted demo ended as if all were well")
		}
		for _, name := range []string{"a.ctl", "b.ctl"} {
			awaitThat(t, name+" is silent", func() bool {
				_, err := ctl.NewClient(filepath.Join(work, name)).Daemon(t.Context())
				return errors.Is(err, ctl.ErrNoDaemon)
			})
		}
	}
}

func awaitThat(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(daemonPatience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never comes true that %s", what)
		}
	}
}

// TestSecondSignal ends a daemon that takes its time to shut down.
func TestSecondSignal(t *testing.T) {
	p := newSystem(t, nil)
	// A peer that hangs makes the orderly way long.
	if err := p.be2().cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.be2().cmd.Process.Signal(syscall.SIGCONT) })
	c := p.be1().dial()
	go func() { _, _ = c.WriteAt(make([]byte, 4096), 0) }()
	time.Sleep(50 * time.Millisecond)
	n := p.be1()
	for range 2 {
		if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	select {
	case <-n.exited:
	case <-time.After(5 * time.Second):
		t.Fatal("the second signal was ignored")
	}
	if code := n.cmd.ProcessState.ExitCode(); code == 0 {
		t.Error("a daemon that was cut short ended with 0")
	}
	n.cmd = nil
}
