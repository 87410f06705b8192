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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"replicad/internal/ctl"
	"replicad/internal/figure"
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
		reqtool.Missing(t, "fio", "it has no nbd engine")
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

// sameBlocksRounds is how often two connections meet, over all protocols.
const sameBlocksRounds = 51

// TestSameBlocks has two connections write the same blocks as fast as they
// can: both disks end up the same, whatever it is, fifty times and once more.
func TestSameBlocks(t *testing.T) {
	protocols := []string{"A", "B", "C"}
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			p := newSystem(t, map[string]string{"PROTOCOL": protocol})
			rounds := sameBlocksRounds / len(protocols)
			if testing.Short() {
				rounds = 2
			}
			for round := range rounds {
				sameBlocks(t, p, uint64(round), 250*time.Millisecond)
			}
			figure.Print("same-blocks-rounds", rounds)
		})
	}
}

// sameBlocks is one round: the load, then a look at both disks.
func sameBlocks(t *testing.T, p *pair, seed uint64, d time.Duration) {
	t.Helper()
	var both sync.WaitGroup
	for i := range uint64(2) {
		c, err := p.be1().open()
		if err != nil {
			t.Fatal(err)
		}
		both.Go(func() {
			defer func() { _ = c.Close() }()
			if err := hammer(c, 2*seed+i, d); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	size := p.be1().dial().Size()
	p.be1().hangUp()
	p.sameDisks(p.be1(), size)
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
	w.awaitFailure(t)
	if err := w.stop(); !errors.Is(err, nbd.ESHUTDOWN) && !strings.Contains(err.Error(), "closed") && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
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
