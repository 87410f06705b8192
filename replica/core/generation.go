package core

import (
	"fmt"

	"replicad/internal/mutant"
)

const (
	// UUIDJustCreated is the current UUID of metadata fresh from create-md.
	UUIDJustCreated = 4
	// UUIDNewBMOffset is added to a bitmap UUID to get the sync UUID of a
	// resync that starts from it (DRBD 8.4).
	UUIDNewBMOffset = 0x0001000000000000

	uuidPrimary = 1 // bit 0 says that the node is, or was, Primary; comparisons mask it
)

// Generation is a node's data generation identifiers (DRBD 8.4): what its data
// is (Current), what its dirty bitmap is relative to (Bitmap, 0: nothing), and
// two former values of Bitmap. Bit 0 of Current mirrors the role.
type Generation struct {
	Current, Bitmap, H1, H2 uint64
}

// String returns g as DRBD's kernel log prints it.
func (g Generation) String() string {
	return fmt.Sprintf("%016X:%016X:%016X:%016X", g.Current, g.Bitmap, g.H1, g.H2)
}

// freshUUID makes random fit to be an identifier. 0 and UUIDJustCreated have a
// meaning; a random source that hits them must not make good data look empty.
func freshUUID(random uint64) uint64 {
	if id := random &^ uuidPrimary; id == 0 || id == UUIDJustCreated {
		return random | 1<<63
	}
	return random
}

// WithPrimary returns g with bit 0 of Current set to primary: on promotion,
// demotion and attach.
func (g Generation) WithPrimary(primary bool) Generation {
	g.Current &^= uuidPrimary
	if primary {
		g.Current |= uuidPrimary
	}
	return g
}

// adopt returns g with the current id taken from elsewhere; the role stays own.
func (g Generation) adopt(current uint64) Generation {
	primary := g.Current&uuidPrimary != 0
	g.Current = current
	return g.WithPrimary(primary)
}

// pushBitmap moves the bitmap id into the history, and leaves it empty.
func (g Generation) pushBitmap() Generation {
	if g.Bitmap != 0 {
		g.H1, g.H2, g.Bitmap = g.Bitmap, g.H1, 0
	}
	return g
}

// popBitmap undoes the StartSource of a resync that never began on the target.
func (g Generation) popBitmap() Generation {
	g.Bitmap, g.H1 = g.H1, g.H2
	return g
}

// Rotate starts a new generation: the bitmap is from now on relative to what
// was current, bit 0 included: it tells split-brain policies who was Primary.
// A bitmap id that is already set is lost; callers rotate over one only when
// forced.
func (g Generation) Rotate(newRandom uint64, primary bool) Generation {
	g.Bitmap = g.Current
	g.Current = freshUUID(newRandom)
	return g.WithPrimary(primary)
}

// leave starts a generation without a new base for the bitmap: blocks are still
// marked relative to the one before.
func (g Generation) leave(newRandom uint64) Generation {
	g.H1, g.H2 = masked(g.Current), g.H1
	g.Current = freshUUID(newRandom)
	return g
}

// StartSource begins a resync as its source. It returns the tuple from now on,
// and the sync UUID to send to the target: derived from the base of the
// bitmap if there is one, else random.
func (g Generation) StartSource(random uint64) (_ Generation, syncUUID uint64) {
	syncUUID = freshUUID(random)
	if g.Bitmap != 0 && g.Bitmap != UUIDJustCreated {
		syncUUID = g.Bitmap + UUIDNewBMOffset
	}
	g = g.pushBitmap()
	g.Bitmap = syncUUID
	return g, syncUUID
}

// keepAncestor returns g, which follows from old, with the peer's current id
// kept in its history if old had it there. Each attempt at a resync that the
// link cuts short pushes one id into the two slots; DRBD 8.4 would forget the
// target's after three, and then call its data unrelated.
func (g Generation) keepAncestor(old Generation, peer uint64) Generation {
	p, o, n := masked(peer), old.mask(), g.mask()
	if p != 0 && o.has(p) && !n.has(p) && p != n.Bitmap {
		g.H2 = peer
	}
	return g
}

// StartTarget begins a resync as its target: until it ends, this node's data
// is the generation syncUUID.
func (g Generation) StartTarget(syncUUID uint64) Generation {
	g = g.adopt(syncUUID)
	g.Bitmap = 0
	return g
}

// FinishSource ends a complete resync on its source.
func (g Generation) FinishSource() Generation { return g.pushBitmap() }

// FinishTarget ends a complete resync on its target, which is from now on the
// source's generation. peer is the source's tuple, as it was in the handshake
// or as it was after StartSource.
func (g Generation) FinishTarget(peer Generation) Generation {
	syncUUID := g.Current
	if masked(peer.Bitmap) != masked(syncUUID) {
		peer = peer.pushBitmap()
	}
	g = g.adopt(peer.Current)
	g.Bitmap, g.H1, g.H2 = 0, syncUUID, peer.H1
	return g
}

func masked(id uint64) uint64 { return id &^ uuidPrimary }

// mask returns g as comparisons see it.
func (g Generation) mask() Generation {
	return Generation{masked(g.Current), masked(g.Bitmap), masked(g.H1), masked(g.H2)}
}

// has reports whether id is in the history.
func (g Generation) has(id uint64) bool { return id == g.H1 || id == g.H2 }

// empty reports whether the current id says that there is no data.
func (g Generation) empty() bool { return g.Current == 0 || g.Current == UUIDJustCreated }

// Facts are what one node tells the other about a volume in the handshake.
type Facts struct {
	Gen            Generation
	Bits           uint64 // dirty bits
	CrashedPrimary bool   // was Primary when it went down, and has not been in sync since
	Primary        bool   // role now
	Discard        bool   // its administrator gave up its data for this connect
	Inconsistent   bool   // its disk is, or once negotiated will be, Inconsistent
	Outdated       bool   // its disk is Outdated; of the own also: once negotiated will be
	Disk           Disk   // as it is now: Negotiating is not replaced by what follows
}

// Results of Compare. Positive: this node is the source.
const (
	ResultNone          = 0     // same data
	ResultBitmap        = 1     // resync by bitmap
	ResultFull          = 2     // resync of everything
	ResultSplitBrain    = 100   // split brain over a common base; policies may resolve it
	ResultSplitNoBase   = -100  // split brain without a common base
	ResultUnrelatedData = -1000 // no common ancestor
)

// Verdict is what two generations mean for each other.
type Verdict struct {
	Result  int         // 0, ±1, ±2, ±100, -1000
	Rule    int         // the number of the rule that fired, as DRBD 8.4 logs it
	FixSelf *Generation // corrected own tuple (rules 34, 71): store it before going on
	FixPeer *Generation // corrected peer's tuple (rules 35, 51): remember it instead
}

// Compare decides what must be copied where between two volumes that meet
// (DRBD 8.4). token is the resolve-conflicts token, true on exactly one end.
// Both ends get mirrored verdicts: results of 1 and 2 change sign, FixSelf
// here is FixPeer there, and the others are the same. It changes nothing.
func Compare(self, peer Facts, token bool) Verdict {
	v := compare(self, peer, token)
	if mutant.Built {
		v = misjudge(v, self, peer)
	}
	return v
}

func compare(self, peer Facts, token bool) Verdict {
	s, p := self.Gen.mask(), peer.Gen.mask()
	switch {
	case s.Current == UUIDJustCreated && p.Current == UUIDJustCreated:
		return Verdict{Result: ResultNone, Rule: 10}
	case s.Current == 0 && p.Current == 0:
		// No tool writes this. DRBD 8.4 makes both ends target; neither has
		// anything to send, and nothing says that their data is the same.
		return Verdict{Result: ResultUnrelatedData, Rule: 20}
	case s.empty() && p.Current != UUIDJustCreated:
		return Verdict{Result: -ResultFull, Rule: 20}
	case p.empty():
		return Verdict{Result: ResultFull, Rule: 30}
	case s.Current == p.Current:
		return compareEqual(self, peer, token)
	}
	return compareAncestry(self.Gen, peer.Gen)
}

// compareEqual is Compare for equal current ids.
func compareEqual(self, peer Facts, token bool) Verdict {
	s, p := self.Gen.mask(), peer.Gen.mask()
	switch {
	case s.Bitmap != 0 && p.Bitmap == 0:
		// I was the source of a resync whose end I missed, or the peer was.
		if s.Bitmap == p.H1 && s.H1 == p.H2 {
			return Verdict{Result: ResultBitmap, Rule: 34, FixSelf: new(self.Gen.pushBitmap())}
		}
		return Verdict{Result: ResultBitmap, Rule: 36}
	case s.Bitmap == 0 && p.Bitmap != 0:
		if p.Bitmap == s.H1 && p.H1 == s.H2 {
			return Verdict{Result: -ResultBitmap, Rule: 35, FixPeer: new(peer.Gen.pushBitmap())}
		}
		return Verdict{Result: -ResultBitmap, Rule: 37}
	}
	return compareCrash(self, peer, token)
}

// compareCrash decides between equal generations: whoever crashed as Primary
// may hold writes that the other never got.
func compareCrash(self, peer Facts, token bool) Verdict {
	if !self.CrashedPrimary && !peer.CrashedPrimary {
		return Verdict{Result: ResultNone, Rule: 40}
	}
	switch {
	case self.Primary && peer.Primary:
		return Verdict{Result: ResultSplitNoBase, Rule: 41}
	case self.Primary:
		return Verdict{Result: ResultBitmap, Rule: 41}
	case peer.Primary:
		return Verdict{Result: -ResultBitmap, Rule: 41}
	}
	source := self.CrashedPrimary
	if self.CrashedPrimary && peer.CrashedPrimary {
		source = !token
	}
	if source {
		return Verdict{Result: ResultBitmap, Rule: 40}
	}
	return Verdict{Result: -ResultBitmap, Rule: 40}
}

// compareAncestry is Compare for different current ids, both of real data.
func compareAncestry(self, peer Generation) Verdict {
	older, isOlder := descends(self, peer)
	newer, isNewer := descends(peer, self)
	s, p := self.mask(), peer.mask()
	switch {
	case isOlder && isNewer:
		// Each descends from the other: ids were reused or metadata was
		// edited. DRBD 8.4 makes both ends target; nobody's data is proven
		// the better one.
		return Verdict{Result: ResultSplitNoBase, Rule: 100}
	case isOlder:
		return Verdict{Result: -older.result, Rule: older.rule, FixPeer: older.fix}
	case isNewer:
		return Verdict{Result: newer.result, Rule: newer.mirror, FixSelf: newer.fix}
	case s.Bitmap == p.Bitmap && s.Bitmap != 0:
		return Verdict{Result: ResultSplitBrain, Rule: 90}
	case p.has(s.H1) || p.has(s.H2):
		// Two empty slots count as equal, as in DRBD 8.4.
		return Verdict{Result: ResultSplitNoBase, Rule: 100}
	}
	return Verdict{Result: ResultUnrelatedData, Rule: 100}
}

// descent says how one generation follows from another.
type descent struct {
	result int
	rule   int         // its number seen from the older node
	mirror int         // and from the newer one
	fix    *Generation // the newer node's corrected tuple, if it must be
}

// descends reports whether younger's data follows from older's.
func descends(older, younger Generation) (descent, bool) {
	o, y := older.mask(), younger.mask()
	switch {
	case o.Current == y.Bitmap:
		return descent{result: ResultBitmap, rule: 50, mirror: 70}, true
	case o.Current == y.H1 && y.H1+UUIDNewBMOffset == y.Bitmap:
		// The packet with the sync UUID was lost.
		return descent{ResultBitmap, 51, 71, new(younger.popBitmap())}, true
	case y.has(o.Current):
		return descent{result: ResultFull, rule: 60, mirror: 80}, true
	}
	return descent{}, false
}

// Words of the net option rr-conflict: what a Primary does that should become
// sync target. The empty string is the default, RRDisconnect.
const (
	RRDisconnect  = "disconnect"
	RRCallPriLost = "call-pri-lost"
	RRViolently   = "violently"
)

// Resolution is a split-brain policy's answer. Neither bool: undecided.
type Resolution struct {
	SyncSource, SyncTarget bool
	Policy                 string // the policy that decided, in drbd.conf's words
}

// DecideInput is what Decide needs to know besides the facts.
type DecideInput struct {
	Token      bool // the resolve-conflicts token
	AlwaysASBP bool // net option always-asbp
	Tentative  bool // connect --tentative on either end: say it, do not do it
	RRConflict string
	// Resolve runs the after-split-brain policies. nil: undecided.
	Resolve func(self, peer Facts, token bool) Resolution
}

// Decision is what this node does after the handshake, and why. Exactly one of
// the first six is true.
type Decision struct {
	None       bool // Connected at once
	SyncSource bool // WFBitMapS
	SyncTarget bool // WFBitMapT
	SplitBrain bool // unresolved split brain: drop the connection
	Unrelated  bool // unrelated data: drop the connection
	Abort      bool // drop the connection for Reason

	Full           bool   // resync everything, not only the dirty bits
	Reason         string // of Abort, in DRBD's words
	ByDiskState    bool   // one side Inconsistent: its disk state decided, not the ids
	Detected       bool   // a split brain: the handler initial-split-brain runs first
	ManuallySolved bool   // by discard-my-data
	Policy         string // the policy that solved it, if one did
	PriLost        bool   // rr-conflict: the handler pri-lost runs
	Violent        bool   // rr-conflict: a Primary becomes target
	Tentative      bool   // this is what would happen; drop the connection
}

// Drops reports whether the connection must end (StandAlone).
func (d Decision) Drops() bool { return d.SplitBrain || d.Unrelated || d.Abort || d.Tentative }

// Decide turns a verdict into this node's course (DRBD 8.4). Both ends decide
// by the same facts, and come to opposite courses unless one drops the link.
func Decide(v Verdict, self, peer Facts, in DecideInput) Decision {
	if v.Result == ResultUnrelatedData {
		return Decision{Unrelated: true}
	}
	if self.Disk < Negotiating || peer.Disk < Negotiating {
		// There was nothing to compare; a caller that did so anyway must not
		// start a resync of a disk that is not there.
		return Decision{Abort: true, Reason: "no disk to compare"}
	}
	return permit(course(v, self, peer, in), self, in)
}

// course applies disk states over the verdict, then resolves a split brain.
func course(v Verdict, self, peer Facts, in DecideInput) Decision {
	full := v.Result == ResultFull || v.Result == -ResultFull
	own, other := negotiated(self), negotiated(peer)
	if (own == Inconsistent) != (other == Inconsistent) {
		if self.Outdated || peer.Outdated {
			// DRBD 8.4 calls it UpToDate, and copies it. The better data may be
			// what was lost with the other disk.
			return Decision{}.abort("The only usable disk is outdated: no side can be the source of a resync!")
		}
		d := Decision{Full: full || v.Result == ResultSplitNoBase, ByDiskState: true}
		return d.sync(other == Inconsistent)
	}
	switch v.Result {
	case ResultNone:
		return Decision{None: true}
	case ResultSplitBrain, ResultSplitNoBase:
	default:
		if own == Inconsistent && other == Inconsistent {
			// DRBD 8.4 lets the target go on until the source drops the link.
			// Neither copy is good: that is for an administrator to decide.
			return Decision{}.abort("Both disks are inconsistent: no side can be the source of a resync!")
		}
	}
	switch v.Result {
	case ResultSplitBrain, ResultSplitNoBase:
		return resolveSplit(v, self, peer, in)
	}
	return Decision{Full: full}.sync(v.Result > 0)
}

func (d Decision) sync(source bool) Decision {
	d.SyncSource, d.SyncTarget = source, !source
	return d
}

// negotiated returns what a node's disk is, or will be after the handshake.
func negotiated(f Facts) Disk {
	switch {
	case f.Inconsistent:
		return Inconsistent
	case f.Disk == Negotiating:
		return Consistent
	}
	return f.Disk
}

// resolveSplit asks the policies, then the administrators. Without a common
// base the bitmaps prove nothing about the blocks outside them: whoever wins,
// everything is copied. (DRBD 8.4 copies by bitmap when an administrator
// decided, and so can leave two disks UpToDate with different data.)
func resolveSplit(v Verdict, self, peer Facts, in DecideInput) Decision {
	d := Decision{Detected: true, Full: v.Result == ResultSplitNoBase}
	if in.Resolve != nil && (v.Result == ResultSplitBrain || in.AlwaysASBP) {
		if r := in.Resolve(self, peer, in.Token); r.SyncSource != r.SyncTarget {
			d.Policy = r.Policy
			return d.sync(r.SyncSource)
		}
	}
	if self.Discard != peer.Discard {
		d.ManuallySolved = true
		return d.sync(peer.Discard)
	}
	return Decision{Detected: true, SplitBrain: true}
}

// permit stops a course that this node may not take.
func permit(d Decision, self Facts, in DecideInput) Decision {
	switch {
	case d.SyncSource && negotiated(self) <= Inconsistent:
		return d.abort("I shall become SyncSource, but I am inconsistent!")
	case d.SyncTarget && self.Primary && self.Disk >= Consistent && in.RRConflict != RRViolently:
		d.PriLost = in.RRConflict == RRCallPriLost
		return d.abort("I shall become SyncTarget, but I am primary!")
	}
	d.Violent = d.SyncTarget && self.Primary && self.Disk >= Consistent
	d.Tentative = in.Tentative && !d.SplitBrain
	return d
}

func (d Decision) abort(reason string) Decision {
	d.SyncSource, d.SyncTarget, d.Full = false, false, false
	d.Abort, d.Reason = true, reason
	return d
}
