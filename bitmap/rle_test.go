package bitmap

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// wordKinds are words that run-length coding treats differently.
var wordKinds = rapid.OneOf(
	rapid.SampledFrom([]uint64{0, 0, ^uint64(0), ^uint64(0), 1, 1 << 63, 1 << 20, 0xFF00, 0xAAAAAAAAAAAAAAAA, 0x5555555555555555}),
	rapid.Uint64(),
)

func TestRLERoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(wordKinds, 0, 300).Draw(t, "words")
		prefix := []byte("prefix")
		out := AppendRLE(slices.Clone(prefix), words)
		if string(out[:len(prefix)]) != "prefix" {
			t.Fatal("what stood in dst is gone")
		}
		src := out[len(prefix):]
		if len(src) > RLEWordMax*len(words) {
			t.Fatalf("%d bytes for %d words", len(src), len(words))
		}
		checkDecodes(t, src, words)
		checkDamageFound(t, src, words)
	})
}

func checkDecodes(t *rapid.T, src []byte, words []uint64) {
	dst := make([]uint64, len(words)+3)
	for i := range dst {
		dst[i] = 0xDEADBEEF // decoding must not count on zeroes
	}
	n, err := DecodeRLE(src, dst)
	if err != nil || n != len(words) || !slices.Equal(dst[:n], words) {
		t.Fatalf("decoded %d words %x, %v; want %x", n, dst[:n], err, words)
	}
	for _, word := range dst[n:] {
		if word != 0xDEADBEEF {
			t.Fatal("wrote past what was decoded")
		}
	}
}

func checkDamageFound(t *rapid.T, src []byte, words []uint64) {
	for _, extra := range [][]byte{{0}, {1 << tokenShift}, {3}, {1<<tokenShift | tokenLiteral}, {0x80}} {
		if _, err := DecodeRLE(append(slices.Clone(src), extra...), make([]uint64, len(words)+2)); !errors.Is(err, ErrRLE) {
			t.Fatalf("trailing % x accepted: %v", extra, err)
		}
	}
	if len(words) > 0 {
		if _, err := DecodeRLE(src, make([]uint64, len(words)-1)); !errors.Is(err, ErrRLE) {
			t.Fatalf("too many words for dst: %v", err)
		}
	}
}

func TestRLEIsCompact(t *testing.T) {
	const words = 512 // one page
	sparse := New(words * 64)
	for i := uint64(100); i < sparse.Bits(); i += 1000 {
		sparse.SetRange(i, 1)
	}
	stripes := New(words * 64)
	for i := uint64(0); i < stripes.Bits(); i += 512 {
		stripes.SetRange(i+100, 256)
	}
	full := New(words * 64)
	full.SetAll()
	tests := []struct {
		name  string
		words []uint64
		most  int
	}{
		{"empty", nil, 0},
		{"all clear", make([]uint64, words), 3},
		{"all set", full.words, 3},
		{"one in a thousand", sparse.words, 33*3 + 2},
		{"1 MiB stripes", stripes.words, 64*4 + 2},
	}
	for _, tt := range tests {
		if got := len(AppendRLE(nil, tt.words)); got > tt.most {
			t.Errorf("%s: %d bytes, want at most %d", tt.name, got, tt.most)
		}
	}
}

// The format is what two versions of the program agree on.
func TestRLEGolden(t *testing.T) {
	words := []uint64{0, 0, 0xFF00, ^uint64(0), 0xAAAAAAAAAAAAAAAA}
	want := []byte{
		0xA0, 0x04, // 136 clear
		0x21,       // 8 set
		0xC0, 0x01, // 48 clear
		0x81, 0x02, // 64 set
		0x06, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, // 1 literal
	}
	if got := AppendRLE(nil, words); !slices.Equal(got, want) {
		t.Fatalf("got % x, want % x", got, want)
	}
}

func TestDecodeRLERefuses(t *testing.T) {
	long := binary.AppendUvarint(nil, 1<<62|tokenSet)
	tests := []struct {
		name string
		src  []byte
	}{
		{"half a word", []byte{32 << tokenShift & 0x7F}},
		{"varint cut short", []byte{0x80}},
		{"varint too long", []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}},
		{"far too many bits", long},
		{"literal cut short", []byte{1<<tokenShift | tokenLiteral, 1, 2, 3}},
		{"literal amid a word", []byte{1 << tokenShift, 1<<tokenShift | tokenLiteral, 1, 2, 3, 4, 5, 6, 7, 8, 0xFC, 1}},
		{"literal of nothing", []byte{tokenLiteral}},
		{"unknown kind", []byte{1<<tokenShift | 3}},
	}
	for _, tt := range tests {
		if n, err := DecodeRLE(tt.src, make([]uint64, 8)); !errors.Is(err, ErrRLE) {
			t.Errorf("%s: %d words, %v", tt.name, n, err)
		}
	}
}

func FuzzDecodeRLE(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	words := make([]uint64, 64)
	for i := range words {
		words[i] = rng.Uint64() & rng.Uint64() & rng.Uint64()
	}
	f.Add(AppendRLE(nil, words))
	f.Add(AppendRLE(nil, make([]uint64, 64)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, src []byte) {
		dst := make([]uint64, 64)
		n, err := DecodeRLE(src, dst)
		if err != nil {
			return
		}
		again := make([]uint64, n)
		out := AppendRLE(nil, dst[:n])
		m, err := DecodeRLE(out, again)
		if err != nil || m != n || !slices.Equal(again, dst[:n]) {
			t.Fatalf("%x decodes to %x; encoded again % x gives %d words, %v", src, dst[:n], out, m, err)
		}
		if len(out) > RLEWordMax*n {
			t.Fatalf("%d bytes for %d words", len(out), n)
		}
	})
}
