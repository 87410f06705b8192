package disk

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Byte positions of advisory locks. They lie far behind any real data so that
// they never meet the byte locks that other programs (qemu for one) take on
// image files.
const (
	slotLockBase = 1 << 61 // one byte per slot of a shared metadata device
	pidLockBase  = 1 << 62 // one byte per slot whose owner the kernel can name
)

// lockDevice takes the locks that keep a second daemon away from fd.
//
// Two kinds are needed. flock and open-file-description locks exclude other
// opens, also those of our own process, but the kernel does not say who holds
// them. A classic POSIX lock names its holder, but excludes no one inside the
// process and vanishes when the process closes any descriptor of the file. So
// the former protect, and the latter is only a name plate.
func lockDevice(fd int, path string, opts Options) error {
	how := unix.LOCK_EX
	if opts.Shared {
		how = unix.LOCK_SH
	}
	if err := flock(fd, how|unix.LOCK_NB); err != nil {
		return lockFailed(fd, path, opts.Slot, err)
	}
	if opts.Shared {
		if err := setLock(fd, unix.F_OFD_SETLK, slotLockBase+int64(opts.Slot), opts.ReadOnly); err != nil {
			return lockFailed(fd, path, opts.Slot, err)
		}
	}
	// A missing name plate only makes a later message less helpful.
	_ = setLock(fd, unix.F_SETLK, pidLockBase+int64(opts.Slot), opts.ReadOnly)
	return nil
}

// flock is unix.Flock restarted after signals.
func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}

// setLock locks one byte at pos with the fcntl command cmd. A descriptor open
// for reading cannot take a write lock, so readOnly takes a read lock, which
// still shows its owner.
func setLock(fd, cmd int, pos int64, readOnly bool) error {
	lock := byteLock(pos)
	if readOnly {
		lock.Type = unix.F_RDLCK
	}
	for {
		if err := unix.FcntlFlock(uintptr(fd), cmd, &lock); err != unix.EINTR {
			return err
		}
	}
}

func byteLock(pos int64) unix.Flock_t {
	return unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: pos, Len: 1}
}

// lockFailed turns a refused lock into an InUseError.
func lockFailed(fd int, path string, slot uint8, err error) error {
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
		return &InUseError{Path: path, PID: holder(fd, slot)}
	}
	return fmt.Errorf("lock %s: %w", path, err)
}

// holder returns the process that put up the name plate for slot, 0 if there
// is none, or this process itself, for which F_GETLK reports no conflict.
func holder(fd int, slot uint8) int {
	lock := byteLock(pidLockBase + int64(slot))
	if err := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock); err != nil {
		return 0
	}
	if lock.Type == unix.F_UNLCK || lock.Pid < 0 {
		return 0
	}
	return int(lock.Pid)
}
