// Package status renders the state of resources in the texts that DRBD's users
// and their tools read: /proc/drbd of DRBD 8.4, drbdadm's status tree and
// one-line queries, the lines of events2, and the JSON of DRBD 9's drbdsetup.
//
// It knows no replication: whoever runs a resource fills the plain structs of
// this package. It does no I/O and reads no clock; its functions may be called
// from any goroutine, on values that nobody changes meanwhile.
package status

// Conn is a connection state of one volume, by DRBD 8.4's name.
type Conn string

// Connection states that the texts treat in a way of their own. Those that
// are not listed are printed as they are.
const (
	StandAlone     Conn = "StandAlone"
	Disconnecting  Conn = "Disconnecting"
	Unconnected    Conn = "Unconnected"
	Timeout        Conn = "Timeout"
	BrokenPipe     Conn = "BrokenPipe"
	NetworkFailure Conn = "NetworkFailure"
	ProtocolError  Conn = "ProtocolError"
	TearDown       Conn = "TearDown"
	WFConnection   Conn = "WFConnection"
	WFReportParams Conn = "WFReportParams"
	Connected      Conn = "Connected"
	SyncSource     Conn = "SyncSource"
	SyncTarget     Conn = "SyncTarget"
	VerifyS        Conn = "VerifyS"
	VerifyT        Conn = "VerifyT"
	PausedSyncS    Conn = "PausedSyncS"
	PausedSyncT    Conn = "PausedSyncT"
)

// HasSocket reports whether the peer is connected at all: from
// WFReportParams upward.
func (c Conn) HasSocket() bool {
	switch c {
	case StandAlone, Disconnecting, Unconnected, Timeout, BrokenPipe,
		NetworkFailure, ProtocolError, TearDown, WFConnection:
		return false
	}
	return true
}

// showsProgress reports whether /proc/drbd has progress lines in this state.
func (c Conn) showsProgress() bool {
	return c == SyncSource || c == SyncTarget || c.isVerify()
}

// isVerify reports whether an online verify runs.
func (c Conn) isVerify() bool { return c == VerifyS || c == VerifyT }

// connection is the state of the connection by DRBD 9's name.
func (c Conn) connection() string {
	switch {
	case c == WFConnection:
		return "Connecting"
	case c.HasSocket():
		return "Connected"
	}
	return string(c)
}

// replication is the replication state by DRBD 9's name.
func (c Conn) replication() string {
	switch {
	case !c.HasSocket() || c == WFReportParams:
		return "Off"
	case c == Connected:
		return "Established"
	}
	return string(c)
}

// Role is a role by DRBD's name.
type Role string

// The roles; Unknown is only ever the peer's.
const (
	Unknown   Role = "Unknown"
	Primary   Role = "Primary"
	Secondary Role = "Secondary"
)

// Disk is a disk state by DRBD's name.
type Disk string

// Disk states that the texts treat in a way of their own.
const (
	Diskless Disk = "Diskless"
	DUnknown Disk = "DUnknown"
	UpToDate Disk = "UpToDate"
)

// Blocked says why I/O does not move: the fifth flag of /proc/drbd.
type Blocked byte

// Values of Blocked; the zero value stands for not blocked.
const (
	BlockedTransient Blocked = 'd' // a state change is under way
	BlockedHandler   Blocked = 'c' // a user-mode handler runs
	BackingCongested Blocked = 'b'
	NetworkCongested Blocked = 'n'
	BothCongested    Blocked = 'a' // backing device and network
)

// Flags are the six flag characters of /proc/drbd, and what they sum up.
type Flags struct {
	SuspendedUser    bool // application I/O suspended by the administrator
	SuspendedNoData  bool // ... because no good data is reachable
	SuspendedFencing bool // ... until the peer is fenced
	AfterPaused      bool // resync waits for a local resync-after dependency
	PeerPaused       bool // the peer paused the resync
	UserPaused       bool // the local administrator paused the resync
	Blocked          Blocked
	ALSuspended      bool // activity-log updates suspended: the bitmap is full
}

func (f *Flags) suspended() bool {
	return f.SuspendedUser || f.SuspendedNoData || f.SuspendedFencing
}

// Counters are the counters of /proc/drbd, named as there.
type Counters struct {
	NS  uint64 // KiB of payload sent
	NR  uint64 // KiB of payload received
	DW  uint64 // KiB written to the local backing disk
	DR  uint64 // KiB read from the local backing disk
	AL  uint64 // activity-log transactions written
	BM  uint64 // bitmap writes; 0 from DRBD 8.4.5 on
	LO  int    // open references to the local disk
	PE  int    // requests sent to the peer and not answered
	UA  int    // requests of the peer not answered
	AP  int    // application requests not completed
	EP  int    // epoch objects; 1 when idle
	WO  byte   // write ordering: 'b' barrier, 'f' flush, 'd' drain, 'n' none
	OOS uint64 // KiB out of sync
}

// Device is one volume as this node sees it.
type Device struct {
	Minor    int
	Volume   int
	Conn     Conn
	Role     Role
	PeerRole Role
	Disk     Disk
	PeerDisk Disk
	Protocol byte // 'A', 'B' or 'C'; 0 without a network configuration
	Flags    Flags
	Counters
	Open bool          // somebody holds the device open
	Size uint64        // KiB of usable size
	Sync *SyncProgress // nil unless a resync or verify runs or is paused
}

// Unconfigured reports whether /proc/drbd says only that.
func (d *Device) Unconfigured() bool {
	return d.Conn == StandAlone && d.Disk == Diskless && d.Role == Secondary
}

// Resource is a resource with its volumes and its one peer.
type Resource struct {
	Name       string
	NodeID     int
	PeerNodeID int
	PeerName   string // host name of the peer
	Devices    []Device
	TLS        bool  // the link is encrypted
	Path       *Path // nil when no address is known
}

// Path is one pair of addresses.
type Path struct {
	This, Remote Address
	Established  bool
}

// Address is one end of a path.
type Address struct {
	Address string
	Port    int
	Family  string // "ipv4" or "ipv6"
}

// role is the resource's role: Primary when any volume is.
func (r *Resource) role() Role {
	for i := range r.Devices {
		if r.Devices[i].Role == Primary {
			return Primary
		}
	}
	return Secondary
}

// peerRole is the peer's role, as the volumes know it.
func (r *Resource) peerRole() Role {
	role := Unknown
	for i := range r.Devices {
		switch r.Devices[i].PeerRole {
		case Primary:
			return Primary
		case Secondary:
			role = Secondary
		}
	}
	return role
}

// conn is the state of the connection: that of the volume furthest from
// being connected.
func (r *Resource) conn() Conn {
	conn := WFReportParams
	for i := range r.Devices {
		if c := r.Devices[i].Conn; !c.HasSocket() {
			conn = c
		}
	}
	return conn
}

// hasNet reports whether a network configuration is there.
func (r *Resource) hasNet() bool {
	for i := range r.Devices {
		if r.Devices[i].Protocol != 0 {
			return true
		}
	}
	return false
}

// congested reports whether the link cannot take what is queued for it.
func (r *Resource) congested() bool {
	for i := range r.Devices {
		if b := r.Devices[i].Flags.Blocked; b == NetworkCongested || b == BothCongested {
			return true
		}
	}
	return false
}

// flags are the flags of all volumes taken together.
func (r *Resource) flags() Flags {
	var all Flags
	for i := range r.Devices {
		f := &r.Devices[i].Flags
		all.SuspendedUser = all.SuspendedUser || f.SuspendedUser
		all.SuspendedNoData = all.SuspendedNoData || f.SuspendedNoData
		all.SuspendedFencing = all.SuspendedFencing || f.SuspendedFencing
	}
	return all
}

// writeOrdering is the write-ordering method by drbdsetup's name.
func (r *Resource) writeOrdering() string {
	if len(r.Devices) > 0 {
		switch r.Devices[0].WO {
		case 'b':
			return "barrier"
		case 'f':
			return "flush"
		case 'd':
			return "drain"
		}
	}
	return "none"
}

// suspendedList names why application I/O is suspended.
func (f *Flags) suspendedList() string {
	return list(named{f.SuspendedUser, "user"}, named{f.SuspendedNoData, "no-data"},
		named{f.SuspendedFencing, "fencing"})
}

// resyncSuspendedList names who paused the resync.
func (f *Flags) resyncSuspendedList() string {
	return list(named{f.UserPaused, "user"}, named{f.PeerPaused, "peer"},
		named{f.AfterPaused, "dependency"})
}

// blockedList names where I/O is held up: above or below this device.
func (f *Flags) blockedList() string {
	return list(named{f.suspended() || f.Blocked == BlockedTransient, "upper"},
		named{f.Blocked == BackingCongested || f.Blocked == BothCongested, "lower"})
}

type named struct {
	on   bool
	name string
}

// list joins the names that are on by commas.
func list(items ...named) string {
	text := ""
	for _, item := range items {
		switch {
		case !item.on:
		case text == "":
			text = item.name
		default:
			text += "," + item.name
		}
	}
	if text == "" {
		return "no"
	}
	return text
}

func yesNo(on bool) string {
	if on {
		return "yes"
	}
	return "no"
}
