package sim

import (
	"math/rand/v2"
	"testing"

	"replicad/bitmap"
	"replicad/replica/core"
	"replicad/replica/sim/oracle"
)

// testStore is attached metadata of a Primary with 16 slots and two extents.
func testStore(t *testing.T, seed uint64) *metaStore {
	t.Helper()
	o := Options{Seed: seed, Blocks: 2 * extentBlocks, Slots: 16}
	m := newMetaStore()
	m.reset(o.Blocks*blockSectors*sectorSize, &o, rand.New(rand.NewPCG(seed, 1)))
	if _, err := m.attach(); err != nil {
		t.Fatal(err)
	}
	m.do(t, &core.Action{Kind: core.ActMetaSuper, Super: &core.Super{Size: 8 << 20, Flags: core.FlagPrimaryInd | core.FlagConsistent}})
	return m
}

// do carries out an action as far as it goes: 0 submitted, 1 in the cache, 2 stable.
func (m *metaStore) do(t *testing.T, a *core.Action, steps ...int) {
	t.Helper()
	stage := 2
	if len(steps) > 0 {
		stage = steps[0]
	}
	m.dev.begin()
	if err := m.write(a); err != nil {
		t.Fatal(err)
	}
	ops := m.dev.end()
	for i := range ops {
		if stage > 0 {
			m.dev.effect(&ops[i])
		}
	}
	for i := range ops {
		if stage > 1 {
			m.dev.settle(&ops[i], m.dev.clock)
		}
	}
	m.marks.RefreshAll(m.dev)
}

func logged(log *bitmap.ActivityLog, e bitmap.Extent) *core.Action {
	tx, _, _ := log.Prepare([]bitmap.Extent{e})
	log.Commit(tx)
	return &core.Action{Kind: core.ActMetaAL, Tx: tx}
}

// TestMarksAreSure: only what no write in flight can undo counts as a mark.
func TestMarksAreSure(t *testing.T) {
	const first, second = 5, extentBlocks + 5
	for seed := range uint64(4) { // internal and external
		m, log := testStore(t, seed), bitmap.NewActivityLog(1)
		hot := func(want bool, b uint32, when string) {
			t.Helper()
			if has(m.marks.Sure(), b) != want {
				t.Errorf("seed %d, %s: block %d is marked: %v", seed, when, b, !want)
			}
		}
		m.do(t, logged(log, 1))
		hot(true, second, "extent 1 is hot")
		hot(false, first, "extent 1 is hot")
		next := logged(log, 0)
		m.do(t, next, 0)
		hot(false, second, "it may cool")
		hot(false, first, "the other may not be hot yet")
		m.do(t, next)
		hot(true, first, "extent 0 is hot")
		m.do(t, &core.Action{Kind: core.ActMetaSuper, Super: &core.Super{Size: 8 << 20, Flags: core.FlagConsistent}}, 1)
		hot(false, first, "the primary indicator may go")
		page := make([]byte, bitmap.PageSize)
		page[second/8] = 1 << (second % 8)
		images := &core.Action{Kind: core.ActMetaBitmap, Pages: []core.PageImage{{Data: page}}}
		m.do(t, images, 1)
		hot(false, second, "its bit is in the cache only")
		m.do(t, images)
		hot(true, second, "its bit is set")
	}
}

// TestMetaCrashTears: a power cut during a log write leaves the record as it
// was, whole, or torn, and the log can be applied in every case.
func TestMetaCrashTears(t *testing.T) {
	seen := map[bool]int{}
	for seed := range uint64(200) {
		m, log := testStore(t, seed), bitmap.NewActivityLog(1)
		m.do(t, logged(log, 1), 1)
		if m.marks.Stuck() {
			t.Fatal("one record in flight counts as a log that cannot be read")
		}
		m.crash(true)
		want, ok := m.marks.AfterReplay(m.dev)
		if _, err := m.attach(); err != nil || !ok {
			t.Fatalf("seed %d: %v", seed, err)
		}
		seen[has(want, extentBlocks)]++
	}
	if seen[true] == 0 || seen[false] < 100 {
		t.Errorf("the record survived %d power cuts of 200, and not %d", seen[true], seen[false])
	}
}

// TestRecoveryIsCutShort: an attach that is cut after each of its operations
// leaves metadata that the next attach takes.
func TestRecoveryIsCutShort(t *testing.T) {
	for seed := range uint64(40) {
		for cut := range 12 {
			m, log := testStore(t, seed), bitmap.NewActivityLog(4)
			m.do(t, logged(log, 1))
			m.crash(true)
			m.dev.budget = cut
			_, err := m.attach()
			if stopped := m.dev.stopped; stopped != (err != nil) {
				t.Fatalf("seed %d cut %d: stopped %v, error %v", seed, cut, stopped, err)
			}
			m.crash(seed%2 == 0)
			if _, err := m.attach(); err != nil {
				t.Fatalf("seed %d cut %d: %v", seed, cut, err)
			}
			if !has(m.marks.Present(m.dev), extentBlocks) {
				t.Fatalf("seed %d cut %d: the hot extent is not marked", seed, cut)
			}
		}
	}
}

// TestTablesAgree holds the engine's comparison of generations against the
// oracle's literal table, for every pair of tuples of a few ids.
func TestTablesAgree(t *testing.T) {
	const off = core.UUIDNewBMOffset
	choices := []uint64{0, core.UUIDJustCreated, 0x1000, 0x1000 + off, 0x2000}
	n := len(choices)
	pairs := 1
	for range 8 {
		pairs *= n
	}
	for x := range pairs {
		id := func() uint64 { c := choices[x%n]; x /= n; return c }
		a := core.Generation{Current: id(), Bitmap: id(), H1: id(), H2: id()}
		b := core.Generation{Current: id(), Bitmap: id(), H1: id(), H2: id()}
		v := core.Compare(core.Facts{Gen: a}, core.Facts{Gen: b}, true)
		got, rule := oracle.Compare(superOfIDs(a), superOfIDs(b))
		if v.Result == got && (v.Rule == rule || got == 0) || deviates(a, b) {
			continue
		}
		t.Fatalf("self %v, peer %v: the engine says %d by rule %d, the table %d by rule %d", a, b, v.Result, v.Rule, got, rule)
	}
}

// deviates lists where the engine refuses what DRBD 8.4 would do wrong: two
// empty nodes of which both would be target, and two that descend from each
// other.
func deviates(a, b core.Generation) bool {
	older := func(x, y core.Generation) bool {
		return x.Current == y.Bitmap || x.Current == y.H1 || x.Current == y.H2
	}
	return a.Current == 0 && b.Current == 0 || older(a, b) && older(b, a)
}

func superOfIDs(g core.Generation) *oracle.Super {
	return &oracle.Super{Current: g.Current, Bitmap: g.Bitmap, H1: g.H1, H2: g.H2}
}
