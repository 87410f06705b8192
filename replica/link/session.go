package link

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"replicad/wire"
)

// Reasons for which this package itself closes a session.
var (
	// ErrSuperseded means that the peer, authenticated, set up a new session:
	// it no longer has the old one, whatever TCP still believes.
	ErrSuperseded = errors.New("replaced by a newer session of the peer")
	// ErrReconnect means that Connect was called while the session was up.
	ErrReconnect = errors.New("connect was called again")
	// ErrUnclaimed means that nobody called Connect in time for a session that the peer set up.
	ErrUnclaimed = errors.New("session was not claimed in time")
	// ErrClosed means that the Link was closed.
	ErrClosed = errors.New("link is closed")
)

// Session is one established pair of connections to the peer, both
// authenticated and bound to one id. Both end together, for good.
type Session struct {
	Data    *Conn
	Control *Conn
	// ID is the same on both nodes and differs between any two sessions.
	ID wire.SessionID
	// Token is the resolve-conflicts token: true on exactly one of the two
	// nodes, at random for each session.
	Token bool
	// Dialed says that this node made the connections.
	Dialed bool
	// Version and Features are what both nodes support.
	Version  uint16
	Features uint32
	// Local and Peer are the addresses of the data connection.
	Local, Peer netip.AddrPort
	// Cipher names what both connections are encrypted with, "" if they are not.
	Cipher string

	once    sync.Once
	done    chan struct{}
	err     error // set before done is closed
	writers sync.WaitGroup
}

// newSession wraps two authenticated sockets and starts their background
// writers. On error the sockets are still the caller's to close.
func newSession(cfg *Config, h *wire.Handshake, data, control stream, dialed bool) (*Session, error) {
	s := &Session{
		ID: h.Session(), Token: h.Token(), Dialed: dialed,
		Version: h.Version(), Features: h.Features(),
		Local: addrPort(data.tcp.LocalAddr()), Peer: addrPort(data.tcp.RemoteAddr()),
		Cipher: cipherOf(data),
		done:   make(chan struct{}),
	}
	var err error
	if s.Data, err = newConn(wire.ChannelData, data, s, cfg); err != nil {
		return nil, err
	}
	if s.Control, err = newConn(wire.ChannelControl, control, s, cfg); err != nil {
		return nil, err
	}
	s.writers.Go(s.Data.out.background)
	s.writers.Go(s.Control.out.background)
	return s, nil
}

// Close ends both connections at once; what is queued is dropped and its
// buffers are released, possibly after Close returned: Close itself calls no
// callback. The first reason stays. Any goroutine may call it, any number of
// times. For a graceful end, Flush first.
func (s *Session) Close(reason error) {
	s.once.Do(func() {
		s.err = reason
		close(s.done)
		// Errors of closing a socket change nothing: the session is over.
		_ = s.Data.tcp.Close()
		_ = s.Control.tcp.Close()
		// The background writers still run, so this cannot race with a Wait.
		s.writers.Go(func() { s.shutQueues(reason) })
	})
}

// shutQueues runs apart from Close, whose caller may hold the writer role.
func (s *Session) shutQueues(reason error) {
	s.Data.out.shut(reason)
	s.Control.out.shut(reason)
}

// Done is closed when the session ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is the reason the session ended, nil while it lives.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// addrPort is the address of a TCP socket.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
