package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrAddressInUse means that another process answers on the unix socket.
var ErrAddressInUse = errors.New("another process answers on this socket")

const (
	socketMode   = 0o660
	probeTimeout = time.Second
	lockTimeout  = 5 * time.Second
	lockRetry    = 10 * time.Millisecond
	// newSocketName is where a socket is made ready, in its own folder, before
	// it takes its place in one step.
	newSocketName = ".nbd~"
	// socketBytesMax is the longest path that a client can connect to on Linux.
	socketBytesMax = 107
)

// Listen listens on "unix:PATH" or "HOST:PORT". A unix socket gets mode 0660
// before anyone can find it. A socket file that nobody answers on is replaced;
// a living one, or a file that is no socket, is an error and left alone.
func Listen(address string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(address, "unix:")
	if !isUnix {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		return l, nil
	}
	l, err := listenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// listenUnix holds a lock on the folder while it looks and replaces, so that
// two processes cannot both find the same socket stale.
func listenUnix(path string) (net.Listener, error) {
	switch {
	case path == "":
		return nil, errors.New("the path is empty")
	case len(path) > socketBytesMax:
		return nil, fmt.Errorf("the path has %d bytes: unix sockets take %d", len(path), socketBytesMax)
	}
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkStale(path); err != nil {
		return nil, err
	}
	fresh := filepath.Join(filepath.Dir(path), newSocketName)
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove unfinished socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	info, err := moveInPlace(fresh, path)
	if err != nil {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, err
	}
	return &unixListener{UnixListener: l, path: path, file: info}, nil
}

// moveInPlace gives the socket its mode and name.
func moveInPlace(fresh, path string) (os.FileInfo, error) {
	if err := os.Chmod(fresh, socketMode); err != nil {
		return nil, fmt.Errorf("set socket mode: %w", err)
	}
	info, err := os.Lstat(fresh)
	if err != nil {
		return nil, fmt.Errorf("inspect socket: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return nil, fmt.Errorf("put socket in place: %w", err)
	}
	return info, nil
}

// checkStale returns nil if path is free or a socket that refuses connections.
// Only a refusal proves that nobody listens; any other answer, or none, does not.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is not a socket is in the way")
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		_ = c.Close()
		return ErrAddressInUse
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("find out whether the existing socket is in use: %w", err)
}

func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	deadline := time.Now().Add(lockTimeout)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(deadline) {
			_ = f.Close()
			return nil, fmt.Errorf("lock folder %s: %w", dir, err)
		}
		time.Sleep(lockRetry)
	}
}

// unixListener removes its socket file on Close, if the file is still its own.
type unixListener struct {
	*net.UnixListener
	path string
	file os.FileInfo
}

// Addr is the address clients use, not the one the socket was made under.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening.
func (l *unixListener) Close() error {
	if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.file) {
		_ = os.Remove(l.path) // a file left behind is found stale by the next Listen
	}
	return l.UnixListener.Close()
}
