package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/meta"
)

const (
	testSize = 24 << 20
	patience = 20 * time.Second
)

// testNode is one node of a pair on this machine.
type testNode struct {
	*Resource
	t     testing.TB
	name  string
	image string
	cfg   Config
	fault *faultyDevice // what Attach opened last
}

// faultyDevice fails operations on demand.
type faultyDevice struct {
	disk.Device
	mu                sync.Mutex
	read, write, sync error
	stalled           chan struct{} // until it is closed, operations wait
	arrived           chan struct{} // gets a token for each operation that waits
}

// stall makes reads and writes wait until resume is called.
func (f *faultyDevice) stall() (arrived <-chan struct{}, resume func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stalled := make(chan struct{})
	f.stalled, f.arrived = stalled, make(chan struct{}, 1000)
	return f.arrived, sync.OnceFunc(func() {
		f.mu.Lock()
		f.stalled = nil
		f.mu.Unlock()
		close(stalled)
	})
}

func (f *faultyDevice) wait() {
	f.mu.Lock()
	stalled, arrived := f.stalled, f.arrived
	f.mu.Unlock()
	if stalled != nil {
		arrived <- struct{}{}
		<-stalled
	}
}

func (f *faultyDevice) set(read, write, sync error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read, f.write, f.sync = read, write, sync
}

func (f *faultyDevice) errs() (read, write, sync error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read, f.write, f.sync
}

func (f *faultyDevice) ReadAt(p []byte, off int64) (int, error) {
	f.wait()
	if err, _, _ := f.errs(); err != nil {
		return 0, err
	}
	return f.Device.ReadAt(p, off)
}

func (f *faultyDevice) WriteAt(p []byte, off int64) (int, error) {
	f.wait()
	if _, err, _ := f.errs(); err != nil {
		return 0, err
	}
	return f.Device.WriteAt(p, off)
}

func (f *faultyDevice) WriteDurable(p []byte, off int64) (int, error) {
	if _, err, _ := f.errs(); err != nil {
		return 0, err
	}
	return f.Device.WriteDurable(p, off)
}

func (f *faultyDevice) WriteZeroes(off, n int64, noHole bool) error {
	f.wait()
	if _, err, _ := f.errs(); err != nil {
		return err
	}
	return f.Device.WriteZeroes(off, n, noHole)
}

func (f *faultyDevice) Sync() error {
	if _, _, err := f.errs(); err != nil {
		return err
	}
	return f.Device.Sync()
}

// freeAddr returns a loopback address nobody listens on.
func freeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func makeImage(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	f, err := disk.Open(path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := meta.Create(f, meta.Placement{Kind: meta.Internal}, meta.CreateOptions{Confirmed: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// testConfig is a configuration of fast timers for one volume.
func testConfig(name, image string, protocol byte) Config {
	cfg := Config{Resource: "r0", Node: name, Core: core.Config{Net: core.Defaults()}}
	cfg.Core.Net.Protocol = protocol
	cfg.Core.Net.PingInt = core.Duration(time.Second)
	vol := core.DefaultVolume(0)
	vol.CPlanAhead, vol.ResyncRate = 0, 1<<30
	cfg.Core.Volumes = []core.VolumeConfig{vol}
	cfg.Volumes = []VolumeConfig{{Vol: 0, Minor: 0, Device: "/dev/nbd0", Disk: image}}
	cfg.Link = LinkConfig{PeerName: "peer", Secret: "s3cret", ConnectInterval: 100 * time.Millisecond, WriteTimeout: 5 * time.Second}
	return cfg
}

// testLog sends a node's log to the test's.
func testLog(t testing.TB, name string) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

func newNode(t testing.TB, name string, cfg Config) *testNode {
	t.Helper()
	cfg.Log = testLog(t, name)
	n := &testNode{t: t, name: name, image: cfg.Volumes[0].Disk, cfg: cfg}
	n.start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.Close(ctx); err != nil && !errors.Is(err, ErrClosed) {
			t.Logf("%s: close: %v", name, err)
		}
	})
	return n
}

// start makes the node's resource, with a device that can be made to fail.
func (n *testNode) start() {
	n.t.Helper()
	r, err := New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	r.abort = func() {} // the panic that follows ends the test binary with its stack
	r.open = func(path string, opts disk.Options) (disk.Device, error) {
		d, err := openFile(path, opts)
		if err != nil {
			return nil, err
		}
		n.fault = &faultyDevice{Device: d}
		return n.fault, nil
	}
	n.Resource = r
}

func newPair(t testing.TB, protocol byte) (a, b *testNode) {
	t.Helper()
	dir := t.TempDir()
	addrA, addrB := freeAddr(t), freeAddr(t)
	cfgA := testConfig("a", filepath.Join(dir, "a.img"), protocol)
	cfgB := testConfig("b", filepath.Join(dir, "b.img"), protocol)
	cfgA.Link.Local, cfgA.Link.Peer = addrA, addrB
	cfgB.Link.Local, cfgB.Link.Peer = addrB, addrA
	makeImage(t, cfgA.Volumes[0].Disk, testSize)
	makeImage(t, cfgB.Volumes[0].Disk, testSize)
	return newNode(t, "a", cfgA), newNode(t, "b", cfgB)
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (n *testNode) must(what string, err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.name, what, err, n.state())
	}
}

func (n *testNode) attach() {
	n.t.Helper()
	_, err := n.Attach(testCtx(n.t), 0)
	n.must("attach", err)
}

func (n *testNode) connect() {
	n.t.Helper()
	n.must("connect", n.Connect(testCtx(n.t), ConnectOptions{}))
}

func (n *testNode) up() {
	n.t.Helper()
	n.attach()
	n.connect()
}

func (n *testNode) state() string {
	s := n.Status()
	v := s.Volumes[0]
	return fmt.Sprintf("%s: %v oos:%d", n.name, v.State, v.OutOfSync)
}

// await waits until the node's state satisfies ok.
func (n *testNode) await(what string, ok func(core.State) bool) {
	n.t.Helper()
	err := n.waitFor(testCtx(n.t), func(s *core.Status) (bool, error) { return ok(s.Volumes[0].State), nil })
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.name, what, err, n.state())
	}
}

func connected(s core.State) bool { return s.Conn == core.Connected }

func inSync(s core.State) bool {
	return s.Conn == core.Connected && s.Disk == core.UpToDate && s.PDisk == core.UpToDate
}

// newSyncedPair is a pair after its initial sync, with a Primary.
func newSyncedPair(t testing.TB, protocol byte) (a, b *testNode) {
	t.Helper()
	a, b = newPair(t, protocol)
	a.up()
	b.up()
	a.await("connect", connected)
	a.must("primary --force", a.Primary(testCtx(t), true))
	a.await("initial sync", inSync)
	b.await("initial sync", inSync)
	return a, b
}

// waiter is a Completer for one request at a time.
type waiter struct{ c chan core.IOResult }

func newWaiter() *waiter { return &waiter{make(chan core.IOResult, 1)} }

func (w *waiter) Complete(result core.IOResult) { w.c <- result }

// client is a synchronous client on a handle.
type client struct {
	t testing.TB
	h *Handle
	w *waiter
}

func (n *testNode) client() *client {
	n.t.Helper()
	h, err := n.Volume(0).Open()
	n.must("open", err)
	return &client{t: n.t, h: h, w: newWaiter()}
}

func (c *client) do(io IO) core.IOResult {
	c.t.Helper()
	io.Done = c.w
	c.h.Submit(io)
	c.h.Drain()
	select {
	case r := <-c.w.c:
		return r
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		c.t.Fatalf("request %+v not answered\n%s\n%s", io.Op, stateOf(c.h.v.r), buf[:runtime.Stack(buf, true)])
		return 0
	}
}

func stateOf(r *Resource) string {
	s := r.Status()
	return fmt.Sprintf("%v %+v", s.Volumes[0].State, s.Volumes[0].Counters)
}

func (c *client) ok(io IO) {
	c.t.Helper()
	if r := c.do(io); r != core.IOOK {
		c.t.Fatalf("op %d at %d+%d: result %d (%s)", io.Op, io.Off, io.Len, r, stateOf(c.h.v.r))
	}
}

func (c *client) write(off uint64, data []byte) {
	c.t.Helper()
	c.ok(IO{Op: OpWrite, Off: off, Len: uint32(len(data)), Data: data})
}

func (c *client) read(off uint64, n int) []byte {
	c.t.Helper()
	p := disk.AlignedBuffer(n, 4096)
	c.ok(IO{Op: OpRead, Off: off, Len: uint32(n), Data: p})
	return p
}

func (c *client) flush() {
	c.t.Helper()
	c.ok(IO{Op: OpFlush})
}

// pattern is n bytes that differ by seed and by sector.
func pattern(seed byte, n int) []byte {
	p := disk.AlignedBuffer(n, 4096)
	for i := range p {
		p[i] = seed ^ byte(i) ^ byte(i>>9)*31
	}
	return p
}

// sameData compares the data areas of both images.
func sameData(t testing.TB, a, b *testNode) {
	t.Helper()
	size := a.Volume(0).Size()
	if size == 0 {
		t.Fatal("volume has no size")
	}
	x, y := readImage(t, a.image, size), readImage(t, b.image, size)
	if bytes.Equal(x, y) {
		return
	}
	differ := 0
	first := -1
	for off := 0; off < len(x); off += 512 {
		if !bytes.Equal(x[off:off+512], y[off:off+512]) {
			if first < 0 {
				first = off
			}
			differ++
		}
	}
	t.Fatalf("images differ in %d sectors, the first at %d\n%s\n%s", differ, first, a.state(), b.state())
}

func readImage(t testing.TB, path string, size uint64) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// cut breaks the current session as a dying network does.
func (n *testNode) cut() {
	n.t.Helper()
	if s := n.line.current.Load(); s != nil {
		s.link.Close(errors.New("cut by the test"))
	}
}

// noLeaks fails the test if goroutines of this module outlive f.
func noLeaks(t testing.TB, f func()) {
	t.Helper()
	f()
	buf := make([]byte, 1<<20)
	deadline := time.Now().Add(5 * time.Second)
	for {
		stacks := string(buf[:runtime.Stack(buf, true)])
		left := leaked(stacks)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines left:\n%s", len(left), strings.Join(left, "\n\n"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// leaked picks the goroutines that run this module's code, except tests.
func leaked(stacks string) (left []string) {
	for g := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(g, "replicad/") && !strings.Contains(g, "testing.tRunner") {
			left = append(left, g)
		}
	}
	return left
}
