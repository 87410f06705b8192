package wire

import "fmt"

// SectorSize is the granularity, in bytes, of every range on the link.
const SectorSize = 512

// PayloadMax is the largest payload of one message, in bytes.
const PayloadMax = 1 << 20

// RangeMax is the longest range, in bytes, that a message without payload may
// name: 16 activity-log extents of 4 MiB, the most one trim is split into.
const RangeMax = 64 << 20

// offsetEnd is the first byte offset no range may reach: offsets end up as
// the kernel's signed 64-bit file offsets.
const offsetEnd = 1 << 63

// The largest number of 64-bit words, and of bits, in one KindBitmap message: one 4 KiB page.
const (
	BitmapWordsMax = 512
	BitmapBitsMax  = BitmapWordsMax * 64
)

// flagsKnown are the flags this version understands. Others are refused: what
// two versions understand is settled in the handshake, not by guessing.
const flagsKnown = FlagFUA | FlagNoHole | FlagWantRecvAck | FlagWantWriteAck | FlagZeroes

// bodyKind says which body type hangs off a message.
type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyParams
	bodySizes
	bodyUUIDs
	bodyState
	bodyStateReq
	bodyBitmap
)

// shape is what the format demands of one kind of message.
type shape struct {
	name   string
	lenMax uint32 // longest range in bytes; 0 = the message names no range
	body   bodyKind
}

var shapes = [kindMax]shape{
	KindParams:   {name: "Params", body: bodyParams},
	KindSizes:    {name: "Sizes", body: bodySizes},
	KindUUIDs:    {name: "UUIDs", body: bodyUUIDs},
	KindState:    {name: "State", body: bodyState},
	KindStateReq: {name: "StateReq", body: bodyStateReq},
	KindSyncUUID: {name: "SyncUUID"},

	KindData:      {name: "Data", lenMax: PayloadMax},
	KindTrim:      {name: "Trim", lenMax: RangeMax},
	KindZero:      {name: "Zero", lenMax: RangeMax},
	KindBarrier:   {name: "Barrier"},
	KindOutOfSync: {name: "OutOfSync", lenMax: RangeMax},

	KindBitmap:    {name: "Bitmap", body: bodyBitmap},
	KindBitmapEnd: {name: "BitmapEnd"},

	KindReadRequest:   {name: "ReadRequest", lenMax: PayloadMax},
	KindReadReply:     {name: "ReadReply", lenMax: PayloadMax},
	KindResyncRequest: {name: "ResyncRequest", lenMax: PayloadMax},
	KindResyncReply:   {name: "ResyncReply", lenMax: PayloadMax},

	KindRecvAck:        {name: "RecvAck"},
	KindWriteAck:       {name: "WriteAck"},
	KindNegAck:         {name: "NegAck", lenMax: RangeMax},
	KindBarrierAck:     {name: "BarrierAck"},
	KindResyncWriteAck: {name: "ResyncWriteAck", lenMax: PayloadMax},
	KindResyncNegAck:   {name: "ResyncNegAck", lenMax: PayloadMax},
	KindResyncNegReply: {name: "ResyncNegReply", lenMax: PayloadMax},
	KindReadNegReply:   {name: "ReadNegReply"},
	KindStateReply:     {name: "StateReply"},
	KindPing:           {name: "Ping"},
	KindPingAck:        {name: "PingAck"},
}

// Valid reports whether k is a message of this protocol version.
func (k Kind) Valid() bool {
	return k < kindMax && shapes[k].name != ""
}

// String names the kind for logs and tests.
func (k Kind) String() string {
	if !k.Valid() {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return shapes[k].name
}

// String names the channel for logs.
func (c Channel) String() string {
	switch c {
	case ChannelData:
		return "data"
	case ChannelControl:
		return "control"
	}
	return fmt.Sprintf("Channel(%d)", uint8(c))
}

// Check reports whether m can be sent: a known kind and known flags, a range
// inside the limits of its kind, the body its kind demands, and a payload of
// exactly Len bytes where its kind carries one. ParseHeader applies the same
// rules to what arrives. The error wraps ErrMalformed.
func (m *Msg) Check(payloadLen int) error {
	if !m.Kind.Valid() {
		return malformed("unknown kind", uint64(m.Kind))
	}
	if bodyKindOf(m.Body) != shapes[m.Kind].body {
		return malformed("wrong body type for "+shapes[m.Kind].name, uint64(m.Kind))
	}
	if payloadLen != m.payloadLen() {
		return malformed("wrong payload size for "+shapes[m.Kind].name, uint64(payloadLen))
	}
	if err := checkBody(m); err != nil {
		return err
	}
	return m.checkScalars()
}

// payloadLen is the number of payload bytes that m announces.
func (m *Msg) payloadLen() int {
	if m.HasPayload() {
		return int(m.Len)
	}
	return 0
}

// checkScalars applies the rules for flags and ranges. The kind is valid.
func (m *Msg) checkScalars() error {
	if m.Flags&^flagsKnown != 0 {
		return malformed("unknown flags", uint64(m.Flags))
	}
	if m.Kind == KindBitmap {
		return m.checkBitRange()
	}
	if lenMax := shapes[m.Kind].lenMax; lenMax != 0 {
		return m.checkRange(lenMax)
	}
	return nil
}

// checkRange demands a non-empty range of whole sectors below offsetEnd.
func (m *Msg) checkRange(lenMax uint32) error {
	switch {
	case m.Len == 0 || m.Len > lenMax:
		return malformed("length out of range", uint64(m.Len))
	case m.Len%SectorSize != 0:
		return malformed("length is not a multiple of 512", uint64(m.Len))
	case m.Off%SectorSize != 0:
		return malformed("offset is not a multiple of 512", m.Off)
	case m.Off >= offsetEnd-uint64(m.Len):
		return malformed("range ends beyond 2^63", m.Off)
	}
	return nil
}

// checkBitRange demands whole words: the first bit starts one, and only the
// last word of a bitmap may be partly used.
func (m *Msg) checkBitRange() error {
	switch {
	case m.Len == 0 || m.Len > BitmapBitsMax:
		return malformed("bit count out of range", uint64(m.Len))
	case m.Off%64 != 0:
		return malformed("first bit is not a multiple of 64", m.Off)
	case m.Off >= offsetEnd-uint64(m.Len):
		return malformed("bit range ends beyond 2^63", m.Off)
	}
	return nil
}

// bitmapWords is the number of 64-bit words that hold m.Len bits.
func (m *Msg) bitmapWords() int {
	return int((uint64(m.Len) + 63) / 64)
}
