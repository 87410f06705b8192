package core

import (
	"replicad/bitmap"
	"replicad/wire"
)

// ActionKind says what must happen.
type ActionKind uint8

// Actions.
const (
	ActInvalid ActionKind = iota

	// ActSend: send Msg to the peer on Session, with the payload in Buf if
	// Msg.HasPayload. Sends of one channel go out in the order emitted. The shell takes its own reference on Buf.
	ActSend
	// ActComplete: answer client request Buf with Result. For a read that the
	// peer served, Src holds the data to copy. Ends the core's interest in Buf.
	ActComplete
	// ActRelease: the core has no more use for Buf (a payload buffer).
	ActRelease

	// Disk actions on Vol, answered by EvDiskDone with Op. Off, Len in bytes.
	// With Timed, disk-timeout is set: the action must not hold up anybody else,
	// and Buf may be completed or released before the answer, so a client's
	// write is made from a copy.
	ActDiskRead  // into Buf, or into a new buffer when Buf is 0
	ActDiskWrite // from Buf; FUA: durable on return
	ActDiskTrim
	ActDiskZero // NoHole
	ActDiskFlush

	// Metadata actions on Vol, answered by EvMetaDone with Op once durable.
	ActMetaSuper  // Super
	ActMetaAL     // Tx
	ActMetaBitmap // Pages

	// ActCloseGate: stop local reads of Vol that bypass the core; EvGateClosed with Op when the last one left.
	ActCloseGate
	// ActOpenGate: reads of Vol may go straight to the local disk, if no overlapping write is in flight.
	ActOpenGate
	// ActDetach: close Vol's backing device once its running actions are done; EvDetached.
	ActDetach

	// ActDial: listen and dial until a session is up, numbered Session; EvLinkUp or EvLinkRefused.
	ActDial
	// ActStopDial: stop listening and dialling. Nothing answers it; a session that came up meanwhile is ignored by number and dropped with ActDrop.
	ActStopDial
	// ActDrop: close Session after sending what is queued (Reason DropAdmin, DropTearDown, DropHandshake) or at once; EvLinkDown.
	ActDrop

	// ActCommandDone: the answer to a command: Cmd (its id), Err, Text (hint lines).
	ActCommandDone
	// ActHandler: run the configured handler Name for Vol (-1: the resource). With Wait the core waits for EvHandlerDone with Op.
	ActHandler
	// ActLog: Text in DRBD's words, for Vol (-1: the resource).
	ActLog
	// ActState: the state of Vol changed from Old to New: for event streams, status and waiting commands.
	ActState
)

// Level ranks a log line.
type Level uint8

// Log levels.
const (
	LevelInfo Level = iota
	LevelWarn
	LevelError
)

// PageImage is a copy of one 4 KiB page of the bitmap in on-disk form.
type PageImage struct {
	Page int
	Data []byte
}

// Action is one thing that must happen. Which fields count depends on Kind.
type Action struct {
	Kind    ActionKind
	Result  IOResult
	FUA     bool
	NoHole  bool
	Timed   bool
	Wait    bool
	Level   Level
	Reason  DropReason
	Vol     int32
	Buf     Buf
	Src     Buf
	Op      Op
	Session Session
	Len     uint32
	Off     uint64
	Msg     wire.Msg
	Super   *Super
	Tx      *bitmap.Transaction
	Pages   []PageImage
	Cmd     uint64
	Err     StateErr
	Name    string
	Text    string
	Old     State
	New     State
}
