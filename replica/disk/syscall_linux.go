package disk

import (
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"replicad/internal/failpoint"
)

// writeCall is one attempt to write; like pwrite it may write less than asked.
type writeCall func(fd int, p []byte, off int64) (int, error)

func pwrite(fd int, p []byte, off int64) (int, error) {
	h, err := failpoint.Begin(failpoint.DiskWrite)
	if err != nil {
		return 0, err
	}
	n, err := unix.Pwrite(fd, part(h, p), off)
	h.End()
	return n, err
}

// pwriteDurable is pwrite with RWF_DSYNC: the data and what is needed to find
// it are on stable storage when it returns.
func pwriteDurable(fd int, p []byte, off int64) (int, error) {
	h, err := failpoint.Begin(failpoint.DiskDurable)
	if err != nil {
		return 0, err
	}
	n, err := unix.Pwritev2(fd, [][]byte{part(h, p)}, off, unix.RWF_DSYNC)
	h.End()
	return n, err
}

// part is what a failpoint lets through of p: all of it, or the first half of
// its sectors.
func part(h failpoint.Hit, p []byte) []byte {
	if !h.Partial() || len(p) < 2*SectorSize {
		return p
	}
	return p[:len(p)/2/SectorSize*SectorSize]
}

// writeFull repeats call until all of p is written.
func writeFull(fd int, p []byte, off int64, call writeCall) (int, error) {
	done := 0
	for done < len(p) {
		n, err := call(fd, p[done:], off+int64(done))
		if n > 0 {
			done += n
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrShortWrite
		}
	}
	return done, nil
}

// preadFull reads until p is full. The range was checked against the size at
// opening, so an end of file means that someone truncated the file.
func preadFull(fd int, p []byte, off int64) (int, error) {
	h, err := failpoint.Begin(failpoint.DiskRead)
	if err != nil {
		return 0, err
	}
	defer h.End()
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		if n > 0 {
			done += n
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
	}
	return done, nil
}

// fdatasync is not retried for any error but EINTR, which is no verdict.
func fdatasync(fd int) error {
	h, err := failpoint.Begin(failpoint.DiskSync)
	if err != nil {
		return err
	}
	defer h.End()
	for {
		if err := unix.Fdatasync(fd); err != unix.EINTR {
			return err
		}
	}
}

func fallocate(fd int, mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(fd, mode, off, n); err != unix.EINTR {
			return err
		}
	}
}

// blockDeviceSize is BLKGETSIZE64: bytes.
func blockDeviceSize(fd int) (int64, error) {
	var size uint64
	err := blockIoctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size))
	return int64(size), err
}

// blockRange runs BLKDISCARD or BLKZEROOUT on n bytes at off.
func blockRange(fd int, request uintptr, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	return blockIoctl(fd, request, unsafe.Pointer(&span))
}

func blockIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}
