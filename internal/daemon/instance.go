package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"replicad/internal/failpoint"
)

// HeldError says that another daemon has the control socket.
type HeldError struct {
	Socket string
	PID    int // 0 when it could not be found out
}

// Error names the holder.
func (e *HeldError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("another daemon has the socket %s", e.Socket)
	}
	return fmt.Sprintf("another daemon has the socket %s: process %d", e.Socket, e.PID)
}

// socketBytesMax is the longest path of a unix socket on Linux.
const socketBytesMax = 107

// lockEnding makes the name of the lock file from the socket's.
const lockEnding = ".lock"

// heldSocket is the control socket, and the lock that makes its holder the
// only daemon there.
type heldSocket struct {
	path     string
	listener net.Listener
	file     os.FileInfo // of the socket, to know it again
	lock     *os.File
}

// takeSocket locks the socket's place and listens there. What an earlier daemon
// left behind is replaced: the lock proves that it is gone.
func takeSocket(path string) (*heldSocket, error) {
	if len(path) > socketBytesMax {
		return nil, fmt.Errorf("socket path %s has %d bytes: unix sockets take %d", path, len(path), socketBytesMax)
	}
	lock, err := lockFor(path)
	if err != nil {
		return nil, err
	}
	listener, file, err := listenPrivately(path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &heldSocket{path: path, listener: listener, file: file, lock: lock}, nil
}

// inPlace reports whether the socket can still be found under its name. When
// that cannot be known, it is.
func (s *heldSocket) inPlace() bool {
	info, err := os.Lstat(s.path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return os.SameFile(info, s.file)
}

// lockFor locks the file beside the socket and notes our process id in it. The
// file stays: removing it would let two daemons lock two files of one name.
func lockFor(socket string) (*os.File, error) {
	f, err := os.OpenFile(socket+lockEnding, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		held := &HeldError{Socket: socket, PID: readPID(f)}
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, held
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	text := strconv.Itoa(os.Getpid()) + "\n"
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("note process id: %w", err), f.Close())
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("note process id: %w", err), f.Close())
	}
	return f, nil
}

func readPID(f *os.File) int {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

// listenPrivately makes the socket under another name and gives it its mode
// before anybody can find it.
func listenPrivately(path string) (net.Listener, os.FileInfo, error) {
	fresh := filepath.Join(filepath.Dir(path), ".ctl~"+strconv.Itoa(os.Getpid()))
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("remove unfinished socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, nil, fmt.Errorf("open control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	var file os.FileInfo
	h, err := failpoint.Begin(failpoint.ControlListen)
	if err == nil {
		err = os.Chmod(fresh, 0o600)
	}
	if err == nil {
		file, err = os.Lstat(fresh)
	}
	if err == nil {
		err = os.Rename(fresh, path)
		h.End()
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("put control socket in place: %w", err), l.Close(), os.Remove(fresh))
	}
	return l, file, nil
}

// remake puts a new socket at the place. A lock that is still there is kept:
// opened again, it would be found held. One that has gone protects nothing any more.
func (s *heldSocket) remake() error {
	lock := s.lock
	if !sameFile(s.lock, s.path+lockEnding) {
		var err error
		if lock, err = lockFor(s.path); err != nil {
			return err
		}
	}
	listener, file, err := listenPrivately(s.path)
	if err != nil {
		if lock != s.lock {
			err = errors.Join(err, lock.Close())
		}
		return err
	}
	_ = s.listener.Close()
	if lock != s.lock {
		_ = s.lock.Close()
	}
	s.listener, s.file, s.lock = listener, file, lock
	return nil
}

// sameFile reports whether path leads to the open file f.
func sameFile(f *os.File, path string) bool {
	own, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(own, named)
}

// release removes the socket, if it is still ours, and gives up the lock, in
// this order.
func (s *heldSocket) release() {
	_ = s.listener.Close() // the HTTP server has usually done so
	if s.inPlace() {
		_ = os.Remove(s.path)
	}
	_ = s.lock.Close()
}
