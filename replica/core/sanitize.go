package core

// Fencing says what a Primary that lost its peer must make sure of (DRBD 8.4
// disk option fencing).
type Fencing uint8

// Fencing policies.
const (
	FencingDontCare           Fencing = iota // nothing; the default
	FencingResourceOnly                      // outdate the peer
	FencingResourceAndStonith                // and freeze client I/O until that is done
)

var fencingNames = [...]string{"dont-care", "resource-only", "resource-and-stonith"}

// String returns the policy's word in drbd.conf.
func (f Fencing) String() string { return nameOf("Fencing", fencingNames[:], int(f)) }

// NoDataPolicy says what happens to client I/O when neither node has good data
// (DRBD 8.4 resource option on-no-data-accessible).
type NoDataPolicy uint8

// No-data policies.
const (
	NoDataIOError   NoDataPolicy = iota // fail it; the default
	NoDataSuspendIO                     // freeze it
)

var noDataNames = [...]string{"io-error", "suspend-io"}

// String returns the policy's word in drbd.conf.
func (p NoDataPolicy) String() string { return nameOf("NoDataPolicy", noDataNames[:], int(p)) }

// diskRange is what a connection state allows a disk state to be.
type diskRange struct{ lowest, highest Disk }

var (
	anyDisk        = diskRange{Diskless, UpToDate}
	anyUnconnected = diskRange{Inconsistent, DUnknown}
	onlyGood       = diskRange{UpToDate, UpToDate}
	onlyBad        = diskRange{Inconsistent, Inconsistent}
	targetDisk     = diskRange{Inconsistent, Outdated}
	sourcesPeer    = diskRange{Inconsistent, Consistent}
)

// allowedDisks returns what conn allows the own and the peer's disk to be
// (DRBD 8.4).
func allowedDisks(conn Conn) (own, peer diskRange) {
	switch conn {
	case WFBitMapT, PausedSyncT, StartingSyncT, WFSyncUUID, Behind:
		return targetDisk, onlyGood
	case SyncTarget:
		return onlyBad, onlyGood
	case SyncSource:
		return onlyGood, onlyBad
	case WFBitMapS, PausedSyncS, StartingSyncS, Ahead:
		return onlyGood, sourcesPeer
	case VerifyS, VerifyT:
		return onlyGood, onlyGood
	case Connected:
		return anyDisk, anyDisk
	}
	return anyDisk, anyUnconnected
}

// Sanitize returns next with the adjustments that DRBD 8.4 makes to every
// requested state, and the log lines (in DRBD's words) about those that lose
// something. Sanitizing the result again changes nothing. It trusts its
// caller that next may be reached at all: it raises disk states to what
// next.Conn implies, so whoever asks for a sync or verify on somebody's behalf
// goes through Check.
func Sanitize(old, next State, r Rules) (State, []string) {
	var log []string
	s := forgetPeer(next)
	if s.Conn > Connected && (s.Disk <= Failed || s.PDisk <= Failed) {
		log = append(log, abortedLine(s.Conn))
		s = abortSync(old, s)
	}
	if s.Conn < Connected && s.Disk == Negotiating {
		var lost bool
		if s, lost = endNegotiation(s, r); lost {
			log = append(log, "Connection lost while negotiating, no data!")
		}
	}
	// DRBD does this before the two steps above; after them it also sees a
	// disk that was lost just now.
	if s.Unconfigured() {
		s.AftrIsp = false
	}
	s = upgradeConnected(s)
	s, log = clampDisks(s, log)
	s = suspend(old, s, r)
	// Pausing and resuming moves between states of different ranges:
	// clamped again, the result is one that a second pass would not change.
	s.Conn = pauseResync(s)
	return clampDisks(s, log)
}

// forgetPeer drops what a node cannot know without a connection. A peer disk
// known to be Inconsistent or Outdated stays so.
func forgetPeer(s State) State {
	if s.Conn >= Connected {
		return s
	}
	s.Peer = RoleUnknown
	s.PeerIsp = false
	if s.PDisk < Inconsistent || s.PDisk > DUnknown {
		s.PDisk = DUnknown
	}
	return s
}

func abortedLine(c Conn) string {
	if c == VerifyS || c == VerifyT {
		return "Online-verify aborted."
	}
	return "Resync aborted."
}

// abortSync ends a resync or verify whose one disk is gone. The disk that was
// about to be overwritten is not better for that: it stays Outdated. (DRBD 8.4
// forgets that it was the target, and calls it UpToDate.) A full sync that was
// only just asked for has made nobody a target yet.
func abortSync(old, s State) State {
	own, peer := allowedDisks(s.Conn)
	begun := !isStarting(s.Conn) || old.Conn == s.Conn
	s.Conn = Connected
	switch {
	case begun && own.lowest < UpToDate && s.Disk > Outdated:
		s.Disk = Outdated
	case begun && peer.lowest < UpToDate && s.PDisk > Outdated:
		s.PDisk = Outdated
	}
	return s
}

// endNegotiation decides about a disk whose handshake will not come: with the
// data that clients were shown last it may be used as its metadata says;
// anything else would let a diskless Primary go back in time. Metadata cannot
// say what the peer told while it was connected: that its own data is newer.
// (DRBD 8.4 forgets it, and would promote the old data.)
func endNegotiation(s State, r Rules) (_ State, lost bool) {
	if r.ExposedCurrent&^uuidPrimary == r.MetaCurrent&^uuidPrimary {
		s.Disk = r.AttachDisk
		if r.PeerNewer {
			s.Disk = min(s.Disk, Outdated)
		}
		return s, false
	}
	s.Disk, s.PDisk = Diskless, DUnknown
	return s, true
}

// upgradeConnected settles what Consistent and Outdated mean once connected:
// the handshake compared both disks and found the same data, or a resync
// follows and clampDisks has the last word. Where the other disk is missing or
// unusable there was nothing to compare with, and an Outdated disk stays so;
// DRBD 8.4 raises it regardless, and would serve old data as good.
func upgradeConnected(s State) State {
	if s.Conn < Connected || s.Conn >= Ahead {
		return s
	}
	resync := s.Conn > Connected
	own, peer := s.Disk, s.PDisk
	if own == Consistent || own == Outdated && (resync || usable(peer)) {
		s.Disk = UpToDate
	}
	if peer == Consistent || peer == Outdated && (resync || usable(own)) {
		s.PDisk = UpToDate
	}
	return s
}

// usable: as a whole, and known to be.
func usable(d Disk) bool { return d == Outdated || d >= Consistent }

// clampDisks forces both disks into what s.Conn allows. Only raising a disk is
// worth a line.
func clampDisks(s State, log []string) (State, []string) {
	own, peer := allowedDisks(s.Conn)
	if s.Disk < own.lowest {
		log = append(log, "Implicitly upgraded disk")
	}
	if s.PDisk < peer.lowest {
		log = append(log, "Implicitly upgraded pdsk")
	}
	s.Disk = min(max(s.Disk, own.lowest), own.highest)
	s.PDisk = min(max(s.PDisk, peer.lowest), peer.highest)
	return s, log
}

// suspend freezes client I/O on the edge into a state that asks for it, never
// while staying in one: otherwise resume-io could not thaw it.
func suspend(old, s State, r Rules) State {
	if r.Fencing == FencingResourceAndStonith && unfenced(s) && !unfenced(old) {
		s.SuspFen = true
	}
	if r.OnNoData == NoDataSuspendIO && withoutData(s) && !withoutData(old) {
		s.SuspNod = true
	}
	return s
}

// unfenced: a disconnected Primary whose peer might take over.
func unfenced(s State) bool { return s.Role == Primary && s.Conn < Connected && s.PDisk > Outdated }

func withoutData(s State) bool {
	return s.Role == Primary && s.Disk < UpToDate && s.PDisk < UpToDate
}

// pauseResync returns the connection state that the pause flags ask for.
func pauseResync(s State) Conn {
	switch {
	case s.Paused() && s.Conn == SyncSource:
		return PausedSyncS
	case s.Paused() && s.Conn == SyncTarget:
		return PausedSyncT
	case !s.Paused() && s.Conn == PausedSyncS:
		return SyncSource
	case !s.Paused() && s.Conn == PausedSyncT:
		return SyncTarget
	}
	return s.Conn
}
