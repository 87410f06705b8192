package core

import (
	"errors"
	"strconv"
	"strings"

	"replicad/internal/mutant"
)

// Role says whether a node may serve its device. Numbers are DRBD 8.4's (2
// bits of the state word). Unknown is only ever the peer's role.
type Role uint8

// Roles.
const (
	RoleUnknown Role = iota
	Primary
	Secondary
	roleEnd
)

var roleNames = [...]string{"Unknown", "Primary", "Secondary"}

// String returns DRBD's name of the role.
func (r Role) String() string { return nameOf("Role", roleNames[:], int(r)) }

// Conn is the connection state of a volume. Numbers are DRBD 8.4's (5 bits of
// the state word). There is a socket from WFReportParams upward; Timeout to
// TearDown are transient.
type Conn uint8

// Connection states.
const (
	StandAlone     Conn = iota // no configuration, or dropped; never retries
	Disconnecting              // on the way to StandAlone
	Unconnected                // configured, about to try
	Timeout                    // no answer in time
	BrokenPipe                 // socket lost
	NetworkFailure             // link considered dead
	ProtocolError              // the peer broke the protocol
	TearDown                   // the peer is closing gracefully
	WFConnection               // listening and dialling
	WFReportParams             // sockets up, handshake running
	Connected                  // mirroring
	StartingSyncS              // requested full sync being prepared, this node source
	StartingSyncT              // requested full sync being prepared, this node target
	WFBitMapS                  // bitmap exchange, this node source
	WFBitMapT                  // bitmap exchange, this node target
	WFSyncUUID                 // target waits for the sync UUID
	SyncSource                 // resync running, this node source
	SyncTarget                 // resync running, this node target
	VerifyS                    // online verify, this node initiator
	VerifyT                    // online verify, peer initiator
	PausedSyncS                // resync paused, this node source
	PausedSyncT                // resync paused, this node target
	Ahead                      // congested: sends dirty marks instead of data
	Behind                     // the peer is Ahead
	connEnd
)

var connNames = [...]string{
	"StandAlone", "Disconnecting", "Unconnected", "Timeout", "BrokenPipe", "NetworkFailure", "ProtocolError",
	"TearDown", "WFConnection", "WFReportParams", "Connected", "StartingSyncS", "StartingSyncT", "WFBitMapS",
	"WFBitMapT", "WFSyncUUID", "SyncSource", "SyncTarget", "VerifyS", "VerifyT", "PausedSyncS", "PausedSyncT",
	"Ahead", "Behind",
}

// String returns DRBD's name of the connection state.
func (c Conn) String() string { return nameOf("Conn", connNames[:], int(c)) }

// Disk is the state of the data on one node's disk. Numbers are DRBD 8.4's (4
// bits of the state word); a larger number is better data.
type Disk uint8

// Disk states.
const (
	Diskless     Disk = iota // none attached
	Attaching                // reading metadata
	Failed                   // I/O error or detach in progress
	Negotiating              // attached while connected; waits for the handshake
	Inconsistent             // unusable as a whole
	Outdated                 // consistent but known old
	DUnknown                 // the peer's only: not connected
	Consistent               // consistent; whether current is decided at connect
	UpToDate                 // good
	diskEnd
)

var diskNames = [...]string{
	"Diskless", "Attaching", "Failed", "Negotiating", "Inconsistent", "Outdated", "DUnknown", "Consistent", "UpToDate",
}

// String returns DRBD's name of the disk state.
func (d Disk) String() string { return nameOf("Disk", diskNames[:], int(d)) }

func nameOf(kind string, names []string, n int) string {
	if n < len(names) {
		return names[n]
	}
	return kind + "(" + strconv.Itoa(n) + ")"
}

// State is one volume's state as this node sees it (DRBD 8.4's state word).
// Values are comparable; it is changed only by replacing it whole.
type State struct {
	Role, Peer  Role
	Conn        Conn
	Disk, PDisk Disk
	Susp        bool // client I/O suspended by the administrator
	AftrIsp     bool // resync paused: waits for a resync-after dependency
	PeerIsp     bool // resync paused by the peer
	UserIsp     bool // resync paused by the local administrator
	SuspNod     bool // client I/O suspended: no up-to-date data reachable
	SuspFen     bool // client I/O suspended: the peer must be fenced first
}

// Unconfigured reports whether there is neither a disk nor a connection nor a
// Primary, which is what /proc/drbd calls Unconfigured.
func (s State) Unconfigured() bool {
	return s.Conn == StandAlone && s.Disk == Diskless && s.Role == Secondary
}

// Suspended reports whether client I/O is suspended for any reason.
func (s State) Suspended() bool { return s.Susp || s.SuspNod || s.SuspFen }

// Paused reports whether any of the three resync-pause flags is set.
func (s State) Paused() bool { return s.AftrIsp || s.PeerIsp || s.UserIsp }

// Valid reports whether every number in s has a name: to be asked before a
// state that came from the peer is believed.
func (s State) Valid() bool {
	return s.Role < roleEnd && s.Peer < roleEnd && s.Conn < connEnd && s.Disk < diskEnd && s.PDisk < diskEnd
}

// String returns s as DRBD's kernel log prints it:
// "{ cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate r----- }". The six
// flags are suspended, pause by dependency, by peer and by user, fencing
// suspend, no-data suspend.
func (s State) String() string {
	flags := []byte("r-----")
	set := func(i int, on bool, c byte) {
		if on {
			flags[i] = c
		}
	}
	set(0, s.Suspended(), 's')
	set(1, s.AftrIsp, 'a')
	set(2, s.PeerIsp, 'p')
	set(3, s.UserIsp, 'u')
	set(4, s.SuspFen, 'F')
	set(5, s.SuspNod, 'N')
	return "{ cs:" + s.Conn.String() + " ro:" + s.Role.String() + "/" + s.Peer.String() +
		" ds:" + s.Disk.String() + "/" + s.PDisk.String() + " " + string(flags) + " }"
}

// Diff returns what changes from s to next, as DRBD's kernel log prints it,
// with a trailing blank: "conn( WFConnection -> WFReportParams ) ". It is
// empty when nothing that DRBD prints changes.
func (s State) Diff(next State) string {
	var b strings.Builder
	put := func(name, from, to string) {
		if from != to {
			b.WriteString(name + "( " + from + " -> " + to + " ) ")
		}
	}
	put("role", s.Role.String(), next.Role.String())
	put("peer", s.Peer.String(), next.Peer.String())
	put("conn", s.Conn.String(), next.Conn.String())
	put("disk", s.Disk.String(), next.Disk.String())
	put("pdsk", s.PDisk.String(), next.PDisk.String())
	put("susp", digit(s.Suspended()), digit(next.Suspended()))
	put("aftr_isp", digit(s.AftrIsp), digit(next.AftrIsp))
	put("peer_isp", digit(s.PeerIsp), digit(next.PeerIsp))
	put("user_isp", digit(s.UserIsp), digit(next.UserIsp))
	return b.String()
}

func digit(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// First bit of each field in DRBD 8.4's state word, least significant first.
const (
	shiftRole    = 0
	shiftPeer    = 2
	shiftConn    = 4
	shiftDisk    = 9
	shiftPDisk   = 13
	shiftSusp    = 17
	shiftAftrIsp = 18
	shiftPeerIsp = 19
	shiftUserIsp = 20
	shiftSuspNod = 21
	shiftSuspFen = 22
	stateBits    = 23
)

// ErrStateWord says that a state word holds a number without a name or a bit
// without a meaning.
var ErrStateWord = errors.New("invalid state word")

// Packed returns DRBD 8.4's 32-bit state word of s.
func (s State) Packed() uint32 {
	w := uint32(s.Role)<<shiftRole | uint32(s.Peer)<<shiftPeer | uint32(s.Conn)<<shiftConn |
		uint32(s.Disk)<<shiftDisk | uint32(s.PDisk)<<shiftPDisk
	bit := func(on bool, shift uint) {
		if on {
			w |= 1 << shift
		}
	}
	bit(s.Susp, shiftSusp)
	bit(s.AftrIsp, shiftAftrIsp)
	bit(s.PeerIsp, shiftPeerIsp)
	bit(s.UserIsp, shiftUserIsp)
	bit(s.SuspNod, shiftSuspNod)
	bit(s.SuspFen, shiftSuspFen)
	return w
}

// Unpack is the inverse of Packed. The word may come from the peer: it
// returns ErrStateWord for one that no State has.
func Unpack(word uint32) (State, error) {
	bit := func(shift uint) bool { return word>>shift&1 == 1 }
	s := State{
		Role:    Role(word >> shiftRole & 3),
		Peer:    Role(word >> shiftPeer & 3),
		Conn:    Conn(word >> shiftConn & 31),
		Disk:    Disk(word >> shiftDisk & 15),
		PDisk:   Disk(word >> shiftPDisk & 15),
		Susp:    bit(shiftSusp),
		AftrIsp: bit(shiftAftrIsp),
		PeerIsp: bit(shiftPeerIsp),
		UserIsp: bit(shiftUserIsp),
		SuspNod: bit(shiftSuspNod),
		SuspFen: bit(shiftSuspFen),
	}
	if word>>stateBits != 0 || !s.Valid() {
		return State{}, ErrStateWord
	}
	return s, nil
}

// MetaFlags are the flag bits of the superblock (DRBD 8.4 metadata v08).
type MetaFlags uint32

// Superblock flags.
const (
	FlagConsistent     MetaFlags = 1 << iota // the disk is better than Inconsistent
	FlagPrimaryInd                           // Primary, or serving a Primary whose disk is dead
	FlagConnectedInd                         // past the handshake
	FlagFullSync                             // setting all bits, or resizing, is under way
	FlagWasUpToDate                          // the disk is better than Outdated
	FlagPeerOutdated                         // the peer's disk is Inconsistent or Outdated
	FlagCrashedPrimary                       // an attach found FlagPrimaryInd; the peer was not seen good since
	FlagALClean                              // the activity log is empty; only written offline
	FlagALDisabled                           // al-updates no
)

// flagsOfState are the flags that a running state decides.
const flagsOfState = FlagConsistent | FlagPrimaryInd | FlagConnectedInd | FlagWasUpToDate | FlagPeerOutdated |
	FlagCrashedPrimary | FlagALClean | FlagALDisabled

// AttachDisk returns the disk state that metadata with these flags starts
// with (DRBD 8.4): Inconsistent, Outdated, Consistent or UpToDate.
func AttachDisk(flags MetaFlags, fencing Fencing) Disk {
	switch {
	case flags&FlagConsistent == 0:
		return Inconsistent
	case flags&FlagWasUpToDate == 0:
		return Outdated
	case flags&FlagPeerOutdated != 0 || fencing == FencingDontCare:
		return UpToDate
	}
	return Consistent
}

// AttachPDisk returns what metadata with these flags knows of the peer's disk.
func AttachPDisk(flags MetaFlags) Disk {
	if flags&FlagPeerOutdated != 0 {
		return Outdated
	}
	return DUnknown
}

// CrashSettled reports whether, in s, a crashed-primary mark has served its
// purpose: both disks are good and nothing is left to copy. DRBD 8.4.11 was
// seen to keep the mark after such a resync, and later picked the wrong source
// by it; replicad clears it.
func (s State) CrashSettled() bool {
	return s.Conn == Connected && s.Disk == UpToDate && s.PDisk == UpToDate
}

// FlagsFor returns the superblock flags of a volume in state s. was holds the
// flags now on disk: FlagFullSync is taken over, and so is everything while the
// disk is not yet, or no longer, negotiated (below Inconsistent), because such
// a state says nothing about the data. crashed is the crashed-primary mark and
// noAL the al-updates no option.
func FlagsFor(s State, was MetaFlags, crashed, noAL bool) MetaFlags {
	if s.Disk < Inconsistent {
		return was
	}
	f := was &^ flagsOfState
	set := func(on bool, flag MetaFlags) {
		if on {
			f |= flag
		}
	}
	set(s.Disk > Inconsistent || mutant.On(mutant.InconsistentLooksConsistent), FlagConsistent)
	set(s.Role == Primary || s.Peer == Primary && s.PDisk < Inconsistent, FlagPrimaryInd)
	set(s.Conn > WFReportParams, FlagConnectedInd)
	set(s.Disk > Outdated, FlagWasUpToDate)
	set(s.PDisk == Inconsistent || s.PDisk == Outdated, FlagPeerOutdated)
	set(crashed && !s.CrashSettled(), FlagCrashedPrimary)
	set(noAL, FlagALDisabled)
	return f
}
