package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
)

// TestHandlersRunInOrderWithDRBDsEnvironment: one after the other, although the
// first is the slower.
func TestHandlersRunInOrderWithDRBDsEnvironment(t *testing.T) {
	_, b := newPair(t, 'C')
	log := filepath.Join(t.TempDir(), "log")
	cfg := b.cfg
	cfg.ConfigPath = "/etc/replicad.conf"
	cfg.Handlers = map[string]string{
		"split-brain": `sleep 0.1; echo "$DRBD_RESOURCE $DRBD_MINOR $DRBD_VOLUME $DRBD_PEER_AF $DRBD_PEER_ADDRESS $DRBD_PEER $DRBD_CONF" >>` + log,
		"pri-lost":    "echo after >>" + log,
	}
	b.must("reconfigure", b.Reconfigure(testCtx(t), cfg))
	sub := b.Subscribe(100)
	defer sub.Close()
	w := batch{r: b.Resource}
	b.mu.Lock()
	for _, name := range []string{"split-brain", "fence-peer", "pri-lost"} {
		w.startHandler(&core.Action{Kind: core.ActHandler, Vol: -1, Name: name})
	}
	b.mu.Unlock()
	helpers := collectHelpers(t, sub, 4)
	if got := strings.Join(helpers, " "); got != "split-brain pri-lost split-brain=0 pri-lost=0" {
		t.Errorf("helpers: %s", got)
	}
	want := "r0 0 0 ipv4 127.0.0.1 peer /etc/replicad.conf\nafter\n"
	if got, err := os.ReadFile(log); err != nil || string(got) != want {
		t.Errorf("handlers wrote %q (%v), want %q", got, err, want)
	}
}

// TestHandlersAreOrdinaryVictims: a handler does not inherit the daemon's
// protection from the out-of-memory killer.
func TestHandlersAreOrdinaryVictims(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	score := fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid)
	if err := os.WriteFile(score, []byte("500"), 0); err != nil { // any score but 0, which needs no privilege
		t.Fatal(err)
	}
	ordinaryVictim(cmd.Process.Pid)
	if text, err := os.ReadFile(score); err != nil || string(text) != "0\n" {
		t.Errorf("score %q (%v)", text, err)
	}
}

// TestHandlerNotConfiguredSucceeds: the core must not wait for nothing.
func TestHandlerNotConfiguredSucceeds(t *testing.T) {
	a, _ := newPair(t, 'C')
	w := batch{r: a.Resource}
	a.mu.Lock()
	w.startHandler(&core.Action{Kind: core.ActHandler, Vol: 0, Op: 7, Name: "fence-peer", Wait: true})
	a.mu.Unlock()
	if len(w.events) != 1 || w.events[0].Kind != core.EvHandlerDone || w.events[0].Op != 7 || w.events[0].Code != 0 {
		t.Errorf("events %+v", w.events)
	}
}

func collectHelpers(t *testing.T, sub *Subscription, n int) (helpers []string) {
	t.Helper()
	for len(helpers) < n {
		select {
		case c := <-sub.C:
			switch {
			case c.Helper == "":
			case c.Answered && c.Code != 0:
				t.Fatalf("handler %s ended with %d", c.Helper, c.Code)
			case c.Answered:
				helpers = append(helpers, c.Helper+"=0")
			default:
				helpers = append(helpers, c.Helper)
			}
		case <-time.After(patience):
			t.Fatalf("only %v", helpers)
		}
	}
	return helpers
}

func TestHandlerExitCodes(t *testing.T) {
	a, _ := newPair(t, 'C')
	for command, want := range map[string]int{
		"exit 0": 0, "exit 5": 5, "exit 7": 7, "kill -9 $$": handlerBroken, "/does/not/exist": 127,
	} {
		if got := a.runHandler(&handlerCall{command: command, env: []string{"PATH=" + handlerPath()}}); got != want {
			t.Errorf("%q ends with %d, want %d", command, got, want)
		}
	}
}

// TestCloseKillsAHandlerThatHangs also covers its children.
func TestCloseKillsAHandlerThatHangs(t *testing.T) {
	noLeaks(t, func() {
		a, b := newPair(t, 'C')
		for _, n := range []*testNode{a, b} {
			cfg := n.cfg
			cfg.Handlers = map[string]string{"split-brain": "sleep 1000; echo over"}
			n.must("reconfigure", n.Reconfigure(testCtx(t), cfg))
			n.mu.Lock()
			(&batch{r: n.Resource}).startHandler(&core.Action{Kind: core.ActHandler, Vol: -1, Name: "split-brain"})
			n.mu.Unlock()
		}
		time.Sleep(50 * time.Millisecond)
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		for _, n := range []*testNode{b, a} {
			if err := n.Close(ctx); err != nil {
				t.Logf("%s: close: %v", n.name, err)
			}
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("close took %v", d)
		}
	})
}

// TestProgressOfASlowResync looks at the status while a resync runs.
func TestProgressOfASlowResync(t *testing.T) {
	a, b := newPair(t, 'C')
	for _, n := range []*testNode{a, b} {
		cfg := n.cfg
		cfg.Core.Volumes = []core.VolumeConfig{cfg.Core.Volumes[0]}
		cfg.Core.Volumes[0].ResyncRate = 4 << 20
		n.must("reconfigure", n.Reconfigure(testCtx(t), cfg))
		n.up()
	}
	a.await("connect", connected)
	a.must("primary --force", a.Primary(testCtx(t), true))
	for _, n := range []*testNode{a, b} {
		n.await("resync", func(s core.State) bool { return s.Conn == core.SyncSource || s.Conn == core.SyncTarget })
	}
	time.Sleep(1200 * time.Millisecond)
	for _, n := range []*testNode{a, b} {
		v := n.Status().Volumes[0]
		p := v.Sync
		if p == nil {
			t.Fatalf("no progress: %s", n.state())
		}
		if p.Total != v.Size/4096 || p.Left == 0 || p.Left >= p.Total || p.Active < time.Second || p.Far.Left != p.Total {
			t.Errorf("%s: progress %+v", n.name, p)
		}
		if done := (p.Total - p.Left) * 4096; done > 12<<20 {
			t.Errorf("%s: %d bytes in %v are faster than 4 MiB/s", n.name, done, p.Active)
		}
	}
	if err := a.WaitSync(testCtx(t), 0); err != nil {
		t.Fatal(err)
	}
	if a.Status().Volumes[0].Sync != nil {
		t.Error("progress after the end of the resync")
	}
}

// TestTightPayloadBudget: the least memory, and every kind of traffic at once.
func TestTightPayloadBudget(t *testing.T) {
	a, b := newPair(t, 'C')
	for _, n := range []*testNode{a, b} {
		ctx := testCtx(t)
		n.must("close", n.Close(ctx))
		n.cfg.Limits = Limits{PayloadBytes: 1, Requests: 1, DiskWorkers: 1}
		n.start()
		n.up()
	}
	a.await("connect", connected)
	a.must("primary --force", a.Primary(testCtx(t), true))
	a.await("initial sync", inSync)
	c := a.client()
	defer c.h.Close()
	var wg sync.WaitGroup
	load := a.queueClient(16, 1<<20)
	wg.Go(func() {
		for i := range 200 {
			load.submit(IO{Op: OpWrite, Off: uint64(i%16) << 20, Len: 1 << 20}, nil)
		}
		load.finish(t)
	})
	b.must("invalidate", b.Invalidate(testCtx(t), 0))
	wg.Wait()
	b.await("resync", inSync)
	a.await("resync", inSync)
	a.must("detach", a.Detach(testCtx(t), 0, false))
	want := c.read(0, 20<<20)
	a.attach()
	a.await("resync", inSync)
	if got := c.read(0, 20<<20); !bytes.Equal(got, want) {
		t.Error("the peer's bytes differ from ours")
	}
	sameData(t, a, b)
	for _, n := range []*testNode{a, b} {
		if held := n.bufs.held; held > 2*payloadBytesMin {
			t.Errorf("%s holds %d bytes of payload buffers", n.name, held)
		}
	}
}

// TestBrokenInvariantEndsTheProcess: nothing is acknowledged any more, even if
// somebody recovers the panic.
func TestBrokenInvariantEndsTheProcess(t *testing.T) {
	a, _ := newPair(t, 'C')
	aborted := false
	a.abort = func() { aborted = true }
	b := batch{r: a.Resource}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		// A completion of an operation that does not exist.
		b.add(core.Event{Kind: core.EvDiskDone, Op: 1 << 20})
		b.run()
	}()
	if !aborted {
		t.Error("the process would have gone on")
	}
	if a.mu.TryLock() {
		t.Error("the lock was released with a broken core behind it")
	}
	a.mu.Unlock() // for the cleanup
}

func TestAttachFailures(t *testing.T) {
	a, b := newPair(t, 'C')
	check := func(n *testNode, err error, code FailureCode) {
		t.Helper()
		f, ok := errors.AsType[*Failure](err)
		if !ok || f.Code != code || f.Code.Text() == "" || f.ExitCode() != 10 {
			t.Errorf("%v, want failure %d", err, code)
		}
	}
	_, err := a.Attach(testCtx(t), 7)
	check(a, err, FailMinorUnknown)
	a.attach()
	_, err = a.Attach(testCtx(t), 0)
	check(a, err, FailAttached)

	reattach := func(path string) error {
		cfg := b.cfg
		cfg.Volumes = []VolumeConfig{cfg.Volumes[0]}
		cfg.Volumes[0].Disk = path
		b.must("reconfigure", b.Reconfigure(testCtx(t), cfg))
		_, err := b.Attach(testCtx(t), 0)
		return err
	}
	check(b, reattach(a.image), FailDiskClaimed)
	check(b, reattach(a.image+".none"), FailOpenDisk)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	check(b, reattach(empty), FailMetaInvalid)
	if err := os.Truncate(b.image, testSize+4096); err != nil {
		t.Fatal(err)
	}
	check(b, reattach(b.image), FailMetaInvalid) // grown: the metadata is not at the end
	if err := os.Truncate(b.image, testSize); err != nil {
		t.Fatal(err)
	}
	b.must("attach at last", reattach(b.image))
	// A refused attach leaves the disk free for others.
	a.must("detach", a.Detach(testCtx(t), 0, false))
	d, err := disk.Open(a.image, disk.Options{})
	if err != nil {
		t.Fatalf("the disk is still held after detach: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// slowLog is a log that stands still until it is released.
type slowLog struct{ release chan struct{} }

// Write implements io.Writer.
func (l slowLog) Write(p []byte) (int, error) {
	<-l.release
	return len(p), nil
}

// TestASlowLogHoldsUpNothing: connecting, syncing and writing go on while the
// log takes nothing.
func TestASlowLogHoldsUpNothing(t *testing.T) {
	a, _ := newPair(t, 'C')
	l := slowLog{make(chan struct{})}
	defer close(l.release)
	a.Resource.log = slog.New(slog.NewTextHandler(l, nil))
	// Only the core's lines; the link's supervisor reports by itself.
	a.attach()
	a.must("primary --force", a.Primary(testCtx(t), true))
	c := a.client()
	for i := range 100 {
		c.write(uint64(i)*4096, pattern(byte(i), 4096))
	}
	c.h.Close()
	a.mu.Lock()
	for range 2 * logLinesMax {
		a.logs.push(&core.Action{Text: "line"})
	}
	n, dropped := len(a.logs.lines), a.logs.dropped
	a.mu.Unlock()
	if n > logLinesMax || dropped == 0 {
		t.Errorf("%d lines wait, %d were dropped", n, dropped)
	}
}
