package bitmap

import (
	"encoding/binary"
	"math/bits"

	"replicad/internal/mutant"
)

// Pages reports how many pages the on-disk form has.
func (b *Bitmap) Pages() int { return pagesFor(b.bits) }

// PageOf reports which page holds a bit.
func (b *Bitmap) PageOf(bit uint64) int { return int(bit / PageBits) }

// PageDirty reports whether page p changed since it was last loaded or marked
// clean.
func (b *Bitmap) PageDirty(p int) bool {
	return b.dirty[p/wordBits]>>(p%wordBits)&1 != 0
}

// DirtyPages reports how many pages are dirty.
func (b *Bitmap) DirtyPages() int { return b.dirtyPages }

// NextDirtyPage finds the first dirty page at or after from.
func (b *Bitmap) NextDirtyPage(from int) (int, bool) {
	if from >= b.Pages() || b.dirtyPages == 0 {
		return 0, false
	}
	i := from / wordBits
	word := b.dirty[i] >> (from % wordBits) << (from % wordBits)
	for word == 0 {
		if i++; i == len(b.dirty) {
			return 0, false
		}
		word = b.dirty[i]
	}
	return i*wordBits + bits.TrailingZeros64(word), true
}

// CopyPage writes the on-disk form of page p into dst, which holds at least
// PageSize bytes: little-endian 64-bit words, bit 0 of the page in the lowest
// bit of the first byte (DRBD 8.4 metadata v08), zeroes past the last bit. The
// page stays dirty: whoever copied it calls MarkClean. A bit that changes
// between the copy and the end of its write must leave the page dirty, so call
// MarkClean together with CopyPage, and MarkDirty should the write fail.
func (b *Bitmap) CopyPage(p int, dst []byte) {
	dst = dst[:PageSize]
	n := 0
	for _, word := range b.page(p) {
		binary.LittleEndian.PutUint64(dst[n:], word)
		n += 8
	}
	clear(dst[n:])
}

// LoadPage replaces the bits of page p by src, PageSize bytes of the on-disk
// form, and marks the page clean. Bits of src past the end are ignored.
func (b *Bitmap) LoadPage(p int, src []byte) {
	src = src[:PageSize]
	words := b.page(p)
	first := p * pageWords
	for i, old := range words {
		if mutant.On(mutant.LoadShortPage) && i == len(words)-1 {
			break
		}
		word := binary.LittleEndian.Uint64(src[i*8:])
		if !mutant.On(mutant.LoadBeyondEnd) {
			word &= b.wordEnd(first + i)
		}
		words[i] = word
		b.count += onesCount(word) - onesCount(old)
	}
	b.MarkClean(p)
}

// MarkClean notes that the disk holds, or is being sent, page p as it is now.
func (b *Bitmap) MarkClean(p int) {
	if b.PageDirty(p) {
		b.dirty[p/wordBits] &^= 1 << (p % wordBits)
		b.dirtyPages--
	}
}

// MarkDirty notes that the disk may hold something else than page p.
func (b *Bitmap) MarkDirty(p int) {
	if !b.PageDirty(p) {
		b.dirty[p/wordBits] |= 1 << (p % wordBits)
		b.dirtyPages++
	}
}

// WordCount reports how many 64-bit words the bits fill.
func (b *Bitmap) WordCount() int { return len(b.words) }

// Words returns a copy of n words from first, which must lie inside the map.
// Bit 0 of the map is the lowest bit of word 0.
func (b *Bitmap) Words(first, n int) []uint64 {
	return b.AppendWords(make([]uint64, 0, n), first, n)
}

// AppendWords appends n words from first, which must lie inside the map.
func (b *Bitmap) AppendWords(dst []uint64, first, n int) []uint64 {
	return append(dst, b.words[first:first+n]...)
}

// OrWords sets every bit that is set in words, laid over the map from word
// first, and reports how many were clear before. What reaches past the end is
// ignored.
func (b *Bitmap) OrWords(first int, words []uint64) (newly uint64) {
	for i, word := range words {
		if first+i >= len(b.words) {
			break
		}
		if mutant.On(mutant.OrKeepsPageClean) && !b.PageDirty((first+i)/pageWords) {
			newly += b.setMask(first+i, word&b.wordEnd(first+i))
			b.MarkClean((first + i) / pageWords)
			continue
		}
		newly += b.setMask(first+i, word&b.wordEnd(first+i))
	}
	return newly
}

// page returns the words of page p; the last page may be short.
func (b *Bitmap) page(p int) []uint64 {
	return b.words[p*pageWords : min((p+1)*pageWords, len(b.words))]
}

// wordEnd masks the bits of a word that lie inside the map.
func (b *Bitmap) wordEnd(word int) uint64 {
	mask, _ := wordMask(0, b.bits-uint64(word)*wordBits)
	return mask
}

// resizePages cuts or extends the page marks; pages that come in are dirty.
func (b *Bitmap) resizePages(before, after int) {
	for p := after; p < before; p++ {
		b.MarkClean(p)
	}
	b.dirty = resized(b.dirty, wordsFor(uint64(after)))
	for p := before; p < after; p++ {
		b.MarkDirty(p)
	}
}
