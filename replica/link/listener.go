package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"replicad/internal/failpoint"
	"replicad/wire"
)

// HalfOpenMax is the largest number of connections of one Listener whose
// handshake is not finished. More are refused as busy.
const HalfOpenMax = 16

// acceptPause is the wait after a failed accept, for instance when the process
// has no file descriptor left.
const acceptPause = 50 * time.Millisecond

// ListenOptions are the settings of a Listener.
type ListenOptions struct {
	HandshakeTimeout time.Duration // default 5 s
	Socket           SocketOptions
}

// Listener accepts the connections of all links on one local address. DRBD has
// one port per resource; the hello names the resource, so several can share.
type Listener struct {
	tcp     *net.TCPListener
	timeout time.Duration
	ctx     context.Context // ends half-open handshakes
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu    sync.Mutex
	links map[string]*member
	known map[string]bool // resources that ever were registered
	open  int             // handshakes not finished
}

// member is a registered link and the handshakes that work for it.
type member struct {
	link  *Link
	own   bool // the listener belongs to this link
	tasks sync.WaitGroup
}

// Listen opens a listener on addr. Close must be called.
func Listen(addr netip.AddrPort, opts ListenOptions) (*Listener, error) {
	ctx, cancel := context.WithCancel(context.Background())
	lc := net.ListenConfig{KeepAliveConfig: opts.Socket.keepAlive(), Control: opts.Socket.control}
	// Go listens with MPTCP by default; nothing here uses it, and its sockets
	// are slower and lack options.
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		cancel()
		return nil, fmt.Errorf("listen for peer: %w", err)
	}
	l := &Listener{
		tcp: ln.(*net.TCPListener), ctx: ctx, cancel: cancel, links: map[string]*member{}, known: map[string]bool{},
		timeout: orDefault(opts.HandshakeTimeout, handshakeTimeoutDefault),
	}
	l.tasks.Go(l.acceptLoop)
	return l, nil
}

// Addr is the address listened on.
func (l *Listener) Addr() netip.AddrPort { return addrPort(l.tcp.Addr()) }

// Close stops listening and ends every half-open handshake. It waits for the
// listener's goroutines. Sessions are not touched.
func (l *Listener) Close() {
	l.cancel()
	_ = l.tcp.Close() // a second Close is harmless
	l.tasks.Wait()
}

// register adds a link under its resource name.
func (l *Listener) register(k *Link) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.links[k.cfg.Resource] != nil {
		return fmt.Errorf("resource %s is already on %v", k.cfg.Resource, l.tcp.Addr())
	}
	l.links[k.cfg.Resource] = &member{link: k, own: k.cfg.Listener == nil}
	l.known[k.cfg.Resource] = true
	return nil
}

// leave removes a link and waits for handshakes that work for it. A listener
// that the link opened for itself is closed.
func (l *Listener) leave(k *Link) {
	l.mu.Lock()
	m := l.links[k.cfg.Resource]
	if m == nil || m.link != k {
		l.mu.Unlock()
		return
	}
	delete(l.links, k.cfg.Resource)
	l.mu.Unlock()
	if m.own {
		l.Close()
	}
	m.tasks.Wait()
}

// acceptLoop accepts until Close.
func (l *Listener) acceptLoop() {
	for {
		conn, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(acceptPause):
				continue
			case <-l.ctx.Done():
				return
			}
		}
		h, err := failpoint.Begin(failpoint.LinkAccept)
		if err != nil {
			_ = conn.Close()
			continue
		}
		l.admit(conn)
		h.End()
	}
}

// admit starts the handshake of a connection that may be a peer's, if there is
// room. Anybody else is told why and costs neither a goroutine nor a slot.
func (l *Listener) admit(conn *net.TCPConn) {
	if reason := l.claimSlot(addrPort(conn.RemoteAddr()).Addr()); reason != 0 {
		sendOff(conn, reason)
		return
	}
	l.tasks.Go(func() {
		defer l.freeSlot()
		l.serve(conn)
	})
}

// sendOff refuses without waiting: the frame fits any send buffer.
func sendOff(conn *net.TCPConn, reason wire.Refusal) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
	_, _ = conn.Write(wire.AppendRefusal(nil, reason))
	_ = conn.Close()
}

// claimSlot takes a half-open slot for a connection from addr; 0 = it has one.
func (l *Listener) claimSlot(addr netip.Addr) wire.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.expectedLocked(addr) {
		return wire.RefusedNotPeer
	}
	if l.open >= HalfOpenMax {
		return wire.RefusedBusy
	}
	l.open++
	return 0
}

func (l *Listener) freeSlot() {
	l.mu.Lock()
	l.open--
	l.mu.Unlock()
}

func (l *Listener) expectedLocked(addr netip.Addr) bool {
	for _, m := range l.links {
		if m.link.cfg.mayConnect(addr) {
			return true
		}
	}
	return false
}

// serve reads the opening and lets the link it names do the rest.
func (l *Listener) serve(conn *net.TCPConn) {
	t := newTalk(l.ctx, conn, l.timeout)
	if err := l.dispatch(t); err != nil {
		_ = t.finish(err)
		_ = conn.Close()
	}
}

// dispatch finds the link that the opening names. The link finishes the talk
// itself; an error means that the connection is to be closed.
func (l *Listener) dispatch(t *talk) error {
	first, err := t.read()
	var opening wire.Opening
	if err == nil {
		opening, err = wire.ParseOpening(first)
	}
	if err != nil {
		l.reportStranger(t.conn, err)
		return err
	}
	m := l.enter(opening.Resource)
	if m == nil {
		err := &wire.RefusedError{Reason: l.absence(opening.Resource)}
		l.reportStranger(t.conn, err)
		return errors.Join(err, t.send(wire.AppendRefusal(nil, err.Reason), nil))
	}
	defer m.tasks.Done()
	defer context.AfterFunc(m.link.ctx, t.expire)()
	return m.link.accept(t, first, opening.TLS)
}

// absence says why no link answers for a resource. One that was here has only
// left: the peer is to try again, not to give up for good.
func (l *Listener) absence(resource string) wire.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known[resource] {
		return wire.RefusedNotConnecting
	}
	return wire.RefusedResource
}

// enter finds a link and keeps it from leaving until tasks.Done.
func (l *Listener) enter(resource string) *member {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.links[resource]
	if m != nil {
		m.tasks.Add(1)
	}
	return m
}

// reportStranger reports a connection that named no link to the links whose
// peer it may have been.
func (l *Listener) reportStranger(conn *net.TCPConn, err error) {
	for _, k := range l.expecting(addrPort(conn.RemoteAddr()).Addr()) {
		k.report(conn, err, true)
		k.peerShowed(err)
	}
}

func (l *Listener) expecting(addr netip.Addr) []*Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	var links []*Link
	for _, m := range l.links {
		if m.link.cfg.mayConnect(addr) {
			links = append(links, m.link)
		}
	}
	return links
}
