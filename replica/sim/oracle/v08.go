package oracle

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// A second reader of metadata v08, written from the description of the format
// and as plain as it goes: DRBD 8.4's superblock, activity-log ring with its
// default shape (one stripe of 8 blocks) and bitmap.

// Flags of the superblock that decide what a node does with its data.
const (
	FlagConsistent     = 0x001
	FlagPrimary        = 0x002 // primary indicator: a restart applies the activity log
	FlagFullSync       = 0x008
	FlagWasUpToDate    = 0x010
	FlagPeerOutdated   = 0x020
	FlagCrashedPrimary = 0x040
	FlagALClean        = 0x080
)

const (
	metaBlock    = 4096
	blockSectors = metaBlock / SectorSize
	ringBlocks   = 8
	noExtent     = 0xFFFFFFFF
)

// Layout says where the parts of a volume's metadata lie, in sectors.
type Layout struct{ Super, Log, Bitmap uint32 }

// External is the layout of flexible external metadata.
func External() Layout { return Layout{Super: 0, Log: 8, Bitmap: 8 + ringBlocks*blockSectors} }

// Internal is the layout on a device of so many sectors, all included, when
// one page of bitmap is enough for it.
func Internal(capacity uint32) Layout {
	super := capacity&^7 - 8
	return Layout{Super: super, Log: super - ringBlocks*blockSectors, Bitmap: super - ringBlocks*blockSectors - blockSectors}
}

// Super is what a superblock says.
type Super struct {
	Valid                   bool   // it has one of v08's magic numbers
	Unclean                 bool   // in use: the log counts
	Size                    uint64 // bytes; 0: never attached
	Current, Bitmap, H1, H2 uint64
	Flags                   uint32
}

// ReadSuper decodes the first sector of a superblock.
func ReadSuper(p []byte) Super {
	be := binary.BigEndian
	magic := be.Uint32(p[60:])
	s := Super{
		Valid: magic == 0x8374026B || magic == 0x8374026C,
		Size:  be.Uint64(p) * SectorSize, Current: be.Uint64(p[8:]), Bitmap: be.Uint64(p[16:]),
		H1: be.Uint64(p[24:]), H2: be.Uint64(p[32:]), Flags: be.Uint32(p[56:]),
	}
	s.Unclean = magic == 0x8374026C || s.Flags&FlagALClean == 0
	return s
}

// Has reports whether all of these flags are set.
func (s *Super) Has(flags uint32) bool { return s.Flags&flags == flags }

// logCounts reports whether a restart turns hot extents into set bits.
func (s *Super) logCounts() bool { return s.Unclean && s.Has(FlagPrimary) }

// record is one block of the activity log.
type record struct {
	bad     bool // torn, or never one
	empty   bool // initialised
	number  uint32
	changes []change
	first   uint16 // slot of context[0]
	context []uint32
}

// change says what extent a slot holds from now on.
type change struct {
	slot   uint16
	extent uint32
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noChecksum = make([]byte, 4)
)

// checksum is CRC-32C with seed 0 and no final inversion, where the library
// inverts twice, over a block whose own checksum counts as zero.
func checksum(p []byte) uint32 {
	c := crc32.Update(^uint32(0), castagnoli, p[:8])
	c = crc32.Update(c, castagnoli, noChecksum)
	return ^crc32.Update(c, castagnoli, p[12:])
}

func readRecord(p []byte) record {
	be := binary.BigEndian
	kind := be.Uint16(p[12:])
	if be.Uint32(p) != 0x69CB65A2 || be.Uint32(p[8:]) != checksum(p) || kind != 0 && kind != 0xFFFF {
		return record{bad: true}
	}
	r := record{empty: kind == 0xFFFF, number: be.Uint32(p[4:]), first: be.Uint16(p[18:])}
	if r.empty {
		return r
	}
	for i := range min(int(be.Uint16(p[14:])), 64) {
		r.changes = append(r.changes, change{be.Uint16(p[36+2*i:]), be.Uint32(p[164+4*i:])})
	}
	for i := range min(int(be.Uint16(p[16:]))-int(r.first), 919) {
		r.context = append(r.context, be.Uint32(p[420+4*i:]))
	}
	return r
}

// hotExtents replays a ring from its oldest record to its newest. It reports
// false when more than one block is bad: a crash tears at most the one that
// was being written.
func hotExtents(ring []record) (hot map[uint32]bool, readable bool) {
	var records []record
	bad := 0
	for _, r := range ring {
		switch {
		case r.bad:
			bad++
		case !r.empty:
			records = append(records, r)
		}
	}
	if bad > 1 {
		return nil, false
	}
	slices.SortFunc(records, func(a, b record) int { return int(int32(a.number - b.number)) })
	table := map[uint16]uint32{}
	for _, r := range records {
		for i, extent := range r.context {
			table[r.first+uint16(i)] = extent
		}
		for _, c := range r.changes {
			table[c.slot] = c.extent
		}
	}
	hot = map[uint32]bool{}
	for _, extent := range table {
		if extent != noExtent {
			hot[extent] = true
		}
	}
	return hot, true
}
