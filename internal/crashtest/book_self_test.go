package crashtest

import "testing"

// TestBookSeesEveryKindOfLoss: the witness of the other tests must not be blind.
func TestBookSeesEveryKindOfLoss(t *testing.T) {
	b := newBook()
	image := make([]byte, 64*sectorSize)
	put := func(id, s uint32) { fill(image[s*sectorSize:][:sectorSize], id, s) }
	var l life
	write := func(s uint32) uint32 {
		id := b.issue(s, 1, false, false)
		b.completed(&l, id)
		put(id, s)
		return id
	}
	check := func(what string, want finding) {
		t.Helper()
		got := b.compare(image)
		for _, c := range [][2]string{
			{got.foreign, want.foreign},
			{got.lost, want.lost},
			{got.unsafe, want.unsafe},
			{got.disorder, want.disorder},
			{got.epochs, want.epochs},
		} {
			if (c[0] == "") != (c[1] == "") {
				t.Errorf("%s: found %+v", what, got)
				return
			}
		}
	}
	first := write(1)
	check("all there", finding{})
	second := write(1)
	put(first, 1)
	check("the older of two", finding{lost: "x"})
	flushed := b.beginFlush()
	b.endFlush(&l, flushed)
	check("the older of two, flushed", finding{lost: "x", unsafe: "x"})
	write(2)
	check("a later one is there", finding{lost: "x", unsafe: "x", disorder: "x", epochs: "x"})
	put(second, 1)
	check("repaired", finding{})
	put(first, 3)
	check("a sector that nobody wrote is not looked at", finding{})
	open := b.issue(1, 1, false, false)
	check("an open write may be missing", finding{})
	put(open, 1)
	check("or there", finding{})
	image[1*sectorSize+100]++
	check("half a sector", finding{foreign: "x"})
	put(open, 1)
	write(4)
	b.completed(&l, b.issue(4, 1, true, false))
	check("zeroes are lost", finding{lost: "x"})
	clear(image[4*sectorSize:][:sectorSize])
	check("zeroes are there", finding{})
	b.adopt(image)
	check("adopted", finding{})
	put(second, 1)
	check("what was overwritten is back", finding{foreign: "x"})
	b.end(&l)
	if b.completed(&l, open) || b.endFlush(&l, 1) {
		t.Error("a completion counted after its life was over")
	}
}
