package disk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"replicad/internal/failpoint"
)

// Discard implements Device: a hole in a file, BLKDISCARD on a block device.
func (f *File) Discard(off, n int64) error {
	if err := f.begin(off, n); err != nil {
		return f.opError("discard", err)
	}
	defer f.life.RUnlock()
	if n == 0 {
		return nil
	}
	h, err := failpoint.Begin(failpoint.DiskDiscard)
	if err != nil {
		return f.opError("discard", err)
	}
	defer h.End()
	if f.block {
		err = blockRange(f.fd, unix.BLKDISCARD, off, n)
	} else {
		err = fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if unsupported(err) {
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return f.opError("discard", err)
}

// WriteZeroes implements Device. Each way that the kernel or the device does
// not know gives way to the next, the last one being to write zero bytes. On a
// block device fallocate zeroes, and deallocates only what then reads as zero.
func (f *File) WriteZeroes(off, n int64, noHole bool) error {
	if err := f.begin(off, n); err != nil {
		return f.opError("zero", err)
	}
	defer f.life.RUnlock()
	if n == 0 {
		return nil
	}
	h, err := failpoint.Begin(failpoint.DiskZero)
	if err != nil {
		return f.opError("zero", err)
	}
	defer h.End()
	if !noHole {
		err := fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !unsupported(err) {
			return f.opError("zero", f.judge(err))
		}
	}
	return f.opError("zero", f.judge(f.zeroAllocated(off, n)))
}

// zeroAllocated zeroes a range and leaves it allocated.
func (f *File) zeroAllocated(off, n int64) error {
	err := fallocate(f.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if unsupported(err) && f.block {
		err = blockRange(f.fd, unix.BLKZEROOUT, off, n)
	}
	if unsupported(err) {
		err = f.writeZeroBytes(off, n)
	}
	return err
}

func (f *File) writeZeroBytes(off, n int64) error {
	buf := f.bounce.get()
	defer f.bounce.put(buf)
	clear(buf)
	for done := int64(0); done < n; {
		part := min(n-done, int64(len(buf)))
		if _, err := writeFull(f.fd, buf[:part], off+done, pwrite); err != nil {
			return err
		}
		done += part
	}
	return nil
}

// unsupported reports that the kernel, file system or device has no such
// operation, as opposed to having tried and failed.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTTY)
}
