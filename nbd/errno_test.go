package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestErrnoOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Errno
	}{
		{nil, 0},
		{EIO, EIO},
		{ESHUTDOWN, ESHUTDOWN},
		{fmt.Errorf("write: %w", ENOSPC), ENOSPC},
		{syscall.EROFS, EPERM},
		{syscall.EACCES, EPERM},
		{syscall.EDQUOT, ENOSPC},
		{syscall.EFBIG, ENOSPC},
		{syscall.ENOMEM, ENOMEM},
		{syscall.EOPNOTSUPP, ENOTSUP},
		{syscall.EREMOTEIO, EIO},
		{&fs.PathError{Op: "write", Path: "d", Err: syscall.ENOSPC}, ENOSPC},
		{errors.New("anything"), EIO},
		{Errno(0), EIO}, // an error that says success must not become success
		{syscall.Errno(0), EIO},
	} {
		if got := errnoOf(tc.err); got != tc.want {
			t.Errorf("%v became %v, expected %v", tc.err, got, tc.want)
		}
	}
}

func TestErrnoMatchesSystem(t *testing.T) {
	if !errors.Is(ENOSPC, syscall.ENOSPC) || errors.Is(EIO, syscall.ENOSPC) || errors.Is(Errno(0), syscall.Errno(0)) {
		t.Error("errors.Is with system errors is wrong")
	}
}
