package sim

import (
	"encoding/binary"
	"slices"

	"replicad/bitmap"
	"replicad/replica/core"
)

// metaStore is one volume's metadata on stable storage: superblock, activity
// log and bitmap. A write that was submitted but not answered is kept beside
// it: a crash lets it happen or not.
type metaStore struct {
	super  core.Super
	slots  []bitmap.Extent
	number uint32 // of the next activity-log transaction
	pages  [][]byte

	superNext *core.Super
	slotsNext []bitmap.Extent
	pagesNext [][]core.PageImage
}

func newMetaStore(slots int) *metaStore {
	m := &metaStore{slots: make([]bitmap.Extent, slots)}
	m.createMD()
	return m
}

// createMD is what a fresh disk has: current id 4, nothing else.
func (m *metaStore) createMD() {
	m.super = core.Super{Gen: core.Generation{Current: core.UUIDJustCreated}}
	m.pages = nil
	m.clearLog()
	m.forget()
}

func (m *metaStore) clearLog() {
	for i := range m.slots {
		m.slots[i] = bitmap.NoExtent
	}
}

func (m *metaStore) forget() { m.superNext, m.slotsNext, m.pagesNext = nil, nil, nil }

// applied returns the slots as they are after tx.
func (m *metaStore) applied(tx *bitmap.Transaction) []bitmap.Extent {
	slots := slices.Clone(m.slots)
	for i, e := range tx.Context {
		slots[int(tx.ContextFirst)+i] = e
	}
	for _, u := range tx.Updates {
		slots[u.Slot] = u.Extent
	}
	return slots
}

func (m *metaStore) storePages(images []core.PageImage) {
	for _, p := range images {
		m.storePage(p)
	}
}

func (m *metaStore) storePage(p core.PageImage) {
	for len(m.pages) <= p.Page {
		m.pages = append(m.pages, make([]byte, bitmap.PageSize))
	}
	m.pages[p.Page] = slices.Clone(p.Data)
}

// crash lets what was submitted happen or not.
func (m *metaStore) crash(coin func() bool) {
	if m.superNext != nil && coin() {
		m.super = *m.superNext
	}
	if m.slotsNext != nil && coin() {
		m.slots = m.slotsNext
	}
	for _, images := range m.pagesNext {
		for _, p := range images {
			if coin() {
				m.storePage(p)
			}
		}
	}
	m.forget()
}

// applyAL is what runs before every attach: if the node was Primary, every
// block of a hot extent becomes a set bit; then the log is empty.
func (m *metaStore) applyAL() {
	if m.super.Flags&core.FlagPrimaryInd != 0 && m.super.Size > 0 {
		b := m.bitmap()
		for _, e := range m.slots {
			if e != bitmap.NoExtent {
				first, n := e.Blocks()
				b.SetRange(first, n)
			}
		}
		for p := range b.Pages() {
			data := make([]byte, bitmap.PageSize)
			b.CopyPage(p, data)
			m.storePage(core.PageImage{Page: p, Data: data})
		}
	}
	m.clearLog()
}

// bitmap reads the bitmap as an attach does; nil before the first connect.
func (m *metaStore) bitmap() *bitmap.Bitmap {
	if m.super.Size == 0 {
		return nil
	}
	b := bitmap.New(m.super.Size / bitmap.BlockSize)
	for p := range min(b.Pages(), len(m.pages)) {
		b.LoadPage(p, m.pages[p])
	}
	return b
}

// marks reports whether, should the node crash now, its metadata would surely
// say that block may differ: by a bit, by a hot extent of a Primary, or by the
// full-sync flag. What a write in flight may undo does not count.
func (m *metaStore) marks(block uint64) bool {
	return m.surely(core.FlagFullSync) || m.bitSurely(block) ||
		m.surely(core.FlagPrimaryInd) && m.hotSurely(bitmap.ExtentOf(block))
}

func (m *metaStore) surely(flag core.MetaFlags) bool {
	return m.super.Flags&flag != 0 && (m.superNext == nil || m.superNext.Flags&flag != 0)
}

func (m *metaStore) hotSurely(e bitmap.Extent) bool {
	return slices.Contains(m.slots, e) && (m.slotsNext == nil || slices.Contains(m.slotsNext, e))
}

func (m *metaStore) bitSurely(block uint64) bool {
	page := int(block / bitmap.PageBits)
	if page >= len(m.pages) || !pageBit(m.pages[page], block) {
		return false
	}
	for _, images := range m.pagesNext {
		for _, p := range images {
			if p.Page == page && !pageBit(p.Data, block) {
				return false
			}
		}
	}
	return true
}

func pageBit(page []byte, block uint64) bool {
	bit := block % bitmap.PageBits
	return binary.LittleEndian.Uint64(page[bit/64*8:])>>(bit%64)&1 != 0
}
