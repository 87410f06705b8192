package nbd

import (
	"fmt"
	"net"
	"syscall"
)

// unixSendBytes is asked for as send buffer of unix sockets, so that the
// replies of one batch (32 of 4 KiB and their overhead) never half-fit. TCP
// sizes its own.
const unixSendBytes = 1 << 20

// socket is what *net.UnixConn and *net.TCPConn have in common. The raw types
// are kept because vectored and non-blocking writes need the descriptor.
type socket interface {
	net.Conn
	syscall.Conn
	CloseRead() error
	CloseWrite() error
	SetWriteBuffer(bytes int) error
}

// asSocket accepts a stream connection with a descriptor behind it.
func asSocket(c net.Conn) (socket, error) {
	s, ok := c.(socket)
	if !ok {
		return nil, fmt.Errorf("use connection: %T is neither a unix nor a TCP socket", c)
	}
	if u, ok := c.(*net.UnixConn); ok {
		if err := u.SetWriteBuffer(unixSendBytes); err != nil {
			return nil, fmt.Errorf("set send buffer: %w", err)
		}
	}
	return s, nil
}

// peer describes the other end of s.
func peer(s socket) ClientInfo {
	info := ClientInfo{Network: s.RemoteAddr().Network(), Address: s.RemoteAddr().String()}
	if info.Network == "unix" {
		info.PID, info.UID = peerCredentials(s)
	}
	return info
}

func peerCredentials(s socket) (pid int32, uid uint32) {
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, 0
	}
	var cred *syscall.Ucred
	err = raw.Control(func(fd uintptr) {
		cred, _ = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || cred == nil {
		return 0, 0
	}
	return cred.Pid, cred.Uid
}

// shutdown ends both directions, which wakes every reader and writer. Errors
// mean that the socket is down already.
func shutdown(s socket) {
	_ = s.CloseRead()
	_ = s.CloseWrite()
}
