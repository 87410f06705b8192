package sim

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"

	"replicad/bitmap"
	"replicad/replica/core"
	device "replicad/replica/disk"
	"replicad/replica/meta"
	"replicad/replica/sim/oracle"
)

// errOracle marks an error that the oracle found, not the code under test.
var errOracle = errors.New("oracle")

// metaStore is one volume's metadata: the real code of package meta on a
// simulated device, and what the oracle reads there.
type metaStore struct {
	dev    *metaDisk
	place  meta.Placement
	data   device.Device // says how much data there is room for
	layout oracle.Layout // within what the device keeps
	blocks int
	marks  *oracle.Marks
	store  *meta.Store // while attached
	number uint32      // of the next activity-log transaction
	used   []bool      // activity-log slots that hold an extent
	twin   *metaStore  // memory for copies
}

// Sizes of metadata devices, in sectors: one page of bitmap is enough.
const (
	internalSectors = 80
	externalSectors = 136 // the least that is allowed
)

// roomyDevice is a data device of which only the size matters.
type roomyDevice struct {
	device.Device
	bytes int64
}

func (d roomyDevice) Size() int64 { return d.bytes }

func newMetaStore() *metaStore {
	return &metaStore{dev: &metaDisk{disk: &disk{}}, marks: &oracle.Marks{}}
}

// reset makes fresh metadata for a data disk of size bytes, internal or on a
// device of its own. Memory is kept.
func (m *metaStore) reset(size uint64, o *Options, rng *rand.Rand) {
	*m = metaStore{dev: m.dev, marks: m.marks, twin: m.twin, blocks: int(o.Blocks), used: make([]bool, o.Slots)}
	if rng.Uint64()&1 == 0 {
		m.place, m.layout = meta.Placement{Kind: meta.Internal}, oracle.Internal(internalSectors)
		m.dev.reset(int64(size), int64(size)+internalSectors*sectorSize, rng)
		m.data = m.dev
	} else {
		m.place, m.layout = meta.Placement{Kind: meta.FlexExternal}, oracle.External()
		m.dev.reset(0, externalSectors*sectorSize, rng)
		m.data = roomyDevice{bytes: int64(size)}
	}
	m.createMD()
}

// createMD is what a fresh disk has: current id 4, nothing else.
func (m *metaStore) createMD() {
	m.dev.open()
	m.dev.change, m.dev.ills = nil, ills{}
	m.marks.Reset(m.layout, m.blocks)
	must(meta.Create(m.dev, m.place, meta.CreateOptions{Confirmed: true, DeviceUUID: m.dev.rng.Uint64()}))
	m.seed(func(s *meta.Super) { // its instance id is random: a run depends on its seed alone
		for i := range s.Instance {
			s.Instance[i] = byte(m.dev.rng.Uint32())
		}
	})
}

// seed changes the superblock of metadata that nobody uses.
func (m *metaStore) seed(edit func(*meta.Super)) {
	st, err := meta.Open(m.data, m.dev, m.place)
	must(err)
	s := st.Super()
	edit(&s)
	must(st.WriteSuper(&s))
	m.marks.RefreshAll(m.dev)
}

// must stops a run whose world cannot be built.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// crash ends what was in flight, with power or without.
func (m *metaStore) crash(power bool) {
	if power {
		m.dev.cut(m.dev.rng)
	} else {
		m.dev.kill(m.dev.rng)
	}
	m.store = nil
	m.dev.open()
	m.marks.RefreshAll(m.dev)
}

// attach does what comes before an attach: the log is applied, the bitmap
// read, and the metadata taken into use.
func (m *metaStore) attach() (*core.Attachment, error) {
	st, err := meta.Open(m.data, m.dev, m.place)
	if err != nil {
		return nil, err
	}
	want, readable := m.marks.AfterReplay(m.dev)
	if _, err := st.ApplyAL(); err != nil {
		return nil, err
	}
	if !readable {
		return nil, fmt.Errorf("%w: a log that nobody can read was applied", errOracle)
	}
	if block, differs := firstDifference(want, m.marks.Present(m.dev), m.blocks); differs {
		return nil, fmt.Errorf("%w: after the log was applied, block %d is marked or not as it should not be", errOracle, block)
	}
	if err := st.CheckSize(); err != nil {
		return nil, err
	}
	s := st.Super()
	a := &core.Attachment{Super: coreSuper(&s), Disk: uint64(st.Usable().Bytes()), ALSlots: len(m.used), ALNumber: m.dev.rng.Uint32() >> 2}
	if a.Super.Size > 0 {
		a.Bitmap = bitmap.New(a.Super.Size / bitmap.BlockSize)
		if err := st.ReadBitmap(a.Bitmap); err != nil {
			return nil, err
		}
	}
	if err := st.Attach(); err != nil {
		return nil, err
	}
	m.store, m.number = st, a.ALNumber
	clear(m.used)
	return a, nil
}

// firstDifference finds a block that is in one of two sets.
func firstDifference(a, b []uint64, blocks int) (block int, found bool) {
	for i := range a {
		if d := a[i] ^ b[i]; d != 0 {
			block = i*64 + bits.TrailingZeros64(d)
			return block, block < blocks
		}
	}
	return 0, false
}

// write carries out a metadata action; what it writes is recorded.
func (m *metaStore) write(a *core.Action) error {
	switch a.Kind {
	case core.ActMetaSuper:
		return m.store.WriteSuper(m.superOf(a.Super))
	case core.ActMetaAL:
		return m.store.WriteAL(a.Tx)
	}
	pages := make([]meta.Page, len(a.Pages))
	for i, p := range a.Pages {
		pages[i] = meta.Page{Number: p.Page, Data: p.Data}
	}
	return m.store.WriteBitmapPages(pages)
}

// superOf merges what the core decides into what only the disk knows.
func (m *metaStore) superOf(s *core.Super) *meta.Super {
	next := m.store.Super()
	next.Current, next.Bitmap = meta.UUID(s.Gen.Current), meta.UUID(s.Gen.Bitmap)
	next.History = [2]meta.UUID{meta.UUID(s.Gen.H1), meta.UUID(s.Gen.H2)}
	next.Flags, next.LaSize, next.PeerMaxBio = meta.Flags(s.Flags), meta.SectorsOf(int64(s.Size)), s.PeerMaxIO
	next.ALExtents = uint32(len(m.used))
	return &next
}

func coreSuper(s *meta.Super) core.Super {
	return core.Super{
		Gen:   core.Generation{Current: uint64(s.Current), Bitmap: uint64(s.Bitmap), H1: uint64(s.History[0]), H2: uint64(s.History[1])},
		Flags: core.MetaFlags(s.Flags &^ meta.FlagALClean), Size: uint64(s.LaSize.Bytes()), PeerMaxIO: s.PeerMaxBio,
	}
}
