package sim

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"replicad/bitmap"
	"replicad/replica/core"
)

func TestClockFiresInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var c clock
	for i := range uint64(2000) {
		c.add(timer{at: core.Time(r.IntN(100)), arg: i})
		if r.IntN(3) == 0 {
			c.pop()
		}
	}
	last := timer{at: -1}
	for {
		next, ok := c.next()
		if !ok {
			return
		}
		c.pop()
		if next.before(&last) {
			t.Fatalf("timer at %d (added %d) fired after %d (added %d)", next.at, next.seq, last.at, last.seq)
		}
		last = next
	}
}

// TestDiskLosesWhatWasNotFlushed: after a power cut a sector holds one of its
// contents since the last flush, and over many cuts each of them.
func TestDiskLosesWhatWasNotFlushed(t *testing.T) {
	seen := make(map[content]bool)
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		d := newDisk(8, 1)
		put := func(c content) {
			d.submit(0, []content{c})
			d.write(0, c)
		}
		put(contentOf(2, 0))
		d.flushed(d.clock)
		put(contentOf(3, 0))
		mark := d.clock
		put(contentOf(4, 0))
		d.submit(0, []content{contentOf(5, 0)})
		d.flushed(mark)
		var possible []content
		d.leaves(0, func(c content) bool { possible = append(possible, c); return true })
		d.cut(r)
		if !slices.Contains(possible, d.cache[0]) {
			t.Fatalf("the cut left %v, which leaves did not list: %v", d.cache[0], possible)
		}
		seen[d.cache[0]] = true
	}
	if len(seen) != 3 || seen[contentOf(2, 0)] {
		t.Errorf("200 power cuts left %v; expected the contents 3, 4 and 5, never the flushed-over 2", seen)
	}
}

func TestDiskKeepsItsCacheWhenKilled(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		d := newDisk(8, 1)
		d.submit(3, []content{7})
		d.write(3, 7)
		d.kill(r)
		if d.cache[3] != 7 {
			t.Fatal("a kill lost what was in the cache")
		}
	}
}

func TestStableNoticesAnUnflushedWrite(t *testing.T) {
	d := newDisk(8, 1)
	d.submit(0, []content{9})
	d.write(0, 9)
	m := &mirrored{first: 0, count: 1, done: true, mark: d.clock}
	if d.stable(m) {
		t.Error("an unflushed write counts as stable")
	}
	d.flushed(d.clock)
	if !d.stable(m) {
		t.Error("a flushed write does not count as stable")
	}
}

// TestMetaMarks: only what no write in flight can undo counts as a mark.
func TestMetaMarks(t *testing.T) {
	m := newMetaStore(2)
	m.super.Size = 8 << 20
	m.slots[0] = 1
	block := uint64(extentBlocks + 5)
	if m.marks(block) {
		t.Error("a hot extent counts without the primary indicator")
	}
	m.super.Flags = core.FlagPrimaryInd
	if !m.marks(block) || m.marks(5) {
		t.Error("the hot extent of a Primary does not count, or a cold one does")
	}
	m.slotsNext = []bitmap.Extent{bitmap.NoExtent, 0}
	if m.marks(block) || m.marks(5) {
		t.Error("an extent that may cool counts, or one that may not be hot yet does")
	}
	m.slotsNext = nil
	m.applyAL()
	if !m.bitmap().Test(block) || m.bitmap().Test(5) || m.slots[0] != bitmap.NoExtent {
		t.Error("replay did not turn the hot extent into bits")
	}
}

func testOracle(t *testing.T) (*oracle, *[]string) {
	t.Helper()
	var broken []string
	o := newOracle(&Options{Protocol: 'C'}, func(p, _ string, _ ...any) { broken = append(broken, p) })
	g := o.garbage()
	images := [][]content{newDisk(64, g).cache}
	o.begin([2][][]content{images, images})
	o.promoted(1, 0, 0, 0, images[0], true)
	return o, &broken
}

func TestOracleCatchesAStaleRead(t *testing.T) {
	o, broken := testOracle(t)
	old := o.vols[0].logical[0].base[3]
	w := o.issue(10, 0, 0, 3, 1, false)
	o.read(12, 11, 0, 0, 3, []content{old}) // concurrent: either will do
	o.completed(20, w, [2]bool{true, true})
	o.read(30, 15, 0, 0, 3, []content{old}) // began before the write was done
	if len(*broken) != 0 {
		t.Fatalf("good reads are refused: %v", *broken)
	}
	o.read(40, 35, 0, 0, 3, []content{old})
	if strings.Join(*broken, " ") != "P7" {
		t.Errorf("a stale read was not noticed: %v", *broken)
	}
}

func TestOracleCatchesAHoleInTheOrder(t *testing.T) {
	o, broken := testOracle(t)
	first := o.issue(10, 0, 0, 3, 1, false)
	o.completed(20, first, [2]bool{true, true})
	second := o.issue(30, 0, 0, 5, 1, false)
	image := slices.Clone(o.vols[0].image[1].base)
	o.closure(1, 0, image)
	image[3] = contentOf(first, 0)
	o.closure(1, 0, image)
	image[5] = contentOf(second, 0)
	o.closure(1, 0, image)
	if len(*broken) != 0 {
		t.Fatalf("closed sets are refused: %v", *broken)
	}
	image[3] = o.vols[0].image[1].base[3]
	o.closure(1, 0, image)
	if strings.Join(*broken, " ") != "P4" {
		t.Errorf("a later write without an earlier one was not noticed: %v", *broken)
	}
}

func TestOracleCatchesLostHistory(t *testing.T) {
	o, broken := testOracle(t)
	w := o.issue(10, 0, 0, 3, 1, false)
	o.completed(20, w, [2]bool{true, false})
	o.resyncStarts(0, 0, 1)
	if len(*broken) != 0 {
		t.Fatalf("the right direction is refused: %v", *broken)
	}
	o.resyncStarts(0, 1, 0)
	if strings.Join(*broken, " ") != "P16" {
		t.Errorf("a resync over the only copy of a write was not noticed: %v", *broken)
	}
	o.allow(0, 0, true)
	o.resyncStarts(0, 1, 0)
	if len(*broken) != 1 {
		t.Errorf("a resync by command is refused: %v", *broken)
	}
}

func TestOracleCatchesAFlushThatDoesNot(t *testing.T) {
	o, broken := testOracle(t)
	d := newDisk(64, 1)
	copy(d.cache, o.vols[0].image[0].base)
	w := o.issue(10, 0, 0, 3, 1, false)
	d.submit(3, []content{contentOf(w, 0)})
	d.write(3, contentOf(w, 0))
	o.completed(20, w, [2]bool{true, true})
	o.durable(0, 0, 0, d, 15, 0) // a flush from before the write was done
	if len(*broken) != 0 {
		t.Fatalf("a flush must not cover what completed after it was issued: %v", *broken)
	}
	o.durable(0, 0, 0, d, 30, 0)
	d.flushed(d.clock)
	o.durable(0, 0, 0, d, 30, 0)
	if strings.Join(*broken, " ") != "P1" {
		t.Errorf("a flush that left a write in the cache was not noticed once: %v", *broken)
	}
}
