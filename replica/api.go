package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/link"
	"replicad/replica/status"
)

// Config says everything a resource needs to run on this node. Values are
// taken as they are: the configuration's reader has checked and defaulted
// them. Only Resource, Core and one entry of Volumes per core volume are
// required; Link is required before Connect.
type Config struct {
	Resource string // name, as both nodes know it
	Node     string // this node's name
	Core     core.Config
	Volumes  []VolumeConfig // one per Core.Volumes, same order
	Link     LinkConfig
	// Handlers maps DRBD's handler names ("split-brain", "fence-peer", …) to
	// the configured shell commands. A name that is missing succeeds at once.
	Handlers map[string]string
	// ConfigPath is passed to handlers as DRBD_CONF.
	ConfigPath string
	Log        *slog.Logger // nil discards
	Limits     Limits
	// Revoke tells the owner that vol is about to be demoted, or was, while
	// clients still hold it open (Close, a forced Secondary). It must make the clients of vol let
	// go, so that their Handles are closed, and return when they have or when ctx
	// ends. It is called from a goroutine that holds no lock. May be nil.
	Revoke func(ctx context.Context, vol uint16)
	// OpenDevice opens a backing or metadata device, by the path of its
	// VolumeConfig. nil means [disk.Open]; tests put disks here that lose power.
	OpenDevice func(path string, opts disk.Options) (disk.Device, error)
}

// VolumeConfig is the shell's part of a volume's configuration.
type VolumeConfig struct {
	Vol      uint16
	Minor    int    // of /dev/drbdN or /dev/nbdN, for handlers and status
	Device   string // path of the device node, for status only
	Disk     string // backing file or block device
	MetaKind MetaKind
	MetaPath string // external metadata only
	MetaSlot int    // MetaIndexed only
	Size     uint64 // configured limit in bytes, 0 = none

	ALExtents int // slots of the activity log, 0 = DRBD 8.4's default of 1237
}

// MetaKind is the place of a volume's metadata (DRBD 8.4 meta-disk).
type MetaKind uint8

// Places of the metadata.
const (
	MetaInternal MetaKind = iota // at the end of the backing disk
	MetaFlexible                 // a whole external device
	MetaIndexed                  // slot MetaSlot of 128 MiB in an external device
)

// LinkConfig describes the way to the peer.
type LinkConfig struct {
	Local, Peer          netip.AddrPort
	PeerName             string            // the peer's node name, for logs
	Secret               string            // shared-secret; empty = none
	AllowUnauthenticated bool              // run without a secret between other than loopback addresses
	TLS                  *link.Credentials // nil = plain TCP; what they hold may be replaced at any time
	ConnectInterval      time.Duration
	PingTimeout          time.Duration
	WriteTimeout         time.Duration // longest time one write to the peer may make no progress
	SendBuffer           int           // bytes, 0 = the system's choice
	ReceiveBuffer        int           // bytes, 0 = the system's choice
}

// Limits are the bounds of a resource's memory and concurrency. Zero fields
// are replaced by the Default… constants.
type Limits struct {
	Requests     int   // client requests in the resource at once
	RequestBytes int64 // bytes of client requests in the resource at once
	PayloadBytes int64 // bytes of payload buffers (from the peer, and read for it), each way
	DiskWorkers  int   // goroutines for disk operations that may block, of each volume
}

// Defaults of Limits.
const (
	DefaultRequests     = 1024
	DefaultRequestBytes = 256 << 20
	DefaultPayloadBytes = 64 << 20
	DefaultDiskWorkers  = 8
)

// StateError reports that the state machine refused a command.
type StateError struct {
	Err  core.StateErr
	Info []string // "additional info from kernel" lines, often none
}

// Error returns DRBD's words, "State change failed: (-2) Need access to UpToDate data".
func (e *StateError) Error() string {
	return fmt.Sprintf("State change failed: (%d) %s", int(e.Err), e.Err.Text())
}

// Unwrap returns the core's error, for errors.Is.
func (e *StateError) Unwrap() error { return e.Err }

// ExitCode returns drbdsetup's exit code for the refusal.
func (e *StateError) ExitCode() int { return e.Err.ExitCode() }

// FailureCode is a DRBD 8.4 result code above 100 (enum drbd_ret_code).
type FailureCode int

// failureFirst is the first of DRBD's failures; smaller codes are verdicts on
// state changes.
const failureFirst FailureCode = 101

// The failures a resource reports.
const (
	FailOpenDisk      FailureCode = 104 // Can not open backing device.
	FailOpenMeta      FailureCode = 105
	FailDiskTooSmall  FailureCode = 111
	FailMetaTooSmall  FailureCode = 112
	FailDiskClaimed   FailureCode = 114
	FailMetaClaimed   FailureCode = 115
	FailMetaIO        FailureCode = 118
	FailMetaInvalid   FailureCode = 119
	FailDiscardPrim   FailureCode = 123
	FailAttached      FailureCode = 124
	FailHasNet        FailureCode = 125
	FailMinorUnknown  FailureCode = 127
	FailNoDiskConfig  FailureCode = 138
	FailNotCurrent    FailureCode = 150
	FailMetaUnclean   FailureCode = 165
	FailShrinkRefused FailureCode = 170
)

// Failure reports a command that failed outside the state machine.
type Failure struct {
	Code FailureCode
	Info []string // further lines for the user
	Err  error    // the cause, nil if the code says it all
}

// Error returns DRBD's words, "Failure: (119) No valid meta-data signature found.".
func (e *Failure) Error() string {
	return fmt.Sprintf("Failure: (%d) %s", int(e.Code), e.Code.Text())
}

// Unwrap returns the cause.
func (e *Failure) Unwrap() error { return e.Err }

// ExitCode returns drbdsetup's exit code for failures: 10.
func (e *Failure) ExitCode() int { return 10 }

var failureTexts = map[FailureCode]string{
	FailOpenDisk:      "Can not open backing device.",
	FailOpenMeta:      "Can not open meta device.",
	FailDiskTooSmall:  "Low.dev. smaller than requested DRBD-dev. size.",
	FailMetaTooSmall:  "Meta device too small.",
	FailDiskClaimed:   "Lower device is already claimed. This usually means it is mounted.",
	FailMetaClaimed:   "Meta device is already claimed. This usually means it is mounted.",
	FailMetaIO:        "IO error(s) occurred during initial access to meta-data.",
	FailMetaInvalid:   "No valid meta-data signature found.",
	FailDiscardPrim:   "--discard-my-data not allowed when primary.",
	FailAttached:      "Device is attached to a disk (use detach first)",
	FailHasNet:        "Device has a net-config (use disconnect first)",
	FailMinorUnknown:  "Device minor not allocated",
	FailNoDiskConfig:  "Device does not have a disk-config",
	FailNotCurrent:    "Can only attach to the data we lost last (see kernel log).",
	FailMetaUnclean:   "Unclean meta-data found.",
	FailShrinkRefused: "Implicit device shrinking not allowed. See kernel log.",
}

// Text returns DRBD 8.4's message for the code.
func (c FailureCode) Text() string { return failureTexts[c] }

// Errors of waiting and of a resource that is going away.
var (
	// ErrStandAlone is returned by WaitConnect when nobody is trying to connect.
	ErrStandAlone = errors.New("resource is StandAlone: nobody is trying to connect")
	// ErrLinkDown is returned by WaitSync when the link stayed down for longer than its limit.
	ErrLinkDown = errors.New("link to the peer stayed down")
	// ErrClosed is returned by every method after Close.
	ErrClosed = errors.New("resource is closed")
)

// NotPrimaryError is why a volume cannot be opened. Its text is a sentence for
// the NBD client.
type NotPrimaryError struct {
	Resource string
	Role     core.Role
}

// Error implements error.
func (e *NotPrimaryError) Error() string {
	return fmt.Sprintf("resource %s is %s on this node: only a Primary serves its clients", e.Resource, e.Role)
}

// AttachResult is what there is to tell the user about an attach.
type AttachResult struct {
	// MarkedKiB is what apply-al marked out of sync because the node had
	// crashed as Primary ("Marked additional %d KB as out-of-sync based on AL.").
	MarkedKiB uint64
	Info      []string
}

// ConnectOptions are the options of the connect command.
type ConnectOptions struct {
	DiscardMyData bool
	Tentative     bool
}

// Snapshot is the state of a resource at one moment. It shares nothing with
// the resource.
type Snapshot struct {
	Resource string
	Peer     string
	Local    netip.AddrPort
	Remote   netip.AddrPort
	TLS      bool // a session is up and encrypted
	core.Status
	Volumes []VolumeSnapshot // shadows core.Status.Volumes, same order
}

// VolumeSnapshot is the state of one volume at one moment.
type VolumeSnapshot struct {
	core.VolumeStatus
	Minor   int
	Device  string
	Disk    string // backing path
	Openers int
	// Counters.Read includes the reads that bypassed the core.
	MetaSlots int                  // activity-log extents
	Sync      *status.SyncProgress // nil when no resync runs
}

// Change is one entry of a resource's history, as Subscribe delivers it.
type Change struct {
	At       time.Time
	Vol      int32 // -1: the resource
	Old, New core.State
	// Helper is the name of a handler that was called, or has answered when
	// Answered is set; then Code is its exit code. Old and New are zero.
	Helper   string
	Answered bool
	Code     int
}
