package meta

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// superGolden is the start of a superblock written by drbdmeta 9.22 create-md
// on 64 MiB, with the rest zero.
const superGolden = "0000000000000000 0000000000000004 0000000000000000 0000000000000000 0000000000000000" +
	"0000000000000000 0000000000000000 00000080 8374026b 00000050 ffffffc0 00000101 ffffffb8" +
	"00001000 00000000 00000001 00000008"

func golden(t testing.TB) []byte {
	t.Helper()
	p, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(superGolden), []byte(" "), nil)))
	if err != nil || len(p) != 96 {
		t.Fatal(len(p), err)
	}
	return append(p, make([]byte, blockSize-len(p))...)
}

func TestParseGoldenSuper(t *testing.T) {
	got, err := ParseSuper(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	want := Super{
		Current: UUIDJustCreated, Flags: FlagALClean, Size: 80, ALOffset: -64, ALExtents: 257,
		BMOffset: -72, BytesPerBit: 4096, AL: ALGeometry{Stripes: 1, StripeSize: 8},
	}
	if got != want || !got.Clean() {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if written := AppendSuper(nil, &got); !bytes.Equal(written[:offTail], golden(t)[:offTail]) {
		t.Error("written again it has other bytes")
	}
}

func drawSuper(t *rapid.T) Super {
	s := rapid.Make[Super]().Draw(t, "super")
	s.Size = Sectors(uint32(s.Size))
	if s.AL == (ALGeometry{}) {
		s.AL = DefaultALGeometry
	}
	return s
}

func TestSuperRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawSuper(t)
		p := AppendSuper([]byte("before"), &want)
		if len(p) != 6+blockSize {
			t.Fatalf("%d bytes", len(p))
		}
		got, err := ParseSuper(p[6:])
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
		}
	})
}

// TestAnyFlippedBitIsFound: our checksum covers every bit that means anything.
func TestAnyFlippedBitIsFound(t *testing.T) {
	s, err := ParseSuper(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Instance = InstanceID{1, 2, 3}
	p := AppendSuper(nil, &s)
	for bit := range sectorSize * 8 {
		p[bit/8] ^= 1 << (bit % 8)
		if _, err := ParseSuper(p); !errors.Is(err, ErrSuperDamaged) {
			t.Errorf("bit %d of byte %d flipped: %v", bit%8, bit/8, err)
		}
		p[bit/8] ^= 1 << (bit % 8)
	}
	if _, err := ParseSuper(p); err != nil {
		t.Error(err)
	}
}

func TestAbsentTailIsAccepted(t *testing.T) {
	s := Super{BytesPerBit: 4096, AL: DefaultALGeometry, Instance: InstanceID{9}}
	p := AppendSuper(nil, &s)
	clear(p[offTail:sectorSize])
	got, err := ParseSuper(p)
	if err != nil || got.Instance != (InstanceID{}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestNoSuper(t *testing.T) {
	v07 := make([]byte, blockSize)
	copy(v07[28:], []byte{0x83, 0x74, 0x02, 0x6A})
	for name, p := range map[string][]byte{
		"empty": nil, "short": make([]byte, 100), "zero": make([]byte, blockSize), "text": bytes.Repeat([]byte("data"), 1024), "v07": v07,
	} {
		if _, err := ParseSuper(p); !errors.Is(err, ErrNoMetadata) {
			t.Errorf("%s: %v, want ErrNoMetadata", name, err)
		}
	}
}

// TestOldMagicWithoutFlag: 8.3 writes the clean magic while in use.
func TestOldMagicWithoutFlag(t *testing.T) {
	p := golden(t)
	p[offFlags+3] = 0
	p[offALStripes+3], p[offALStripeSize+3] = 0, 0
	s, err := ParseSuper(p)
	if err != nil || s.Clean() || s.AL != DefaultALGeometry {
		t.Errorf("%+v, %v", s, err)
	}
}

func FuzzParseSuper(f *testing.F) {
	f.Add(golden(f))
	f.Add(AppendSuper(nil, &Super{Unclean: true, AL: DefaultALGeometry, Instance: InstanceID{7}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := ParseSuper(p)
		if err != nil {
			return
		}
		again, err := ParseSuper(AppendSuper(nil, &s))
		if err != nil || again != s {
			t.Fatalf("%+v, %v\nfrom %+v", again, err, s)
		}
		// Whatever it says, a layout is computed or refused.
		for _, p := range []Placement{{Kind: Internal}, {Kind: FlexExternal}, {Kind: Indexed, Index: 3}} {
			if l, err := layoutOf(p, 1<<30, &s); err == nil && (l.Super+blockSectors).Bytes() > 1<<30 {
				t.Fatalf("superblock outside the device: %+v", l)
			}
		}
	})
}
