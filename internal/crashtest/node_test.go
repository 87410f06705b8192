package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/disk/disktest"
	"replicad/replica/meta"
)

const (
	deviceBytes = 12 << 20 // three extents of the activity log
	metaBytes   = 4 << 20
	patience    = 30 * time.Second
)

// knobs are what differs between rounds beside the course of events.
type knobs struct {
	protocol   byte
	direct     bool // a block device: operations are done by workers
	external   bool // metadata on a disk of its own
	slots      int  // of the activity log
	barrierAge time.Duration
	barrier    uint64 // bytes
	depth      uint64 // of a resync
	slow       int    // of a hundred disk operations so many take a while
	silent     bool   // a death is noticed by timeout
}

func drawKnobs(rng *rand.Rand, protocol byte) knobs {
	return knobs{
		protocol: protocol, direct: rng.IntN(3) == 0, external: rng.IntN(3) == 0, slots: 2 + rng.IntN(2),
		barrierAge: []time.Duration{5 * time.Millisecond, 50 * time.Millisecond, time.Second}[rng.IntN(3)],
		barrier:    []uint64{64 << 10, 1 << 20, 32 << 20}[rng.IntN(3)],
		depth:      []uint64{512 << 10, 1 << 20, 8 << 20}[rng.IntN(3)],
		slow:       []int{0, 10, 50}[rng.IntN(3)],
		silent:     rng.IntN(8) == 0,
	}
}

// node is one machine of a pair, with the resource that runs on it now.
type node struct {
	*replica.Resource
	t       testing.TB
	id      int
	name    string
	knobs   knobs
	cfg     replica.Config
	machine *disktest.Machine
	data    *disktest.Mem
	meta    *disktest.Mem // nil when internal
	net     *network
	log     *tail
}

// tail keeps the last of a node's log. What is an error is shown at once: a
// broken invariant ends the process.
type tail struct {
	mu    sync.Mutex
	begin time.Time
	lines []string
}

const tailLines = 150

func (l *tail) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("invariant broken")) {
		_, _ = os.Stderr.Write(p)
	}
	l.note("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (l *tail) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%9.3f ", time.Since(l.begin).Seconds()*1000)+fmt.Sprintf(format, args...))
	if len(l.lines) > tailLines {
		l.lines = l.lines[len(l.lines)-tailLines:]
	}
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

func (l *tail) logger(node string) *slog.Logger {
	dropTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "resource" {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(io.Writer(l), &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: dropTime})).With("node", node)
}

func (k *knobs) config(name string) replica.Config {
	cfg := replica.Config{Resource: "r0", Node: name, Core: core.Config{Net: core.Defaults()}}
	net := &cfg.Core.Net
	net.Protocol, net.BarrierAge, net.BarrierBytes = k.protocol, core.Duration(k.barrierAge), k.barrier
	net.PingTimeout = core.Duration(5 * time.Second)
	if k.silent {
		net.PingInt, net.PingTimeout = core.Duration(300*time.Millisecond), core.Duration(500*time.Millisecond)
	}
	vol := core.DefaultVolume(0)
	vol.CPlanAhead, vol.ResyncRate, vol.ResyncDepth = 0, 1<<30, k.depth
	cfg.Core.Volumes = []core.VolumeConfig{vol}
	cfg.Volumes = []replica.VolumeConfig{{Device: "/dev/nbd0", Disk: "data", ALExtents: k.slots}}
	if k.external {
		cfg.Volumes[0].MetaKind, cfg.Volumes[0].MetaPath = replica.MetaFlexible, "meta"
	}
	cfg.Link = replica.LinkConfig{
		PeerName: "peer", Secret: "s3cret", ConnectInterval: 15 * time.Millisecond, WriteTimeout: 5 * time.Second,
	}
	cfg.Limits.DiskWorkers = 4
	return cfg
}

// openDevice is how the resource gets at the machine's disks.
func (n *node) openDevice(path string, _ disk.Options) (disk.Device, error) {
	m := n.data
	if path == "meta" {
		m = n.meta
	}
	d, err := m.Open()
	if err != nil || !n.knobs.direct {
		return d, err
	}
	return blockDevice{d}, nil
}

// blockDevice makes the resource treat a disk as one without a page cache.
type blockDevice struct{ disk.Device }

// BlockSize is what such a disk has more than a file.
func (blockDevice) BlockSize() int { return sectorSize }

// boot starts the resource on a machine that has power. It returns false if the
// power went before it was up.
func (n *node) boot() bool {
	n.t.Helper()
	r, err := replica.New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Resource = r
	n.log.note("%s boots", n.name)
	_, err = r.Attach(n.ctx(), 0)
	if err == nil {
		err = r.Connect(n.ctx(), replica.ConnectOptions{})
	}
	if err != nil && !n.machine.Off() {
		n.t.Fatalf("%s does not come up: %v", n.name, err)
	}
	return err == nil
}

// bury closes the ghost of a resource whose machine lost power.
func (n *node) bury() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Close(ctx); errors.Is(err, context.DeadlineExceeded) {
		n.t.Errorf("%s: the end of a resource without disk and network takes too long: %v", n.name, err)
	}
	n.log.note("%s is buried", n.name)
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) must(what string, err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("%s: %s: %v (%s)", n.name, what, err, n.state())
	}
}

func (n *node) now() core.State { return n.Status().Volumes[0].State }

func (n *node) state() string {
	v := n.Status().Volumes[0]
	return fmt.Sprintf("%s: %v oos %d", n.name, v.State, v.OutOfSync)
}

// await waits until the node's state satisfies ok.
func (n *node) await(what string, ok func(core.State) bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !ok(n.now()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: gave up waiting for %s (%s)", n.name, what, n.state())
		}
	}
}

func inSync(s core.State) bool {
	return s.Conn == core.Connected && s.Disk == core.UpToDate && s.PDisk == core.UpToDate
}

func alone(s core.State) bool { return s.Conn < core.WFReportParams }

// image is what the machine's data disk shows now.
func (n *node) image() []byte {
	n.t.Helper()
	p := make([]byte, n.Volume(0).Size())
	if len(p) == 0 {
		n.t.Fatalf("%s has no size", n.name)
	}
	if _, err := n.data.ReadAt(p, 0); err != nil {
		n.t.Fatal(err)
	}
	return p
}

// pair is two machines, their network, and the disks they began with.
type pair struct {
	nodes [2]*node
	net   *network
	log   *tail
}

// stamp is a pair of disks that has been synchronised once and cleanly left.
type stamp struct {
	once sync.Once
	data [2]*disktest.Mem
	meta [2]*disktest.Mem
}

var stamps [2]stamp // internal and external metadata

// newPair returns a synchronised pair, both Secondary and connected.
func newPair(t testing.TB, k knobs) *pair {
	t.Helper()
	s := &stamps[map[bool]int{false: 0, true: 1}[k.external]]
	s.once.Do(func() { s.make(t, k.external) })
	p := assemble(t, k)
	for i, n := range p.nodes {
		n.data = s.data[i].CloneOn(n.machine)
		if k.external {
			n.meta = s.meta[i].CloneOn(n.machine)
		}
	}
	for _, n := range p.nodes {
		n.boot()
	}
	for _, n := range p.nodes {
		n.await("connect", inSync)
		n.slowDown()
	}
	return p
}

// slowDown makes disk operations take a while, so that they overlap. Otherwise
// they never do, and the rest is faster.
func (n *node) slowDown() {
	if n.knobs.slow == 0 {
		return
	}
	n.machine.SetPause(func(disktest.Op) {
		if rand.IntN(100) < n.knobs.slow {
			time.Sleep(time.Duration(rand.Int64N(int64(time.Millisecond))))
		} else {
			runtime.Gosched()
		}
	})
}

// assemble makes everything but the disks.
func assemble(t testing.TB, k knobs) *pair {
	t.Helper()
	local := [2]netip.AddrPort{ownAddr(), ownAddr()}
	p := &pair{net: newNetwork(t, local), log: &tail{begin: time.Now()}}
	for i := range p.nodes {
		n := &node{t: t, id: i, name: string(rune('a' + i)), knobs: k, machine: disktest.NewMachine(), net: p.net, log: p.log}
		n.cfg = k.config(n.name)
		n.cfg.Link.Local, n.cfg.Link.Peer = local[i], p.net.from(i)
		n.cfg.OpenDevice, n.cfg.Log = n.openDevice, p.log.logger(n.name)
		p.nodes[i] = n
		t.Cleanup(func() {
			if n.Resource != nil {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_ = n.Close(ctx) // a test that failed leaves anything
			}
			if i == 1 && (t.Failed() || *powerSeed != 0) {
				t.Logf("log of both nodes:\n%s", p.log)
			}
		})
	}
	return p
}

// make creates metadata, synchronises once and leaves in order.
func (s *stamp) make(t testing.TB, external bool) {
	t.Helper()
	k := knobs{protocol: 'C', external: external, slots: 3, barrierAge: time.Second, barrier: 1 << 20, depth: 8 << 20}
	p := assemble(t, k)
	for _, n := range p.nodes {
		n.data = n.machine.NewDisk(deviceBytes)
		md, place := n.data, meta.Placement{Kind: meta.Internal}
		if external {
			n.meta = n.machine.NewDisk(metaBytes)
			md, place = n.meta, meta.Placement{Kind: meta.FlexExternal}
		}
		n.must("create-md", meta.Create(md, place, meta.CreateOptions{Confirmed: true}))
		n.boot()
	}
	a, b := p.nodes[0], p.nodes[1]
	a.await("connect", func(s core.State) bool { return s.Conn == core.Connected })
	a.must("primary --force", a.Primary(a.ctx(), true))
	a.await("the first resync", inSync)
	b.await("the first resync", inSync)
	a.must("secondary", a.Secondary(a.ctx()))
	for i, n := range p.nodes {
		n.must("close", n.Close(n.ctx()))
		s.data[i], s.meta[i] = n.data, n.meta
	}
}
