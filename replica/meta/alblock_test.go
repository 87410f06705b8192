package meta

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"replicad/bitmap"
)

// TestInitialisedBlockGolden pins the checksum to one that drbdmeta wrote.
func TestInitialisedBlockGolden(t *testing.T) {
	p := make([]byte, blockSize)
	putInitialised(p)
	if got := binary.BigEndian.Uint32(p[offTxChecksum:]); got != 0x709cc651 {
		t.Errorf("checksum %#x, want 0x709cc651", got)
	}
	if tx, err := ParseALBlock(p); tx != nil || err != nil {
		t.Error(tx, err)
	}
}

func drawTransaction(t *rapid.T) *bitmap.Transaction {
	extent := rapid.Map(rapid.Uint32(), func(n uint32) bitmap.Extent { return bitmap.Extent(n) })
	size := rapid.Uint16Range(1, bitmap.SlotsMax).Draw(t, "slots")
	tx := &bitmap.Transaction{
		Number: rapid.Uint32().Draw(t, "number"), ContextSize: size,
		ContextFirst: rapid.Uint16Range(0, size-1).Draw(t, "first"),
	}
	for range rapid.IntRange(0, txUpdatesMax).Draw(t, "updates") {
		tx.Updates = append(tx.Updates, bitmap.SlotUpdate{
			Slot: rapid.Uint16Range(0, size-1).Draw(t, "slot"), Extent: extent.Draw(t, "extent"),
		})
	}
	for range min(txContextSlots, int(size-tx.ContextFirst)) {
		tx.Context = append(tx.Context, bitmap.Extent(rand.Uint32()))
	}
	return tx
}

func TestALBlockRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawTransaction(t)
		p := make([]byte, blockSize)
		PutALBlock(p, want)
		got, err := ParseALBlock(p)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
		}
		p[rapid.IntRange(0, blockSize-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := ParseALBlock(p); err == nil {
			t.Fatal("a flipped bit was not noticed")
		}
	})
}

// TestMalformedBlocksAreRefused: a good checksum does not excuse nonsense.
func TestMalformedBlocksAreRefused(t *testing.T) {
	be := binary.BigEndian
	for name, change := range map[string]func(p []byte){
		"unknown type":                  func(p []byte) { be.PutUint16(p[offTxType:], 7) },
		"65 updates":                    func(p []byte) { be.PutUint16(p[offTxUpdates:], 65) },
		"update beyond the count":       func(p []byte) { be.PutUint16(p[offTxSlots+2*5:], 1) },
		"update of a slot not there":    func(p []byte) { be.PutUint16(p[offTxSlots:], 10) },
		"fewer updates than counted":    func(p []byte) { be.PutUint16(p[offTxUpdates:], 3) },
		"context beyond the last slot":  func(p []byte) { be.PutUint32(p[offTxContext+4*10:], 77) },
		"context shorter than the data": func(p []byte) { be.PutUint16(p[offTxSize:], 2) },
	} {
		p := make([]byte, blockSize)
		tx := bitmap.Transaction{Number: 1, ContextSize: 10, Context: make([]bitmap.Extent, 10)}
		tx.Updates = []bitmap.SlotUpdate{{Slot: 0, Extent: 5}, {Slot: 1, Extent: 6}}
		PutALBlock(p, &tx)
		change(p)
		if _, err := ParseALBlock(p); err == nil {
			t.Errorf("%s: accepted with a bad checksum", name)
		}
		be.PutUint32(p[offTxChecksum:], alChecksum(p))
		if _, err := ParseALBlock(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseALBlock(make([]byte, 100)); err == nil {
		t.Error("short block accepted")
	}
}

func FuzzParseALBlock(f *testing.F) {
	p := make([]byte, blockSize)
	PutALBlock(p, &bitmap.Transaction{Number: 5, ContextSize: 1, Context: []bitmap.Extent{3}})
	f.Add(p[offTxType:], uint32(5))
	f.Add([]byte{0xFF, 0xFF}, uint32(0))
	f.Fuzz(func(t *testing.T, body []byte, number uint32) {
		p := make([]byte, blockSize)
		binary.BigEndian.PutUint32(p, alMagic)
		binary.BigEndian.PutUint32(p[offTxNumber:], number)
		copy(p[offTxType:], body)
		binary.BigEndian.PutUint32(p[offTxChecksum:], alChecksum(p))
		tx, err := ParseALBlock(p)
		if err != nil || tx == nil {
			return
		}
		again := make([]byte, blockSize)
		PutALBlock(again, tx)
		if back, err := ParseALBlock(again); err != nil || !reflect.DeepEqual(back, tx) {
			t.Fatalf("%+v, %v\nfrom %+v", back, err, tx)
		}
	})
}

// world is a log in memory and its ring, driven together.
type world struct {
	log  *bitmap.ActivityLog
	area []byte
	g    ALGeometry
}

func newWorld(g ALGeometry, slots int, number uint32) *world {
	w := &world{log: bitmap.NewActivityLog(slots), area: make([]byte, g.Blocks()*blockSize), g: g}
	w.log.Reset(number)
	for at := 0; at < len(w.area); at += blockSize {
		putInitialised(w.area[at : at+blockSize])
	}
	return w
}

func (w *world) hot() []bitmap.Extent { return slices.Sorted(w.log.HotExtents()) }

// step makes up to 64 extents hot; torn says which of the block's 8 sectors
// reach the ring. It returns the hot extents before and after.
func (w *world) step(rng *rand.Rand, torn byte) (before, after []bitmap.Extent) {
	before = w.hot()
	var want []bitmap.Extent
	for range 1 + rng.IntN(min(txUpdatesMax, w.log.Slots())) {
		if e := bitmap.Extent(rng.IntN(3 * w.log.Slots())); !w.log.Hot(e) && !slices.Contains(want, e) {
			want = append(want, e)
		}
	}
	tx, _, ok := w.log.Prepare(want)
	if len(want) == 0 || !ok {
		return before, before
	}
	block := make([]byte, blockSize)
	PutALBlock(block, tx)
	at := w.g.position(tx.Number) * blockSize
	for sector := range 8 {
		if torn>>sector&1 != 0 {
			copy(w.area[at+sector*sectorSize:], block[sector*sectorSize:(sector+1)*sectorSize])
		}
	}
	w.log.Commit(tx)
	return before, w.hot()
}

// TestReplayFindsTheHotExtents follows a log through many laps of its ring; at
// the end a write is torn.
func TestReplayFindsTheHotExtents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := rapid.SampledFrom([]ALGeometry{{1, 8}, {2, 8}, {3, 5}}).Draw(t, "geometry")
		slots := rapid.SampledFrom([]int{1, 7, 61, 919, 920, 919 * 7}).Draw(t, "slots")
		number := rapid.SampledFrom([]uint32{0, 57, 1<<31 - 5, 1<<32 - 16}).Draw(t, "number")
		if g.Blocks()&(g.Blocks()-1) != 0 {
			number %= 1 << 31 // the ring of DRBD jumps at the wrap
		}
		w := newWorld(g, slots, number)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			_, after := w.step(rng, 0xFF)
			w.check(t, after, after)
		}
		before, after := w.step(rng, rapid.Byte().Draw(t, "torn"))
		w.check(t, before, after)
	})
}

func (w *world) check(t *rapid.T, either, or []bitmap.Extent) {
	got, err := ringOf(t, w.area, w.g).hotExtents()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, either) && !slices.Equal(got, or) {
		t.Fatalf("replay finds %v, hot were %v or %v", got, either, or)
	}
}

// TestDamagedRingIsRefused: everything but the block to be written next is
// needed.
func TestDamagedRingIsRefused(t *testing.T) {
	g := DefaultALGeometry
	rng := rand.New(rand.NewPCG(1, 1))
	for _, steps := range []int{1, 3, 7, 8, 9, 20, 27} {
		w := newWorld(g, 200, 0)
		var newest uint32
		for range steps {
			w.step(rng, 0xFF)
		}
		newest, _ = ringOf(t, w.area, g).newest()
		for block := range g.Blocks() {
			r := ringOf(t, w.area, g)
			r[block] = ringBlock{bad: true}
			next := uint32(block) == (newest+1)%uint32(g.Blocks())
			// Losing the newest of all looks like tearing it, unless an older
			// block tells that it had been there.
			onlyOne := steps == 1 && block == 0
			if _, err := r.hotExtents(); (err == nil) != (next || uint32(block) == newest%uint32(g.Blocks()) || onlyOne) {
				t.Errorf("%d transactions, block %d bad, newest %d: %v", steps, block, newest, err)
			}
			r[(block+3)%len(r)] = ringBlock{bad: true}
			if _, err := r.hotExtents(); err == nil {
				t.Errorf("%d transactions, blocks %d and 3 on bad: accepted", steps, block)
			}
		}
	}
}

// TestLostWriteIsRefused: an old record in the middle means that the disk
// dropped a write it had reported as durable.
func TestLostWriteIsRefused(t *testing.T) {
	w := newWorld(DefaultALGeometry, 100, 0)
	rng := rand.New(rand.NewPCG(2, 2))
	for range 12 {
		w.step(rng, 0xFF)
	}
	old := slices.Clone(w.area)
	for range 5 {
		w.step(rng, 0xFF)
	}
	newest, _ := ringOf(t, w.area, w.g).newest()
	at := w.g.position(newest-2) * blockSize
	copy(w.area[at:at+blockSize], old[at:at+blockSize])
	if extents, err := ringOf(t, w.area, w.g).hotExtents(); err == nil {
		t.Errorf("accepted with %d extents", len(extents))
	}
}

// ringOf decodes a log area in memory.
func ringOf(t interface{ Fatal(...any) }, area []byte, g ALGeometry) ring {
	r, err := parseRing(g, func(block int) ([]byte, error) { return area[block*blockSize:][:blockSize], nil })
	if err != nil {
		t.Fatal(err)
	}
	return r
}
