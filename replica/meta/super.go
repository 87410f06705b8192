package meta

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"replicad/internal/mutant"
)

// Magic numbers at offset 60 of the superblock.
const (
	magicV07     = 0x8374026A // at offset 28
	magicV08     = 0x8374026B
	magicUnclean = 0x8374026C // v08 in use by 8.4: apply the log before trusting the bitmap
	magicV09     = 0x8374026D
)

// Offsets in the superblock (DRBD 8.4 metadata v08, big-endian).
const (
	offLaSize       = 0
	offUUIDs        = 8
	offDeviceUUID   = 40
	offFlags        = 56
	offMagic        = 60
	offSize         = 64
	offALOffset     = 68
	offALExtents    = 72
	offBMOffset     = 76
	offBytesPerBit  = 80
	offPeerMaxBio   = 84
	offALStripes    = 88
	offALStripeSize = 92
)

// Our tail of the superblock's first sector. drbdmeta and the kernel driver
// always write the superblock whole and zero what they do not know, so a tail
// is either gone or as old as the fields it covers; and because the sector is
// the unit that reaches a disk whole, a crash cannot pair old fields with a
// new tail. Hence a tail that is there and does not match means damage.
const (
	offTail     = 480 // tail magic, then version 1 in 16 bits
	offInstance = 488
	offChecksum = 508 // CRC-32C of the sector's first 508 bytes
	tailMagic   = 0x52504C44
	tailVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// InstanceID names one life of the metadata, from create-md to the next. It
// tells apart two disks with the same generations. Zero means unknown: other
// tools that write the superblock remove it.
type InstanceID [16]byte

// Super is the content of the superblock.
type Super struct {
	LaSize      Sectors // last agreed size of the device; 0: never connected
	Current     UUID
	Bitmap      UUID
	History     [2]UUID // younger, older
	DeviceUUID  uint64
	Flags       Flags
	Unclean     bool    // magic of metadata in use by 8.4
	Size        Sectors // of the whole metadata: superblock, log and bitmap
	ALOffset    int32   // sectors relative to the superblock
	BMOffset    int32   // sectors relative to the superblock
	ALExtents   uint32  // slots of the log
	BytesPerBit uint32
	PeerMaxBio  uint32 // largest request the peer took, bytes
	AL          ALGeometry
	Instance    InstanceID // ours
}

// Clean reports that the activity log holds nothing to apply. Both marks are
// needed: 8.3 writes the clean magic without the flag.
func (s Super) Clean() bool { return !s.Unclean && s.Flags&FlagALClean != 0 }

// ParseSuper decodes a superblock, of which only the first 512 bytes carry
// information. It fails with ErrNoMetadata or ErrSuperDamaged. It does not
// know the device, so it cannot tell whether offsets and sizes make sense.
func ParseSuper(p []byte) (Super, error) {
	if len(p) < sectorSize {
		return Super{}, ErrNoMetadata
	}
	p = p[:sectorSize]
	magic := binary.BigEndian.Uint32(p[offMagic:])
	known := magic == magicV08 || magic == magicUnclean
	tail := binary.BigEndian.Uint32(p[offTail:]) == tailMagic
	if !known && !tail {
		return Super{}, ErrNoMetadata
	}
	if !checkTail(p) {
		return Super{}, ErrSuperDamaged
	}
	if !known {
		return Super{}, ErrNoMetadata
	}
	s := parseFields(p)
	s.Unclean = magic == magicUnclean
	s.Instance = InstanceID(p[offInstance:])
	return s, nil
}

// checkTail reports whether the tail is absent or matches.
func checkTail(p []byte) bool {
	tail := p[offTail:sectorSize]
	if bytes.Count(tail, []byte{0}) == len(tail) || mutant.On(mutant.SuperUnchecked) {
		return true
	}
	return binary.BigEndian.Uint32(p[offChecksum:]) == crc32.Checksum(p[:offChecksum], castagnoli)
}

func parseFields(p []byte) Super {
	be := binary.BigEndian
	s := Super{
		LaSize:      Sectors(be.Uint64(p[offLaSize:])),
		Current:     UUID(be.Uint64(p[offUUIDs:])),
		Bitmap:      UUID(be.Uint64(p[offUUIDs+8:])),
		History:     [2]UUID{UUID(be.Uint64(p[offUUIDs+16:])), UUID(be.Uint64(p[offUUIDs+24:]))},
		DeviceUUID:  be.Uint64(p[offDeviceUUID:]),
		Flags:       Flags(be.Uint32(p[offFlags:])),
		Size:        Sectors(be.Uint32(p[offSize:])),
		ALOffset:    int32(be.Uint32(p[offALOffset:])),
		BMOffset:    int32(be.Uint32(p[offBMOffset:])),
		ALExtents:   be.Uint32(p[offALExtents:]),
		BytesPerBit: be.Uint32(p[offBytesPerBit:]),
		PeerMaxBio:  be.Uint32(p[offPeerMaxBio:]),
		AL:          ALGeometry{Stripes: be.Uint32(p[offALStripes:]), StripeSize: be.Uint32(p[offALStripeSize:])},
	}
	if s.AL == (ALGeometry{}) { // written before striping existed
		s.AL = DefaultALGeometry
	}
	return s
}

// AppendSuper appends the 4096 bytes of the superblock to dst, with our
// checksum and instance id in the tail of the first sector.
func AppendSuper(dst []byte, s *Super) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, blockSize)...)
	putSuper(dst[start:], s)
	return dst
}

// putSuper encodes s into p, which is 4096 bytes long.
func putSuper(p []byte, s *Super) {
	clear(p)
	be := binary.BigEndian
	be.PutUint64(p[offLaSize:], uint64(s.LaSize))
	for i, uuid := range [4]UUID{s.Current, s.Bitmap, s.History[0], s.History[1]} {
		be.PutUint64(p[offUUIDs+8*i:], uint64(uuid))
	}
	be.PutUint64(p[offDeviceUUID:], s.DeviceUUID)
	be.PutUint32(p[offFlags:], uint32(s.Flags))
	be.PutUint32(p[offMagic:], s.magic())
	be.PutUint32(p[offSize:], uint32(s.Size))
	be.PutUint32(p[offALOffset:], uint32(s.ALOffset))
	be.PutUint32(p[offALExtents:], s.ALExtents)
	be.PutUint32(p[offBMOffset:], uint32(s.BMOffset))
	be.PutUint32(p[offBytesPerBit:], s.BytesPerBit)
	be.PutUint32(p[offPeerMaxBio:], s.PeerMaxBio)
	be.PutUint32(p[offALStripes:], s.AL.Stripes)
	be.PutUint32(p[offALStripeSize:], s.AL.StripeSize)

	be.PutUint32(p[offTail:], tailMagic)
	be.PutUint16(p[offTail+4:], tailVersion)
	copy(p[offInstance:], s.Instance[:])
	be.PutUint32(p[offChecksum:], crc32.Checksum(p[:offChecksum], castagnoli))
}

func (s *Super) magic() uint32 {
	if s.Unclean {
		return magicUnclean
	}
	return magicV08
}
