package core

import (
	"replicad/bitmap"
	"replicad/wire"
)

// Time is a monotonic clock reading in nanoseconds. Only differences matter.
type Time int64

// Duration is a span of Time in nanoseconds.
type Duration = Time

// Buf names a buffer or request that the shell holds for the core: a client
// request, or a payload that arrived from the peer or was read from disk.
// 0 means none. Payload bytes never enter the core.
type Buf uint32

// Op names an operation the core started (a disk, metadata or gate action).
// The shell hands it back in the one completion event of that action.
type Op uint32

// Session numbers the links of a resource; each new one is larger. Events of
// an older session are ignored.
type Session uint32

// IOResult classifies how a disk or metadata operation, or a client request, ended.
type IOResult uint8

// Results of operations.
const (
	IOOK         IOResult = iota
	IOError               // EIO: the device failed.
	IONoSpace             // ENOSPC: the device is full.
	IONotPrimary          // the request was refused: this node is not Primary.
	IONoData              // neither this node nor the peer has good data.
	IOInvalid             // the request lies outside the volume.
	IOShutdown            // the resource is going down.
)

// EventKind says what an Event reports.
type EventKind uint8

// Events.
const (
	EvInvalid EventKind = iota

	// EvTick: time has passed. Early or repeated ticks are harmless.
	EvTick

	// Client requests: Vol, Buf (the request), Off, Len in bytes (multiples of
	// 512), FUA. A data write has at most 1 MiB and lies inside one 4 MiB
	// extent; a trim or zero lies inside one aligned 64 MiB range: the shell splits larger ones. Each is
	// answered by exactly one ActComplete.
	EvRead
	EvWrite
	EvTrim
	EvZero // NoHole says that a hole will not do.
	EvFlush

	// EvDiskDone answers ActDiskRead, ActDiskWrite, ActDiskTrim, ActDiskZero and
	// ActDiskFlush: Op, Result, and for reads without a buffer the Buf the shell read into (the core then owns a reference).
	EvDiskDone
	// EvMetaDone answers ActMetaSuper, ActMetaAL and ActMetaBitmap: Op, Result. IOOK means durable.
	EvMetaDone
	// EvGateClosed answers ActCloseGate: Op. No local read that bypasses the core is running any more.
	EvGateClosed
	// EvDetached answers ActDetach: Vol. The backing device is closed.
	EvDetached
	// EvHandlerDone answers an ActHandler with Wait: Op, Code = exit code.
	EvHandlerDone

	// EvLinkUp: both connections of Session are authenticated. Token is the
	// resolve-conflicts token, true on exactly one end.
	EvLinkUp
	// EvLinkDown: Session is gone, whoever ended it; also answers ActDrop. Reason says why.
	EvLinkDown
	// EvLinkRefused: connecting failed for a reason that retrying cannot mend (wrong secret, wrong resource); Text says it.
	EvLinkRefused
	// EvSent: every mirrored write of Session up to and including Seq was handed whole to the kernel (protocol A).
	EvSent
	// EvPeer: Msg arrived on Session; Buf holds its payload if it has one (the core owns a reference and releases it).
	EvPeer

	// EvAttach: Vol's backing disk is open and its metadata read: Attach.
	EvAttach
	// EvOpen: the number of clients that hold Vol open is now Arg.
	EvOpen
	// EvCommand: an administrator's command: Cmd. Answered by exactly one ActCommandDone.
	EvCommand
)

// Event is one thing that happened. Which fields count depends on Kind.
type Event struct {
	Kind    EventKind
	Result  IOResult
	FUA     bool
	NoHole  bool
	Token   bool
	Vol     uint16
	Code    int32
	Buf     Buf
	Op      Op
	Session Session
	Len     uint32
	Off     uint64
	Seq     uint64
	Arg     uint64
	Msg     wire.Msg
	Reason  DropReason
	Text    string
	Attach  *Attachment
	Cmd     *Command
}

// Super is the part of a volume's superblock that the core decides about
// (DRBD 8.4 metadata v08); the shell adds the rest (layout, device uuid).
type Super struct {
	Gen       Generation
	Flags     MetaFlags
	Size      uint64 // last agreed size in bytes; 0 = never attached
	PeerMaxIO uint32 // bytes
}

// Attachment is what the shell read from a backing disk and its metadata,
// after apply-al.
type Attachment struct {
	Super    Super
	Disk     uint64         // usable bytes of the backing disk
	User     uint64         // configured size limit in bytes, 0 = none
	Bitmap   *bitmap.Bitmap // as on disk, covering Super.Size; the core owns it from now on; nil when Super.Size is 0
	ALNumber uint32         // number of the next activity-log transaction
	ALSlots  int            // al-extents
	Cmd      uint64         // id of the attach command, answered by ActCommandDone
}

// CommandKind says what an administrator wants.
type CommandKind uint8

// Commands.
const (
	CmdPrimary          CommandKind = iota + 1 // Force
	CmdSecondary                               // Force: even while held open (shutdown after the clients were sent away)
	CmdConnect                                 // Discard, Tentative
	CmdDisconnect                              // Force
	CmdDetach                                  // Vol, Force
	CmdInvalidate                              // Vol: full sync with this node as target
	CmdInvalidateRemote                        // Vol: full sync with the peer as target
	CmdOutdate                                 // Vol
	CmdConfig                                  // Config: replace the changeable settings
)

// Command is an administrator's request. Vol -1 means every volume.
type Command struct {
	ID        uint64
	Kind      CommandKind
	Vol       int32
	Force     bool
	Discard   bool
	Tentative bool
	Config    *Config
}

// DropReason says why a link ended.
type DropReason uint8

// Reasons for the end of a link.
const (
	DropNone       DropReason = iota
	DropBrokenPipe            // a socket failed or the peer closed it
	DropTimeout               // the peer did not answer in time (ko-count)
	DropPing                  // "PingAck did not arrive in time."
	DropProtocol              // the peer broke the protocol, or a checksum failed
	DropAdmin                 // this node's administrator disconnected
	DropTearDown              // the peer's administrator disconnected
	DropHandshake             // the handshake refused the peer; StandAlone
	DropReconnect             // connect again to renegotiate
)
