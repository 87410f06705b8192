package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// samples has at least one message of every kind.
func samples() []Msg {
	full := Params{
		Protocol: 'C', AfterSB0: "discard-younger-primary", AfterSB1: "discard-secondary",
		AfterSB2: "call-pri-lost-after-sb", AllowTwoPrimaries: true, IntegrityAlg: "sha256",
		DiscardMyData: true, Tentative: true, Volumes: []uint16{0, 1, 65535},
	}
	return []Msg{
		{Kind: KindParams, Body: &full},
		{Kind: KindParams, Body: &Params{Protocol: 'A'}},
		{Kind: KindSizes, Vol: 3, Body: &Sizes{Disk: 1 << 40, User: 0, Current: 1<<40 - 4096}},
		{Kind: KindUUIDs, Vol: 3, Body: &UUIDs{Current: 1<<64 - 1, Bitmap: 2, H1: 3, H2: 4, Bits: 5, Flags: UUIDFlagCrashedPrimary}},
		{Kind: KindState, Vol: 1, Body: &State{Role: 2, Peer: 1, Conn: 23, Disk: 8, PDisk: 4, Flags: StateFlagSuspended}},
		{Kind: KindStateReq, Body: &StateReq{ID: 7, Vol: -1, Role: 1, Conn: 2, Disk: 9, Force: true}},
		{Kind: KindSyncUUID, Vol: 9, Arg: 0x0123456789abcdef},
		{Kind: KindData, Flags: FlagFUA | FlagWantWriteAck, Vol: 2, Seq: 17, Off: 1 << 40, Len: 4096},
		{Kind: KindTrim, Vol: 2, Seq: 18, Off: 512, Len: RangeMax},
		{Kind: KindZero, Flags: FlagNoHole, Seq: 19, Len: 512},
		{Kind: KindBarrier, Seq: 4, Arg: 1000},
		{Kind: KindOutOfSync, Vol: 65535, Off: 1<<62 + 512, Len: 4096},
		{Kind: KindBitmap, Off: 64 * 512, Len: 130, Body: &Bitmap{Words: []uint64{1<<64 - 1, 0x5555, 3}}},
		{Kind: KindBitmapEnd, Vol: 1},
		{Kind: KindReadRequest, Seq: 5, Off: 4096, Len: PayloadMax},
		{Kind: KindReadReply, Seq: 5, Off: 4096, Len: 512},
		{Kind: KindResyncRequest, Seq: 6, Off: 8192, Len: 65536},
		{Kind: KindResyncReply, Seq: 6, Off: 8192, Len: 8192},
		{Kind: KindResyncReply, Flags: FlagZeroes, Seq: 6, Off: 8192, Len: 65536},
		{Kind: KindRecvAck, Vol: 2, Seq: 17},
		{Kind: KindWriteAck, Vol: 2, Seq: 17},
		{Kind: KindNegAck, Vol: 2, Seq: 17, Off: 1 << 40, Len: 4096},
		{Kind: KindBarrierAck, Seq: 4, Arg: 1000},
		{Kind: KindResyncWriteAck, Seq: 6, Off: 8192, Len: 65536},
		{Kind: KindResyncNegAck, Seq: 6, Off: 8192, Len: 65536},
		{Kind: KindResyncNegReply, Seq: 6, Off: 8192, Len: 65536},
		{Kind: KindReadNegReply, Vol: 2, Seq: 5},
		{Kind: KindStateReply, Seq: 7, Arg: 1<<64 - 1},
		{Kind: KindPing, Arg: 99},
		{Kind: KindPingAck, Arg: 99},
	}
}

// payloadFor makes the recognisable payload that m announces.
func payloadFor(m *Msg) []byte {
	p := make([]byte, m.payloadLen())
	for i := range p {
		p[i] = byte(i*7 + int(m.Seq))
	}
	return p
}

func encode(t testing.TB, m *Msg) (frame, payload []byte) {
	t.Helper()
	payload = payloadFor(m)
	frame, err := AppendMsg(nil, m, payload)
	if err != nil {
		t.Fatalf("AppendMsg(%v): %v", m.Kind, err)
	}
	return frame, payload
}

// decode parses header and body of one frame.
func decode(frame []byte, ch Channel) (Header, error) {
	h, err := ParseHeader(frame, ch)
	if err != nil || h.BodyLen == 0 {
		return h, err
	}
	return h, h.Body(frame[HeaderSize:])
}

func TestSamplesCoverEveryKind(t *testing.T) {
	seen := map[Kind]bool{}
	for _, m := range samples() {
		seen[m.Kind] = true
	}
	for k := range kindMax {
		if k.Valid() && !seen[k] {
			t.Errorf("no sample of %v", k)
		}
		if k != KindInvalid && k != kindControlFirst && !k.Valid() {
			t.Errorf("kind %d has no shape", k)
		}
	}
}

func TestRoundTripSamples(t *testing.T) {
	for _, m := range samples() {
		frame, payload := encode(t, &m)
		got, err := decode(frame, m.Kind.Channel())
		if err != nil {
			t.Fatalf("%v: %v", m.Kind, err)
		}
		if !reflect.DeepEqual(got.Msg, m) {
			t.Errorf("%v: got %+v, want %+v", m.Kind, got.Msg, m)
		}
		if got.PayloadLen != len(payload) || HeaderSize+got.BodyLen != len(frame) {
			t.Errorf("%v: sizes %d and %d", m.Kind, got.PayloadLen, got.BodyLen)
		}
		if got.BodyLen != 0 {
			continue
		}
		if err := got.VerifyPayload(payload); err != nil {
			t.Errorf("%v: %v", m.Kind, err)
		}
	}
}

// TestGolden pins the byte format: two builds of one version must agree.
func TestGolden(t *testing.T) {
	var b strings.Builder
	for _, m := range samples() {
		frame, _ := encode(t, &m)
		fmt.Fprintf(&b, "%v\n", m.Kind)
		for len(frame) > 0 {
			n := min(len(frame), 32)
			fmt.Fprintf(&b, "  %s\n", hex.EncodeToString(frame[:n]))
			frame = frame[n:]
		}
	}
	compareGolden(t, "frames.hex", b.String())
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

// TestEveryBitFlipIsNoticed flips each bit of header, body and payload.
func TestEveryBitFlipIsNoticed(t *testing.T) {
	for _, m := range samples() {
		if m.Len > 8192 {
			m.Len = 8192
		}
		frame, payload := encode(t, &m)
		for bit := range len(frame) * 8 {
			frame[bit/8] ^= 1 << (bit % 8)
			if _, err := decode(frame, m.Kind.Channel()); err == nil {
				t.Fatalf("%v: flip of frame bit %d passed", m.Kind, bit)
			}
			frame[bit/8] ^= 1 << (bit % 8)
		}
		if m.HasPayload() {
			flipPayload(t, &m, frame, payload)
		}
	}
}

func flipPayload(t *testing.T, m *Msg, frame, payload []byte) {
	h, err := decode(frame, m.Kind.Channel())
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(payload) * 8 {
		payload[bit/8] ^= 1 << (bit % 8)
		if err := h.VerifyPayload(payload); !errors.Is(err, ErrHash) {
			t.Fatalf("%v: flip of payload bit %d gave %v", m.Kind, bit, err)
		}
		payload[bit/8] ^= 1 << (bit % 8)
	}
}

func TestRefusedMessages(t *testing.T) {
	data := func(change func(*Msg)) Msg {
		m := Msg{Kind: KindTrim, Off: 4096, Len: 4096}
		change(&m)
		return m
	}
	for name, m := range map[string]Msg{
		"invalid kind":        {Kind: KindInvalid},
		"kind of the divider": {Kind: kindControlFirst},
		"kind beyond the end": {Kind: kindMax},
		"kind 255":            {Kind: 255},
		"zero length":         data(func(m *Msg) { m.Len = 0 }),
		"odd length":          data(func(m *Msg) { m.Len = 4097 }),
		"odd offset":          data(func(m *Msg) { m.Off = 1 }),
		"length over range":   data(func(m *Msg) { m.Len = RangeMax + 512 }),
		"offset overflows":    data(func(m *Msg) { m.Off = 1<<64 - 512 }),
		"end at 2^63":         data(func(m *Msg) { m.Off = 1<<63 - 4096 }),
		"unknown flag":        data(func(m *Msg) { m.Flags = 1 << 15 }),
		"data over payload":   {Kind: KindResyncRequest, Len: PayloadMax + 512},
		"body where none is":  data(func(m *Msg) { m.Body = &Sizes{} }),
		"no body":             {Kind: KindSizes},
		"nil body":            {Kind: KindSizes, Body: (*Sizes)(nil)},
		"other body":          {Kind: KindSizes, Body: &State{}},
		"foreign body":        {Kind: KindSizes, Body: "sizes"},
		"bits without words":  {Kind: KindBitmap, Len: 64, Body: &Bitmap{}},
		"bits too many":       {Kind: KindBitmap, Len: BitmapBitsMax + 1, Body: &Bitmap{Words: make([]uint64, BitmapWordsMax+1)}},
		"bits not at a word":  {Kind: KindBitmap, Off: 1, Len: 64, Body: &Bitmap{Words: make([]uint64, 1)}},
		"bit range overflows": {Kind: KindBitmap, Off: 1<<64 - 64, Len: 64, Body: &Bitmap{Words: make([]uint64, 1)}},
		"role":                {Kind: KindState, Body: &State{Role: 3}},
		"connection state":    {Kind: KindState, Body: &State{Conn: 24}},
		"disk state":          {Kind: KindState, Body: &State{PDisk: 9}},
		"request volume":      {Kind: KindStateReq, Body: &StateReq{Vol: 65536}},
		"request disk":        {Kind: KindStateReq, Body: &StateReq{Disk: 10}},
		"volumes descending":  {Kind: KindParams, Body: &Params{Volumes: []uint16{2, 1}}},
		"volumes repeated":    {Kind: KindParams, Body: &Params{Volumes: []uint16{2, 2}}},
		"too many volumes":    {Kind: KindParams, Body: &Params{Volumes: make([]uint16, VolumesMax+1)}},
		"text too long":       {Kind: KindParams, Body: &Params{AfterSB1: strings.Repeat("x", 65)}},
	} {
		dst := []byte("before")
		got, err := AppendMsg(dst, &m, nil)
		if !errors.Is(err, ErrMalformed) || string(got) != "before" {
			t.Errorf("%s: sent as %d bytes, error %v", name, len(got), err)
		}
	}
}

// TestRefusedHeaders checks the receiver alone: headers with a correct hash
// that no correct sender would make.
func TestRefusedHeaders(t *testing.T) {
	for name, m := range map[string]Msg{
		"kind":             {Kind: kindMax},
		"divider":          {Kind: kindControlFirst},
		"zero length":      {Kind: KindTrim},
		"overflow":         {Kind: KindTrim, Off: 1<<64 - 512, Len: 1024},
		"payload over max": {Kind: KindData, Len: PayloadMax + 512},
		"flag":             {Kind: KindBarrier, Flags: 1 << 9},
		"bits":             {Kind: KindBitmap, Len: 0},
	} {
		for _, ch := range []Channel{ChannelData, ChannelControl} {
			if _, err := ParseHeader(appendHeader(nil, &m, int(m.Len), 0), ch); err == nil {
				t.Errorf("%s passed on %v", name, ch)
			}
		}
	}
	for name, size := range map[string]int{"empty body": 0, "body over max": BodyMax + 1} {
		b := appendHeader(nil, &Msg{Kind: KindSizes}, size, 0)
		if _, err := ParseHeader(b, ChannelData); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, size := range []int{0, 511, 4096, 1 << 31} {
		b := appendHeader(nil, &Msg{Kind: KindData, Len: 512}, size, 0)
		if _, err := ParseHeader(b, ChannelData); !errors.Is(err, ErrMalformed) {
			t.Errorf("512 bytes announced as %d: %v", size, err)
		}
	}
	if _, err := ParseHeader(appendHeader(nil, &Msg{Kind: KindPing}, 1, 0), ChannelControl); !errors.Is(err, ErrMalformed) {
		t.Errorf("ping with a payload: %v", err)
	}
}

func TestWrongChannel(t *testing.T) {
	for _, m := range samples() {
		frame, _ := encode(t, &m)
		other := ChannelData + ChannelControl - m.Kind.Channel()
		if _, err := ParseHeader(frame, other); !errors.Is(err, ErrChannel) {
			t.Errorf("%v on %v: %v", m.Kind, other, err)
		}
	}
}

func TestShort(t *testing.T) {
	frame, _ := encode(t, &samples()[0])
	for n := range HeaderSize {
		if _, err := ParseHeader(frame[:n], ChannelData); !errors.Is(err, ErrShort) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	h, err := ParseHeader(frame, ChannelData)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Body(frame[HeaderSize : len(frame)-1]); !errors.Is(err, ErrShort) || h.Msg.Body != nil {
		t.Errorf("short body: %v", err)
	}
	ping := Header{Msg: Msg{Kind: KindPing}}
	if err := ping.Body(nil); !errors.Is(err, ErrShort) {
		t.Errorf("body of a ping: %v", err)
	}
}

// TestWorstBitmapFits: the largest, least compressible bitmap page stays below BodyMax.
func TestWorstBitmapFits(t *testing.T) {
	for _, pattern := range []uint64{0x5555555555555555, 0x5555555555555554, 0x0101010101010101, 0x8000000000000000} {
		words := make([]uint64, BitmapWordsMax)
		for i := range words {
			words[i] = pattern * uint64(1+i%3)
		}
		m := Msg{Kind: KindBitmap, Len: BitmapBitsMax, Body: &Bitmap{Words: words}}
		frame, _ := encode(t, &m)
		if h, err := decode(frame, ChannelData); err != nil || !reflect.DeepEqual(h.Msg, m) {
			t.Errorf("%x: %v", pattern, err)
		}
	}
}

func TestRoundTripProperty(t *testing.T) {
	all := samples()
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.SampledFrom(all).Draw(t, "sample")
		m.Vol = rapid.Uint16().Draw(t, "vol")
		m.Seq = rapid.Uint64().Draw(t, "seq")
		m.Arg = rapid.Uint64().Draw(t, "arg")
		if lenMax := shapes[m.Kind].lenMax; lenMax != 0 {
			m.Len = SectorSize * rapid.Uint32Range(1, min(lenMax, 1<<16)/SectorSize).Draw(t, "sectors")
			m.Off = SectorSize * rapid.Uint64Range(0, 1<<54-1-uint64(RangeMax/SectorSize)).Draw(t, "sector")
		}
		if m.Kind == KindBitmap {
			words := rapid.SliceOfN(rapid.Uint64(), 1, BitmapWordsMax).Draw(t, "words")
			m.Len, m.Body = uint32(len(words)*64), &Bitmap{Words: words}
		}
		prefix := []byte("prefix")
		payload := payloadFor(&m)
		frame, err := AppendMsg(prefix, &m, payload)
		if err != nil {
			t.Fatal(err)
		}
		h, err := decode(frame[len(prefix):], m.Kind.Channel())
		if err != nil || !reflect.DeepEqual(h.Msg, m) {
			t.Fatalf("got %+v (%v), want %+v", h.Msg, err, m)
		}
	})
}

func TestHotKindsAllocateNothing(t *testing.T) {
	dst := make([]byte, 0, HeaderSize)
	for _, m := range samples() {
		if m.Body != nil {
			continue
		}
		payload := payloadFor(&m)
		n := testing.AllocsPerRun(100, func() {
			frame, err := AppendMsg(dst, &m, payload)
			if err != nil {
				t.Fatal(err)
			}
			h, err := ParseHeader(frame, m.Kind.Channel())
			if err != nil || h.VerifyPayload(payload) != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations", m.Kind, n)
		}
	}
}

// FuzzFrame feeds arbitrary bytes with a repaired hash, so that the checks
// behind the hash are reached, and demands that what passes encodes again.
func FuzzFrame(f *testing.F) {
	for _, m := range samples() {
		if m.Len <= 4096 {
			frame, payload := encode(f, &m)
			f.Add(append(frame, payload...), uint8(m.Kind.Channel()))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, ch uint8) {
		repair(b)
		h, err := ParseHeader(b, Channel(ch))
		if err != nil {
			return
		}
		rest := b[HeaderSize:]
		if h.BodyLen > BodyMax || h.PayloadLen > PayloadMax || h.BodyLen != 0 && h.PayloadLen != 0 {
			t.Fatalf("sizes %d and %d", h.BodyLen, h.PayloadLen)
		}
		if h.BodyLen != 0 && (len(rest) < h.BodyLen || h.Body(rest[:h.BodyLen]) != nil) {
			return
		}
		if h.PayloadLen != 0 && (len(rest) < h.PayloadLen || h.VerifyPayload(rest[:h.PayloadLen]) != nil) {
			return
		}
		checkReencode(t, &h, rest[:h.PayloadLen])
	})
}

func checkReencode(t *testing.T, h *Header, payload []byte) {
	frame, err := AppendMsg(nil, &h.Msg, payload)
	if err != nil {
		t.Fatalf("received but cannot be sent: %+v: %v", h.Msg, err)
	}
	again, err := decode(frame, h.Msg.Kind.Channel())
	if err != nil || !reflect.DeepEqual(again.Msg, h.Msg) {
		t.Fatalf("%+v became %+v: %v", h.Msg, again.Msg, err)
	}
}

// repair makes both hashes of a frame right, and the length when there is a body.
func repair(b []byte) {
	if len(b) < HeaderSize {
		return
	}
	m := parseScalars(b)
	size := len(b) - HeaderSize
	if m.Kind.Valid() && shapes[m.Kind].body == bodyNone {
		size = min(size, m.payloadLen())
	}
	sealed := appendHeader(nil, &m, size, sumOf(b[HeaderSize:HeaderSize+size]))
	if !bytes.Equal(b[:4], sealed[:4]) {
		return
	}
	copy(b, sealed)
}
