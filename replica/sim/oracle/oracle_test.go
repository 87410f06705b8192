package oracle

import (
	"slices"
	"strings"
	"testing"
)

func testOracle(t *testing.T) (*Oracle, *[]string) {
	t.Helper()
	var broken []string
	o := &Oracle{}
	o.Reset('C', func(p, _ string, _ ...any) { broken = append(broken, p) })
	g := o.Garbage()
	image := make([]Content, 64)
	for i := range image {
		image[i] = ContentOf(g, uint32(i))
	}
	images := [][]Content{image}
	o.Begin([2][][]Content{images, images})
	o.Promoted(1, 0, 0, 0, images[0], true)
	return o, &broken
}

func TestOracleCatchesAStaleRead(t *testing.T) {
	o, broken := testOracle(t)
	old := o.vols[0].logical[0].base[3]
	w := o.Issue(10, 0, 0, 3, 1, false)
	o.Read(12, 11, 0, 0, 3, []Content{old}) // concurrent: either will do
	o.Completed(20, w, [2]bool{true, true}, false)
	o.Read(30, 15, 0, 0, 3, []Content{old}) // began before the write was done
	if len(*broken) != 0 {
		t.Fatalf("good reads are refused: %v", *broken)
	}
	o.Read(40, 35, 0, 0, 3, []Content{old})
	if strings.Join(*broken, " ") != "P7" {
		t.Errorf("a stale read was not noticed: %v", *broken)
	}
}

func TestOracleCatchesAHoleInTheOrder(t *testing.T) {
	o, broken := testOracle(t)
	first := o.Issue(10, 0, 0, 3, 1, false)
	o.Completed(20, first, [2]bool{true, true}, false)
	second := o.Issue(30, 0, 0, 5, 1, false)
	image := slices.Clone(o.vols[0].image[1].base)
	o.Closure(1, 0, image)
	image[3] = ContentOf(first, 0)
	o.Closure(1, 0, image)
	image[5] = ContentOf(second, 0)
	o.Closure(1, 0, image)
	if len(*broken) != 0 {
		t.Fatalf("closed sets are refused: %v", *broken)
	}
	image[3] = o.vols[0].image[1].base[3]
	o.Closure(1, 0, image)
	if strings.Join(*broken, " ") != "P4" {
		t.Errorf("a later write without an earlier one was not noticed: %v", *broken)
	}
}

func TestOracleCatchesLostHistory(t *testing.T) {
	o, broken := testOracle(t)
	w := o.Issue(10, 0, 0, 3, 1, false)
	o.Completed(20, w, [2]bool{true, false}, false)
	o.ResyncStarts(0, 0, 1)
	if len(*broken) != 0 {
		t.Fatalf("the right direction is refused: %v", *broken)
	}
	o.ResyncStarts(0, 1, 0)
	if strings.Join(*broken, " ") != "P16" {
		t.Errorf("a resync over the only copy of a write was not noticed: %v", *broken)
	}
	o.Allow(0, 0, true)
	o.ResyncStarts(0, 1, 0)
	if len(*broken) != 1 {
		t.Errorf("a resync by command is refused: %v", *broken)
	}
}

func TestOracleCatchesAFlushThatDoesNot(t *testing.T) {
	o, broken := testOracle(t)
	w := o.Issue(10, 0, 0, 3, 1, false)
	d := cached{sector: 3, present: ContentOf(w, 0), stable: o.vols[0].image[0].base[3]}
	o.Completed(20, w, [2]bool{true, true}, false)
	o.Durable(0, 0, 0, d, 15, 0) // a flush from before the write was done
	if len(*broken) != 0 {
		t.Fatalf("a flush must not cover what completed after it was issued: %v", *broken)
	}
	o.Durable(0, 0, 0, d, 30, 0)
	d.stable = d.present
	o.Durable(0, 0, 0, d, 30, 0)
	if strings.Join(*broken, " ") != "P1" {
		t.Errorf("a flush that left a write in the cache was not noticed once: %v", *broken)
	}
}

// cached is a disk with one sector whose present content may not be stable.
type cached struct {
	sector          uint32
	present, stable Content
}

func (d cached) Unclean() []uint32 { return []uint32{d.sector} }

func (d cached) Leaves(_ uint32, f func(Content) bool) bool { return f(d.present) && f(d.stable) }
