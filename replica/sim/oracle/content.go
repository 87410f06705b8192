// Package oracle judges what a simulated pair did: what its disks hold, what
// its clients read, what its metadata would say after a crash. It is slow and
// obvious on purpose, and imports nothing of the engine it judges: formats and
// tables are spelt out here a second time, from the documentation of DRBD 8.4.
//
// It learns only what can be seen from outside: requests, their answers, bytes
// on disks, and commands that may discard data. Times are virtual nanoseconds,
// nodes are 0 and 1. An Oracle belongs to one goroutine.
package oracle

// Units of the simulated devices and of the v08 format.
const (
	SectorSize   = 512
	BlockSectors = 8    // sectors of a bitmap block
	ExtentBlocks = 1024 // blocks of an activity-log extent
)

// Content stands for the 512 bytes of one sector: the number of the write
// that made them and the sector's place in that write, so that a sector that
// lands in the wrong place shows. 0 is all zeroes.
type Content uint32

const placeBits = 11 // a write has at most 2048 sectors

// ContentOf returns what a write leaves in its sector number place.
func ContentOf(write, place uint32) Content {
	return Content(write<<placeBits | place&(1<<placeBits-1))
}

// Write returns the number of the write that made c; 0 for zeroes.
func (c Content) Write() uint32 { return uint32(c) >> placeBits }

// Disk is a backing device with a volatile cache, as far as the oracle looks
// at it.
type Disk interface {
	// Unclean lists the sectors that were written since they were last stable.
	Unclean() []uint32
	// Leaves calls f with every content that a crash now could leave in a
	// sector, the present one first, until f reports false.
	Leaves(sector uint32, f func(Content) bool) bool
}
