package disk

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"replicad/internal/failpoint"
)

// Options says how Open takes hold of a device. The zero value means: read and
// write, alone.
type Options struct {
	// ReadOnly opens for reading. It still excludes other holders.
	ReadOnly bool
	// Shared lets several holders use one device, each alone on its Slot:
	// DRBD's indexed external metadata, where a slot is 128 MiB at an index.
	Shared bool
	Slot   uint8
}

// File is a Device on a regular file or a block device.
//
// A regular file goes through the page cache. A block device is opened
// O_DIRECT, so that the page cache holds no second copy and write errors are
// returned by the write that caused them; a buffer that is not aligned to
// BlockSize is copied through one of a few aligned buffers.
type File struct {
	path      string
	size      int64
	blockSize int  // logical block size, bytes; 1 for a regular file
	block     bool // a block device, opened O_DIRECT

	// keepsRoom: ENOSPC is the answer to one write and says nothing about others.
	keepsRoom bool

	// life is held for reading during every call, for writing by Close, so
	// that a descriptor number is never used after it was closed and reused.
	life sync.RWMutex
	fd   int // -1 after Close

	// durable is held around every fdatasync and durable write of a buffered
	// file. A lost write-back is reported to one caller only; were two in the
	// kernel at once, the other would take success for an answer.
	durable sync.Mutex
	failed  atomic.Pointer[SyncError]
	noFUA   atomic.Bool // the kernel refused RWF_DSYNC on this file
	shrunk  atomic.Pointer[ShrunkError]

	bounce bouncePool
}

// Open opens the file or block device at path and locks it. A device that is
// already held is refused with an [*InUseError].
func Open(path string, opts Options) (*File, error) {
	fd, err := openLocked(path, opts)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, fd: fd}
	if err := f.measure(); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	f.bounce.init(f.blockSize)
	return f, nil
}

// openLocked opens path with the flags its kind needs and takes the locks.
func openLocked(path string, opts Options) (int, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if opts.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		flags |= unix.O_DIRECT
		if !opts.Shared {
			// On a block device O_EXCL also excludes mounts, swap and md.
			flags |= unix.O_EXCL
		}
	}
	h, err := failpoint.Begin(failpoint.DiskOpen)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	fd, err := openRetry(path, flags)
	h.End()
	if errors.Is(err, unix.EBUSY) {
		return -1, busy(path, opts)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	if err := lockDevice(fd, path, opts); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func openRetry(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// busy names the holder of a block device that could not be opened
// exclusively; opening it without O_EXCL only to look is allowed.
func busy(path string, opts Options) error {
	inUse := &InUseError{Path: path}
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return inUse
	}
	inUse.PID = holder(fd, opts.Slot)
	return errors.Join(inUse, unix.Close(fd))
}

// measure learns kind, capacity and block size from the open descriptor.
func (f *File) measure() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", f.path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.size, f.blockSize = st.Size, 1
		f.keepsRoom = answersNoSpaceExactly(f.fd)
		return nil
	case unix.S_IFBLK:
		f.block = true
		return f.measureBlock()
	default:
		return fmt.Errorf("open %s: neither a regular file nor a block device", f.path)
	}
}

func (f *File) measureBlock() error {
	size, err := blockDeviceSize(f.fd)
	if err != nil {
		return fmt.Errorf("get size of %s: %w", f.path, err)
	}
	blockSize, err := unix.IoctlGetInt(f.fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("get block size of %s: %w", f.path, err)
	}
	if blockSize < SectorSize || blockSize > bounceSize || blockSize&(blockSize-1) != 0 {
		return fmt.Errorf("open %s: block size %d is not usable", f.path, blockSize)
	}
	f.size, f.blockSize = size, blockSize
	return nil
}

// Size implements Device.
func (f *File) Size() int64 { return f.size }

// BlockSize returns the unit in bytes of which offsets and lengths must be
// multiples: a block device's logical block size, 1 for a regular file.
func (f *File) BlockSize() int { return f.blockSize }

// Path returns the name the device was opened with.
func (f *File) Path() string { return f.path }

// ReadAt implements Device.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin(off, int64(len(p))); err != nil {
		return 0, f.opError("read", err)
	}
	defer f.life.RUnlock()
	if f.direct(p) {
		n, err := preadFull(f.fd, p, off)
		return n, f.opError("read", err)
	}
	n, err := f.readBounced(p, off)
	return n, f.opError("read", err)
}

// WriteAt implements Device.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin(off, int64(len(p))); err != nil {
		return 0, f.opError("write", err)
	}
	defer f.life.RUnlock()
	n, err := f.write(p, off, pwrite)
	return n, f.opError("write", f.judge(err))
}

// WriteDurable implements Device. It fails like Sync after a failed Sync.
func (f *File) WriteDurable(p []byte, off int64) (int, error) {
	if err := f.begin(off, int64(len(p))); err != nil {
		return 0, f.opError("durable write", err)
	}
	defer f.life.RUnlock()
	unlock := f.lockDurable()
	defer unlock.release()
	if failed := f.failed.Load(); failed != nil {
		return 0, f.opError("durable write", failed)
	}
	n, err := f.writeDurable(p, off)
	return n, f.opError("durable write", err)
}

// writeDurable prefers a FUA write and falls back to write and fdatasync.
//
// A buffered write goes to the page cache first. A full file system refuses it
// there, where no earlier write is in doubt; once it is in the cache it has its
// space, so that what the FUA write then reports is a lost write-back.
func (f *File) writeDurable(p []byte, off int64) (int, error) {
	if !f.block {
		n, err := f.write(p, off, pwrite)
		switch {
		case noSpace(err):
			return n, f.judge(err)
		case err != nil:
			return n, f.fail(err)
		}
	}
	if !f.noFUA.Load() {
		n, err := f.write(p, off, pwriteDurable)
		if err == nil {
			return n, f.checkSize()
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			// The kernel may have reported, and forgotten, the write-back
			// failure of any earlier write here, so no later Sync can be
			// believed.
			return n, f.fail(err)
		}
		f.noFUA.Store(true)
		if f.block {
			if n, err := f.write(p, off, pwrite); err != nil {
				return n, err
			}
		}
	}
	return len(p), f.sync()
}

// sync is fdatasync with its verdict.
func (f *File) sync() error {
	if err := fdatasync(f.fd); err != nil {
		return f.fail(err)
	}
	return f.checkSize()
}

// judge makes a write's want of space final where it may be the news of an
// earlier write. Other errors are the write's own.
func (f *File) judge(err error) error {
	if noSpace(err) && !f.block && !f.keepsRoom {
		return f.fail(err)
	}
	return err
}

// Sync implements Device with fdatasync.
func (f *File) Sync() error {
	if err := f.begin(0, 0); err != nil {
		return f.opError("sync", err)
	}
	defer f.life.RUnlock()
	unlock := f.lockDurable()
	defer unlock.release()
	if failed := f.failed.Load(); failed != nil {
		return f.opError("sync", failed)
	}
	return f.opError("sync", f.sync())
}

// Close implements Device.
func (f *File) Close() error {
	f.life.Lock()
	defer f.life.Unlock()
	if f.fd < 0 {
		return f.opError("close", ErrClosed)
	}
	fd := f.fd
	f.fd = -1
	return f.opError("close", unix.Close(fd))
}

// begin checks a range and, when it returns nil, holds life for reading.
func (f *File) begin(off, n int64) error {
	if err := CheckRange(off, n, f.size); err != nil {
		return err
	}
	if mask := int64(f.blockSize - 1); off&mask != 0 || n&mask != 0 {
		return fmt.Errorf("%w: %d bytes at %d, block size %d", ErrUnaligned, n, off, f.blockSize)
	}
	f.life.RLock()
	if f.fd < 0 {
		f.life.RUnlock()
		return ErrClosed
	}
	if shrunk := f.shrunk.Load(); shrunk != nil {
		f.life.RUnlock()
		return shrunk
	}
	return nil
}

// fail makes err, if any, the final answer of every later durability point.
// Of several failures the first one counts.
func (f *File) fail(err error) error {
	if err == nil {
		return nil
	}
	f.failed.CompareAndSwap(nil, &SyncError{Err: err})
	return f.failed.Load()
}

// opError adds operation and path to an error.
func (f *File) opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, f.path, err)
}

// durableLock is the held durable mutex, or nothing for a block device. It is
// a value and not a closure because closures allocate.
type durableLock struct{ mu *sync.Mutex }

func (f *File) lockDurable() durableLock {
	if f.block {
		return durableLock{}
	}
	f.durable.Lock()
	return durableLock{&f.durable}
}

func (l durableLock) release() {
	if l.mu != nil {
		l.mu.Unlock()
	}
}

// direct reports whether p may be handed to the kernel as it is.
func (f *File) direct(p []byte) bool { return !f.block || aligned(p, f.blockSize) }

// readBounced reads into unaligned memory by way of an aligned buffer.
func (f *File) readBounced(p []byte, off int64) (int, error) {
	buf := f.bounce.get()
	defer f.bounce.put(buf)
	done := 0
	for done < len(p) {
		part := min(len(p)-done, len(buf))
		n, err := preadFull(f.fd, buf[:part], off+int64(done))
		done += copy(p[done:], buf[:n])
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// write stores p with one of the two write calls, by way of an aligned buffer
// if it must.
func (f *File) write(p []byte, off int64, call writeCall) (int, error) {
	if f.direct(p) {
		return writeFull(f.fd, p, off, call)
	}
	buf := f.bounce.get()
	defer f.bounce.put(buf)
	done := 0
	for done < len(p) {
		part := copy(buf, p[done:])
		n, err := writeFull(f.fd, buf[:part], off+int64(done), call)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

var _ interface {
	Device
	io.ReaderAt
	io.WriterAt
} = (*File)(nil)
