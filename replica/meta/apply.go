package meta

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"replicad/bitmap"
	"replicad/internal/mutant"
)

// ApplyAL brings the on-disk bitmap up to date after a crash: every extent
// that was hot is marked out of sync, if the node was Primary. It returns how
// much that newly marked, in KiB. Afterwards the ring is empty and the
// metadata clean; on clean metadata it only makes sure of the former.
//
// A crash anywhere inside is harmless. The bitmap is durable before anything
// else changes, and marking twice marks the same. The superblock turns clean
// before the ring is emptied, so a half-emptied ring is never interpreted.
//
// With FlagALDisabled there is nothing in the log to find: a crashed Primary
// then needs a full sync, which attaching has to order.
//
// It returns an *ALDamagedError, with nothing changed, if the ring cannot be
// trusted; then AbandonAL is the way on.
func (s *Store) ApplyAL() (markedKiB uint64, err error) {
	if s.attached {
		return 0, ErrAttached
	}
	if err := s.settle(); err != nil {
		return 0, err
	}
	if !s.super.Clean() {
		if mutant.On(mutant.SuperBeforeBitmap) {
			if err := s.markClean(s.super.Flags); err != nil {
				return 0, err
			}
		}
		if markedKiB, err = s.replayRing(); err != nil {
			return 0, fmt.Errorf("apply activity log: %w", err)
		}
		if err := s.markClean(s.super.Flags); err != nil {
			return 0, err
		}
	}
	return markedKiB, s.clearRing()
}

// settle makes durable what a killed predecessor wrote and what is only in the
// device's cache yet. Without it a power cut after the next steps could bring
// back records of the log, or take bits, that were different when they were read.
func (s *Store) settle() error {
	if mutant.On(mutant.CacheBelieved) {
		return nil
	}
	if err := s.md.Sync(); err != nil {
		return fmt.Errorf("settle meta data: %w", err)
	}
	return nil
}

// AbandonAL gives up an activity log that cannot be applied. The whole device
// counts as out of sync from now on: the full-sync flag makes the next attach
// set all bits.
func (s *Store) AbandonAL() error {
	if s.attached {
		return ErrAttached
	}
	if err := s.markClean(s.super.Flags | FlagFullSync); err != nil {
		return err
	}
	return s.clearRing()
}

// replayRing marks what was hot, and makes the marks durable.
func (s *Store) replayRing() (markedKiB uint64, err error) {
	if s.super.Flags&FlagPrimaryIndicator == 0 {
		return 0, nil // a Secondary's writes are the Primary's to remember
	}
	r, err := s.readRing()
	if err != nil {
		return 0, err
	}
	hot, err := r.hotExtents()
	if err != nil {
		return 0, err
	}
	if mutant.On(mutant.TailExtentUnmarked) {
		n := bitmap.Extent(s.super.LaSize.Bytes() / (extentBits * bytesPerBit))
		hot = slices.DeleteFunc(hot, func(e bitmap.Extent) bool { return e >= n })
	}
	if n := s.extentsMax(); len(hot) > 0 && uint64(hot[len(hot)-1]) >= n {
		return 0, r.damaged(fmt.Sprintf("extent %d is beyond the bitmap of %d extents", hot[len(hot)-1], n))
	}
	return s.markExtents(hot)
}

func (s *Store) extentsMax() uint64 {
	return uint64(s.layout.BitmapSize.Bytes()) / extentBytes
}

func (s *Store) readRing() (ring, error) {
	return parseRing(s.layout.Geometry, func(block int) ([]byte, error) {
		_, err := s.md.ReadAt(s.block, s.layout.AL.Bytes()+int64(block)*blockSize)
		return s.block, err
	})
}

// markExtents sets all bits of the given extents, which are sorted, and waits
// until they are durable. Like drbdmeta it sets and counts whole extents, also
// where the last one reaches past the end of the device.
func (s *Store) markExtents(hot []bitmap.Extent) (markedKiB uint64, err error) {
	const perPage = blockSize / extentBytes
	for rest := hot; len(rest) > 0; {
		page := rest[0] / perPage
		n := slices.IndexFunc(rest, func(e bitmap.Extent) bool { return e/perPage != page })
		if n < 0 {
			n = len(rest)
		}
		newly, err := s.markPage(int(page), rest[:n])
		if err != nil {
			return 0, err
		}
		markedKiB += newly * kibPerBit
		rest = rest[n:]
	}
	if len(hot) == 0 || mutant.On(mutant.MarksUnsynced) {
		return markedKiB, nil
	}
	if err := s.md.Sync(); err != nil {
		return 0, fmt.Errorf("write bitmap: %w", err)
	}
	return markedKiB, nil
}

// markPage sets the bits of extents that share a page and returns how many
// were clear.
func (s *Store) markPage(page int, extents []bitmap.Extent) (newly uint64, err error) {
	at := s.layout.Bitmap.Bytes() + int64(page)*blockSize
	if _, err := s.md.ReadAt(s.block, at); err != nil {
		return 0, fmt.Errorf("read bitmap page %d: %w", page, err)
	}
	for _, extent := range extents {
		first := int(extent) * extentBytes % blockSize
		part := s.block[first : first+extentBytes]
		newly += extentBits - countBits(part)
		fill(part)
	}
	if err := s.writePage(Page{Number: page, Data: s.block}); err != nil {
		return 0, fmt.Errorf("write bitmap page %d: %w", page, err)
	}
	return newly, nil
}

func countBits(p []byte) (n uint64) {
	for ; len(p) >= 8; p = p[8:] {
		n += uint64(bits.OnesCount64(binary.LittleEndian.Uint64(p)))
	}
	return n
}

// markClean says on disk that the bitmap is complete without the log. The
// primary indicator stays: attach learns from it that this node crashed.
func (s *Store) markClean(flags Flags) error {
	next := s.super
	next.Flags = flags | FlagALClean
	next.Unclean = false
	return s.writeSuper(next)
}

// clearRing makes every block of the ring an initialised one, durably; also
// one that looks like it, because whoever initialised it may have died before
// that was stable. The superblock must be clean, or be about to be lost.
func (s *Store) clearRing() error {
	if mutant.On(mutant.RingNotCleared) {
		return nil
	}
	r, err := s.readRing()
	if err != nil {
		return err
	}
	if r.initialised() {
		return s.settle()
	}
	return initRing(s.md, s.layout)
}
