// Package disk is the seam between replicad and the storage below it: one
// interface, [Device], and its implementation on a real file or block device,
// [File]. The other implementation, a memory device that can lose power, is in
// the sub-package disktest.
//
// The package moves bytes and makes them durable. It knows no metadata, no
// replication and no request queue, it does not retry a failed operation and
// never decides that a device is lost: it reports, the caller detaches.
//
// Every method of a Device may be called from any goroutine, several at once.
// The order of two overlapping writes in flight together is undefined.
package disk

import (
	"errors"
	"fmt"
)

// SectorSize is the unit of DRBD's and the kernel's addresses, in bytes. It is
// also the largest piece of a write that is assumed to reach a disk whole.
const SectorSize = 512

// Device is a byte-addressed store with an explicit point of durability.
//
// Offsets and lengths are bytes. A transfer that leaves the device fails with
// [ErrRange] and changes nothing. Reads and writes are all or nothing as far as
// the return value goes: n < len(p) only together with an error, after which
// the range of a write holds an unknown mix of old and new sectors.
type Device interface {
	// ReadAt fills p from offset off.
	ReadAt(p []byte, off int64) (n int, err error)
	// WriteAt stores p at offset off. It is not durable before the next Sync.
	// An error that [NoSpace] recognises is about this write alone.
	WriteAt(p []byte, off int64) (n int, err error)
	// WriteDurable stores p and returns once it would survive a power cut
	// (NBD's and SCSI's FUA). It says nothing about earlier writes.
	WriteDurable(p []byte, off int64) (n int, err error)
	// Sync makes every write, discard and zeroing that returned before the
	// call durable. Its first failure is final: see [SyncError].
	Sync() error
	// Discard tells the device that n bytes at off are no longer needed. What
	// a later read returns is undefined and may differ between two devices, so
	// a mirrored trim must use WriteZeroes. A device that cannot discard
	// returns an error that matches [errors.ErrUnsupported].
	Discard(off, n int64) error
	// WriteZeroes makes n bytes at off read as zero. With noHole the space
	// stays allocated, so that a later write cannot run out of space.
	WriteZeroes(off, n int64, noHole bool) error
	// Size returns the capacity in bytes, as measured at opening.
	Size() int64
	// Close waits for calls in flight, then releases the device. It does not
	// sync. Calls after Close fail with [ErrClosed].
	Close() error
}

// Errors that a caller can test for with [errors.Is].
var (
	// ErrClosed is returned by every operation after Close.
	ErrClosed = errors.New("device is closed")
	// ErrRange is returned for a range that is not inside the device.
	ErrRange = errors.New("range outside the device")
	// ErrUnaligned is returned by a block device for an offset or length that
	// is not a multiple of its logical block size.
	ErrUnaligned = errors.New("range not aligned to the logical block size")
)

// SyncError is what every Sync and WriteDurable returns from the first failed
// one on. The kernel reports a lost write-back once and then marks the pages
// clean, so a second fsync that succeeds proves nothing: the device's content
// is unknown and it has to be detached.
type SyncError struct {
	Err error // the first failure
}

// Error implements error.
func (e *SyncError) Error() string {
	return fmt.Sprintf("sync device: %v (final: unsynced data may be lost, detach the device)", e.Err)
}

// Unwrap returns the first failure.
func (e *SyncError) Unwrap() error { return e.Err }

// ShrunkError is what every operation on a regular file returns once it was
// seen to be smaller than at opening: what it held beyond is gone, and a write
// there would make it whole again with zeroes in the middle.
type ShrunkError struct {
	Path      string
	Was, Size int64 // bytes
}

// Error implements error. The text is one sentence for the operator.
func (e *ShrunkError) Error() string {
	return fmt.Sprintf("%s was cut from %d to %d bytes while it was in use: what lay behind is lost; detach it, and let the peer or a backup restore it",
		e.Path, e.Was, e.Size)
}

// InUseError reports that another process or a mounted file system holds the
// device.
type InUseError struct {
	Path string
	PID  int // the process that holds it; 0 when it could not be found out
}

// Error implements error. The text is one sentence for the operator.
func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is in use (mounted, or held by another program)", e.Path)
	}
	return fmt.Sprintf("%s is in use by process %d", e.Path, e.PID)
}

// NoSpace reports that a write was refused for want of space on the file
// system or in the quota, and that nothing else was lost. A [SyncError] is never
// that, whatever its cause.
func NoSpace(err error) bool {
	_, final := errors.AsType[*SyncError](err)
	return !final && noSpace(err)
}

// CheckRange returns nil if n bytes at off lie inside a device of size bytes,
// and an error matching [ErrRange] otherwise.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d, size %d", ErrRange, n, off, size)
	}
	return nil
}
