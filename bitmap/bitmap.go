// Package bitmap knows which blocks of a volume differ from the peer's and
// which extents may have writes in flight: the dirty bitmap, its run-length
// form for the link, and the activity log.
//
// It decides nothing about replication and never touches a disk: it hands out
// pages and transactions in a form that package replica/meta writes, and is
// told when they are durable. It reads no clock and starts no goroutine.
// Nothing here is safe for concurrent use: one goroutine (or one lock) owns a
// value.
package bitmap

import (
	"math/bits"

	"replicad/internal/mutant"
)

// Sizes of DRBD 8.4 metadata v08: one bit covers 4 KiB of data, one
// activity-log extent covers 4 MiB.
const (
	// BlockSize is the number of data bytes that one bit stands for.
	BlockSize = 4096
	// ExtentBlocks is the number of blocks in one activity-log extent.
	ExtentBlocks = 1024
	// PageSize is the number of bytes in one page of the on-disk bitmap.
	PageSize = 4096
	// PageBits is the number of bits in one page; they cover 128 MiB of data.
	PageBits = PageSize * 8
)

const (
	wordBits  = 64
	pageWords = PageSize / 8
)

// Bitmap is one bit per 4 KiB block, set where the peer's copy may differ.
// It keeps the number of set bits and which pages changed since they were last
// written. Bits past the end are never set. Ranges are clipped to the end, so
// a range that a peer sent can do no harm. Setting, clearing, counting and
// searching allocate nothing and cost time in proportion to the 64-bit words
// they pass over.
type Bitmap struct {
	words      []uint64
	bits       uint64
	count      uint64
	dirty      []uint64 // one bit per page
	dirtyPages int
}

// New returns a bitmap of n clear bits, all pages clean.
func New(n uint64) *Bitmap {
	return &Bitmap{
		words: make([]uint64, wordsFor(n)),
		bits:  n,
		dirty: make([]uint64, wordsFor(uint64(pagesFor(n)))),
	}
}

func wordsFor(n uint64) int { return int(n/wordBits + min(n%wordBits, 1)) }

func pagesFor(n uint64) int { return int(n/PageBits + min(n%PageBits, 1)) }

// Bits reports how many bits the map holds.
func (b *Bitmap) Bits() uint64 { return b.bits }

// Count reports how many bits are set.
func (b *Bitmap) Count() uint64 { return b.count }

// Test reports whether bit i is set. A bit past the end is not.
func (b *Bitmap) Test(i uint64) bool {
	return i < b.bits && b.words[i/wordBits]>>(i%wordBits)&1 != 0
}

// SetRange sets n bits from first and reports how many were clear before.
func (b *Bitmap) SetRange(first, n uint64) (newly uint64) {
	for n = b.clip(first, n); n > 0; {
		mask, took := wordMask(first, n)
		newly += b.setMask(int(first/wordBits), mask)
		first, n = first+took, n-took
	}
	return newly
}

// ClearRange clears n bits from first and reports how many were set before.
func (b *Bitmap) ClearRange(first, n uint64) (cleared uint64) {
	for n = b.clip(first, n); n > 0; {
		mask, took := wordMask(first, n)
		cleared += b.clearMask(int(first/wordBits), mask)
		first, n = first+took, n-took
	}
	return cleared
}

// CountRange reports how many of the n bits from first are set.
func (b *Bitmap) CountRange(first, n uint64) (set uint64) {
	for n = b.clip(first, n); n > 0; {
		mask, took := wordMask(first, n)
		set += onesCount(b.words[first/wordBits] & mask)
		first, n = first+took, n-took
	}
	return set
}

// SetAll sets every bit.
func (b *Bitmap) SetAll() { b.SetRange(0, b.bits) }

// ClearAll clears every bit.
func (b *Bitmap) ClearAll() { b.ClearRange(0, b.bits) }

// Next finds the next run of set bits at or after from. It reports the run's
// first bit and its length, at most longest. ok is false when no bit at or
// after from is set, and when longest is 0.
func (b *Bitmap) Next(from, longest uint64) (first, n uint64, ok bool) {
	if longest == 0 {
		return 0, 0, false
	}
	if first, ok = b.nextSet(from); !ok {
		return 0, 0, false
	}
	return first, b.runLength(first, min(longest, b.bits-first)), true
}

// Resize changes the number of bits. Bits that come in are set when dirty is
// true, else clear. A page that did not exist before is dirty either way,
// because nothing is known about what the disk holds there.
func (b *Bitmap) Resize(n uint64, dirty bool) {
	old := b.bits
	if n < old {
		b.ClearRange(n, old-n) // keeps the promise about bits past the end
	}
	b.words = resized(b.words, wordsFor(n))
	b.bits = n
	b.resizePages(pagesFor(old), pagesFor(n))
	if n > old && dirty && !mutant.On(mutant.ResizeClean) {
		b.SetRange(old, n-old)
	}
}

// clip shortens a range of n bits from first so that it ends inside the map.
func (b *Bitmap) clip(first, n uint64) uint64 {
	if first >= b.bits {
		return 0
	}
	return min(n, b.bits-first)
}

func (b *Bitmap) setMask(word int, mask uint64) (newly uint64) {
	added := mask &^ b.words[word]
	if added == 0 {
		return 0
	}
	b.words[word] |= added
	if mutant.Built && mutant.On(mutant.CountWordBorder) {
		added &= ^uint64(0) >> 1
	}
	newly = onesCount(added)
	b.count += newly
	b.MarkDirty(word / pageWords)
	return newly
}

func (b *Bitmap) clearMask(word int, mask uint64) (cleared uint64) {
	gone := mask & b.words[word]
	if gone == 0 {
		return 0
	}
	b.words[word] &^= gone
	cleared = onesCount(gone)
	b.count -= cleared
	b.MarkDirty(word / pageWords)
	return cleared
}

func (b *Bitmap) nextSet(from uint64) (uint64, bool) {
	if from >= b.bits || b.count == 0 {
		return 0, false
	}
	i := int(from / wordBits)
	word := b.words[i] >> (from % wordBits) << (from % wordBits)
	for word == 0 {
		if i++; i == len(b.words) {
			return 0, false
		}
		word = b.words[i]
	}
	return uint64(i)*wordBits + uint64(bits.TrailingZeros64(word)), true
}

// runLength counts set bits from first until a clear one, at most limit.
func (b *Bitmap) runLength(first, limit uint64) (n uint64) {
	for n < limit {
		bit := first + n
		off := bit % wordBits
		ones := uint64(bits.TrailingZeros64(^(b.words[bit/wordBits] >> off)))
		n += ones
		if ones < wordBits-off {
			break
		}
	}
	return min(n, limit)
}

// wordMask covers as much of the range of n bits from first as lies in the
// word of first, and reports how many bits that is.
func wordMask(first, n uint64) (mask, took uint64) {
	off := first % wordBits
	took = min(wordBits-off, n)
	return ^uint64(0) >> (wordBits - took) << off, took
}

func onesCount(word uint64) uint64 { return uint64(bits.OnesCount64(word)) }

// resized returns words cut or zero-extended to n elements, in a new array so
// that shrinking gives memory back.
func resized(words []uint64, n int) []uint64 {
	out := make([]uint64, n)
	copy(out, words)
	return out
}
