package wire

// Kind says what a message is. The vocabulary is DRBD's (DESIGN: a later
// dialect may speak DRBD's own format); the byte format is ours.
type Kind uint8

// Channel says which of a session's two connections carries a message.
type Channel uint8

const (
	// ChannelData carries, in one order, everything whose meaning depends on
	// its place among the writes.
	ChannelData Channel = 1
	// ChannelControl carries only what must not queue behind bulk data.
	ChannelControl Channel = 2
)

// Messages of the data channel.
const (
	KindInvalid Kind = iota

	KindParams   // Body *Params: link-wide settings; the first message of a session.
	KindSizes    // Body *Sizes, Vol.
	KindUUIDs    // Body *UUIDs, Vol: generation ids, dirty-bit count and flags.
	KindState    // Body *State, Vol: the sender's own state of one volume.
	KindStateReq // Body *StateReq: asks the peer to agree to a cluster-wide change; answered by KindStateReply.
	KindSyncUUID // Vol, Arg = the sync UUID: source tells target that the resync may start.

	KindData      // Vol, Seq, Off, Len + payload: one mirrored write.
	KindTrim      // Vol, Seq, Off, Len: mirrored discard, no payload.
	KindZero      // Vol, Seq, Off, Len: mirrored write of zeroes, no payload. Flags: FlagNoHole.
	KindBarrier   // Seq = epoch number, Arg = number of writes in the epoch. Closes the epoch for every volume.
	KindOutOfSync // Vol, Off, Len: the sender wrote this range without mirroring it; mark it dirty.

	KindBitmap    // Vol, Off = first bit, Len = bit count; Payload-less: Body *Bitmap (words).
	KindBitmapEnd // Vol: the sender's bitmap is complete.

	KindReadRequest   // Vol, Seq, Off, Len: a Primary without good local data reads from its peer.
	KindReadReply     // Vol, Seq, Off, Len + payload.
	KindResyncRequest // Vol, Seq, Off, Len: the SyncTarget pulls a block range.
	KindResyncReply   // Vol, Seq, Off, Len + payload.

	kindControlFirst

	KindRecvAck        // Vol, Seq: protocol B: the write is in the peer's memory.
	KindWriteAck       // Vol, Seq: the peer's backing device completed the write.
	KindNegAck         // Vol, Seq, Off, Len: the peer failed to write.
	KindBarrierAck     // Seq = epoch, Arg = number of writes the receiver counted in it. The epoch is on stable storage.
	KindResyncWriteAck // Vol, Seq, Off, Len: the SyncTarget wrote a resync block (not yet stable).
	KindResyncNegAck   // Vol, Seq, Off, Len: the SyncTarget failed to write a resync block.
	KindResyncNegReply // Vol, Seq, Off, Len: the source could not read a requested resync block.
	KindReadNegReply   // Vol, Seq: the peer could not read for a KindReadRequest.
	KindStateReply     // Seq = request id, Arg = result code (int64 of the state error, 1 = success).
	KindPing           // Arg = nonce.
	KindPingAck        // Arg = nonce of the ping.
	kindMax
)

// Flags of a message.
const (
	// FlagFUA asks the receiver nothing by itself (the barrier does); it lets
	// counters and a later dialect know that the client asked for durability.
	FlagFUA uint16 = 1 << iota
	// FlagNoHole forbids turning a KindZero range into a hole.
	FlagNoHole
	// FlagWantRecvAck asks for KindRecvAck (protocol B).
	FlagWantRecvAck
	// FlagWantWriteAck asks for KindWriteAck (protocol C).
	FlagWantWriteAck
	// FlagZeroes on a KindResyncReply says that the whole range is zeroes and no payload follows.
	FlagZeroes
)

// Msg is one message of the link in decoded form, by value: the hot kinds
// (data, acks, barriers) live in the scalar fields and allocate nothing; rare
// kinds hang one of the body types below off Body. Payload bytes never enter
// a Msg: whoever moves it carries them beside it.
type Msg struct {
	Kind  Kind
	Flags uint16
	Vol   uint16
	Len   uint32 // bytes
	Off   uint64 // bytes
	Seq   uint64
	Arg   uint64
	Body  any
}

// Channel reports which connection carries messages of this kind.
func (k Kind) Channel() Channel {
	if k > kindControlFirst {
		return ChannelControl
	}
	return ChannelData
}

// HasPayload reports whether Len bytes of payload follow the header of m.
func (m *Msg) HasPayload() bool {
	switch m.Kind {
	case KindData, KindReadReply:
		return true
	case KindResyncReply:
		return m.Flags&FlagZeroes == 0
	}
	return false
}

// Params are the link-wide settings both ends must agree on (DRBD 8.4
// parameter packet), plus what the sender wants of this connect.
type Params struct {
	Protocol          byte     `msgpack:"p"` // 'A', 'B' or 'C'
	AfterSB0          string   `msgpack:"s0"`
	AfterSB1          string   `msgpack:"s1"`
	AfterSB2          string   `msgpack:"s2"`
	AllowTwoPrimaries bool     `msgpack:"tp"`
	IntegrityAlg      string   `msgpack:"ia"`
	DiscardMyData     bool     `msgpack:"dm"`
	Tentative         bool     `msgpack:"dr"`
	Volumes           []uint16 `msgpack:"v"` // ascending
}

// Sizes describe one volume of the sender, in bytes.
type Sizes struct {
	Disk    uint64 `msgpack:"d"` // usable bytes of the backing disk, 0 = diskless
	User    uint64 `msgpack:"u"` // configured size limit, 0 = none
	Current uint64 `msgpack:"c"` // size of the volume as the sender serves it, 0 = none yet
}

// UUIDs are the sender's generation ids of one volume (DRBD 8.4 section "data generation identifiers").
type UUIDs struct {
	Current uint64 `msgpack:"c"`
	Bitmap  uint64 `msgpack:"b"`
	H1      uint64 `msgpack:"h1"`
	H2      uint64 `msgpack:"h2"`
	Bits    uint64 `msgpack:"n"` // dirty bits
	Flags   uint32 `msgpack:"f"` // UUIDFlag…
}

// Flags sent with the generation ids, numbered as DRBD 8.4 does.
const (
	UUIDFlagDiscardMyData   uint32 = 1
	UUIDFlagCrashedPrimary  uint32 = 2
	UUIDFlagInconsistent    uint32 = 4
	UUIDFlagSkipInitialSync uint32 = 8
)

// State is the sender's own view of one volume, in DRBD's numbers.
type State struct {
	Role  uint8 `msgpack:"r"`
	Peer  uint8 `msgpack:"p"`
	Conn  uint8 `msgpack:"c"`
	Disk  uint8 `msgpack:"d"`
	PDisk uint8 `msgpack:"e"`
	Flags uint8 `msgpack:"f"` // pause and suspend flags, StateFlag…
}

// Flags inside State.
const (
	StateFlagAfterPaused uint8 = 1 << iota // waits for a resync-after dependency
	StateFlagPeerPaused
	StateFlagUserPaused
	StateFlagSuspended
)

// StateReq asks for a cluster-wide state change. Want holds the values the
// requester wants for itself; Mask says which of them count (non-zero fields).
type StateReq struct {
	ID    uint64 `msgpack:"i"`
	Vol   int32  `msgpack:"v"` // -1 = every volume
	Role  uint8  `msgpack:"r"` // wanted own role, 0 = unchanged
	Conn  uint8  `msgpack:"c"` // wanted own connection state, 0 = unchanged
	Disk  uint8  `msgpack:"d"` // wanted own disk state + 1, 0 = unchanged
	Force bool   `msgpack:"f"`
}

// Bitmap is a piece of a dirty bitmap: 64-bit words, least significant bit
// first. The codec run-length codes it.
type Bitmap struct {
	Words []uint64 `msgpack:"w"`
}
