package sim

import (
	"errors"
	"math/rand/v2"

	"replicad/bitmap"
	"replicad/replica/meta"
	"replicad/replica/sim/oracle"
)

// A disk that lies reports success and does something else. What the format
// can notice must be noticed when the metadata is next taken into use: the
// attach is refused with a typed error, or the damage does no harm. So whenever
// a node is down, lies are told to copies of its metadata, and each copy is
// attached.
//
// What v08 can notice:
//   - any change within the superblock's first sector, by our checksum, and its
//     absence, by the magic number;
//   - any damage to the ring but to its newest record: by each block's checksum
//     and the unbroken sequence of numbers.
//
// What it cannot, so that silently wrong marks are possible:
//   - the bitmap has no checksum: a bit flipped, a page lost, old or misplaced;
//   - an older superblock in the place of the present one is as good as it;
//   - the newest record of the ring, when it is missing or damaged, looks like
//     one that was being written at the crash.
type lie uint8

const (
	lieFlip   lie = iota // one bit changes at rest
	lieLost              // the last write to a block never happened
	lieMisput            // it went to another block
	lieReplay            // a block is as it was before some earlier write
	lieEnd
)

var lieNames = [lieEnd]string{"flip", "lost", "misdirected", "replayed"}

// past is what a block of the metadata held before a write to it.
type past struct {
	first uint32
	data  [blockSectors]content
}

// pastMax is how many writes are remembered.
const pastMax = 64

// remember notes what a write is about to replace.
func (m *metaDisk) remember(op *metaOp) {
	for at := op.first; at+blockSectors <= op.first+uint32(len(op.data)); at += blockSectors {
		if len(m.past) == pastMax {
			m.past = append(m.past[:0], m.past[1:]...)
		}
		m.past = append(m.past, past{at, [blockSectors]content(m.cache[at : at+blockSectors])})
	}
}

// double returns a copy of metadata at rest, which has a life of its own until
// the next call.
func (m *metaStore) double(rng *rand.Rand) *metaStore {
	if m.twin == nil {
		m.twin = &metaStore{dev: &metaDisk{disk: &disk{}}, marks: &oracle.Marks{}}
	}
	d, dev, marks := m.twin, m.twin.dev, m.twin.marks
	*d = *m
	d.dev, d.marks, d.twin = dev, marks, nil
	if d.place.Kind == meta.Internal {
		d.data = dev
	}
	dev.disk.reset(len(m.dev.cache), 0)
	copy(dev.cache, m.dev.cache)
	*dev = metaDisk{disk: dev.disk, table: m.dev.table[:len(m.dev.table):len(m.dev.table)], base: m.dev.base, rng: rng, budget: -1}
	marks.Reset(m.layout, m.blocks)
	return d
}

func (m *metaDisk) putBlock(first uint32, data [blockSectors]content) {
	copy(m.cache[first:], data[:])
}

// tell changes a device as a lie of that kind would; what it damaged is
// returned. ok is false when there is nothing to lie about.
func (m *metaDisk) tell(l lie, layout oracle.Layout, history []past) (damaged []uint32, ok bool) {
	if l == lieFlip {
		s := target(m.rng, layout, len(m.cache))
		sector := append([]byte(nil), m.table[m.cache[s]]...)
		head := len(sector) >> (3 * m.rng.IntN(2)) // the fields are at the front
		sector[m.rng.IntN(head)] ^= 1 << m.rng.IntN(8)
		m.cache[s] = m.name(sector)
		return []uint32{s}, true
	}
	if len(history) == 0 {
		return nil, false
	}
	last := history[len(history)-1]
	switch l {
	case lieReplay:
		last = history[m.rng.IntN(len(history))]
	case lieMisput:
		wrong := uint32(m.rng.IntN(len(m.cache)/blockSectors)) * blockSectors
		m.putBlock(wrong, [blockSectors]content(m.cache[last.first:last.first+blockSectors]))
		damaged = append(damaged, wrong)
	}
	m.putBlock(last.first, last.data)
	return append(damaged, last.first), true
}

// target draws the sector in which a bit flips, mostly one that counts.
func target(rng *rand.Rand, l oracle.Layout, sectors int) uint32 {
	switch rng.IntN(4) {
	case 0:
		return l.Super
	case 1, 2:
		return l.Log + uint32(rng.IntN(8*blockSectors))
	}
	return uint32(rng.IntN(sectors))
}

// toldLies checks what comes of some lies about the metadata of a volume that
// is at rest.
func (w *World) toldLies(n *node, v *volume) {
	for range 3 {
		l := lie(w.lies.IntN(int(lieEnd)))
		copied := v.meta.double(w.lies)
		damaged, ok := copied.dev.tell(l, copied.layout, v.meta.dev.past)
		if !ok {
			continue
		}
		w.count.Lies[l]++
		w.judgeLie(n, v, copied, l, damaged)
	}
}

func (w *World) judgeLie(n *node, v *volume, copied *metaStore, l lie, damaged []uint32) {
	truth, _ := v.meta.marks.AfterReplay(v.meta.dev)
	before := *v.meta.marks.Super()
	err := copied.takeIntoUse()
	switch {
	case err == nil && copied.harmless(truth, &before):
	case err == nil && v.meta.unnoticeable(l, damaged):
		w.count.Unnoticed++
	case err == nil || !typed(err):
		w.fail("P20", "node %s volume %d: lie %s about sectors %v of the metadata: %v", n.name(), v.id, lieNames[l], damaged, err)
	default:
		w.count.Noticed++
	}
}

// takeIntoUse is what an attach does, without the oracle's own comparison.
func (m *metaStore) takeIntoUse() error {
	st, err := meta.Open(m.data, m.dev, m.place)
	if err != nil {
		return err
	}
	if _, err = st.ApplyAL(); err != nil {
		return err
	}
	if err := st.CheckSize(); err != nil {
		return err
	}
	s := st.Super()
	if s.LaSize > 0 {
		if err := st.ReadBitmap(bitmap.New(uint64(s.LaSize.Bytes()) / bitmap.BlockSize)); err != nil {
			return err
		}
	}
	if err := st.Attach(); err != nil {
		return err
	}
	m.marks.RefreshAll(m.dev)
	return nil
}

// harmless reports that metadata taken into use says what it would have said,
// or marks more.
func (m *metaStore) harmless(truth []uint64, before *oracle.Super) bool {
	now := m.marks.Super()
	const counts = oracle.FlagConsistent | oracle.FlagPrimary | oracle.FlagFullSync | oracle.FlagWasUpToDate | oracle.FlagPeerOutdated | oracle.FlagCrashedPrimary
	if now.Current != before.Current || now.Bitmap != before.Bitmap || now.H1 != before.H1 || now.H2 != before.H2 ||
		now.Size != before.Size || now.Flags&counts != before.Flags&counts {
		return false
	}
	present := m.marks.Present(m.dev)
	for i := range truth {
		if truth[i]&^present[i] != 0 {
			return false
		}
	}
	return true
}

// unnoticeable reports that v08 has no means to notice damage to one of these
// sectors.
func (m *metaStore) unnoticeable(l lie, damaged []uint32) bool {
	for _, s := range damaged {
		switch {
		case s >= m.layout.Bitmap && s < m.layout.Bitmap+uint32(m.blocks/8/sectorSize+1):
			return true
		case s == m.layout.Super && l != lieFlip:
			return true
		case m.marks.Newest(s):
			return true
		}
	}
	return false
}

// typed reports that an error is one of those that tell an operator what to do.
func typed(err error) bool {
	_, misfit := errors.AsType[*meta.MisfitError](err)
	_, damaged := errors.AsType[*meta.ALDamagedError](err)
	return misfit || damaged || errors.Is(err, meta.ErrNoMetadata) || errors.Is(err, meta.ErrSuperDamaged) || errors.Is(err, meta.ErrTooSmall)
}
