package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"replicad/internal/cable"
	"replicad/internal/ledger"
)

// round is a pair under a plan.
type round struct {
	plan    *plan
	dir     string
	cable   *cable.Cable
	nodes   [2]*node
	primary *node // whom the operator made Primary; the other one is peer
	peer    *node
	led     *ledger.Sectors
	load    *load
	loads   uint64
	count   counts
}

const config = `global { status-file "%[1]s/%%n.proc"; disable-ip-verification; }
resource r0 {
    protocol %[2]s; device /dev/nbd0; meta-disk internal;
    net { shared-secret "s"; timeout 9; connect-int 1; ping-int 1; ping-timeout 5; }
    disk { c-plan-ahead 0; resync-rate 1G; al-extents 67; }
    on be1 { disk "%[1]s/a.img"; address %[3]s; nbd-listen "unix:%[1]s/a.nbd"; }
    on be2 { disk "%[1]s/b.img"; address %[4]s; nbd-listen "unix:%[1]s/b.nbd"; }
}
`

// newRound makes files, network and ledger in a new folder.
func newRound(binary string, p *plan) (*round, error) {
	dir, err := os.MkdirTemp("", "rdt")
	if err != nil {
		return nil, err
	}
	r := &round{plan: p, dir: dir, cable: cable.New()}
	r.nodes = [2]*node{newNode(binary, dir, "be1", "a"), newNode(binary, dir, "be2", "b")}
	r.primary, r.peer = r.nodes[0], r.nodes[1]
	if r.led, err = ledger.NewSectors(p.areaMiB<<20/ledger.SectorSize, p.seed, filepath.Join(dir, "ledger.log")); err != nil {
		return nil, err
	}
	return r, r.layCable()
}

// layCable gives each node a configuration in which the other is at the
// cable's end.
func (r *round) layCable() error {
	var own, reached [2]string
	for i := range own {
		var err error
		if own[i], err = freeAddress(); err != nil {
			return err
		}
		if reached[i], err = r.cable.Plug(own[i]); err != nil {
			return err
		}
		if err := makeDisk(r.nodes[i].file("img"), int64(r.plan.diskMiB)<<20); err != nil {
			return err
		}
	}
	texts := [2]string{
		fmt.Sprintf(config, r.dir, r.plan.protocol, own[0], reached[1]),
		fmt.Sprintf(config, r.dir, r.plan.protocol, reached[0], own[1]),
	}
	for i, n := range r.nodes {
		if err := os.WriteFile(n.config, []byte(texts[i]), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// freeAddress finds an address of this machine's own that nobody has: of the
// many of 127/8, and a port that is never given to a client. It stays free while
// its daemon is dead.
func freeAddress() (string, error) {
	for {
		address := fmt.Sprintf("127.%d.%d.%d:7788", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
		l, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return "", err
		}
		return address, l.Close()
	}
}

func makeDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// run plays the plan.
func (r *round) run() error {
	if err := r.setUp(); err != nil {
		return fmt.Errorf("set up the pair: %w", err)
	}
	for i, e := range r.plan.episodes {
		r.led.Note("episode %d: %s", i, e)
		if err := r.play(e); err != nil {
			return fmt.Errorf("episode %d, %s: %w", i+1, e.kind, err)
		}
		r.count.episodes[e.kind]++
	}
	if err := r.finish(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

func (r *round) setUp() error {
	for _, n := range r.nodes {
		if _, err := n.run("create-md", "r0"); err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
	}
	if err := r.await(r.primary, "Connected", func(s view) bool { return s.conn == "Connected" }); err != nil {
		return err
	}
	if _, err := r.primary.run("primary", "--force", "r0"); err != nil {
		return err
	}
	r.cable.SetLength(r.plan.length)
	return r.settle()
}

// view is what a daemon says of its volume.
type view struct{ conn, disk, peerDisk, role string }

func look(n *node) (view, error) {
	s, err := n.state()
	if err != nil || len(s.Volumes) == 0 {
		return view{}, err
	}
	return view{s.Volumes[0].Connection, s.Volumes[0].Disk, s.Volumes[0].PeerDisk, s.Role}, nil
}

// await polls a node until ok says so.
func (r *round) await(n *node, what string, ok func(view) bool) error {
	deadline := time.Now().Add(patience)
	for {
		v, err := look(n)
		if err == nil && ok(v) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not become %s, but is %+v, %w", n.name, what, v, errOf(err))
		}
		time.Sleep(pollPause)
	}
}

var errPatience = errors.New("patience is over")

func errOf(err error) error { return errors.Join(errPatience, err) }

// settle heals the network, starts what does not run, and does what an operator
// does, until the pair is connected and good on both sides.
func (r *round) settle() error {
	r.cable.SetBandwidth(0)
	for _, n := range r.nodes {
		if n.frozen() {
			n.signal(sigCont)
		}
		if n.cmd != nil && !n.alive() {
			n.kill() // collect it
		}
		if n.cmd == nil {
			if err := n.start(); err != nil {
				return err
			}
		}
	}
	deadline := time.Now().Add(patience)
	for {
		good := 0
		var views [2]view
		for i, n := range r.nodes {
			v, err := look(n)
			if err != nil {
				break
			}
			views[i] = v
			if v.conn == "Connected" && v.disk == "UpToDate" && v.peerDisk == "UpToDate" {
				good++
			}
			if err := help(n, v); err != nil {
				return err
			}
		}
		if good == 2 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the pair does not come together: %+v", views)
		}
		time.Sleep(pollPause)
	}
}

// help is the operator who sees a node without its disk. A node that came up
// without it has not looked for its peer either; one that has its disk and does
// not look for its peer has refused it, which is never due here.
func help(n *node, v view) error {
	verb := ""
	switch {
	case v.disk == "Diskless" && v.conn == "StandAlone":
		verb = "adjust"
	case v.disk == "Diskless":
		verb = "attach"
	case v.conn == "StandAlone":
		return fmt.Errorf("%s is StandAlone", n.name)
	default:
		return nil
	}
	_, err := n.run(verb, "r0")
	if err != nil && strings.Contains(err.Error(), "(124)") { // it got its disk meanwhile
		return nil
	}
	return err
}

// begin starts the load on the Primary.
func (r *round) begin() (err error) {
	r.loads++
	r.load, err = startLoad(r.plan, r.led, r.primary, r.plan.seed<<8+r.loads)
	return err
}

// end stops the load and holds the Primary against the ledger: nothing that
// completed may be missing. Where faults may fail clients, errors are allowed.
func (r *round) end(mayFail bool) error {
	if err := r.endLoad(mayFail); err != nil {
		return err
	}
	return r.check(r.primary, nothingLost)
}

// endLoad stops the clients, if they are not stopped yet.
func (r *round) endLoad(mayFail bool) error {
	l := r.load
	if l == nil {
		return nil
	}
	r.load = nil
	if err := l.stop(); err != nil {
		return err
	}
	if n, m := l.errnos.Load(), l.broken.Load(); !mayFail && n+m > 0 {
		return fmt.Errorf("%d requests were failed and %d clients cut off, though the Primary lives and has a good disk", n, m)
	}
	return nil
}

// endDead ends the load of a Primary that is gone, if it had not ended before.
func (r *round) endDead() error {
	l := r.load
	if l == nil {
		return nil
	}
	r.load = nil
	if err := r.led.Sync(); err != nil {
		return err
	}
	l.abort()
	return l.verdict()
}

// promise is what must hold of what the clients saw complete.
type promise int

const (
	nothingLost promise = iota
	closedOrder         // a tail may be lost: closed under "completed before issued"
	subset              // no foreign data: all that is left when both died, A and B
)

// afterTakeover is the promise when the Primary died and its peer, which lived,
// was promoted.
func (r *round) afterTakeover() promise {
	if r.plan.protocol == "A" {
		return closedOrder
	}
	return nothingLost
}

// check reads the whole area through NBD and holds it against the ledger.
func (r *round) check(n *node, p promise) error {
	c, err := n.open()
	if err != nil {
		return err
	}
	v, err := r.led.Compare(area{r.plan, c})
	if err != nil {
		return err
	}
	r.count.verified += int64(v.Sectors)
	r.led.Note("compared with %s: %+v", n.name, v)
	switch {
	case v.Foreign > 0:
		err = fmt.Errorf("%d sectors of %s hold what nobody wrote there: %s", v.Foreign, n.name, v.Example)
	case v.Lost > 0 && p == nothingLost:
		err = fmt.Errorf("%d completed writes are lost on %s, %d of them flushed: %s", v.Lost, n.name, v.LostSafe, v.Example)
	case v.Disorder > 0 && p != subset:
		err = fmt.Errorf("%d writes are on %s although an earlier one is lost: %s", v.Disorder, n.name, v.Example)
	}
	r.count.lostTail += int64(v.Lost)
	if err == nil {
		err = r.led.Adopt(area{r.plan, c})
	}
	return errors.Join(err, c.Close())
}

// finish demotes, promotes the other node, reads there too, stops both and
// compares what they leave.
func (r *round) finish() error {
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.switchOver(); err != nil {
		return err
	}
	c, err := r.primary.open()
	if err != nil {
		return err
	}
	size := c.Size()
	if err := c.Close(); err != nil {
		return err
	}
	if err := r.primary.retry("secondary", "r0"); err != nil {
		return err
	}
	for _, n := range r.nodes {
		if err := n.stop(); err != nil {
			return err
		}
	}
	if err := r.sameImages(size); err != nil {
		return err
	}
	return r.cleanMetadata()
}

// switchOver demotes the Primary, promotes the peer and reads there.
func (r *round) switchOver() error {
	if err := r.primary.retry("secondary", "r0"); err != nil {
		return err
	}
	r.swap()
	if err := r.primary.retry("primary", "r0"); err != nil {
		return err
	}
	return r.check(r.primary, nothingLost)
}

func (r *round) swap() { r.primary, r.peer = r.peer, r.primary }

func (r *round) sameImages(size uint64) error {
	var files [2]*os.File
	for i, n := range r.nodes {
		f, err := os.Open(n.file("img"))
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		files[i] = f
	}
	var parts [2][]byte
	for at := int64(0); at < int64(size); at += 1 << 20 {
		for i, f := range files {
			parts[i] = make([]byte, min(1<<20, int64(size)-at))
			if _, err := f.ReadAt(parts[i], at); err != nil {
				return err
			}
		}
		if !bytes.Equal(parts[0], parts[1]) {
			return fmt.Errorf("the images differ in the MiB at %d", at)
		}
	}
	return nil
}

// cleanMetadata wants an empty bitmap and a log that needs no replay, by our
// own dump and by the real drbdmeta.
func (r *round) cleanMetadata() error {
	for _, n := range r.nodes {
		// Metadata that was in use asks for apply-al, as DRBD's does. On a node
		// that left in order it finds nothing.
		if _, err := n.run("apply-al", "r0"); err != nil {
			return err
		}
		ours, err := n.run("dump-md", "r0")
		if err != nil {
			return err
		}
		if !strings.Contains(ours, "# bits-set 0;") {
			return fmt.Errorf("the bitmap of %s is not empty:\n%s", n.name, ours)
		}
		real, err := drbdmeta(n.file("img"))
		if err != nil {
			return fmt.Errorf("drbdmeta does not read what %s left: %w", n.name, err)
		}
		if real != "" && dumpBody(real) != dumpBody(ours) {
			return fmt.Errorf("dump-md of %s differs from drbdmeta's\nours:\n%s\ndrbdmeta:\n%s", n.name, ours, real)
		}
	}
	return nil
}

// wrong finds in a log what must never be there.
var wrong = regexp.MustCompile(`(?m)^(panic:|fatal error:|SIGSEGV|WARNING: DATA RACE|.*broken invariant|.*answered twice).*$`)

// resynced finds how much a resync copied, as its source says.
var resynced = regexp.MustCompile(`Began resync as SyncSource \(will sync (\d+) KB`)

// readLogs looks for broken invariants and counts.
func (r *round) readLogs() error {
	var errs []error
	for _, n := range r.nodes {
		text := n.logText()
		if line := wrong.FindString(text); line != "" {
			errs = append(errs, fmt.Errorf("the log of %s says: %s", n.name, line))
		}
		for _, m := range resynced.FindAllStringSubmatch(text, -1) {
			kib, err := strconv.ParseInt(m[1], 10, 64)
			if err != nil {
				errs = append(errs, err)
			}
			r.count.resyncedKiB += kib
		}
	}
	return errors.Join(errs...)
}

// close ends everything that still runs.
func (r *round) close() {
	if r.load != nil {
		r.load.abort()
	}
	for _, n := range r.nodes {
		n.kill()
	}
	_ = r.cable.Close()
	_ = r.led.Close()
}
