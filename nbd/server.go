package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"replicad/internal/failpoint"
)

// connectionBytesMax is the part of the server's budget one connection can
// hold: one request of the largest size, or 16384 of the smallest.
const connectionBytesMax = RequestBytesMax

// acceptRetry is the pause after a failed accept, such as for want of
// descriptors, before the next one.
const acceptRetry = 50 * time.Millisecond

// Errors of Server.
var (
	ErrServerClosed    = errors.New("nbd server is closed")
	ErrDuplicateExport = errors.New("an export of this name exists")
	ErrBadExportName   = errors.New("export name is longer than the protocol allows or contains NUL")

	errTooMany = errors.New("the maximum is reached")
)

// Config sets a server's limits. A zero value means the default.
type Config struct {
	// Logger is told how connections begin and end; nil discards.
	Logger *slog.Logger
	// ConnectionsMax is the number of clients at a time, 128 by default. More
	// are turned away.
	ConnectionsMax int
	// BytesInFlightMax bounds the memory of all requests in flight, 256 MiB by
	// default; at least RequestBytesMax. Readers wait while it is used up.
	BytesInFlightMax int64
	// HandshakeTimeout bounds negotiation from accept on, 10 s by default.
	HandshakeTimeout time.Duration
	// StallTimeout, 60 s by default, bounds how long a client may stop in the
	// middle of a payload it sends, or take nothing of the replies it asked
	// for. A client without business may stay idle for ever.
	StallTimeout time.Duration
}

func (cfg *Config) setDefaults() error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&cfg.ConnectionsMax, 128)
	setDefault(&cfg.BytesInFlightMax, 256<<20)
	setDefault(&cfg.HandshakeTimeout, 10*time.Second)
	setDefault(&cfg.StallTimeout, time.Minute)
	if cfg.BytesInFlightMax < RequestBytesMax {
		return fmt.Errorf("configure nbd server: BytesInFlightMax %d is below one request's %d", cfg.BytesInFlightMax, RequestBytesMax)
	}
	if cfg.ConnectionsMax < 0 || cfg.HandshakeTimeout < 0 || cfg.StallTimeout < 0 {
		return errors.New("configure nbd server: a limit is negative")
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Server offers exports on any number of listeners. All connections share one
// memory budget, so resources that can be suspended should not share a Server.
type Server struct {
	cfg    Config
	pool   pool
	budget budget
	wg     sync.WaitGroup
	full   atomic.Bool // the last client was one too many

	mu        sync.Mutex
	exports   []Export // in the order they were added
	conns     map[*conn]struct{}
	listeners map[net.Listener]struct{}
	closed    bool

	complaining time.Time // beginning of the second in which complaints are counted
	complaints  int
	unsaid      int // complaints left out since the last one that was logged
}

// NewServer makes a server without exports.
func NewServer(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, conns: map[*conn]struct{}{}, listeners: map[net.Listener]struct{}{}}
	s.budget.max = cfg.BytesInFlightMax
	return s, nil
}

// Add offers e from now on.
func (s *Server) Add(e Export) error {
	if !validName([]byte(e.Name())) {
		return fmt.Errorf("add export: %w", ErrBadExportName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.exports {
		if other.Name() == e.Name() {
			return fmt.Errorf("add export %q: %w", e.Name(), ErrDuplicateExport)
		}
	}
	s.exports = append(s.exports, e)
	return nil
}

// Remove withdraws the export and disconnects its clients as Disconnect does.
// The export is gone for new clients even when ctx ends the wait.
func (s *Server) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	kept := make([]Export, 0, len(s.exports))
	for _, e := range s.exports {
		if e.Name() != name {
			kept = append(kept, e)
		}
	}
	s.exports = kept
	s.mu.Unlock()
	return s.Disconnect(ctx, name)
}

// Clients lists the connections that hold the export open.
func (s *Server) Clients(name string) []ClientInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var clients []ClientInfo
	for c := range s.conns {
		if c.holding && c.opening == name {
			clients = append(clients, c.info)
		}
	}
	return clients
}

// Disconnect ends the connections of one export: requests already served are
// answered, later ones get ESHUTDOWN, then the sockets close. A client that takes
// nothing of its replies for replyGrace is cut off. It does not keep
// new clients out; the export's Open must do so first. When ctx ends before the
// handlers have answered, the sockets are cut and ctx's error is returned; the
// handlers are still closed after their last reply.
func (s *Server) Disconnect(ctx context.Context, name string) error {
	s.mu.Lock()
	var ending []*conn
	for c := range s.conns {
		if c.reserved && c.opening == name {
			ending = append(ending, c)
		}
	}
	s.mu.Unlock()
	if err := revoke(ctx, ending); err != nil {
		return fmt.Errorf("disconnect clients of %q: %w", name, err)
	}
	return nil
}

// Close stops accepting and ends every connection as Disconnect does. Listeners
// given to Serve are closed.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	var ending []*conn
	for c := range s.conns {
		ending = append(ending, c)
	}
	for l := range s.listeners {
		_ = l.Close() // nothing depends on it any more
	}
	s.mu.Unlock()
	if err := revoke(ctx, ending); err != nil {
		return fmt.Errorf("close nbd server: %w", err)
	}
	s.wg.Wait()
	return nil
}

// replyGrace is how long a client whose export was withdrawn may take none of the
// replies that it is owed before it is cut off. Without it one client that does
// not read would hold up every demotion and shutdown for the whole StallTimeout.
const replyGrace = 2 * time.Second

// revoke sends clients away and waits for them until ctx ends.
func revoke(ctx context.Context, conns []*conn) error {
	for _, c := range conns {
		c.revoke()
	}
	look := time.NewTicker(replyGrace / 4)
	defer look.Stop()
	for len(conns) > 0 {
		select {
		case <-conns[0].done:
			conns = conns[1:]
		case <-look.C:
			cut(conns, func(c *conn) bool { return c.out.stuck(replyGrace) })
		case <-ctx.Done():
			cut(conns, func(*conn) bool { return true })
			return context.Cause(ctx)
		}
	}
	return nil
}

// cut shuts the sockets of those connections that deserve it.
func cut(conns []*conn, deserves func(c *conn) bool) {
	for _, c := range conns {
		if deserves(c) {
			shutdown(c.sock)
		}
	}
}

func (c *conn) revoke() {
	c.revoked.Store(true)
	c.kick()
}

// Serve accepts clients from l until the server or l is closed. It returns
// ErrServerClosed after Close. Connections must be unix or TCP sockets.
func (s *Server) Serve(l net.Listener) error {
	if !s.track(l) {
		_ = l.Close()
		return ErrServerClosed
	}
	defer s.untrack(l)
	failing := false // and said so
	for {
		nc, err := l.Accept()
		if err == nil {
			if failing {
				failing = false
				s.cfg.Logger.Info("nbd clients are accepted again", "listener", l.Addr().String())
			}
			s.admit(nc)
			continue
		}
		if s.isClosed() {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept: %w", err)
		}
		if !failing {
			failing = true
			s.cfg.Logger.Warn("nbd clients cannot be accepted for now; those there are go on", "listener", l.Addr().String(), "error", err)
		}
		time.Sleep(acceptRetry)
	}
}

func (s *Server) track(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[l] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) untrack(l net.Listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	s.wg.Done()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// admit starts a connection, or drops the client when there are too many.
func (s *Server) admit(nc net.Conn) {
	var c *conn
	h, err := failpoint.Begin(failpoint.NBDAccept)
	if err == nil {
		c, err = s.newConn(nc)
		h.End()
	}
	if err != nil {
		_ = nc.Close()
		if errors.Is(err, errTooMany) && s.full.Swap(true) {
			s.cfg.Logger.Debug("nbd client turned away", "error", err) // said once per crowd
			return
		}
		s.complain("nbd client turned away", "error", err)
		return
	}
	s.full.Store(false)
	s.wg.Go(func() {
		err := c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.logEnd(c.info, err)
	})
}

func (s *Server) newConn(nc net.Conn) (*conn, error) {
	sock, err := asSocket(nc)
	if err != nil {
		return nil, err
	}
	if err := s.enter(nil); err != nil { // before it costs a buffer
		return nil, err
	}
	c, err := newConn(s, sock)
	if err != nil {
		return nil, err
	}
	return c, s.enter(c)
}

// enter adds a connection if there is room for one more. Without one it only looks.
func (s *Server) enter(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrServerClosed
	case len(s.conns) >= s.cfg.ConnectionsMax:
		return fmt.Errorf("%w: %d clients are connected", errTooMany, len(s.conns))
	case c != nil:
		s.conns[c] = struct{}{}
	}
	return nil
}

func (s *Server) logEnd(info ClientInfo, err error) {
	attrs := []any{"export", info.Export, "network", info.Network, "address", info.Address, "pid", info.PID, "reason", err}
	for _, normal := range []error{io.EOF, errDisconnected, errAborted, errRevoked} {
		if errors.Is(err, normal) {
			s.cfg.Logger.Debug("nbd client gone", attrs...)
			return
		}
	}
	s.complain("nbd client gone", attrs...)
}

// complaintsMax is how many warnings about clients a second the log gets.
const complaintsMax = 5

// complain logs a warning about a client, unless there have been enough this
// second: whoever reaches the socket must not be able to fill a log. The next
// line says how many were left out.
func (s *Server) complain(text string, attrs ...any) {
	s.mu.Lock()
	if now := time.Now(); now.Sub(s.complaining) >= time.Second {
		s.complaining, s.complaints = now, 0
	}
	s.complaints++
	enough := s.complaints > complaintsMax
	var unsaid int
	if enough {
		s.unsaid++
	} else {
		unsaid, s.unsaid = s.unsaid, 0
	}
	s.mu.Unlock()
	switch {
	case enough:
	case unsaid > 0:
		s.cfg.Logger.Warn(text, append(attrs, "unsaid", unsaid)...)
	default:
		s.cfg.Logger.Warn(text, attrs...)
	}
}

func (s *Server) exportList() []Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Export(nil), s.exports...)
}

// lookup finds an export; the empty name means the only one.
func (s *Server) lookup(name string) (Export, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.exports {
		if e.Name() == name {
			return e, true
		}
	}
	if name == "" && len(s.exports) == 1 {
		return s.exports[0], true
	}
	return nil, false
}

// reserve notes that c is about to open the export, unless c is on its way out.
func (s *Server) reserve(c *conn, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.revoked.Load() || s.closed {
		return false
	}
	c.opening, c.reserved = name, true
	return true
}

// opened notes that c holds its export, unless it was revoked meanwhile.
func (s *Server) opened(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.holding = true
	return !c.revoked.Load()
}

// released notes that c no longer holds or opens an export.
func (s *Server) released(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.opening, c.reserved, c.holding = "", false, false
}
