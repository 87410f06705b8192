package wire

import (
	"math"
	"math/big"
	"testing"
)

// rule is what docs/PROTOCOL.md says of one kind, written down a second time
// so that a slip in the table of the code shows.
type rule struct {
	channel Channel
	rangeMB int64 // longest range in MiB, 0 = the kind names none
	payload bool
	body    bool
}

var rules = map[Kind]rule{
	KindParams: {ChannelData, 0, false, true}, KindSizes: {ChannelData, 0, false, true}, KindUUIDs: {ChannelData, 0, false, true},
	KindState: {ChannelData, 0, false, true}, KindStateReq: {ChannelData, 0, false, true}, KindSyncUUID: {ChannelData, 0, false, false},
	KindData: {ChannelData, 1, true, false}, KindTrim: {ChannelData, 64, false, false}, KindZero: {ChannelData, 64, false, false},
	KindBarrier: {ChannelData, 0, false, false}, KindOutOfSync: {ChannelData, 64, false, false},
	KindBitmap: {ChannelData, 0, false, true}, KindBitmapEnd: {ChannelData, 0, false, false},
	KindReadRequest: {ChannelData, 1, false, false}, KindReadReply: {ChannelData, 1, true, false},
	KindResyncRequest: {ChannelData, 1, false, false}, KindResyncReply: {ChannelData, 1, true, false},
	KindRecvAck: {ChannelControl, 0, false, false}, KindWriteAck: {ChannelControl, 0, false, false},
	KindNegAck: {ChannelControl, 64, false, false}, KindBarrierAck: {ChannelControl, 0, false, false},
	KindResyncWriteAck: {ChannelControl, 1, false, false}, KindResyncNegAck: {ChannelControl, 1, false, false},
	KindResyncNegReply: {ChannelControl, 1, false, false}, KindReadNegReply: {ChannelControl, 0, false, false},
	KindStateReply: {ChannelControl, 0, false, false}, KindPing: {ChannelControl, 0, false, false}, KindPingAck: {ChannelControl, 0, false, false},
}

// mayPass decides by the words of the protocol whether a header is legal, in
// numbers that cannot overflow.
func mayPass(m *Msg, ch Channel, size uint32) bool {
	r, known := rules[m.Kind]
	if !known || r.channel != ch || m.Flags >= 1<<5 {
		return false
	}
	end := new(big.Int).Add(new(big.Int).SetUint64(m.Off), big.NewInt(int64(m.Len)))
	inside := end.Cmp(new(big.Int).Lsh(big.NewInt(1), 63)) < 0
	switch {
	case m.Kind == KindBitmap && (m.Len == 0 || m.Len > 4096*8 || m.Off%64 != 0 || !inside):
		return false
	case r.rangeMB > 0 && (m.Len == 0 || int64(m.Len) > r.rangeMB<<20 || m.Len%512 != 0 || m.Off%512 != 0 || !inside):
		return false
	case r.body:
		return size > 0 && size <= 16<<10
	case r.payload && (m.Kind != KindResyncReply || m.Flags&(1<<4) == 0):
		return size == m.Len
	}
	return size == 0
}

// FuzzHeader makes headers out of numbers, with right hashes, and demands that
// exactly those pass that the protocol allows, at no cost in memory.
func FuzzHeader(f *testing.F) {
	edges := []uint64{0, 1, 511, 512, 1 << 20, 1<<20 + 512, 64 << 20, 64<<20 + 512, math.MaxUint32, 1 << 32, 1<<63 - 512, 1 << 63, math.MaxUint64 - 511, math.MaxUint64}
	for kind := range uint8(kindMax) + 1 {
		for i, edge := range edges {
			f.Add(kind, kind%2+1, uint16(1)<<(i%8), uint32(edge), edges[(i+5)%len(edges)], uint32(edges[(i+3)%len(edges)]))
			f.Add(kind, uint8(Kind(kind).Channel()), uint16(0), uint32(512), edge, uint32(512))
			f.Add(kind, uint8(Kind(kind).Channel()), uint16(0), uint32(edge), uint64(0), uint32(edge))
			f.Add(kind, uint8(Kind(kind).Channel()), uint16(0), uint32(edge), uint64(0), uint32(0))
		}
	}
	f.Fuzz(func(t *testing.T, kind, ch uint8, flags uint16, length uint32, off uint64, size uint32) {
		m := Msg{Kind: Kind(kind), Flags: flags, Len: length, Off: off, Vol: uint16(off), Seq: off, Arg: off}
		b := appendHeader(nil, &m, int(size), 7)
		h, err := ParseHeader(b, Channel(ch))
		if want := mayPass(&m, Channel(ch), size); (err == nil) != want {
			t.Fatalf("%+v on %v with %d bytes behind it: %v, want passed = %v", m, Channel(ch), size, err, want)
		}
		if err != nil {
			return
		}
		if h.Msg != m || h.BodyLen+h.PayloadLen != int(size) || h.BodyLen > BodyMax || h.PayloadLen > PayloadMax {
			t.Fatalf("%+v came out as %+v", m, h)
		}
		if n := testing.AllocsPerRun(1, func() { _, _ = ParseHeader(b, Channel(ch)) }); n != 0 {
			t.Fatalf("%+v costs %v allocations", m, n)
		}
	})
}

// TestRulesAreComplete: a new kind needs a rule here, and a seed above.
func TestRulesAreComplete(t *testing.T) {
	for k := range Kind(math.MaxUint8) {
		if _, known := rules[k]; known != k.Valid() {
			t.Errorf("%v: valid is %v", k, k.Valid())
		}
	}
}
