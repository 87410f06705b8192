package meta

import (
	"errors"
	"fmt"

	"replicad/bitmap"
	"replicad/internal/failpoint"
	"replicad/internal/mutant"
	"replicad/replica/disk"
)

// Store is the metadata of one volume on its device. Its methods may be called
// from one goroutine at a time. After a method returned an error of the device
// the content on disk is unknown and the caller detaches.
//
//	Open ──► ApplyAL ──► Attach ──► WriteAL, WriteSuper, WriteBitmapPages ...
//	   └───► Dump, WriteSuper, Outdate, Invalidate (offline verbs)
type Store struct {
	data, md disk.Device
	layout   Layout
	super    Super
	attached bool

	// block is the buffer of all transfers of a single block.
	block []byte
}

// Page is one 4 KiB page of the bitmap in its on-disk form.
type Page struct {
	Number int
	Data   []byte // 4096 bytes
}

// transferMax is the largest read of log or bitmap, bytes.
const transferMax = 256 << 10

// Open reads the superblock of a volume whose data is on data and whose
// metadata is on md, the same device for internal metadata. It writes nothing.
// Errors: ErrNoMetadata, ErrSuperDamaged, ErrTooSmall, *MisfitError, or the
// device's.
func Open(data, md disk.Device, p Placement) (*Store, error) {
	at, err := superPosition(p, md.Size())
	if err != nil {
		return nil, fmt.Errorf("locate meta data: %w", err)
	}
	s := &Store{data: data, md: md, block: newBlocks(1)}
	if _, err := md.ReadAt(s.block, at.Bytes()); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if s.super, err = ParseSuper(s.block); err != nil {
		return nil, err
	}
	if s.layout, err = layoutOf(p, md.Size(), &s.super); err != nil {
		return nil, err
	}
	return s, nil
}

// newBlocks returns an aligned buffer of n blocks.
func newBlocks(n int) []byte { return disk.AlignedBuffer(n*blockSize, blockSize) }

// Super returns a copy of the superblock as last read or written.
func (s *Store) Super() Super { return s.super }

// Layout returns where the metadata lies.
func (s *Store) Layout() Layout { return s.layout }

// Usable returns how much of the data device can hold data.
func (s *Store) Usable() Sectors { return s.layout.Usable(s.data.Size()) }

// Reserve makes sure that superblock, log and bitmap have their space on the
// device, where a device can say so (disk.File.Reserve): on a sparse image that was
// copied or made by another tool they may be holes, and marking a block out of
// sync must not fail for want of space. It changes no content.
func (s *Store) Reserve() error {
	d, ok := s.md.(interface{ Reserve(off, n int64) error })
	if !ok {
		return nil
	}
	first := min(s.layout.Super, s.layout.AL, s.layout.Bitmap)
	if err := d.Reserve(first.Bytes(), s.layout.Size.Bytes()); err != nil {
		return fmt.Errorf("reserve %d KiB for meta data: %w", s.layout.Size.Bytes()/1024, err)
	}
	return nil
}

// CheckSize returns a *MisfitError if the last agreed size is more than the
// device holds (failure 111). Whoever makes room for a bitmap of that size asks
// first: metadata that another tool wrote has no checksum.
func (s *Store) CheckSize() error {
	if usable := s.Usable(); s.super.LaSize > usable {
		return &MisfitError{What: "last agreed size in sectors", Found: int64(s.super.LaSize), Expected: int64(usable)}
	}
	return nil
}

// Attach takes the metadata into use: the log's ring is empty, and the
// superblock carries the magic that makes every tool ask for ApplyAL before
// it believes the bitmap again. It returns ErrUnclean if the log has not been
// applied (failure 165) and a *MisfitError if the last agreed size is more
// than the device holds (failure 111).
func (s *Store) Attach() error {
	if s.attached {
		return ErrAttached
	}
	if !s.super.Clean() {
		return ErrUnclean
	}
	if err := s.CheckSize(); err != nil {
		return err
	}
	// A stale record would be taken for one of the life that begins now.
	if err := s.clearRing(); err != nil {
		return err
	}
	s.attached = true
	super := s.super
	return s.WriteSuper(&super)
}

// WriteSuper makes the superblock durable with new content. Size, offsets and
// shape of the log are the disk's, whatever super says. While attached the
// unclean magic is written; before, the state of the log stays as it is.
func (s *Store) WriteSuper(super *Super) error {
	next := *super
	next.Size, next.AL = s.super.Size, s.super.AL
	next.ALOffset, next.BMOffset = s.super.ALOffset, s.super.BMOffset
	next.BytesPerBit = s.super.BytesPerBit
	if s.attached && !mutant.On(mutant.CleanWhileAttached) {
		next.Unclean = true
		next.Flags &^= FlagALClean
	} else {
		next.Unclean = s.super.Unclean
		next.Flags = next.Flags&^FlagALClean | s.super.Flags&FlagALClean
	}
	return s.writeSuper(next)
}

func (s *Store) writeSuper(next Super) error {
	putSuper(s.block, &next)
	if mutant.On(mutant.SuperUnsynced) {
		s.super = next
		_, err := s.md.WriteAt(s.block, s.layout.Super.Bytes())
		return err
	}
	h, err := failpoint.Begin(failpoint.MetaSuper)
	if err == nil {
		_, err = s.md.WriteDurable(s.block, s.layout.Super.Bytes())
		h.End()
	}
	if err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	s.super = next
	return nil
}

// WriteAL makes a transaction of the activity log durable, in place of the one
// a whole ring ago. It allocates nothing.
func (s *Store) WriteAL(tx *bitmap.Transaction) error {
	if !s.attached {
		return errors.New("write activity log: not attached")
	}
	PutALBlock(s.block, tx)
	number := tx.Number
	if mutant.On(mutant.RingPosition) {
		number++
	}
	at := s.layout.AL.Bytes() + int64(s.layout.Geometry.position(number))*blockSize
	if mutant.On(mutant.LogUnsynced) {
		_, err := s.md.WriteAt(s.block, at)
		return err
	}
	h, err := failpoint.Begin(failpoint.MetaAL)
	if err == nil {
		_, err = s.md.WriteDurable(s.block, at)
		h.End()
	}
	if err != nil {
		return fmt.Errorf("write activity log: %w", err)
	}
	return nil
}

// ReadBitmap loads all of b from disk. What the disk holds for blocks beyond
// the last agreed size is not defined.
func (s *Store) ReadBitmap(b *bitmap.Bitmap) error {
	if b.Pages() > s.layout.BitmapPages() {
		return fmt.Errorf("read bitmap: %d bits do not fit into %d pages", b.Bits(), s.layout.BitmapPages())
	}
	return s.readPages(b.Pages(), func(page int, data []byte) error {
		b.LoadPage(page, data)
		return nil
	})
}

// WriteBitmapPages writes pages of the bitmap and makes them durable with one
// Sync, which on internal metadata also covers all data written before.
func (s *Store) WriteBitmapPages(pages []Page) error {
	for _, page := range pages {
		if err := s.writePage(page); err != nil {
			return fmt.Errorf("write bitmap page %d: %w", page.Number, err)
		}
	}
	if mutant.On(mutant.PagesUnsynced) {
		return nil
	}
	h, err := failpoint.Begin(failpoint.MetaBitmapSync)
	if err == nil {
		err = s.md.Sync()
		h.End()
	}
	if err != nil && !mutant.On(mutant.BitmapSyncErrorLost) {
		return fmt.Errorf("write bitmap: %w", err)
	}
	return nil
}

// writePage refuses what would fall on other metadata.
func (s *Store) writePage(page Page) error {
	if page.Number < 0 || page.Number >= s.layout.BitmapPages() || len(page.Data) != blockSize {
		return fmt.Errorf("%d bytes for one of %d pages", len(page.Data), s.layout.BitmapPages())
	}
	h, err := failpoint.Begin(failpoint.MetaBitmap)
	if err != nil {
		return err
	}
	defer h.End()
	_, err = s.md.WriteAt(page.Data, s.layout.Bitmap.Bytes()+int64(page.Number)*blockSize)
	return err
}

// readPages reads the first n pages of the bitmap, some at a time, and hands each
// to use.
func (s *Store) readPages(n int, use func(page int, data []byte) error) error {
	buf := newBlocks(min(max(n, 1), transferMax/blockSize))
	for done := 0; done < n; {
		part := buf[:min(n-done, len(buf)/blockSize)*blockSize]
		if _, err := s.md.ReadAt(part, s.layout.Bitmap.Bytes()+int64(done)*blockSize); err != nil {
			return fmt.Errorf("read bitmap: %w", err)
		}
		for ; len(part) > 0; part = part[blockSize:] {
			if err := use(done, part[:blockSize]); err != nil {
				return err
			}
			done++
		}
	}
	return nil
}
