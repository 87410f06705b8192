package bitmap

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"replicad/internal/mutant"
)

// The run-length form is a sequence of tokens. A token is one unsigned varint,
// the amount shifted left by two with the kind in the low bits:
//
//	clear    amount = bits that are clear
//	set      amount = bits that are set
//	literal  amount = words that follow, 8 bytes each, little-endian;
//	         stands only where a word begins
//
// An amount is never zero and the bits fill whole words. An all-clear or
// all-set bitmap is one token; a lone dirty block among many costs about three
// bytes; noise costs at most RLEWordMax bytes a word.
const (
	tokenClear = iota
	tokenSet
	tokenLiteral
	tokenShift = 2
)

const (
	// RLEWordMax is the most bytes that AppendRLE spends on one word.
	RLEWordMax = 9
	// runsPerWord is how many runs may begin in a word before it is cheaper
	// to send the word as it is.
	runsPerWord = 5
)

// ErrRLE reports a run-length form that does not follow the format, or that
// holds more than fits where it is to be decoded.
var ErrRLE = errors.New("malformed run-length bitmap")

// AppendRLE appends the run-length form of words to dst. The form does not
// tell how many bytes it has: the caller frames it.
func AppendRLE(dst []byte, words []uint64) []byte {
	e := rleEncoder{dst: dst}
	for i := 0; i < len(words); {
		if n := noisyWords(words[i:]); n > 0 {
			e.literal(words[i : i+n])
			i += n
			continue
		}
		e.runs(words[i])
		i++
	}
	e.flush()
	return e.dst
}

// noisyWords counts the words at the start that runs would not shorten.
func noisyWords(words []uint64) (n int) {
	for n < len(words) && bits.OnesCount64(words[n]^words[n]<<1) > runsPerWord {
		n++
	}
	return n
}

type rleEncoder struct {
	dst  []byte
	kind uint64 // of the run being gathered
	run  uint64 // its bits so far
}

func (e *rleEncoder) runs(word uint64) {
	for left := wordBits; left > 0; {
		kind := word & 1
		n := min(bits.TrailingZeros64(word^-kind), left)
		e.add(kind, uint64(n))
		word >>= n
		left -= n
	}
}

func (e *rleEncoder) add(kind, n uint64) {
	if kind != e.kind {
		e.flush()
		e.kind = kind
	}
	e.run += n
}

func (e *rleEncoder) flush() {
	if e.run > 0 {
		e.dst = binary.AppendUvarint(e.dst, e.run<<tokenShift|e.kind)
		e.run = 0
	}
}

func (e *rleEncoder) literal(words []uint64) {
	e.flush()
	e.dst = binary.AppendUvarint(e.dst, uint64(len(words))<<tokenShift|tokenLiteral)
	for _, word := range words {
		e.dst = binary.LittleEndian.AppendUint64(e.dst, word)
	}
}

// DecodeRLE decodes all of src into dst and reports how many words that made.
// It never writes past dst, whatever src claims. The error is ErrRLE; dst then
// holds something of no use.
func DecodeRLE(src []byte, dst []uint64) (n int, err error) {
	at := uint64(0) // bits decoded so far
	for len(src) > 0 {
		token, size := binary.Uvarint(src)
		if size <= 0 {
			return 0, ErrRLE
		}
		src = src[size:]
		amount := token >> tokenShift
		room := uint64(len(dst))*wordBits - at
		switch kind := token % (1 << tokenShift); kind {
		case tokenClear, tokenSet:
			if amount == 0 || amount > room {
				return 0, ErrRLE
			}
			if !mutant.On(mutant.RLELastRun) || len(src) > 0 {
				fillBits(dst, at, amount, -kind)
			}
			at += amount
		case tokenLiteral:
			if amount == 0 || amount > room/wordBits || amount > uint64(len(src))/8 || at%wordBits != 0 {
				return 0, ErrRLE
			}
			src = copyLiteral(dst[at/wordBits:], src, int(amount))
			at += amount * wordBits
		default:
			return 0, ErrRLE
		}
	}
	if at%wordBits != 0 {
		return 0, ErrRLE
	}
	return int(at / wordBits), nil
}

// fillBits makes n bits from first equal to the bits of value, all 0 or all 1.
func fillBits(dst []uint64, first, n, value uint64) {
	for n > 0 {
		mask, took := wordMask(first, n)
		word := &dst[first/wordBits]
		*word = *word&^mask | value&mask
		first, n = first+took, n-took
	}
}

func copyLiteral(dst []uint64, src []byte, n int) (rest []byte) {
	for i := range n {
		dst[i] = binary.LittleEndian.Uint64(src[i*8:])
	}
	return src[n*8:]
}
