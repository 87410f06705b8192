package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"replicad/internal/figure"
	"replicad/nbd"
	"replicad/replica/disk"
	"replicad/replica/meta"
)

const (
	// memoryMiB is what a daemon may take beside the bitmap, which is 32 MiB per TiB.
	memoryMiB = 256
	bitmapMiB = 32
	// memoryLoad is how long each part of the load lasts.
	memoryLoad = 2 * time.Second
	// memoryBytes bounds what is written to each sparse image.
	memoryBytes = 600 << 20
)

// memory returns a figure of /proc/PID/status in KiB, such as VmHWM.
func (n *testNode) memory(t *testing.T, figure string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(figure + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in\n%s", figure, text)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// bombard keeps many requests of all sizes in flight on four connections,
// anywhere on the device, until the time or the bytes are used up.
func bombard(t *testing.T, n *testNode, d time.Duration, bytes int64) (aborted []*nbd.Client) {
	t.Helper()
	var all sync.WaitGroup
	deadline := time.Now().Add(d)
	for conn := range 4 {
		c, err := n.open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Abort)
		aborted = append(aborted, c)
		var mu sync.Mutex
		left := bytes / 4
		take := func(want int64) bool {
			mu.Lock()
			defer mu.Unlock()
			left -= want
			return left > 0
		}
		for task := range 16 {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(conn), uint64(task)))
				buf := make([]byte, 4<<20)
				for time.Now().Before(deadline) {
					size := int64(512) << rng.IntN(14)
					off := rng.Int64N((int64(c.Size())-size)/512) * 512
					if rng.IntN(3) == 0 {
						_, _ = c.ReadAt(buf[:size], off)
					} else if take(size) {
						_, _ = c.WriteAt(buf[:size], off)
					}
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d + 2*time.Second): // with a peer that is stuck, writes wait
	}
	return aborted
}

// skipInitialSync says on disk what is true of two new sparse files: they hold
// the same zeroes. A first resync of a whole TiB would take hours.
func skipInitialSync(image string) error {
	d, err := disk.Open(image, disk.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	s, err := meta.Open(d, d, meta.Placement{Kind: meta.Internal})
	if err != nil {
		return err
	}
	if _, err := s.ApplyAL(); err != nil {
		return err
	}
	pages := make([]meta.Page, s.Layout().BitmapPages())
	empty := make([]byte, 4096)
	for i := range pages {
		pages[i] = meta.Page{Number: i, Data: empty}
	}
	super := s.Super()
	super.Current = 0x123456789ABCDEF0
	super.Flags |= meta.FlagConsistent | meta.FlagWasUpToDate
	return errors.Join(s.WriteBitmapPages(pages), s.WriteSuper(&super))
}

// TestMemoryOneTiB: what a daemon takes is bounded, whatever clients ask for
// and however little the peer takes.
func TestMemoryOneTiB(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes several times the memory")
	}
	p := newPair(t, shortTempDir(t))
	net := "ko-count 0; ping-int 120;"
	if err := p.write(map[string]string{"SIZE": "1048576", "NET": net}); err != nil {
		t.Fatal(err)
	}
	p.edit("timeout 9; connect-int 1; ping-int 1;", "timeout 600; connect-int 60;")
	for _, n := range []*testNode{p.be1(), p.be2()} {
		n.must("create-md", "r0")
		if err := n.start(); err != nil { // the size becomes known
			t.Fatal(err)
		}
		if code, err := n.stop(); err != nil || code != 0 {
			t.Fatal(code, err)
		}
		if err := skipInitialSync(n.file("img")); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*testNode{p.be1(), p.be2()} {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	p.be1().must("wait-connect", "--timeout", "15", "r0")
	p.settle()
	p.be1().must("primary", "r0")
	check := func(when string, n *testNode) int {
		peak := n.memory(t, "VmHWM") / 1024
		t.Logf("%s: %s took %d MiB at most, %d MiB now", when, n.name, peak, n.memory(t, "VmRSS")/1024)
		if peak > memoryMiB+bitmapMiB {
			t.Errorf("%s: %s took %d MiB, the limit is %d", when, n.name, peak, memoryMiB+bitmapMiB)
		}
		return peak
	}
	for _, c := range bombard(t, p.be1(), memoryLoad, memoryBytes) {
		c.Abort()
	}
	peak := max(check("under load", p.be1()), check("under load", p.be2()))
	peer := p.be2().cmd.Process
	if err := peer.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Signal(syscall.SIGCONT) })
	bombard(t, p.be1(), memoryLoad, memoryBytes)
	if err := p.be1().await(regexp.MustCompile(`^Connected\n`), "cstate", "r0"); err != nil {
		t.Error(err)
	}
	figure.Print("rss-mib-1tib-max", max(peak, check("with a stuck peer", p.be1())))
}

// cpu returns the time the daemon has used, in ticks of 10 ms.
func (n *testNode) cpu(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, err := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return user + system
}
