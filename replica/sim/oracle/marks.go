package oracle

import (
	"encoding/binary"
	"slices"
)

// Store is a metadata device as the oracle looks at it.
type Store interface {
	// Possible calls f with every content that a crash now could leave in a
	// sector, the present one first, until f reports false.
	Possible(sector uint32, f func([]byte) bool)
}

// Marks follows what the metadata of one volume would surely say of each block
// after a crash at this instant: processes killed or power cut, so for every
// sector anything it held since it was last stable, and every sector of a
// write in flight written or not. What such a write could undo does not count.
type Marks struct {
	layout Layout
	blocks int

	supers     []Super // every content the superblock may have, the present first
	bits       []uint64
	ring       [ringBlocks][]record // for each block what it may be
	hot        []uint64             // blocks of the extents that are hot in every case
	unreadable bool                 // a crash may leave a ring that nobody can replay

	sure []uint64
}

// NewMarks returns the marks of a volume of so many blocks, read from dev.
func NewMarks(dev Store, l Layout, blocks int) *Marks {
	n := (blocks + 63) / 64
	m := &Marks{layout: l, blocks: blocks, bits: make([]uint64, n), hot: make([]uint64, n), sure: make([]uint64, n)}
	m.RefreshAll(dev)
	return m
}

// RefreshAll reads everything again.
func (m *Marks) RefreshAll(dev Store) {
	m.readSuper(dev)
	for i := range m.ring {
		m.readRing(dev, i)
	}
	m.replayRing()
	for s := range m.bitmapSectors() {
		m.readBits(dev, s)
	}
	m.combine()
}

// Refresh reads again what lies in count sectors from first.
func (m *Marks) Refresh(dev Store, first, count uint32) {
	inside := func(at, n uint32) bool { return at < first+count && first < at+n }
	if inside(m.layout.Super, 1) {
		m.readSuper(dev)
	}
	ring := false
	for i := range m.ring {
		if inside(m.layout.Log+uint32(i)*blockSectors, blockSectors) {
			m.readRing(dev, i)
			ring = true
		}
	}
	if ring {
		m.replayRing()
	}
	for s := range m.bitmapSectors() {
		if inside(m.layout.Bitmap+s, 1) {
			m.readBits(dev, s)
		}
	}
	m.combine()
}

func (m *Marks) bitmapSectors() uint32 { return uint32((len(m.bits)*8 + SectorSize - 1) / SectorSize) }

func (m *Marks) readSuper(dev Store) {
	m.supers = m.supers[:0]
	dev.Possible(m.layout.Super, func(p []byte) bool {
		if s := ReadSuper(p); !slices.Contains(m.supers, s) {
			m.supers = append(m.supers, s)
		}
		return true
	})
}

// readBits keeps the bits that are set in every content of a sector.
func (m *Marks) readBits(dev Store, sector uint32) {
	words := m.bits[sector*SectorSize/8:]
	words = words[:min(len(words), SectorSize/8)]
	for i := range words {
		words[i] = ^uint64(0)
	}
	dev.Possible(m.layout.Bitmap+sector, func(p []byte) bool {
		for i := range words {
			words[i] &= binary.LittleEndian.Uint64(p[8*i:])
		}
		return true
	})
}

// readRing lists what a block of the log may be after a crash: as it was
// before any of the writes that are not stable, as it was after one, or, where
// they differ in more than one sector, torn.
func (m *Marks) readRing(dev Store, i int) {
	var sectors [blockSectors][][]byte
	longest, differing := 0, 0
	for s := range sectors {
		dev.Possible(m.layout.Log+uint32(i*blockSectors+s), func(p []byte) bool {
			if !slices.ContainsFunc(sectors[s], func(q []byte) bool { return string(q) == string(p) }) {
				sectors[s] = append(sectors[s], p)
			}
			return true
		})
		longest = max(longest, len(sectors[s]))
		if len(sectors[s]) > 1 {
			differing++
		}
	}
	m.ring[i] = m.ring[i][:0]
	block := make([]byte, 0, metaBlock)
	for version := range longest {
		block = block[:0]
		for s := range sectors {
			block = append(block, sectors[s][min(version, len(sectors[s])-1)]...)
		}
		m.ring[i] = append(m.ring[i], readRecord(block))
	}
	if differing > 1 {
		m.ring[i] = append(m.ring[i], record{bad: true})
	}
}

// replayRing finds the extents that are hot whatever a crash does to the ring.
func (m *Marks) replayRing() {
	uncertain, at := 0, 0
	var ring [ringBlocks]record
	for i, options := range m.ring {
		ring[i] = options[0]
		if len(options) > 1 {
			uncertain, at = uncertain+1, i
		}
	}
	clear(m.hot)
	// Two blocks that may be torn are two bad ones too many.
	m.unreadable = uncertain > 1
	if m.unreadable {
		return
	}
	var always map[uint32]bool
	for k, option := range m.ring[at] {
		ring[at] = option
		hot, readable := hotExtents(ring[:])
		m.unreadable = m.unreadable || !readable
		for e := range always {
			if !hot[e] {
				delete(always, e)
			}
		}
		if k == 0 {
			always = hot
		}
	}
	for e := range always {
		m.setExtent(m.hot, e)
	}
}

func (m *Marks) setExtent(set []uint64, extent uint32) {
	const words = ExtentBlocks / 64
	for i := uint64(extent) * words; i < min(uint64(extent+1)*words, uint64(len(set))); i++ {
		set[i] = ^uint64(0)
	}
}

// combine computes which blocks are marked in every case.
func (m *Marks) combine() {
	all, log := true, true
	for i := range m.supers {
		s := &m.supers[i]
		all = all && s.Has(FlagFullSync)
		log = log && (s.Has(FlagFullSync) || s.logCounts())
	}
	for i := range m.sure {
		m.sure[i] = m.bits[i]
		if log {
			m.sure[i] |= m.hot[i]
		}
		if all {
			m.sure[i] = ^uint64(0)
		}
	}
}

// Sure returns the set of blocks, 64 to a word, that are marked in every case.
// It belongs to the Marks and changes with them.
func (m *Marks) Sure() []uint64 { return m.sure }

// Super returns the superblock as it reads now.
func (m *Marks) Super() *Super { return &m.supers[0] }

// Supers returns every content the superblock may have after a crash, the
// present one first.
func (m *Marks) Supers() []Super { return m.supers }

// Never reports that no crash leaves a superblock with this flag.
func (m *Marks) Never(flag uint32) bool {
	return !slices.ContainsFunc(m.supers, func(s Super) bool { return s.Flags&flag != 0 })
}

// Stuck reports that a crash now could leave an activity log that a restart
// needs and cannot read.
func (m *Marks) Stuck() bool {
	return m.unreadable && slices.ContainsFunc(m.supers, func(s Super) bool { return s.logCounts() })
}

// Newest reports whether a sector belongs to the newest record of the log as it
// reads now: one that is missing looks like one that was never finished.
func (m *Marks) Newest(sector uint32) bool {
	newest := -1
	for i := range m.ring {
		r := &m.ring[i][0]
		if !r.bad && !r.empty && (newest < 0 || int32(r.number-m.ring[newest][0].number) > 0) {
			newest = i
		}
	}
	return newest >= 0 && sector >= m.layout.Log && int(sector-m.layout.Log)/blockSectors == newest
}

// AfterReplay returns the set of blocks that must be marked, and no others
// (P10), once the log has been applied to what dev holds now. ok is false when
// the log cannot be read.
func (m *Marks) AfterReplay(dev Store) (set []uint64, ok bool) {
	set = m.Present(dev)
	if !m.Super().logCounts() {
		return set, true
	}
	var ring [ringBlocks]record
	for i := range ring {
		ring[i] = m.ring[i][0]
	}
	hot, readable := hotExtents(ring[:])
	for e := range hot {
		m.setExtent(set, e)
	}
	return set, readable
}

// Present returns the set bits of the bitmap as it reads now.
func (m *Marks) Present(dev Store) []uint64 {
	set := make([]uint64, 0, len(m.bits))
	for sector := range m.bitmapSectors() {
		dev.Possible(m.layout.Bitmap+sector, func(p []byte) bool {
			for ; len(p) > 0 && len(set) < len(m.bits); p = p[8:] {
				set = append(set, binary.LittleEndian.Uint64(p))
			}
			return false
		})
	}
	return set
}

// Unrelated reports that, whatever a crash leaves of the two superblocks, the
// generation ids force a full sync when the nodes meet, or forbid any.
func Unrelated(a, b *Marks) bool {
	for i := range a.supers {
		for k := range b.supers {
			if !settles(&a.supers[i], &b.supers[k]) {
				return false
			}
		}
	}
	return true
}
