package nbd

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writev is writev(2) on a non-blocking descriptor. x/sys/unix.Writev builds
// its vector anew on every call, which costs an allocation beyond eight pieces.
func writev(fd uintptr, iovs []unix.Iovec) (int, syscall.Errno) {
	raceRelease(fd)
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iovs[0])), uintptr(len(iovs)))
	return int(n), errno
}

// consume drops the first n bytes from the vector.
func consume(iovs []unix.Iovec, n int) []unix.Iovec {
	for len(iovs) > 0 && uint64(n) >= iovs[0].Len {
		n -= int(iovs[0].Len)
		iovs = iovs[1:]
	}
	if n > 0 {
		iovs[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iovs[0].Base), n))
		iovs[0].Len -= uint64(n)
	}
	return iovs
}
