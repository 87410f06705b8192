package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"replicad/internal/cable"
	"replicad/internal/ledger"
)

// kind is what happens in an episode.
type kind string

// The kinds of episodes.
const (
	killPrimary    kind = "kill-primary"     // SIGKILL; the peer is promoted, or the dead node comes back
	killSecondary  kind = "kill-secondary"   // SIGKILL; comes back
	killBoth       kind = "kill-both"        // SIGKILL; both come back, or the Secondary first, and is promoted
	killInResync   kind = "kill-in-resync"   // SIGKILL of source, target or both while they resync
	killInRecovery kind = "kill-in-recovery" // SIGKILL of the Primary, and again, up to three times, while it starts
	stopBoth       kind = "stop-both"        // SIGSTOP; SIGCONT
	stopPrimary    kind = "stop-primary"     // SIGSTOP; SIGCONT, or SIGKILL and the peer is promoted
	stopSecondary  kind = "stop-secondary"   // SIGSTOP; SIGCONT or SIGKILL
	failPrimary    kind = "fail-primary"     // a failpoint in the Primary
	failSecondary  kind = "fail-secondary"   // a failpoint in the Secondary
	linkCut        kind = "link-cut"         // bytes vanish
	linkStall      kind = "link-stall"       // one direction of one of the two sockets stands still
	linkHalfOpen   kind = "link-half-open"   // one end believes in a connection that is gone
	linkClose      kind = "link-close"       // a connection ends in the middle of a frame
	linkFlip       kind = "link-flip"        // a bit changes on the way
	linkSlow       kind = "link-slow"        // a narrow, long pipe
	linkDuplicate  kind = "link-duplicate"   // the start of a connection is played to the listener again
	linkHandshake  kind = "link-handshake"   // the link breaks, and the next connections are closed, damaged or stalled at their start
	splitBrain     kind = "split-brain"      // both Primary while apart
	switchover     kind = "switchover"       // orderly change of roles
	primaryDeadCut kind = "cut-and-kill"     // the link is cut and the Primary killed at once: what is on the way is lost
)

// weights is how often each kind is chosen.
var weights = []struct {
	kind  kind
	share int
}{
	{killPrimary, 12},
	{primaryDeadCut, 12},
	{killSecondary, 10},
	{killBoth, 12},
	{killInResync, 12},
	{killInRecovery, 8},
	{stopBoth, 3},
	{stopPrimary, 6},
	{stopSecondary, 6},
	{failPrimary, 18},
	{failSecondary, 18},
	{linkCut, 6},
	{linkStall, 6},
	{linkHalfOpen, 5},
	{linkClose, 6},
	{linkFlip, 6},
	{linkSlow, 4},
	{linkDuplicate, 4},
	{linkHandshake, 6},
	{splitBrain, 6},
	{switchover, 5},
}

// episode is one thing that happens, and how the operator reacts.
type episode struct {
	kind    kind
	after   time.Duration   // load before it happens
	hold    time.Duration   // how long it lasts, or until the second blow
	promote bool            // the operator promotes the peer instead of starting what died
	resume  bool            // what was stopped is continued, not killed
	conn    int             // which connection of the link, modulo how many there are
	back    bool            // the direction from target to dialler
	bytes   int64           // until the connection ends or is damaged
	mask    byte            // bits to damage
	victims int             // killInResync: 1 the target, 2 the source, 3 both
	rules   string          // failpoints
	starts  []string        // killInRecovery: failpoints of one start after the other
	nexts   []cable.Trouble // linkHandshake
	slow    string          // the peer is slow at something; "" for not
}

// String tells the episode in words enough to understand a failure.
func (e episode) String() string {
	text := fmt.Sprintf("%s after %s", e.kind, e.after)
	if e.slow != "" {
		text += fmt.Sprintf(" with a slow peer (%s)", e.slow)
	}
	switch e.kind {
	case failPrimary, failSecondary:
		text += fmt.Sprintf(" %s", e.rules)
	case linkStall, linkHalfOpen, linkClose, linkFlip, linkDuplicate:
		text += fmt.Sprintf(" of connection %d, back %v, at byte %d", e.conn, e.back, e.bytes)
	case linkHandshake:
		text += fmt.Sprintf(" %+v", e.nexts)
	case killInRecovery:
		text += fmt.Sprintf(" %s", e.starts)
	case killInResync:
		text += fmt.Sprintf(" victims %d", e.victims)
	}
	return text + fmt.Sprintf(" hold %s promote %v resume %v", e.hold, e.promote, e.resume)
}

// plan is a whole round. It is made from its seed alone.
type plan struct {
	seed     uint64
	protocol string
	diskMiB  int
	wide     bool // more extents are written than the activity log holds
	areaMiB  int  // the part of the device that clients write
	clients  int
	tasks    int // of each client
	maxSize  int // sectors of the largest write
	pause    time.Duration
	length   time.Duration // of the cable
	episodes []episode
}

// String tells the plan in one line.
func (p *plan) String() string {
	var words []string
	for _, e := range p.episodes {
		words = append(words, e.String())
	}
	return fmt.Sprintf("seed %d: protocol %s, %d clients of %d tasks, writes up to %d sectors in %d of %d MiB, link %s one way: %s",
		p.seed, p.protocol, p.clients, p.tasks, p.maxSize, p.areaMiB, p.diskMiB, p.length, strings.Join(words, "; "))
}

const (
	// wideExtents of 4 MiB are more than al-extents of the configuration, so
	// that extents are evicted all the time.
	wideExtents = 80
	// chunkBytes is what clients write of each of them: a ledger knows the
	// chunks as one range.
	chunkBytes = 64 << 10
)

// offset is where on the device a sector of the ledger lies.
func (p *plan) offset(sector int) int64 {
	at := int64(sector) * ledger.SectorSize
	if !p.wide {
		return at
	}
	return at/chunkBytes*extentBytes + at%chunkBytes
}

// extentBytes is an extent of the activity log.
const extentBytes = 4 << 20

// fits reports whether sectors of the ledger are neighbours on the device, too.
func (p *plan) fits(first, n int) bool {
	return !p.wide || first*ledger.SectorSize/chunkBytes == (first+n-1)*ledger.SectorSize/chunkBytes
}

// area is the part of a device that the ledger knows, as one range.
type area struct {
	p      *plan
	device io.ReaderAt
}

// ReadAt implements io.ReaderAt for whole sectors.
func (a area) ReadAt(p []byte, off int64) (int, error) {
	if !a.p.wide {
		return a.device.ReadAt(p, off)
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := min(len(p)-done, int(chunkBytes-at%chunkBytes))
		n, err := a.device.ReadAt(p[done:done+part], a.p.offset(int(at/ledger.SectorSize)))
		if done += n; err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// newPlan makes the plan of a seed.
func newPlan(seed uint64) *plan {
	r := rand.New(rand.NewPCG(seed, 0x746f7274757265))
	p := &plan{
		seed: seed, protocol: string("ABC"[r.IntN(3)]), diskMiB: 16 + 8*r.IntN(3),
		clients: 2 + r.IntN(3), tasks: 1 + r.IntN(4), maxSize: []int{8, 64, 256}[r.IntN(3)],
		pause: millis(r, 0, 3), length: millis(r, 0, 2),
	}
	p.areaMiB = 4 + r.IntN(p.diskMiB-5)
	if p.wide = r.IntN(4) == 0; p.wide {
		p.diskMiB, p.areaMiB, p.maxSize = wideExtents*4+4, wideExtents*chunkBytes>>20, 64
	}
	for range 1 + r.IntN(3) {
		p.episodes = append(p.episodes, newEpisode(r))
	}
	return p
}

// has reports whether the plan has an episode of a kind.
func (p *plan) has(k kind) bool {
	return slices.ContainsFunc(p.episodes, func(e episode) bool { return e.kind == k })
}

func isKind(k kind) bool {
	for _, w := range weights {
		if w.kind == k {
			return true
		}
	}
	return false
}

func millis(r *rand.Rand, from, to int) time.Duration {
	return time.Duration(from+r.IntN(to-from+1)) * time.Millisecond
}

func newEpisode(r *rand.Rand) episode {
	total := 0
	for _, w := range weights {
		total += w.share
	}
	e := episode{after: millis(r, 50, 800), hold: millis(r, 10, 600), promote: r.IntN(3) > 0, resume: r.IntN(2) == 0}
	e.conn, e.back = r.IntN(2), r.IntN(2) == 0
	e.bytes, e.mask = 1+r.Int64N(1<<r.IntN(20)), 1<<r.IntN(8)
	e.victims = 1 + r.IntN(3)
	at := r.IntN(total)
	for _, w := range weights {
		if at -= w.share; at < 0 {
			e.kind = w.kind
			break
		}
	}
	e.rules = newRules(r)
	for range 1 + r.IntN(4) {
		e.nexts = append(e.nexts, newTrouble(r))
	}
	for range 1 + r.IntN(3) {
		e.starts = append(e.starts, newStart(r))
	}
	switch e.kind {
	case killPrimary, primaryDeadCut, killSecondary, killBoth, killInResync, stopPrimary, linkCut:
		e.slow = slowness[r.IntN(len(slowness))]
	}
	return e
}

// newTrouble is a handshake that fails.
func newTrouble(r *rand.Rand) cable.Trouble {
	t := cable.Trouble{Dir: cable.Direction(r.IntN(2)), Mask: 1 << r.IntN(8)}
	switch at := 1 + r.Int64N(300); r.IntN(5) {
	case 0:
		t.Stall = true
	case 1, 2:
		t.CloseAfter = at
	default:
		t.Flip = at
	}
	return t
}

// slowness is what makes the time between what a peer says and what it has done
// long enough to be hit by a kill.
var slowness = []string{
	"", "", "",
	"disk.write=delay:5ms@1+",
	"disk.sync=delay:40ms@1+",
	"disk.write=delay:3ms@1+;disk.durable=delay:10ms@1+",
	"link.send=delay:2ms@1+",
	"disk.write=jitter:10ms@1+",
	"meta.super=delay:40ms@1+;meta.al=jitter:10ms@1+",
}

// recoveries are the failpoints on the way from a crash to a connection, and
// how often each is reached on it.
var recoveries = []struct {
	point string
	hits  int
}{
	{"disk.open", 1},
	{"disk.read", 12},
	{"disk.write", 8},
	{"disk.durable", 6},
	{"disk.sync", 6},
	{"meta.super", 6},
	{"meta.bitmap", 3},
	{"meta.bitmap-sync", 3},
	{"meta.create-log", 2},
	{"link.send", 10},
	{"link.receive", 10},
}

// newStart makes the rules of a start that does not live long.
func newStart(r *rand.Rand) string {
	s := recoveries[r.IntN(len(recoveries))]
	return fmt.Sprintf("%s=%s@%d", s.point, []string{"kill", "kill-after"}[r.IntN(2)], 1+r.IntN(s.hits))
}

// strikes are the failpoints that a round may set in a daemon, and up to which
// hit they strike: about as often as the place is reached in half a second.
var strikes = []struct {
	point string
	hits  int
	acts  []string
}{
	{"disk.write", 800, []string{"kill", "kill-after", "torn", "stop", "eio", "short"}},
	{"disk.read", 60, []string{"kill", "eio"}},
	{"disk.durable", 30, []string{"kill", "kill-after", "torn", "stop-after", "eio"}},
	{"disk.sync", 30, []string{"kill", "kill-after", "stop", "eio", "delay:30ms"}},
	{"disk.zero", 20, []string{"kill", "kill-after", "eio"}},
	{"disk.open", 2, []string{"kill", "kill-after"}},
	{"meta.super", 8, []string{"kill", "kill-after", "stop", "eio", "delay:50ms"}},
	{"meta.al", 6, []string{"kill", "kill-after", "eio", "delay:50ms"}},
	{"meta.bitmap", 4, []string{"kill", "kill-after", "eio"}},
	{"meta.bitmap-sync", 4, []string{"kill", "kill-after", "eio", "delay:50ms"}},
	{"meta.create-log", 1, []string{"kill", "kill-after"}},
	{"status.write", 8, []string{"kill", "eio", "enospc"}},
	{"status.rename", 8, []string{"kill", "kill-after", "eio"}},
	{"control.listen", 1, []string{"kill", "kill-after"}},
	{"link.dial", 3, []string{"kill", "kill-after", "eio"}},
	{"link.accept", 3, []string{"kill", "kill-after", "eio", "delay:100ms"}},
	{"link.send", 800, []string{"kill", "kill-after", "stop", "eio"}},
	{"link.receive", 800, []string{"kill", "kill-after", "stop-after", "eio"}},
	{"nbd.accept", 3, []string{"kill", "kill-after", "eio"}},
	{"nbd.receive", 600, []string{"kill", "kill-after", "eio"}},
	{"nbd.reply", 600, []string{"kill", "kill-after", "stop"}},
}

func newRules(r *rand.Rand) string {
	s := strikes[r.IntN(len(strikes))]
	return fmt.Sprintf("%s=%s@%d", s.point, s.acts[r.IntN(len(s.acts))], 1+r.IntN(1+r.IntN(s.hits)))
}
