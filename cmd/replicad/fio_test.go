package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"replicad/internal/cable"
	"replicad/internal/figure"
	"replicad/internal/reqtool"
)

// fioRounds is how often the link is cut, and how often the Secondary is
// killed, under fio.
const fioRounds = 5

// fioJob is one pass of fio over four connections, each with a range of its
// own. With randwrite: writes of 512 bytes to 1 MiB at random, a flush after every
// eighth, then every block read back and compared with what this pass wrote. (Its
// verify_only is of no use: fio 3.33 passes it whatever it reads.)
func fioJob(n *testNode, rw string, seed int) []string {
	return []string{
		"--name=pass", "--ioengine=nbd", "--uri=" + n.uri(), "--thread", "--numjobs=4", "--group_reporting",
		"--size=10m", "--offset_increment=10m", "--rw=" + rw, "--bsrange=512-1m", "--blockalign=512",
		"--iodepth=8", "--fsync=8", "--verify=crc32c", "--verify_fatal=1",
		fmt.Sprintf("--randseed=%d", seed+1),
	}
}

// TestFioUnderFaults: a client that is not ours writes and verifies through
// four connections while the link is cut and healed and the Secondary killed,
// five times each. It never sees an error, what it wrote is on the promoted
// peer, and the images are identical.
func TestFioUnderFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	t.Parallel()
	fio := reqtool.Path(t, "fio")
	p := newPair(t, shortTempDir(t))
	k := &killTest{pair: p, t: t, protocol: "C", cable: cable.New(), primary: p.be1(), other: p.be2()}
	t.Cleanup(func() { _ = k.cable.Close() })
	k.layCable("64")
	for _, n := range []*testNode{p.be1(), p.be2()} {
		n.must("create-md", "r0")
		k.start(n)
	}
	p.be1().must("wait-connect", "--timeout", "15", "r0")
	p.be1().must("primary", "--force", "r0")
	p.settle()

	done := make(chan struct{})
	passes := make(chan int, 1)
	go func() { passes <- fioPasses(t, fio, k.primary, done) }()
	for range fioRounds {
		k.cutAndHeal()
		k.killAndReturn()
	}
	close(done)
	n := <-passes
	if t.Failed() {
		t.Fatalf("files in %s\n%s", p.dir, k.primary.log())
	}
	figure.Print("fio-passes-under-faults", n)

	size := k.primary.dial().Size()
	k.primary.hangUp()
	awaitNoClient(t, k.primary)
	k.primary.must("secondary", "r0")
	k.other.must("primary", "r0")
	tool(t, fio, fioJob(k.other, "randread", 0)...) // checks every sector's checksum and place
	p.sameDisks(k.other, size)
}

// fioPasses runs one pass after the other until done, and returns how many
// there were.
func fioPasses(t *testing.T, fio string, n *testNode, done <-chan struct{}) (passes int) {
	for {
		select {
		case <-done:
			return passes
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		out, err := exec.CommandContext(ctx, fio, fioJob(n, "randwrite", passes)...).CombinedOutput()
		cancel()
		if err != nil || strings.Contains(string(out), "verify:") {
			t.Errorf("pass %d of fio: %v\n%s", passes, err, out)
			return passes
		}
		passes++
	}
}

// cutAndHeal cuts the link until the Primary has noticed, heals it and waits
// for the end of the resync.
func (k *killTest) cutAndHeal() {
	k.t.Helper()
	k.cable.SetCut(true)
	if err := k.primary.await(waiting, "cstate", "r0"); err != nil {
		k.t.Error(err)
	}
	time.Sleep(200 * time.Millisecond)
	k.cable.SetCut(false)
	k.settle()
}

// killAndReturn kills the Secondary, lets the Primary go on alone, and starts
// the Secondary again.
func (k *killTest) killAndReturn() {
	k.t.Helper()
	k.other.kill()
	if err := k.primary.await(waiting, "cstate", "r0"); err != nil {
		k.t.Error(err)
	}
	time.Sleep(200 * time.Millisecond)
	k.start(k.other)
	k.settle()
}
