package bitmap

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// lruModel is the slow and obvious activity log.
type lruModel struct {
	slots  int
	order  []Extent // extents with a slot, least recently used first
	refs   map[Extent]int
	gone   []Extent // of order: evicted by the prepared transaction
	want   []Extent // of the prepared transaction
	tx     *Transaction
	number uint32
}

func (m *lruModel) hot() []Extent {
	return without(m.order, m.gone)
}

func without(from, gone []Extent) []Extent {
	return slices.DeleteFunc(slices.Clone(from), func(e Extent) bool { return slices.Contains(gone, e) })
}

// free counts the slots that hold nothing and are promised to nothing.
func (m *lruModel) free() int {
	return m.slots - len(m.order) - (len(m.want) - len(m.gone))
}

func (m *lruModel) idle() []Extent {
	return slices.DeleteFunc(m.hot(), func(e Extent) bool { return m.refs[e] > 0 })
}

type alWorld struct {
	a *ActivityLog
	m *lruModel
}

const modelExtents = 12 // few, so that collisions are frequent

func drawExtent(t *rapid.T) Extent {
	return Extent(rapid.IntRange(0, modelExtents-1).Draw(t, "extent"))
}

func (w *alWorld) pin(t *rapid.T) {
	e := drawExtent(t)
	hot := slices.Contains(w.m.hot(), e)
	equal(t, "pinned", w.a.Pin(e), hot)
	if hot {
		w.m.refs[e]++
		w.m.order = append(without(w.m.order, []Extent{e}), e)
	}
}

func (w *alWorld) unpin(t *rapid.T) {
	if e := drawExtent(t); w.m.refs[e] > 0 {
		w.a.Unpin(e)
		w.m.refs[e]--
	}
}

func (w *alWorld) prepare(t *rapid.T) {
	want := rapid.SliceOfNDistinct(rapid.Custom(drawExtent), 0, 5, rapid.ID[Extent]).Draw(t, "want")
	want = without(want, w.m.hot())
	idle := w.m.idle()
	enough := len(want) <= w.m.free()+len(idle)
	tx, evicted, ok := w.a.Prepare(want)
	equal(t, "prepared", ok, w.m.tx == nil && enough)
	if !ok {
		return
	}
	victims := idle[:max(0, len(want)-w.m.free())]
	if !slices.Equal(evicted, victims) {
		t.Fatalf("evicted %v, want %v", evicted, victims)
	}
	equal(t, "number", tx.Number, w.m.number)
	w.m.tx, w.m.want, w.m.gone = tx, want, victims
}

func (w *alWorld) commit(*rapid.T) {
	if w.m.tx == nil {
		return
	}
	w.a.Commit(w.m.tx)
	w.m.order = append(w.m.hot(), w.m.want...)
	w.m.tx, w.m.want, w.m.gone = nil, nil, nil
	w.m.number++
}

func (w *alWorld) abort(*rapid.T) {
	if w.m.tx == nil {
		return
	}
	w.a.Abort(w.m.tx)
	w.m.tx, w.m.want, w.m.gone = nil, nil, nil
}

func (w *alWorld) check(t *rapid.T) {
	hot := slices.Sorted(w.a.HotExtents())
	if want := slices.Sorted(slices.Values(w.m.hot())); !slices.Equal(hot, want) {
		t.Fatalf("hot %v, want %v", hot, want)
	}
	equal(t, "available", w.a.Available(), w.m.free()+len(w.m.idle()))
	for e := range Extent(modelExtents) {
		equal(t, "hot", w.a.Hot(e), slices.Contains(hot, e))
		equal(t, "refs", w.a.Refs(e), w.m.refs[e])
	}
}

func TestActivityLogAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 7).Draw(t, "slots")
		w := &alWorld{a: NewActivityLog(slots), m: &lruModel{slots: slots, refs: map[Extent]int{}}}
		t.Repeat(map[string]func(*rapid.T){
			"pin": w.pin, "unpin": w.unpin, "prepare": w.prepare,
			"commit": w.commit, "abort": w.abort, "": w.check,
		})
	})
}

// replay rebuilds the hot set from the last transactions, as is done after a
// crash: oldest first, context and then updates (DRBD 8.4 metadata v08).
func replay(txs []*Transaction) []Extent {
	table := map[int]Extent{}
	for _, tx := range txs {
		for i, e := range tx.Context {
			table[int(tx.ContextFirst)+i] = e
		}
		for _, u := range tx.Updates {
			table[int(u.Slot)] = u.Extent
		}
	}
	var hot []Extent
	for _, e := range table {
		if e != NoExtent {
			hot = append(hot, e)
		}
	}
	slices.Sort(hot)
	return hot
}

// workload runs random pins and transactions on a log and calls each after
// every commit with all transactions so far.
func workload(a *ActivityLog, rng *rand.Rand, commits int, each func(txs []*Transaction)) {
	var txs []*Transaction
	var pins []Extent
	for len(txs) < commits {
		want := coldExtents(a, rng, 1+rng.IntN(TransactionUpdatesMax))
		tx, _, ok := a.Prepare(want)
		if !ok { // too much is pinned
			a.Unpin(pins[0])
			pins = pins[1:]
			continue
		}
		if rng.IntN(8) == 0 {
			a.Abort(tx)
			continue
		}
		a.Commit(tx)
		txs = append(txs, tx)
		for _, e := range want {
			if rng.IntN(4) == 0 && a.Pin(e) {
				pins = append(pins, e)
			}
		}
		each(txs)
	}
}

func coldExtents(a *ActivityLog, rng *rand.Rand, n int) []Extent {
	var want []Extent
	for len(want) < min(n, a.Slots()) {
		e := Extent(rng.IntN(4 * a.Slots()))
		if !a.Hot(e) && !slices.Contains(want, e) {
			want = append(want, e)
		}
	}
	return want
}

func TestReplayOfAnyRingRebuildsHotSet(t *testing.T) {
	for _, slots := range []int{1, 67, ContextSlots, ContextSlots + 1, 1237, 6433} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			cycle := (slots + ContextSlots - 1) / ContextSlots
			a := NewActivityLog(slots)
			a.Reset(0xFFFFFFF0) // the number wraps
			next := uint32(0xFFFFFFF0)
			workload(a, rand.New(rand.NewPCG(7, uint64(slots))), 150, func(txs []*Transaction) {
				last := txs[len(txs)-1]
				checkShape(t, last, slots, next)
				next++
				hot := slices.Sorted(a.HotExtents())
				for ring := cycle; ring <= min(cycle+2, len(txs)); ring++ {
					if got := replay(txs[len(txs)-ring:]); !slices.Equal(got, hot) {
						t.Fatalf("after transaction %d a ring of %d gives %d hot extents, want %d", last.Number, ring, len(got), len(hot))
					}
				}
			})
		})
	}
}

func checkShape(t *testing.T, tx *Transaction, slots int, number uint32) {
	t.Helper()
	if tx.Number != number || int(tx.ContextSize) != slots || len(tx.Updates) > TransactionUpdatesMax {
		t.Fatalf("transaction %d: context size %d, %d updates; want number %d", tx.Number, tx.ContextSize, len(tx.Updates), number)
	}
	first := int(tx.ContextFirst)
	if first%ContextSlots != 0 || len(tx.Context) != min(ContextSlots, slots-first) {
		t.Fatalf("transaction %d: context of %d slots from %d", tx.Number, len(tx.Context), first)
	}
}

func TestFreeSlotsFirst(t *testing.T) {
	a := NewActivityLog(3)
	tx, _, _ := a.Prepare([]Extent{10, 11})
	a.Commit(tx)
	if want := []SlotUpdate{{0, 10}, {1, 11}}; !slices.Equal(tx.Updates, want) {
		t.Fatalf("updates %v, want %v", tx.Updates, want)
	}
	a.Pin(10)
	a.Unpin(10) // now 11 is the least recently used
	tx, evicted, ok := a.Prepare([]Extent{12, 13})
	if !ok || !slices.Equal(evicted, []Extent{11}) {
		t.Fatalf("evicted %v, %v; want 11", evicted, ok)
	}
	if want := []Extent{10, 13, 12}; !slices.Equal(tx.Context, want) {
		t.Fatalf("context %v, want %v", tx.Context, want)
	}
	if a.Hot(11) || a.Hot(12) || a.Pin(12) {
		t.Fatal("before the commit neither victim nor wanted extent may be hot")
	}
	if _, _, ok := a.Prepare([]Extent{14}); ok {
		t.Fatal("a second transaction was prepared")
	}
}

func TestPinnedExtentsKeepTheirSlots(t *testing.T) {
	a := NewActivityLog(2)
	tx, _, _ := a.Prepare([]Extent{1, 2})
	a.Commit(tx)
	a.Pin(1)
	if _, _, ok := a.Prepare([]Extent{3, 4}); ok {
		t.Fatal("two slots found where one is pinned")
	}
	if !a.Hot(1) || !a.Hot(2) || a.Available() != 1 {
		t.Fatal("a refused transaction changed something")
	}
}

func TestBrokenUsePanics(t *testing.T) {
	hot := func() *ActivityLog {
		a := NewActivityLog(4)
		tx, _, _ := a.Prepare([]Extent{1})
		a.Commit(tx)
		return a
	}
	tests := map[string]func(){
		"unpin cold":         func() { hot().Unpin(2) },
		"unpin below zero":   func() { hot().Unpin(1) },
		"want hot":           func() { hot().Prepare([]Extent{1}) },
		"want twice":         func() { hot().Prepare([]Extent{2, 2}) },
		"want the marker":    func() { hot().Prepare([]Extent{NoExtent}) },
		"want too many":      func() { NewActivityLog(100).Prepare(make([]Extent, TransactionUpdatesMax+1)) },
		"commit nothing":     func() { hot().Commit(nil) },
		"commit a stranger":  func() { hot().Commit(&Transaction{}) },
		"abort after commit": func() { a := hot(); tx, _, _ := a.Prepare(nil); a.Commit(tx); a.Abort(tx) },
		"no slots":           func() { NewActivityLog(0) },
		"too many slots":     func() { NewActivityLog(SlotsMax + 1) },
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func TestExtentsOfBlocks(t *testing.T) {
	got := slices.Collect(Extents(1023, 2048))
	if want := []Extent{0, 1, 2}; !slices.Equal(got, want) {
		t.Fatalf("blocks 1023 to 2048 lie in %v, want %v", got, want)
	}
	if got := slices.Collect(Extents(5, 5)); !slices.Equal(got, []Extent{0}) {
		t.Fatalf("block 5 lies in %v", got)
	}
	if first, n := Extent(3).Blocks(); first != 3072 || n != 1024 || ExtentOf(first+n-1) != 3 {
		t.Fatalf("extent 3 holds %d blocks from %d", n, first)
	}
}

func TestPinAllocatesNothing(t *testing.T) {
	a := NewActivityLog(1237)
	tx, _, _ := a.Prepare([]Extent{1, 2, 3})
	a.Commit(tx)
	if n := testing.AllocsPerRun(100, func() { a.Pin(2); a.Unpin(2) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkPinUnpin(b *testing.B) {
	a := NewActivityLog(1237)
	tx, _, _ := a.Prepare([]Extent{1, 2, 3})
	a.Commit(tx)
	for b.Loop() {
		a.Pin(2)
		a.Unpin(2)
	}
}
