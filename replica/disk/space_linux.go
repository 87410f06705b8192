package disk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// exactFileSystems refuse a write for want of space before they take any of
// it into the page cache, and never report by it that an earlier write was
// lost. On network file systems a write may bring such old news (Linux
// nfs_file_write), so there ENOSPC counts as a failed sync.
var exactFileSystems = map[int64]bool{
	unix.EXT4_SUPER_MAGIC:  true, // and ext2, ext3
	unix.XFS_SUPER_MAGIC:   true,
	unix.TMPFS_MAGIC:       true,
	unix.BTRFS_SUPER_MAGIC: true,
	unix.F2FS_SUPER_MAGIC:  true,
}

// answersNoSpaceExactly reports whether the file's system is one of those. One
// that cannot be asked is not.
func answersNoSpaceExactly(fd int) bool {
	var st unix.Statfs_t
	return fstatfs(fd, &st) == nil && exactFileSystems[int64(st.Type)]
}

func fstatfs(fd int, st *unix.Statfs_t) error {
	for {
		if err := unix.Fstatfs(fd, st); err != unix.EINTR {
			return err
		}
	}
}

// noSpace recognises a full file system and a used-up quota.
func noSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Reserve allocates n bytes at off, so that writing there later cannot fail
// for want of space. What is stored there stays. It does nothing on a block device, and
// nothing where the file system has no such call; copy-on-write file systems
// accept the call and keep no promise.
func (f *File) Reserve(off, n int64) error {
	if err := f.begin(off, n); err != nil {
		return f.opError("reserve space in", err)
	}
	defer f.life.RUnlock()
	if f.block || n == 0 {
		return nil
	}
	err := fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, off, n)
	if unsupported(err) {
		return nil
	}
	return f.opError("reserve space in", err)
}

// Condition is the state of a device's surroundings, as Inspect finds it.
type Condition struct {
	// Moved: the path no longer leads to this file. Reads and writes still
	// reach it, but nobody finds it after the last close.
	Moved bool
	// Full: the file system has less than [RoomMin] bytes left. Always false for
	// a block device.
	Full bool
	// Shrunk is not nil once the file was cut.
	Shrunk *ShrunkError
}

// RoomMin is how many free bytes end the condition Full.
const RoomMin = 1 << 20

// Inspect looks at what no read or write tells in time. It returns an error
// that matches [ErrClosed] after Close, or that of the system call.
func (f *File) Inspect() (Condition, error) {
	// The name may lead through a file system that hangs: that must not hold up Close.
	var own, named unix.Stat_t
	missing := unix.Stat(f.path, &named)
	f.life.RLock()
	defer f.life.RUnlock()
	if f.fd < 0 {
		return Condition{}, f.opError("inspect", ErrClosed)
	}
	if err := unix.Fstat(f.fd, &own); err != nil {
		return Condition{}, f.opError("inspect", err)
	}
	c := Condition{Moved: missing == unix.ENOENT || missing == nil && (own.Dev != named.Dev || own.Ino != named.Ino)}
	if f.block {
		c.Moved = false // device nodes may come and go
		return c, nil
	}
	if own.Size < f.size {
		f.noteShrunk(own.Size)
	}
	c.Shrunk = f.shrunk.Load()
	var st unix.Statfs_t
	if err := fstatfs(f.fd, &st); err != nil {
		return c, f.opError("inspect", fmt.Errorf("ask for free space: %w", err))
	}
	c.Full = int64(st.Bavail)*st.Bsize < RoomMin
	return c, nil
}

// checkSize is asked after every durability point of a regular file.
func (f *File) checkSize() error {
	if f.block {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return f.fail(fmt.Errorf("stat: %w", err))
	}
	if st.Size >= f.size {
		return nil
	}
	return f.fail(f.noteShrunk(st.Size))
}

// noteShrunk ends the use of the file, and returns what its operations say
// from now on.
func (f *File) noteShrunk(size int64) *ShrunkError {
	f.shrunk.CompareAndSwap(nil, &ShrunkError{Path: f.path, Was: f.size, Size: size})
	return f.shrunk.Load()
}
