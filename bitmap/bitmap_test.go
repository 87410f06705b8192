package bitmap

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// model is the slow and obvious bitmap: one bool per bit, one per page.
type model struct {
	set   []bool
	dirty []bool
}

func newModel(n uint64) *model {
	return &model{set: make([]bool, n), dirty: make([]bool, (n+PageBits-1)/PageBits)}
}

func (m *model) change(first, n uint64, value bool) (changed uint64) {
	for i := first; i < uint64(len(m.set)) && i-first < n; i++ {
		if m.set[i] != value {
			m.set[i] = value
			m.dirty[i/PageBits] = true
			changed++
		}
	}
	return changed
}

func (m *model) count(first, n uint64) (set uint64) {
	for i := first; i < uint64(len(m.set)) && i-first < n; i++ {
		if m.set[i] {
			set++
		}
	}
	return set
}

func (m *model) next(from, longest uint64) (first, n uint64, ok bool) {
	for first = from; first < uint64(len(m.set)) && !m.set[first]; first++ {
	}
	if first >= uint64(len(m.set)) || longest == 0 {
		return 0, 0, false
	}
	for n < longest && first+n < uint64(len(m.set)) && m.set[first+n] {
		n++
	}
	return first, n, true
}

func (m *model) resize(n uint64, dirty bool) {
	old, oldPages := uint64(len(m.set)), len(m.dirty)
	if n < old {
		m.change(n, old-n, false)
	}
	grown := newModel(n)
	copy(grown.set, m.set)
	copy(grown.dirty, m.dirty)
	*m = *grown
	for p := oldPages; p < len(m.dirty); p++ {
		m.dirty[p] = true
	}
	if dirty && n > old {
		m.change(old, n-old, true)
	}
}

// sizes are small, and just around the ends of words and pages.
var sizes = rapid.SampledFrom([]uint64{
	0, 1, 63, 64, 65, 200, PageBits - 1, PageBits, PageBits + 1, 2*PageBits + 77, 3 * PageBits,
})

type world struct {
	b *Bitmap
	m *model
}

func (w *world) bit(t *rapid.T, label string) uint64 {
	n := uint64(len(w.m.set))
	edges := []uint64{0, n / 2, n, n + 1, PageBits - 1, PageBits, 64, ^uint64(0)}
	return rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint64Range(0, n+70)).Draw(t, label)
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"set": func(t *rapid.T) {
			first, n := w.bit(t, "first"), w.bit(t, "n")
			equal(t, "newly", w.b.SetRange(first, n), w.m.change(first, n, true))
		},
		"clear": func(t *rapid.T) {
			first, n := w.bit(t, "first"), w.bit(t, "n")
			equal(t, "cleared", w.b.ClearRange(first, n), w.m.change(first, n, false))
		},
		"count": func(t *rapid.T) {
			first, n := w.bit(t, "first"), w.bit(t, "n")
			equal(t, "count", w.b.CountRange(first, n), w.m.count(first, n))
		},
		"next": func(t *rapid.T) {
			from, longest := w.bit(t, "from"), w.bit(t, "longest")
			f1, n1, ok1 := w.b.Next(from, longest)
			f2, n2, ok2 := w.m.next(from, longest)
			equal(t, "next", [3]any{f1, n1, ok1}, [3]any{f2, n2, ok2})
		},
		"all": func(t *rapid.T) {
			if value := rapid.Bool().Draw(t, "value"); value {
				w.b.SetAll()
				w.m.change(0, ^uint64(0), true)
			} else {
				w.b.ClearAll()
				w.m.change(0, ^uint64(0), false)
			}
		},
		"resize": func(t *rapid.T) {
			n, dirty := sizes.Draw(t, "size"), rapid.Bool().Draw(t, "dirty")
			w.b.Resize(n, dirty)
			w.m.resize(n, dirty)
		},
		"or": w.or, "load": w.load, "write": w.write, "mark dirty": w.markDirty, "": w.check,
	}
}

func (w *world) or(t *rapid.T) {
	first := rapid.IntRange(0, w.b.WordCount()+1).Draw(t, "first word")
	words := rapid.SliceOfN(rapid.Uint64(), 0, 9).Draw(t, "words")
	newly := uint64(0)
	for i := range uint64(len(words)) * 64 {
		if words[i/64]>>(i%64)&1 != 0 {
			newly += w.m.change(uint64(first)*64+i, 1, true)
		}
	}
	equal(t, "newly", w.b.OrWords(first, words), newly)
}

// load reads a page that some earlier size may have written: bits past the end
// are set in it.
func (w *world) load(t *rapid.T) {
	if w.b.Pages() == 0 {
		return
	}
	p := rapid.IntRange(0, w.b.Pages()-1).Draw(t, "page")
	fill := rapid.Byte().Draw(t, "fill")
	w.b.LoadPage(p, bytes.Repeat([]byte{fill}, PageSize))
	for i := range uint64(PageBits) {
		w.m.change(uint64(p)*PageBits+i, 1, fill>>(i%8)&1 != 0)
	}
	w.m.dirty[p] = false
}

// write does what a writer of dirty pages does, then checks the bytes.
func (w *world) write(t *rapid.T) {
	p, ok := w.b.NextDirtyPage(rapid.IntRange(0, w.b.Pages()).Draw(t, "from"))
	if !ok {
		return
	}
	page := bytes.Repeat([]byte{0xAA}, PageSize)
	w.b.CopyPage(p, page)
	equal(t, "dirty after copy", w.b.PageDirty(p), true)
	w.b.MarkClean(p)
	w.m.dirty[p] = false
	for i := range uint64(PageBits) {
		bit := uint64(p)*PageBits + i
		if want := bit < uint64(len(w.m.set)) && w.m.set[bit]; (page[i/8]>>(i%8)&1 != 0) != want {
			t.Fatalf("bit %d of page %d is not %v", i, p, want)
		}
	}
}

func (w *world) markDirty(t *rapid.T) {
	if w.b.Pages() > 0 {
		p := rapid.IntRange(0, w.b.Pages()-1).Draw(t, "page")
		w.b.MarkDirty(p)
		w.m.dirty[p] = true
	}
}

func (w *world) check(t *rapid.T) {
	n := uint64(len(w.m.set))
	equal(t, "bits", w.b.Bits(), n)
	equal(t, "count", w.b.Count(), w.m.count(0, n))
	equal(t, "pages", w.b.Pages(), len(w.m.dirty))
	dirty := 0
	for p, want := range w.m.dirty {
		equal(t, "page dirty", w.b.PageDirty(p), want)
		if want {
			dirty++
		}
	}
	equal(t, "dirty pages", w.b.DirtyPages(), dirty)
	words := w.b.Words(0, w.b.WordCount())
	for i := range uint64(len(words)) * 64 {
		if got, want := words[i/64]>>(i%64)&1 != 0, i < n && w.m.set[i]; got != want || w.b.Test(i) != want {
			t.Fatalf("bit %d of %d: word says %v, Test says %v, want %v", i, n, got, w.b.Test(i), want)
		}
	}
}

func equal[T comparable](t *rapid.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func TestBitmapAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := sizes.Draw(t, "size")
		w := &world{b: New(n), m: newModel(n)}
		t.Repeat(w.actions())
	})
}

func TestSettingSetBitsKeepsPageClean(t *testing.T) {
	b := New(3 * PageBits)
	b.SetRange(PageBits-1, 2)
	b.MarkClean(0)
	b.MarkClean(1)
	if newly := b.SetRange(PageBits-1, 2); newly != 0 || b.DirtyPages() != 0 {
		t.Fatalf("setting set bits: %d newly, %d pages dirty", newly, b.DirtyPages())
	}
	if cleared := b.ClearRange(0, 10); cleared != 0 || b.DirtyPages() != 0 {
		t.Fatalf("clearing clear bits: %d cleared, %d pages dirty", cleared, b.DirtyPages())
	}
	if newly := b.SetRange(PageBits-1, 3); newly != 1 || !b.PageDirty(1) || b.PageDirty(0) {
		t.Fatalf("one new bit in page 1: %d newly, page 0 dirty %v", newly, b.PageDirty(0))
	}
}

func TestPageBytesAreLittleEndian(t *testing.T) {
	b := New(2 * PageBits)
	b.SetRange(PageBits, 9)
	b.SetRange(2*PageBits-1, 1)
	page := make([]byte, PageSize)
	b.CopyPage(1, page)
	if page[0] != 0xFF || page[1] != 1 || page[PageSize-1] != 0x80 {
		t.Fatalf("page begins % x and ends % x", page[:2], page[PageSize-1:])
	}
}

func TestNoAllocation(t *testing.T) {
	b := New(4 * PageBits)
	got := testing.AllocsPerRun(100, func() {
		b.SetRange(5, PageBits)
		b.Next(0, 1<<20)
		b.ClearRange(7, PageBits)
		b.CountRange(0, 4*PageBits)
		b.NextDirtyPage(0)
	})
	if got != 0 {
		t.Fatalf("%v allocations", got)
	}
}

func BenchmarkSetClearOneBit(b *testing.B) {
	m := New(1 << 24)
	for i := uint64(0); b.Loop(); i++ {
		m.SetRange(i*7919%(1<<24), 1)
		m.ClearRange(i*7919%(1<<24), 1)
	}
}

func BenchmarkNextAcrossEmptyTebibyte(b *testing.B) {
	m := New(1 << 28)
	m.SetRange(1<<28-1, 1)
	for b.Loop() {
		m.Next(0, 1)
	}
}
