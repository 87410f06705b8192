// Package meta reads and writes DRBD 8.4's on-disk metadata, format v08: the
// superblock with the data generation identifiers, the activity-log ring and
// the dirty bitmap. What it writes the real drbdmeta reads, and what drbdmeta
// or the 8.4 kernel driver wrote it opens.
//
// It decides nothing: which generation is current, which extent is hot and
// which block is dirty is the business of replica/core and bitmap. It talks to
// storage only through disk.Device.
//
// A Store belongs to one goroutine at a time, the resource's metadata writer.
// ParseSuper, AppendSuper, the activity-log codec, layouts and the texts of
// GetGI and ShowGI are pure and may be called from anywhere.
package meta

import (
	"errors"
	"fmt"
)

// Sectors counts 512-byte sectors, as a size or as a position on a device.
type Sectors uint64

// SectorsOf returns how many whole sectors fit into n bytes.
func SectorsOf(n int64) Sectors { return Sectors(n / sectorSize) }

// Bytes returns the same quantity in bytes.
func (s Sectors) Bytes() int64 { return int64(s) * sectorSize }

// Units of the format.
const (
	sectorSize   = 512
	blockSize    = 4096 // superblock, activity-log block, bitmap page
	blockSectors = blockSize / sectorSize

	bytesPerBit      = 4096
	sectorsPerBit    = bytesPerBit / sectorSize
	bitmapSectorData = 32768 // sectors of data that one sector of bitmap covers

	extentBits  = 1024           // bits of one 4 MiB extent
	extentBytes = extentBits / 8 // of bitmap
	kibPerBit   = bytesPerBit / 1024
)

// UUID identifies a generation of the data. Bit 0 of the current one says that
// the node was Primary; comparisons mask it.
type UUID uint64

// UUIDJustCreated is the current UUID after create-md: no data yet.
const UUIDJustCreated UUID = 4

// Flags of the superblock, with DRBD's values.
type Flags uint32

// The flags of DRBD 8.4 (MDF_* in its sources) and when they are set.
const (
	FlagConsistent       Flags = 1 << iota // own disk better than Inconsistent
	FlagPrimaryIndicator                   // Primary: a restart has to apply the activity log
	FlagConnected                          // connected to the peer
	FlagFullSync                           // set all bits at the next attach
	FlagWasUpToDate                        // own disk better than Outdated
	FlagPeerOutdated                       // peer's disk Inconsistent or Outdated
	FlagCrashedPrimary                     // attach found FlagPrimaryIndicator, and the peer has not been seen since
	FlagALClean                            // the log holds nothing to apply; only set while not attached
	FlagALDisabled                         // al-updates no: a crash of the Primary means a full sync
)

// Errors to test for with errors.Is. Their texts are DRBD's where it has one.
var (
	// ErrNoMetadata means that nothing like v08 metadata is at its place
	// (attach: failure 119).
	//lint:ignore ST1005 DRBD's words, Chef greps for them
	ErrNoMetadata = errors.New("No valid meta data found")
	// ErrUnclean means that the activity log has to be applied first
	// (attach: failure 165; dump-md: exit 1).
	//lint:ignore ST1005 DRBD's words
	ErrUnclean = errors.New(`Found meta data is "unclean", please apply-al first`)
	// ErrSuperDamaged means that the superblock contradicts its checksum.
	ErrSuperDamaged = errors.New("superblock damaged: its content does not match its checksum")
	// ErrTooSmall means that a device has no room for metadata (drbdmeta: exit
	// 10; attach: failure 112).
	ErrTooSmall = errors.New("device too small for the meta data")
	// ErrInconsistent is Outdate's refusal (exit 5).
	//lint:ignore ST1005 DRBD's words
	ErrInconsistent = errors.New("Device is inconsistent.")
	// ErrAttached refuses an operation that is for detached metadata only.
	ErrAttached = errors.New("the meta data is attached")
)

// MisfitError reports metadata that was made for a device of another size.
type MisfitError struct {
	What            string // the field that does not fit
	Found, Expected int64
}

// Error implements error.
func (e *MisfitError) Error() string {
	return fmt.Sprintf("metadata does not fit this disk: %s is %d, expected %d (has the disk grown or shrunk?)",
		e.What, e.Found, e.Expected)
}

// ALDamagedError reports an activity log that cannot tell which extents were
// hot. Nothing has been changed on disk.
type ALDamagedError struct {
	Bad, Blocks int
	Reason      string
}

// Error implements error. It names the safe way out.
func (e *ALDamagedError) Error() string {
	return fmt.Sprintf("activity log damaged: %s (%d of %d blocks unreadable), so it is unknown which blocks a crash left different; "+
		"the safe way on is to mark everything out of sync (full sync)", e.Reason, e.Bad, e.Blocks)
}
