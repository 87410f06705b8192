package oracle

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Store is a metadata device as the oracle looks at it.
type Store interface {
	// Possible appends to list every content that a crash now could leave in a
	// sector, the present one first.
	Possible(list [][]byte, sector uint32) [][]byte
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
	ring       [ringBlocks]ringBlock
	hot        []uint64 // blocks of the extents that are hot in every case
	unreadable bool     // a crash may leave a ring that nobody can replay

	sure []uint64

	possible [blockSectors][][]byte // of the sectors that are being read
	image    []byte                 // of the ring block that is being read
}

// ringBlock is a block of the log.
type ringBlock struct {
	options []record // what it may be
	image   []byte   // what they were decoded from
}

// Reset makes the marks, new ones or used, those of a volume of so many blocks
// that RefreshAll has not read yet. Memory is kept.
func (m *Marks) Reset(l Layout, blocks int) {
	n := (blocks + 63) / 64
	m.layout, m.blocks = l, blocks
	for _, set := range []*[]uint64{&m.bits, &m.hot, &m.sure} {
		*set = append((*set)[:0], make([]uint64, n)...)
	}
	for i := range m.ring {
		m.ring[i].image = m.ring[i].image[:0]
	}
}

// RefreshAll reads everything again.
func (m *Marks) RefreshAll(dev Store) {
	m.readSuper(dev)
	ring := false
	for i := range m.ring {
		ring = m.readRing(dev, i) || ring
	}
	if ring {
		m.replayRing()
	}
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
			ring = m.readRing(dev, i) || ring
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

// contents lists what a crash may leave in a sector. The list is good until
// the next call for the same place.
func (m *Marks) contents(dev Store, place int, sector uint32) [][]byte {
	m.possible[place] = dev.Possible(m.possible[place][:0], sector)
	return m.possible[place]
}

func (m *Marks) readSuper(dev Store) {
	m.supers = m.supers[:0]
	for _, p := range m.contents(dev, 0, m.layout.Super) {
		if s := ReadSuper(p); !slices.Contains(m.supers, s) {
			m.supers = append(m.supers, s)
		}
	}
}

// readBits keeps the bits that are set in every content of a sector.
func (m *Marks) readBits(dev Store, sector uint32) {
	words := m.bits[sector*SectorSize/8:]
	words = words[:min(len(words), SectorSize/8)]
	for i := range words {
		words[i] = ^uint64(0)
	}
	for _, p := range m.contents(dev, 0, m.layout.Bitmap+sector) {
		for i := range words {
			words[i] &= binary.LittleEndian.Uint64(p[8*i:])
		}
	}
}

// readRing lists what a block of the log may be after a crash: as it was
// before any of the writes that are not stable, as it was after one, or, where
// they differ in more than one sector, torn. It reports whether that has
// changed; decoding what has not is most of the work.
func (m *Marks) readRing(dev Store, i int) (changed bool) {
	versions, differing := 0, 0
	for s := range m.possible {
		list := unique(m.contents(dev, s, m.layout.Log+uint32(i*blockSectors+s)))
		m.possible[s] = list
		versions = max(versions, len(list))
		if len(list) > 1 {
			differing++
		}
	}
	m.image = m.image[:0]
	for version := range versions {
		for _, list := range m.possible {
			m.image = append(m.image, list[min(version, len(list)-1)]...)
		}
	}
	b := &m.ring[i]
	if bytes.Equal(m.image, b.image) {
		return false
	}
	b.image = append(b.image[:0], m.image...)
	b.options = b.options[:0]
	for image := b.image; len(image) > 0; image = image[metaBlock:] {
		b.options = append(b.options, readRecord(image[:metaBlock]))
	}
	if differing > 1 {
		b.options = append(b.options, record{bad: true})
	}
	return true
}

// unique removes contents that the list has already.
func unique(list [][]byte) [][]byte {
	kept := list[:1]
	for _, p := range list[1:] {
		if !slices.ContainsFunc(kept, func(q []byte) bool { return bytes.Equal(p, q) }) {
			kept = append(kept, p)
		}
	}
	return kept
}

// replayRing finds the extents that are hot whatever a crash does to the ring.
func (m *Marks) replayRing() {
	uncertain, at := 0, 0
	var ring [ringBlocks]record
	for i := range m.ring {
		ring[i] = m.ring[i].options[0]
		if len(m.ring[i].options) > 1 {
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
	for k, option := range m.ring[at].options {
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
		r := &m.ring[i].options[0]
		if !r.bad && !r.empty && (newest < 0 || int32(r.number-m.ring[newest].options[0].number) > 0) {
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
		ring[i] = m.ring[i].options[0]
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
		for p := m.contents(dev, 0, m.layout.Bitmap+sector)[0]; len(p) > 0 && len(set) < len(m.bits); p = p[8:] {
			set = append(set, binary.LittleEndian.Uint64(p))
		}
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
