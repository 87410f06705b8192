package sim

import (
	"math/rand/v2"
	"slices"
	"testing"

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
		d := testDisk()
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
		d.Leaves(0, func(c content) bool { possible = append(possible, c); return true })
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
		d := testDisk()
		d.submit(3, []content{7})
		d.write(3, 7)
		d.kill(r)
		if d.cache[3] != 7 {
			t.Fatal("a kill lost what was in the cache")
		}
	}
}

func TestStableNoticesAnUnflushedWrite(t *testing.T) {
	d := testDisk()
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

func testDisk() *disk {
	d := &disk{}
	d.reset(8, 1)
	return d
}
