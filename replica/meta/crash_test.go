package meta

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"replicad/bitmap"
	"replicad/replica/disk"
	"replicad/replica/disk/disktest"
)

const memSize = 200 << 20 // two pages of bitmap, 50 extents

var internal = Placement{Kind: Internal}

// created returns a memory device with fresh metadata.
func created(t testing.TB) *disktest.Mem {
	t.Helper()
	m := disktest.New(memSize)
	if err := Create(m, internal, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return m
}

// crashed returns a device whose Primary died: with hot extents, some dirty
// bits, and unclean.
func crashed(t testing.TB, seed uint64) *disktest.Mem {
	t.Helper()
	m := created(t)
	use(t, mustOpen(t, m, internal), rand.New(rand.NewPCG(seed, 2)), 20)
	return m
}

// loaded returns the bitmap on disk.
func loaded(t testing.TB, s *Store) *bitmap.Bitmap {
	t.Helper()
	b := bitmap.New(uint64(s.Usable() / sectorsPerBit))
	if err := s.ReadBitmap(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func words(b *bitmap.Bitmap) []uint64 { return b.Words(0, b.WordCount()) }

// expectApplied computes, without touching the device, the bitmap after the
// log has been applied.
func expectApplied(t testing.TB, s *Store) (want *bitmap.Bitmap, newly uint64) {
	t.Helper()
	want = loaded(t, s)
	r, err := s.readRing()
	if err != nil {
		t.Fatal(err)
	}
	hot, err := r.hotExtents()
	if err != nil || len(hot) == 0 {
		t.Fatal(hot, err)
	}
	for _, extent := range hot {
		first, n := extent.Blocks()
		newly += want.SetRange(first, min(n, want.Bits()-first))
	}
	return want, newly
}

// TestApplyALSurvivesCrashesAnywhere cuts the power at each write and sync of
// ApplyAL, twice, and lets it finish.
func TestApplyALSurvivesCrashesAnywhere(t *testing.T) {
	base := crashed(t, 1)
	store := mustOpen(t, base, internal)
	want, _ := expectApplied(t, store)
	flags := store.Super().Flags
	total := opsOf(t, base.Clone(), func(s *Store) error { _, err := s.ApplyAL(); return err })
	for cut := range total {
		for seed := range uint64(20) {
			m := base.Clone()
			rng := rand.New(rand.NewPCG(seed, uint64(cut)))
			for _, cut := range []int{cut, rng.IntN(total)} {
				m.CutPowerAfter(cut)
				_, _ = mustOpen(t, m, internal).ApplyAL()
				m.Crash(rng)
				checkNotCleanTooEarly(t, m, want)
			}
			s := mustOpen(t, m, internal)
			if _, err := s.ApplyAL(); err != nil {
				t.Fatalf("cut %d seed %d: %v", cut, seed, err)
			}
			if got := loaded(t, s); !slices.Equal(words(got), words(want)) {
				t.Fatalf("cut %d seed %d: %d bits set, want %d", cut, seed, got.Count(), want.Count())
			}
			if got := s.Super().Flags; got != flags|FlagALClean {
				t.Fatalf("cut %d seed %d: flags %#x, were %#x", cut, seed, got, flags)
			}
			checkAttaches(t, m)
		}
	}
}

// checkNotCleanTooEarly: metadata that claims to be clean has all the marks.
func checkNotCleanTooEarly(t *testing.T, m *disktest.Mem, want *bitmap.Bitmap) {
	t.Helper()
	s := mustOpen(t, m, internal)
	if s.super.Clean() && !slices.Equal(words(loaded(t, s)), words(want)) {
		t.Fatal("the superblock is clean and marks are missing")
	}
}

func checkAttaches(t *testing.T, m *disktest.Mem) {
	t.Helper()
	s := mustOpen(t, m, internal)
	if err := s.Attach(); err != nil {
		t.Fatal(err)
	}
	r, err := s.readRing()
	if err != nil || !r.initialised() {
		t.Fatalf("attached with a used ring: %v", err)
	}
	if s := mustOpen(t, m, internal); !s.super.Unclean || s.super.Flags.has(FlagALClean) {
		t.Fatal("attached metadata does not look unclean on disk")
	}
}

// opsOf counts the operations of an action that succeeds.
func opsOf(t testing.TB, m *disktest.Mem, action func(s *Store) error) int {
	t.Helper()
	s := mustOpen(t, m, internal)
	before := m.Ops()
	if err := action(s); err != nil {
		t.Fatal(err)
	}
	return m.Ops() - before
}

// TestKilledWhileTheLogIsEmptied: a process dies at each write and sync of
// ApplyAL, the next one takes the metadata into use and logs a write, and then
// the power fails. What the first left in the device's cache must not come
// back as another log.
func TestKilledWhileTheLogIsEmptied(t *testing.T) {
	base := crashed(t, 5)
	total := opsOf(t, base.Clone(), func(s *Store) error { _, err := s.ApplyAL(); return err })
	for kill := range total {
		for seed := range uint64(20) {
			m := base.Clone()
			killedAfter(m, kill)
			s := mustOpen(t, m, internal)
			if _, err := s.ApplyAL(); err != nil {
				t.Fatal(err)
			}
			if err := s.Attach(); err != nil {
				t.Fatal(err)
			}
			super := s.Super()
			super.Flags |= FlagPrimaryIndicator
			if err := s.WriteSuper(&super); err != nil {
				t.Fatal(err)
			}
			log := bitmap.NewActivityLog(16)
			tx, _, _ := log.Prepare([]bitmap.Extent{7})
			if err := s.WriteAL(tx); err != nil {
				t.Fatal(err)
			}
			m.Crash(rand.New(rand.NewPCG(seed, uint64(kill))))
			r, err := mustOpen(t, m, internal).readRing()
			if err != nil {
				t.Fatal(err)
			}
			if hot, err := r.hotExtents(); err != nil || !slices.Equal(hot, []bitmap.Extent{7}) {
				t.Fatalf("killed after %d operations, seed %d: hot extents %v, %v; only 7 was", kill, seed, hot, err)
			}
		}
	}
}

// killedAfter lets ApplyAL do so many writes and syncs, and ends it there.
func killedAfter(m *disktest.Mem, ops int) {
	s, err := Open(m, dying{m, &ops}, internal)
	if err == nil {
		_, _ = s.ApplyAL()
	}
}

// dying is a device whose user is killed after so many operations; the
// machine, and what is in its cache, lives on.
type dying struct {
	*disktest.Mem
	left *int
}

var errKilled = errors.New("killed")

func (d dying) spent() bool { *d.left--; return *d.left < 0 }

func (d dying) WriteAt(p []byte, off int64) (int, error) {
	if d.spent() {
		return 0, errKilled
	}
	return d.Mem.WriteAt(p, off)
}

func (d dying) WriteDurable(p []byte, off int64) (int, error) {
	if d.spent() {
		return 0, errKilled
	}
	return d.Mem.WriteDurable(p, off)
}

func (d dying) Sync() error {
	if d.spent() {
		return errKilled
	}
	return d.Mem.Sync()
}

// TestAttachWithAStaleRing: a crash between the clean superblock and the
// emptied ring leaves old records; a second crash must not find them.
func TestAttachWithAStaleRing(t *testing.T) {
	m := crashed(t, 3)
	s := mustOpen(t, m, internal)
	if err := s.markClean(s.super.Flags); err != nil {
		t.Fatal(err)
	}
	total := opsOf(t, m.Clone(), (*Store).Attach)
	for cut := range total {
		for seed := range uint64(20) {
			m := m.Clone()
			m.CutPowerAfter(cut)
			_ = mustOpen(t, m, internal).Attach()
			m.Crash(rand.New(rand.NewPCG(seed, uint64(cut))))
			s := mustOpen(t, m, internal)
			if s.super.Unclean {
				if r, err := s.readRing(); err != nil || !r.initialised() {
					t.Fatalf("cut %d seed %d: in use with a stale ring", cut, seed)
				}
			}
			if _, err := s.ApplyAL(); err != nil {
				t.Fatal(err)
			}
			checkAttaches(t, m)
		}
	}
}

// TestPrimaryCrashesAnywhere runs a Primary until the power goes, and checks
// that every extent it was allowed to write to is marked afterwards.
func TestPrimaryCrashesAnywhere(t *testing.T) {
	base := created(t)
	for seed := range uint64(300) {
		m := base.Clone()
		rng := rand.New(rand.NewPCG(seed, 9))
		s := mustOpen(t, m, internal)
		if err := s.Attach(); err != nil {
			t.Fatal(err)
		}
		super := s.Super()
		super.Flags |= FlagPrimaryIndicator
		super.LaSize = s.Usable()
		if err := s.WriteSuper(&super); err != nil {
			t.Fatal(err)
		}
		log := bitmap.NewActivityLog(12)
		m.CutPowerAfter(rng.IntN(40))
		before, after := runUntilPowerCut(t, s, log, rng)
		m.Crash(rng)

		s = mustOpen(t, m, internal)
		if _, err := s.ApplyAL(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got := words(loaded(t, s))
		if !slices.Equal(got, wordsOf(s, before)) && !slices.Equal(got, wordsOf(s, after)) {
			t.Fatalf("seed %d: marks are neither those of %v nor of %v", seed, before, after)
		}
	}
}

// runUntilPowerCut returns the hot extents before and after the transaction
// that failed.
func runUntilPowerCut(t *testing.T, s *Store, log *bitmap.ActivityLog, rng *rand.Rand) (before, after []bitmap.Extent) {
	t.Helper()
	for {
		extent := bitmap.Extent(rng.IntN(49))
		if log.Hot(extent) {
			continue
		}
		before = slices.Sorted(log.HotExtents())
		tx, _, ok := log.Prepare([]bitmap.Extent{extent})
		if !ok {
			t.Fatal("no slot")
		}
		err := s.WriteAL(tx)
		log.Commit(tx)
		if err != nil {
			if !errors.Is(err, disktest.ErrPowerCut) {
				t.Fatal(err)
			}
			return before, slices.Sorted(log.HotExtents())
		}
	}
}

func wordsOf(s *Store, extents []bitmap.Extent) []uint64 {
	b := bitmap.New(uint64(s.Usable() / sectorsPerBit))
	for _, extent := range extents {
		first, n := extent.Blocks()
		b.SetRange(first, min(n, b.Bits()-first))
	}
	return words(b)
}

// TestCreateSurvivesCrashesAnywhere: there is the old metadata, none, or the
// new one, and never the old superblock over an emptied bitmap.
func TestCreateSurvivesCrashesAnywhere(t *testing.T) {
	base := crashed(t, 4)
	old := mustOpen(t, base, internal)
	oldArea := metadataBytes(t, base, old.layout)
	create := func(m *disktest.Mem) error {
		return Create(m, internal, CreateOptions{Confirmed: true})
	}
	counted := base.Clone()
	if err := create(counted); err != nil {
		t.Fatal(err)
	}
	for cut := range counted.Ops() {
		for seed := range uint64(10) {
			m := base.Clone()
			m.CutPowerAfter(cut)
			if err := create(m); !errors.Is(err, disktest.ErrPowerCut) {
				t.Fatalf("cut %d: %v", cut, err)
			}
			m.Crash(rand.New(rand.NewPCG(seed, uint64(cut))))
			s, err := Open(m, m, internal)
			switch {
			case errors.Is(err, ErrNoMetadata):
			case err != nil:
				t.Fatalf("cut %d seed %d: %v", cut, seed, err)
			case s.super == old.super:
				if !bytes.Equal(metadataBytes(t, m, s.layout), oldArea) {
					t.Fatalf("cut %d seed %d: the old superblock over changed metadata", cut, seed)
				}
			case s.super.Current != UUIDJustCreated || loaded(t, s).Count() != 0:
				t.Fatalf("cut %d seed %d: half-made metadata %+v", cut, seed, s.super)
			}
		}
	}
}

// TestSuperblockIsOldOrNew: a crash in a write of the superblock shows one of
// both, whole.
func TestSuperblockIsOldOrNew(t *testing.T) {
	base := crashed(t, 5)
	old := mustOpen(t, base, internal).super
	seen := map[bool]int{}
	for seed := range uint64(64) {
		m := base.Clone()
		s := mustOpen(t, m, internal)
		next := s.Super()
		next.Current, next.Bitmap = UUID(seed), old.Current
		m.CutPowerAfter(0)
		if err := s.WriteSuper(&next); !errors.Is(err, disktest.ErrPowerCut) {
			t.Fatal(err)
		}
		if s.Super() != old {
			t.Fatal("a failed write changed the superblock in memory")
		}
		m.Crash(rand.New(rand.NewPCG(seed, 0)))
		got := mustOpen(t, m, internal).super
		if got != old && (got.Current != UUID(seed) || got.Bitmap != old.Current) {
			t.Fatalf("seed %d: %+v", seed, got)
		}
		seen[got == old]++
	}
	if len(seen) != 2 {
		t.Errorf("only one outcome: %v", seen)
	}
}

// TestDeviceErrorsAreReported fails each operation of each action in turn.
func TestDeviceErrorsAreReported(t *testing.T) {
	actions := map[string]func(s *Store) error{
		"apply":   func(s *Store) error { _, err := s.ApplyAL(); return err },
		"abandon": (*Store).AbandonAL,
		"super":   func(s *Store) error { next := s.Super(); return s.WriteSuper(&next) },
		"pages": func(s *Store) error {
			return s.WriteBitmapPages([]Page{{Number: 0, Data: newBlocks(1)}, {Number: 1, Data: newBlocks(1)}})
		},
		"bitmap": func(s *Store) error { return s.ReadBitmap(bitmap.New(40000)) },
		"dump":   func(s *Store) error { return s.Dump(new(bytes.Buffer), DumpHeader{}, true) },
	}
	base := crashed(t, 6)
	for name, action := range actions {
		for _, op := range []disktest.Op{disktest.Read, disktest.AnyWrite, disktest.Sync} {
			for skip := 0; ; skip++ {
				m := base.Clone()
				s := mustOpen(t, m, internal)
				m.Inject(disktest.Fault{Ops: op, Skip: skip, Err: unix.EIO})
				err := action(s)
				if err == nil && m.Pending() > 0 {
					break // there is no such operation any more
				}
				if !errors.Is(err, unix.EIO) {
					t.Errorf("%s: operation %d of kind %d: %v", name, skip, op, err)
				}
				if _, err := mustOpen(t, m.Clone(), internal).ApplyAL(); err != nil {
					t.Errorf("%s: after the error: %v", name, err)
				}
			}
		}
	}
}

func TestApplyALCountsAndIsIdempotent(t *testing.T) {
	m := crashed(t, 7)
	s := mustOpen(t, m, internal)
	want, newly := expectApplied(t, s)
	marked, err := s.ApplyAL()
	if err != nil || marked < newly*kibPerBit || marked > (newly+extentBits)*kibPerBit {
		t.Errorf("marked %d KiB, want %d, %v", marked, newly*kibPerBit, err)
	}
	if again, err := s.ApplyAL(); again != 0 || err != nil {
		t.Errorf("again: %d, %v", again, err)
	}
	if got := loaded(t, s); got.Count() != want.Count() {
		t.Errorf("%d bits, want %d", got.Count(), want.Count())
	}
}

// TestSecondaryHasNothingToApply: without the primary indicator only the ring
// is emptied, even if it is unreadable.
func TestSecondaryHasNothingToApply(t *testing.T) {
	m := crashed(t, 8)
	s := mustOpen(t, m, internal)
	before := loaded(t, s).Count()
	next := s.Super()
	next.Flags &^= FlagPrimaryIndicator
	if err := s.WriteSuper(&next); err != nil {
		t.Fatal(err)
	}
	damageRing(t, s, 0, 1, 2)
	if marked, err := s.ApplyAL(); marked != 0 || err != nil {
		t.Error(marked, err)
	}
	if got := loaded(t, s).Count(); got != before {
		t.Errorf("%d bits set, were %d", got, before)
	}
	checkAttaches(t, m)
}

func damageRing(t testing.TB, s *Store, blocks ...int) {
	t.Helper()
	for _, block := range blocks {
		if _, err := s.md.WriteDurable([]byte("damaged."), s.layout.AL.Bytes()+int64(block)*blockSize+100); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedLogIsRefusedAndCanBeAbandoned(t *testing.T) {
	m := crashed(t, 9)
	s := mustOpen(t, m, internal)
	damageRing(t, s, 1, 4)
	before := metadataBytes(t, m, s.layout)
	var damaged *ALDamagedError
	if _, err := s.ApplyAL(); !errors.As(err, &damaged) || damaged.Bad != 2 || damaged.Blocks != 8 {
		t.Fatalf("two bad blocks: %v", err)
	}
	if !bytes.Equal(metadataBytes(t, m, s.layout), before) {
		t.Error("the refusal changed something")
	}
	if err := s.Attach(); !errors.Is(err, ErrUnclean) {
		t.Errorf("attach: %v, want ErrUnclean", err)
	}
	if err := s.AbandonAL(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, m, internal)
	if !s.super.Flags.has(FlagFullSync) || !s.super.Flags.has(FlagPrimaryIndicator) {
		t.Errorf("flags %#x after giving up the log", s.super.Flags)
	}
	checkAttaches(t, m)
}

func TestExtentBeyondTheBitmapIsDamage(t *testing.T) {
	m := created(t)
	s := mustOpen(t, m, internal)
	use(t, s, rand.New(rand.NewPCG(1, 1)), 0)
	tx := &bitmap.Transaction{ContextSize: 2, Context: []bitmap.Extent{3, 1 << 20}}
	if err := s.WriteAL(tx); err != nil {
		t.Fatal(err)
	}
	var damaged *ALDamagedError
	if _, err := mustOpen(t, m, internal).ApplyAL(); !errors.As(err, &damaged) {
		t.Errorf("%v, want an ALDamagedError", err)
	}
}

// TestNothingLeavesItsArea: a page that is not there must not be written.
func TestNothingLeavesItsArea(t *testing.T) {
	m := created(t)
	s := mustOpen(t, m, internal)
	before := metadataBytes(t, m, s.layout)
	for _, page := range []Page{{-1, newBlocks(1)}, {s.layout.BitmapPages(), newBlocks(1)}, {0, newBlocks(2)}, {0, nil}} {
		if err := s.WriteBitmapPages([]Page{page}); err == nil {
			t.Errorf("page %d of %d bytes was written", page.Number, len(page.Data))
		}
	}
	if err := s.ReadBitmap(bitmap.New(uint64(s.layout.BitmapPages()+1) * blockSize * 8)); err == nil {
		t.Error("read a bitmap larger than its area")
	}
	if !bytes.Equal(metadataBytes(t, m, s.layout), before) {
		t.Error("metadata changed")
	}
}

// TestStoreStates: what is for detached metadata, and what for attached.
func TestStoreStates(t *testing.T) {
	m := created(t)
	s := mustOpen(t, m, internal)
	if err := s.WriteAL(&bitmap.Transaction{}); err == nil {
		t.Error("log written while not attached")
	}
	if err := s.Outdate(); !errors.Is(err, ErrInconsistent) {
		t.Errorf("outdate of fresh metadata: %v", err)
	}
	if err := s.Attach(); err != nil {
		t.Fatal(err)
	}
	_, applyErr := s.ApplyAL()
	for _, err := range []error{applyErr, s.Attach(), s.AbandonAL(), s.Outdate(), s.Invalidate()} {
		if !errors.Is(err, ErrAttached) {
			t.Errorf("%v, want ErrAttached", err)
		}
	}
	if err := mustOpen(t, m, internal).Attach(); !errors.Is(err, ErrUnclean) {
		t.Errorf("attach of metadata in use: %v, want ErrUnclean", err)
	}
}

// TestWriteSuperKeepsWhatIsTheDisks: geometry and the state of the log are not
// the caller's to change.
func TestWriteSuperKeepsWhatIsTheDisks(t *testing.T) {
	m := created(t)
	s := mustOpen(t, m, internal)
	wild := Super{Unclean: true, AL: ALGeometry{9, 9}, ALOffset: 5, BMOffset: 7, Size: 3, BytesPerBit: 1, Current: 99}
	if err := s.WriteSuper(&wild); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, m, internal)
	if !s.super.Clean() || s.super.Current != 99 {
		t.Errorf("%+v", s.super)
	}
}

func TestShrunkDataDeviceIsRefused(t *testing.T) {
	m := created(t)
	s := mustOpen(t, m, internal)
	next := s.Super()
	if err := s.CheckSize(); err != nil {
		t.Fatal(err)
	}
	next.LaSize = s.Usable() + 1
	if err := s.WriteSuper(&next); err != nil {
		t.Fatal(err)
	}
	var misfit *MisfitError
	if err := s.CheckSize(); !errors.As(err, &misfit) {
		t.Errorf("size: %v, want a MisfitError", err)
	}
	if err := s.Attach(); !errors.As(err, &misfit) {
		t.Errorf("%v, want a MisfitError", err)
	}
}

func TestDamagedSuperblock(t *testing.T) {
	m := created(t)
	at := mustOpen(t, m, internal).layout.Super.Bytes()
	if _, err := m.WriteDurable([]byte{0xEE}, at+12); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(m, m, internal); !errors.Is(err, ErrSuperDamaged) {
		t.Errorf("%v, want ErrSuperDamaged", err)
	}
	if err := Create(m, internal, CreateOptions{}); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("create over it: %v, want ErrUnconfirmed", err)
	}
	if err := Wipe(m, internal); err != nil {
		t.Error(err)
	}
	if err := Wipe(m, internal); !errors.Is(err, ErrNoMetadata) {
		t.Errorf("second wipe: %v", err)
	}
}

func TestWriteALDoesNotAllocate(t *testing.T) {
	path := image(t, memSize)
	onImage(t, path, func(dev disk.Device) {
		if err := Create(dev, internal, CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, dev, internal)
		if err := s.Attach(); err != nil {
			t.Fatal(err)
		}
		tx := &bitmap.Transaction{ContextSize: 1237, Context: make([]bitmap.Extent, txContextSlots)}
		if n := testing.AllocsPerRun(20, func() { _ = s.WriteAL(tx) }); n != 0 {
			t.Errorf("WriteAL allocates %v times", n)
		}
	})
}
