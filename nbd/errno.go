package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// Errno is an error number of the NBD protocol. The numbers are the protocol's
// own and equal Linux's; zero is success.
type Errno uint32

// The error numbers the protocol defines.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Error names the error as the protocol does.
func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted (EPERM)"
	case EIO:
		return "input/output error (EIO)"
	case ENOMEM:
		return "cannot allocate memory (ENOMEM)"
	case EINVAL:
		return "invalid argument (EINVAL)"
	case ENOSPC:
		return "no space left on device (ENOSPC)"
	case EOVERFLOW:
		return "value too large (EOVERFLOW)"
	case ENOTSUP:
		return "operation not supported (ENOTSUP)"
	case ESHUTDOWN:
		return "server is being shut down (ESHUTDOWN)"
	}
	return fmt.Sprintf("nbd error %d", uint32(e))
}

// Is lets errors.Is match the system's error of the same meaning.
func (e Errno) Is(target error) bool {
	sys, ok := target.(syscall.Errno)
	return ok && e != 0 && fromSystem(sys) == e
}

// errnoOf maps any error to what the wire can carry. Unknown errors become EIO:
// the protocol has no better word, and the client must not take it for success.
func errnoOf(err error) Errno {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[Errno](err); ok && e != 0 {
		return e
	}
	if sys, ok := errors.AsType[syscall.Errno](err); ok && sys != 0 {
		return fromSystem(sys)
	}
	return EIO
}

func fromSystem(sys syscall.Errno) Errno {
	switch sys {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return EPERM
	case syscall.ENOMEM:
		return ENOMEM
	case syscall.EINVAL:
		return EINVAL
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return ENOSPC
	case syscall.EOVERFLOW:
		return EOVERFLOW
	case syscall.EOPNOTSUPP:
		return ENOTSUP
	case syscall.ESHUTDOWN:
		return ESHUTDOWN
	}
	return EIO
}
