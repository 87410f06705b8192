// Package link makes and runs sessions with the peer over TCP: it listens and
// dials, authenticates, resolves crossing dials, and moves messages of package
// wire in batches over the two connections of a session.
//
// It does not know what a message means, keeps no state between sessions, and
// notices a silent peer only when a write makes no progress for a whole
// Config.WriteTimeout: pings and their timeouts are the core's.
//
// # One session out of two dials
//
// Both nodes listen, and both dial while they have no session. The dialler
// opens the data connection, then the control connection, which names the
// session id that both nodes computed from the data connection's handshake; a
// session exists once both are authenticated.
//
// When dials cross, one node alone decides, so that the two never disagree:
// the senior one, whose instance id is the greater. It commits to at most one
// attempt at a time, its own once it has the peer's hello, or the peer's once
// it has the peer's proof, and refuses or drops the other. The junior node
// accepts what the senior node dials. A dial that gets no answer commits
// nobody, so a one-way network leaves the other direction usable.
//
// # TLS
//
// With Config.TLS both connections begin with a start frame in the clear, then
// nothing but TLS 1.3 follows, and the handshake runs inside it. Who shows a
// certificate that does not lead to the pinned ones and name the peer is
// refused there. The writer makes records in memory and sends them itself; see
// sealed. The certificates may be replaced at any time: Credentials.
//
// # A new session while one is up
//
// A peer dials only when it has no session, so an authenticated new attempt
// proves that the old session is dead at the peer even if our TCP has not
// noticed (the peer rebooted, or an RST was lost). The old session is closed
// with ErrSuperseded once both connections of the new one are authenticated,
// not earlier: strangers, bad secrets and bad certificates never disturb a
// session.
//
// # Goroutines
//
//	acceptor         1 per Listener     ends with Listener.Close
//	handshake        1 per half-open connection, at most HalfOpenMax; ends by its deadline
//	dialler          1 while Connect runs
//	background writer 2 per session     end with the session
//
// Readers and flushing writers are the caller's goroutines.
package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"replicad/wire"
)

// Defaults of Config, DRBD 8.4's where it has the option.
const (
	connectIntervalDefault  = 10 * time.Second
	handshakeTimeoutDefault = 5 * time.Second
	writeTimeoutDefault     = 42 * time.Second // timeout 6 s × ko-count 7
	queueBytesMaxDefault    = 64 << 20
)

// ErrUnauthenticated means that a link off loopback has neither a shared secret
// nor TLS, and nobody allowed that.
var ErrUnauthenticated = errors.New("a link between hosts needs a shared secret")

// Events are the callbacks of a link. They run on whatever goroutine writes,
// without a lock of this package, one at a time for each connection and in the
// order of the messages. They may call Queue and Kick, never Flush.
type Events struct {
	// Sent says that write(2) returned for the whole frame of every mirrored
	// write (Data, Trim, Zero) up to the one with number seq.
	Sent func(s *Session, seq uint64)
	// Release gives a payload buffer back: its bytes were written, or the
	// session is over. It is called exactly once for each buffer queued.
	Release func(BufferID)
	// Refused reports a handshake that failed for a reason worth a log line: a
	// *wire.RefusedError, or wire.ErrHandshake for a stranger. At most one a
	// second for connections from outside.
	Refused func(remote netip.AddrPort, err error)
}

// Config says how to reach and recognise the peer.
type Config struct {
	Resource string
	// Secret authenticates both nodes. Without one the link runs only between
	// loopback addresses, or with TLS, or with AllowUnauthenticated.
	Secret               []byte
	AllowUnauthenticated bool
	// TLS, if not nil, makes every connection TLS 1.3 between two certificates;
	// then a secret is not needed, but is used if there is one.
	TLS         *Credentials
	Local, Peer netip.AddrPort
	// Listener, if not nil, is shared with other resources and outlives the
	// Link; otherwise the Link listens on Local itself.
	Listener *Listener
	// Features are optional abilities to negotiate.
	Features uint32

	ConnectInterval  time.Duration // between dials, ±14 %; default 10 s
	HandshakeTimeout time.Duration // of one dial, and of one handshake; default 5 s
	WriteTimeout     time.Duration // without the peer taking a byte; default 42 s
	QueueBytesMax    int64         // of one connection; default 64 MiB; control has a lower limit of its own
	Socket           SocketOptions

	Events Events
	// Rand makes nonces and ids; default crypto/rand. Tests only.
	Rand io.Reader
}

// withDefaults checks a configuration and fills in what it leaves out.
func (c Config) withDefaults() (Config, error) {
	switch {
	case !c.Local.IsValid() || !c.Peer.IsValid() || c.Peer.Port() == 0:
		return c, errors.New("local or peer address is missing")
	case len(c.Resource) == 0 || len(c.Resource) > wire.ResourceNameMax:
		return c, fmt.Errorf("resource name must have 1 to %d bytes", wire.ResourceNameMax)
	case len(c.Secret) == 0 && c.TLS == nil && !c.AllowUnauthenticated && !c.onLoopback():
		return c, ErrUnauthenticated
	}
	c.ConnectInterval = orDefault(c.ConnectInterval, connectIntervalDefault)
	c.HandshakeTimeout = orDefault(c.HandshakeTimeout, handshakeTimeoutDefault)
	c.WriteTimeout = orDefault(c.WriteTimeout, writeTimeoutDefault)
	c.QueueBytesMax = orDefault(c.QueueBytesMax, queueBytesMaxDefault)
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c, nil
}

func orDefault[T time.Duration | int64](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

func (c *Config) onLoopback() bool {
	return c.Local.Addr().IsLoopback() && c.Peer.Addr().IsLoopback()
}

// mayConnect reports whether a connection from addr can be the peer's. DRBD
// too accepts only the configured address. On loopback the source address
// says nothing, and any loopback address will do.
func (c *Config) mayConnect(addr netip.Addr) bool {
	want := c.Peer.Addr().Unmap()
	return addr == want || addr.IsLoopback() && want.IsLoopback()
}

// Link makes one session at a time with one peer. Its methods may be called
// from any goroutine.
type Link struct {
	cfg      Config
	instance wire.Instance
	ready    chan struct{}   // next was set
	dialSoon chan struct{}   // the peer is there: do not wait a whole interval
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	tasks    sync.WaitGroup // Connect and the writers of sessions

	mu          sync.Mutex
	listener    *Listener // registered with; nil before the first Connect
	connecting  bool      // Connect runs
	closed      bool
	dialing     bool     // as the senior node we committed to our own dial
	inbound     *inbound // attempt of the peer we committed to
	current     *Session // the newest session
	established uint64   // sessions so far
	next        *Session // current, until Connect hands it out
	claim       *time.Timer
	toldPeer    bool // refused the peer for a permanent reason during this Connect
	reported    time.Time
}

// New checks cfg and makes a link that does nothing before Connect.
func New(cfg Config) (*Link, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure link: %w", err)
	}
	l := &Link{cfg: cfg, ready: make(chan struct{}, 1), dialSoon: make(chan struct{}, 1)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if _, err := io.ReadFull(cfg.Rand, l.instance[:]); err != nil {
		return nil, fmt.Errorf("draw instance id: %w", err)
	}
	return l, nil
}

// Connect waits for a session and returns it: it dials every ConnectInterval
// and accepts the peer's dials. It goes on until ctx ends, Close is called
// (ErrClosed), or the reason cannot pass by itself: a *wire.RefusedError whose
// reason is permanent, or an error of listening. Only one Connect at a time.
//
// A session of an earlier Connect that still lives is closed with ErrReconnect.
// The link keeps accepting after Connect returned; when the peer replaces the
// session, the next Connect returns the new one at once.
func (l *Link) Connect(ctx context.Context) (*Session, error) {
	if err := l.beginConnect(); err != nil {
		return nil, fmt.Errorf("connect %s: %w", l.cfg.Resource, err)
	}
	defer l.endConnect()
	dialCtx, cancel := context.WithCancel(ctx)
	refused := make(chan error, 1)
	var dialer sync.WaitGroup
	dialer.Go(func() { l.dialLoop(dialCtx, refused) })
	defer dialer.Wait()
	defer cancel()
	s, err := l.await(ctx, refused)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", l.cfg.Resource, err)
	}
	return s, nil
}

// await returns the next session, or the reason there will be none.
func (l *Link) await(ctx context.Context, refused <-chan error) (*Session, error) {
	var verdict error
	var lingered <-chan time.Time
	for {
		if s := l.take(); s != nil {
			return s, nil
		}
		select {
		case <-l.ready:
		case verdict = <-refused:
			// The peer refused us for good. Stay a moment, so that its own
			// dial, which it now makes, hears the same from us.
			lingered = time.After(l.linger())
		case <-lingered:
			return nil, verdict
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-l.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// beginConnect claims the link for one Connect and makes sure it listens.
func (l *Link) beginConnect() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.connecting {
		return errors.New("another Connect is running")
	}
	if err := l.listenLocked(); err != nil {
		return err
	}
	if l.upLocked() && l.current != l.next {
		l.current.Close(ErrReconnect)
	}
	l.connecting, l.toldPeer = true, false
	l.tasks.Add(1)
	return nil
}

func (l *Link) endConnect() {
	l.mu.Lock()
	l.connecting = false
	l.mu.Unlock()
	l.tasks.Done()
}

// listenLocked opens the link's own listener, or joins the shared one.
func (l *Link) listenLocked() error {
	if l.listener != nil {
		return nil
	}
	ln := l.cfg.Listener
	if ln == nil {
		own, err := Listen(l.cfg.Local, ListenOptions{HandshakeTimeout: l.cfg.HandshakeTimeout, Socket: l.cfg.Socket})
		if err != nil {
			return err
		}
		ln = own
	}
	if err := ln.register(l); err != nil {
		return err
	}
	l.listener = ln
	return nil
}

// Close ends the link: Connect, the session, everything half open. It returns
// when Connect and all goroutines that serve the link have ended, so it must
// not be called from an Events callback. A shared Listener goes on.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	ln, current, in := l.listener, l.current, l.inbound
	l.mu.Unlock()
	l.cancel()
	if in != nil {
		l.dropInbound(in)
	}
	if current != nil {
		current.Close(ErrClosed)
	}
	if ln != nil {
		ln.leave(l)
	}
	l.tasks.Wait()
}

// Addr is the address the link listens on, invalid before the first Connect.
func (l *Link) Addr() netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener == nil {
		return netip.AddrPort{}
	}
	return l.listener.Addr()
}

// handshakeConfig is what we bring into one handshake, with a fresh nonce.
func (l *Link) handshakeConfig(ch wire.Channel, id wire.SessionID, binding []byte) (wire.HandshakeConfig, error) {
	cfg := wire.HandshakeConfig{
		Resource: l.cfg.Resource, Secret: l.cfg.Secret, Instance: l.instance,
		Features: l.cfg.Features, Channel: ch, Session: id, Binding: binding,
	}
	if _, err := io.ReadFull(l.cfg.Rand, cfg.Nonce[:]); err != nil {
		return cfg, fmt.Errorf("draw nonce: %w", err)
	}
	return cfg, nil
}

// report tells the owner about a failed handshake; see Events.Refused.
func (l *Link) report(conn net.Conn, err error, fromOutside bool) {
	refused, ok := errors.AsType[*wire.RefusedError](err)
	if !ok && !errors.Is(err, wire.ErrHandshake) || ok && refused.Reason == wire.RefusedCrossed {
		return
	}
	if l.cfg.Events.Refused == nil || fromOutside && !l.mayReport(time.Now()) {
		return
	}
	l.cfg.Events.Refused(addrPort(conn.RemoteAddr()), err)
}

// mayReport lets one report a second through: a stranger must not fill a log.
func (l *Link) mayReport(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.reported) < time.Second {
		return false
	}
	l.reported = now
	return true
}
