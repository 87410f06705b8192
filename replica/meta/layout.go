package meta

import "fmt"

// Kind is where the metadata of a volume lies.
type Kind uint8

// The kinds of v08 metadata.
const (
	Internal     Kind = iota // at the end of the data device
	FlexExternal             // a device of its own, of any size
	Indexed                  // one of several 128 MiB slots on a device
)

// Placement says where metadata lies: "internal", "flex-external" or an index.
type Placement struct {
	Kind  Kind
	Index uint8 // of Indexed
}

// String returns drbdmeta's word for the placement.
func (p Placement) String() string {
	switch p.Kind {
	case Internal:
		return "internal"
	case FlexExternal:
		return "flex-external"
	default:
		return fmt.Sprint(p.Index)
	}
}

// ALGeometry is the shape of the activity-log ring. Neighbouring transactions
// go to different stripes, for RAID below.
type ALGeometry struct {
	Stripes    uint32
	StripeSize uint32 // 4 KiB blocks per stripe
}

// DefaultALGeometry is a ring of 8 blocks, 32 KiB.
var DefaultALGeometry = ALGeometry{Stripes: 1, StripeSize: 8}

// Limits of the ring, in blocks: drbdmeta creates nothing outside them.
const (
	alBlocksMin = 8
	alBlocksMax = 8192

	alExtentsMax = 65534 // drbd.conf's upper limit for al-extents
)

// Blocks returns the number of 4 KiB blocks in the ring.
func (g ALGeometry) Blocks() int { return int(uint64(g.Stripes) * uint64(g.StripeSize)) }

// ExtentsMax returns how many slots a log on this ring may have: its blocks
// repeat 919 slots each, and every slot must have been repeated before the
// record that changed it is overwritten. A superblock's ALExtents is not
// checked against it: 8.4 takes the number from its configuration.
func (g ALGeometry) ExtentsMax() int {
	return min(txContextSlots*(g.Blocks()-1), alExtentsMax)
}

func (g ALGeometry) sectors() Sectors { return Sectors(g.Blocks()) * blockSectors }

func (g ALGeometry) valid() bool {
	blocks := uint64(g.Stripes) * uint64(g.StripeSize)
	return blocks >= alBlocksMin && blocks <= alBlocksMax
}

// position returns the block of the area in which transaction number is kept.
func (g ALGeometry) position(number uint32) int {
	t := number % uint32(g.Blocks())
	return int(t%g.Stripes*g.StripeSize + t/g.Stripes)
}

// Sizes that drbdmeta insists on.
const (
	indexedSlot = Sectors(262144) // 128 MiB
	deviceMin   = 68 << 10        // bytes it reads to look for existing data
	// bitmapMax is the largest internal bitmap, bytes; it covers 1 PiB.
	bitmapMax = 1 << 35
)

// Layout is where the parts of the metadata lie on its device.
type Layout struct {
	Super  Sectors
	AL     Sectors
	Bitmap Sectors
	// BitmapSize is the room for the bitmap.
	BitmapSize Sectors
	// Size is the whole of the metadata (md_size_sect).
	Size     Sectors
	Geometry ALGeometry
	internal bool
}

// NewLayout computes the layout on a metadata device of mdBytes bytes; for
// internal metadata that is the data device. It fails with ErrTooSmall.
func NewLayout(p Placement, mdBytes int64, g ALGeometry) (Layout, error) {
	if !g.valid() {
		return Layout{}, fmt.Errorf("activity log of %d stripes of %d blocks is outside %d to %d blocks",
			g.Stripes, g.StripeSize, alBlocksMin, alBlocksMax)
	}
	super, err := superPosition(p, mdBytes)
	if err != nil {
		return Layout{}, err
	}
	if p.Kind == Internal {
		return internalLayout(super, mdBytes, g)
	}
	return externalLayout(p, super, mdBytes, g)
}

// superPosition is known before the superblock has been read, unlike the rest.
func superPosition(p Placement, mdBytes int64) (Sectors, error) {
	if mdBytes < deviceMin {
		return 0, fmt.Errorf("%w: only %d bytes", ErrTooSmall, mdBytes)
	}
	super := indexedSlot * Sectors(p.Index)
	switch p.Kind {
	case Internal:
		return SectorsOf(mdBytes)&^(blockSectors-1) - blockSectors, nil
	case FlexExternal:
		super = 0
	}
	if super.Bytes() > mdBytes-blockSize {
		return 0, fmt.Errorf("%w: expecting meta data block at byte offset %d, but it has only %d bytes",
			ErrTooSmall, super.Bytes(), mdBytes)
	}
	return super, nil
}

// internalLayout: data, bitmap, log, superblock. The bitmap has room for the
// whole device, its own metadata included.
func internalLayout(super Sectors, mdBytes int64, g ALGeometry) (Layout, error) {
	bitmap := bitmapSectors(SectorsOf(mdBytes))
	if bitmap.Bytes() > bitmapMax {
		return Layout{}, fmt.Errorf("device of %d bytes is too large: its bitmap would take %d bytes", mdBytes, bitmap.Bytes())
	}
	size := blockSectors + g.sectors() + bitmap
	if super+blockSectors <= size {
		return Layout{}, fmt.Errorf("%w: %d bytes leave no room for data", ErrTooSmall, mdBytes)
	}
	al := super - g.sectors()
	return Layout{
		Super: super, AL: al, Bitmap: al - bitmap, BitmapSize: bitmap,
		Size: size, Geometry: g, internal: true,
	}, nil
}

// externalLayout: superblock, log, bitmap up to the end of device or slot.
func externalLayout(p Placement, super Sectors, mdBytes int64, g ALGeometry) (Layout, error) {
	size := SectorsOf(mdBytes)
	if p.Kind == Indexed {
		size = indexedSlot
	}
	head := blockSectors + g.sectors()
	if (super+size).Bytes() > mdBytes || size < head+blockSectors {
		return Layout{}, fmt.Errorf("%w: %d bytes for meta data of %d", ErrTooSmall, mdBytes, (super + max(size, head+blockSectors)).Bytes())
	}
	return Layout{
		Super: super, AL: super + blockSectors, Bitmap: super + head, BitmapSize: size - head,
		Size: size, Geometry: g,
	}, nil
}

// bitmapSectors returns the room of a bitmap for data sectors, in whole 4 KiB
// pages.
func bitmapSectors(data Sectors) Sectors {
	n := (data + bitmapSectorData - 1) / bitmapSectorData
	return (n + blockSectors - 1) &^ (blockSectors - 1)
}

// Usable returns how much of a data device of dataBytes bytes can hold data.
func (l Layout) Usable(dataBytes int64) Sectors {
	if l.internal {
		return l.Bitmap
	}
	return min(SectorsOf(dataBytes), l.BitmapSize*bitmapSectorData)
}

// BitmapPages returns how many whole 4 KiB pages the bitmap area holds.
func (l Layout) BitmapPages() int { return int(l.BitmapSize / blockSectors) }

// offsets returns the superblock's relative positions of log and bitmap.
func (l Layout) offsets() (al, bm int32) {
	return int32(int64(l.AL) - int64(l.Super)), int32(int64(l.Bitmap) - int64(l.Super))
}

// layoutOf computes the layout that s claims and checks it against the device.
// External metadata may be smaller than its device, which can have grown.
func layoutOf(p Placement, mdBytes int64, s *Super) (Layout, error) {
	if s.BytesPerBit != bytesPerBit {
		return Layout{}, &MisfitError{What: "bm-byte-per-bit", Found: int64(s.BytesPerBit), Expected: bytesPerBit}
	}
	if !s.AL.valid() {
		return Layout{}, &MisfitError{What: "al-stripes times al-stripe-size-4k", Found: int64(s.AL.Stripes) * int64(s.AL.StripeSize), Expected: alBlocksMin}
	}
	l, err := NewLayout(p, mdBytes, s.AL)
	if err != nil {
		return Layout{}, err
	}
	if p.Kind == FlexExternal && s.Size < l.Size {
		return l.shrunk(s)
	}
	return l, l.check(s)
}

// shrunk is the layout of flexible external metadata of s.Size sectors, less
// than the device has.
func (l Layout) shrunk(s *Super) (Layout, error) {
	head := blockSectors + l.Geometry.sectors()
	if s.Size < head+blockSectors {
		return Layout{}, &MisfitError{What: "md_size_sect", Found: int64(s.Size), Expected: int64(l.Size)}
	}
	l.Size, l.BitmapSize = s.Size, s.Size-head
	return l, l.check(s)
}

func (l Layout) check(s *Super) error {
	al, bm := l.offsets()
	switch {
	case s.ALOffset != al:
		return &MisfitError{What: "al_offset", Found: int64(s.ALOffset), Expected: int64(al)}
	case s.BMOffset != bm:
		return &MisfitError{What: "bm_offset", Found: int64(s.BMOffset), Expected: int64(bm)}
	case s.Size != l.Size:
		return &MisfitError{What: "md_size_sect", Found: int64(s.Size), Expected: int64(l.Size)}
	}
	return nil
}
