package wire

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/vmihailenco/msgpack/v5"

	"replicad/bitmap"
)

func sumOf(b []byte) uint64 { return xxhash.Sum64(b) }

// bodyFrame makes a well-hashed frame around arbitrary body bytes.
func bodyFrame(k Kind, body string) []byte {
	m := Msg{Kind: k}
	if k == KindBitmap {
		m.Len = 64
	}
	return append(appendHeader(nil, &m, len(body), sumOf([]byte(body))), body...)
}

func TestHostileBodies(t *testing.T) {
	for name, body := range map[string]string{
		"nil":                     "\xc0",
		"integer":                 "\x01",
		"array":                   "\x91\x01",
		"cut map":                 "\x81",
		"cut key":                 "\x81\xa5ab",
		"integer key":             "\x81\x01\x01",
		"map key":                 "\x81\x80\x01",
		"two values":              "\x80\x80",
		"map of 2^32 entries":     "\xdf\xff\xff\xff\xff",
		"array of 2^32 elements":  "\x81\xa1v\xdd\xff\xff\xff\xff",
		"array of 65535 elements": "\x81\xa1v\xdc\xff\xff",
		"array cut short":         "\x81\xa1v\x93\x01\x02",
		"string of 2^32 bytes":    "\x81\xa1v\xdb\xff\xff\xff\xff",
		"string of 65 bytes":      "\x81\xa1s\xd9\x41" + strings.Repeat("x", 65),
		"binary of 2^32 bytes":    "\x81\xa1v\xc6\xff\xff\xff\xff",
		"extension":               "\x81\xa1v\xd4\x01\x00",
		"extension of 2^32":       "\x81\xa1v\xc9\xff\xff\xff\xff\x01",
		"time":                    "\x81\xa1c\xd6\xff\x00\x00\x00\x00",
		"float":                   "\x81\xa1c\xcb\x00\x00\x00\x00\x00\x00\x00\x00",
		"deep arrays":             "\x81\xa1v" + strings.Repeat("\x91", 4000) + "\x01",
		"deep maps":               "\x81\xa1v" + strings.Repeat("\x81\xa1v", 4000) + "\x01",
		"cut integer":             "\x81\xa1c\xcf\x00",
		"1025 elements":           "\x81\xa1z\xdc\x04\x01" + strings.Repeat("\x01", 1025),
		"reserved type":           "\x81\xa1c\xc1",
		"string for a number":     "\x86\xa1c\xa1x\xa1d\xa1x\xa1i\xa1x\xa1n\xa1x\xa1r\xa1x\xa1p\xa1x",
	} {
		for _, k := range []Kind{KindParams, KindSizes, KindUUIDs, KindState, KindStateReq} {
			h, err := decode(bodyFrame(k, body), ChannelData)
			if !errors.Is(err, ErrMalformed) || h.Msg.Body != nil {
				t.Errorf("%s as %v: %v", name, k, err)
			}
		}
	}
}

// TestHostileBodyCostsNoMemory: a length field alone must not allocate. The
// library, without our scan before it, would ask for gigabytes here.
func TestHostileBodyCostsNoMemory(t *testing.T) {
	frame := bodyFrame(KindParams, "\x81\xa1v\xdd\x10\x00\x00\x00\x01")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := decode(frame, ChannelData); err == nil {
		t.Fatal("passed")
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10 {
		t.Errorf("%d bytes allocated", grown)
	}
}

// TestUnknownFieldsAreIgnored: a later minor change may add a field.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	h, err := decode(bodyFrame(KindSizes, "\x82\xa3new\x92\x01\xa1x\xa1d\x07"), ChannelData)
	if err != nil {
		t.Fatal(err)
	}
	if got := *h.Msg.Body.(*Sizes); got != (Sizes{Disk: 7}) {
		t.Errorf("got %+v", got)
	}
}

func TestHostileBitmaps(t *testing.T) {
	for _, body := range []string{"\x00", "\xff", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x00\x00\x00"} {
		if _, err := decode(bodyFrame(KindBitmap, body), ChannelData); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v", body, err)
		}
	}
}

// TestBitmapShorterThanAnnounced: words that the run-length form does not reach
// are missing, not clear.
func TestBitmapShorterThanAnnounced(t *testing.T) {
	body := bitmap.AppendRLE(nil, []uint64{5})
	m := Msg{Kind: KindBitmap, Len: 128}
	frame := append(appendHeader(nil, &m, len(body), sumOf(body)), body...)
	if _, err := decode(frame, ChannelData); !errors.Is(err, ErrMalformed) {
		t.Errorf("one word of two: %v", err)
	}
}

// TestLargestParamsFit: the largest legal parameters stay below BodyMax.
func TestLargestParamsFit(t *testing.T) {
	text := strings.Repeat("x", textMax)
	p := Params{Protocol: 'C', AfterSB0: text, AfterSB1: text, AfterSB2: text, IntegrityAlg: text}
	for v := range VolumesMax {
		p.Volumes = append(p.Volumes, uint16(65536-VolumesMax+v))
	}
	frame, _ := encode(t, &Msg{Kind: KindParams, Body: &p})
	if _, err := decode(frame, ChannelData); err != nil {
		t.Error(err)
	}
}

// bodyMemoryMax is what decoding one body may allocate, bytes: the largest legal
// one with what the library needs for its work. The test process itself
// allocates a little at the same time.
const bodyMemoryMax = 256 << 10

// FuzzBody feeds arbitrary bytes to the body decoder of each kind, and looks at
// what that costs.
func FuzzBody(f *testing.F) {
	for _, m := range samples() {
		if m.Body != nil {
			frame, _ := encode(f, &m)
			f.Add(uint8(m.Kind), frame[HeaderSize:])
		}
	}
	for _, bomb := range []string{
		"\x81\xa1v\xdd\xff\xff\xff\xff", "\xdf\xff\xff\xff\xff", "\xde\xff\xff", "\xdd\xff\xff\xff\xff",
		"\x81\xa1p\xdb\xff\xff\xff\xff", "\x81\xa1p\xc6\xff\xff\xff\xff", "\x81\xa1p\xc9\xff\xff\xff\xff\x01",
		strings.Repeat("\x81\xa1v", 5000), "\x81\xa1v" + strings.Repeat("\x91", 16000), "\x81\xa1x\xdc\x04\x00" + strings.Repeat("\xdc\x04\x00", 1024),
		"\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\xfd\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01",
	} {
		for k := range kindMax {
			if k.Valid() && shapes[k].body != bodyNone {
				f.Add(uint8(k), []byte(bomb))
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		k := Kind(kind)
		if !k.Valid() || shapes[k].body == bodyNone {
			return
		}
		frame := bodyFrame(k, string(body))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h, err := decode(frame, ChannelData)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > bodyMemoryMax {
			t.Fatalf("%v body of %d bytes costs %d bytes of memory", k, len(body), grown)
		}
		if err == nil {
			checkReencode(t, &h, nil)
		}
	})
}

// FuzzMsgpackScan compares the scanner with the library: what the scanner
// lets through, the library must be able to walk to the same end.
func FuzzMsgpackScan(f *testing.F) {
	f.Add([]byte("\x81\xa1v\x93\x01\x02\x03"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if checkMsgpack(body) != nil {
			return
		}
		var raw msgpack.RawMessage
		if err := msgpack.Unmarshal(body, &raw); err != nil || len(raw) != len(body) {
			t.Fatalf("scanner passed %x, library read %d bytes: %v", body, len(raw), err)
		}
	})
}
