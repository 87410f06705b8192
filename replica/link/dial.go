package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"replicad/internal/failpoint"
	"replicad/wire"
)

// lingerMax is how long Connect goes on accepting after a permanent refusal.
const lingerMax = time.Second

// errCrossed means that we gave our dial up in favour of the peer's.
var errCrossed = &wire.RefusedError{Reason: wire.RefusedCrossed}

// errSelfDial is the kernel's simultaneous open: on loopback a dial can be
// given the very port it dials.
var errSelfDial = errors.New("socket connected to itself")

// dialLoop dials until there is a session or ctx ends. A permanent refusal of
// the peer goes to refused and ends the loop.
//
// Only what the configured address answers to our own dial can be permanent:
// whoever dials us with a wrong secret may be anybody.
func (l *Link) dialLoop(ctx context.Context, refused chan<- error) {
	hurried := false
	for ctx.Err() == nil {
		err := l.dialSession(ctx)
		if err == nil {
			return
		}
		if r, ok := errors.AsType[*wire.RefusedError](err); ok && r.Permanent() {
			refused <- err
			return
		}
		hurried = l.pause(ctx, hurried)
	}
}

// pause waits for the next dial and reports whether it was cut short because
// the peer showed itself. That happens at most every other time, so that two
// nodes that fail each other cannot keep each other dialling without pause.
func (l *Link) pause(ctx context.Context, hurriedBefore bool) (hurried bool) {
	timer := time.NewTimer(jitter(l.cfg.ConnectInterval))
	defer timer.Stop()
	soon := l.dialSoon
	if hurriedBefore {
		soon = nil
	}
	select {
	case <-soon:
		return true
	case <-timer.C:
	case <-ctx.Done():
	case <-l.ctx.Done():
	}
	return false
}

// jitter is d ± 14 %, as DRBD has it, so that two nodes do not stay in step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.86 + 0.28*rand.Float64()))
}

// linger is how long to wait after a permanent refusal for the peer to dial.
func (l *Link) linger() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.toldPeer {
		return 0
	}
	return lingerMax
}

// dialSession makes one attempt at a whole session.
func (l *Link) dialSession(ctx context.Context) error {
	data, err := l.dialConn(ctx)
	if err != nil {
		return err
	}
	defer l.endDial()
	h, first, err := l.greet(ctx, data, wire.ChannelData, wire.SessionID{})
	if err != nil {
		_ = data.Close()
		return err
	}
	second, err := l.dialControl(ctx, h)
	if err != nil {
		_ = data.Close()
		return err
	}
	s, err := newSession(&l.cfg, h, first, second, true)
	if err != nil {
		return errors.Join(err, data.Close(), second.tcp.Close())
	}
	l.establish(s, nil)
	return nil
}

// dialControl opens the second connection of the session that h began.
func (l *Link) dialControl(ctx context.Context, h *wire.Handshake) (stream, error) {
	control, err := l.dialConn(ctx)
	if err != nil {
		return stream{}, err
	}
	second, way, err := l.greet(ctx, control, wire.ChannelControl, h.Session())
	if err == nil && second.Peer().Instance != h.Peer().Instance {
		err = fmt.Errorf("%w: two nodes answer at the peer's address", wire.ErrHandshake)
	}
	if err != nil {
		_ = control.Close()
		return stream{}, err
	}
	return way, nil
}

// dialConn makes one TCP connection to the peer.
func (l *Link) dialConn(ctx context.Context) (*net.TCPConn, error) {
	d := net.Dialer{
		Timeout:         l.cfg.HandshakeTimeout,
		LocalAddr:       l.dialFrom(),
		KeepAliveConfig: l.cfg.Socket.keepAlive(),
		Control:         l.cfg.Socket.control,
	}
	h, err := failpoint.Begin(failpoint.LinkDial)
	if err != nil {
		return nil, fmt.Errorf("dial peer: %w", err)
	}
	conn, err := d.DialContext(ctx, "tcp", l.cfg.Peer.String())
	h.End()
	if err != nil {
		return nil, fmt.Errorf("dial peer: %w", err)
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok || addrPort(tcp.LocalAddr()) == addrPort(tcp.RemoteAddr()) {
		_ = conn.Close()
		return nil, fmt.Errorf("dial peer: %w", errSelfDial)
	}
	return tcp, nil
}

// dialFrom is the configured address with any port: the peer accepts only
// that one. An address that cannot reach the peer is left to the kernel.
func (l *Link) dialFrom() net.Addr {
	local, peer := l.cfg.Local.Addr().Unmap(), l.cfg.Peer.Addr().Unmap()
	if local.IsUnspecified() || local.Is4() != peer.Is4() || local.IsLoopback() != peer.IsLoopback() {
		return nil
	}
	return &net.TCPAddr{IP: local.AsSlice(), Zone: local.Zone()}
}

// greet runs the dialler's side of a handshake within HandshakeTimeout.
func (l *Link) greet(ctx context.Context, conn *net.TCPConn, ch wire.Channel, id wire.SessionID) (*wire.Handshake, stream, error) {
	t := newTalk(ctx, conn, l.cfg.HandshakeTimeout)
	h, err := l.greetSteps(t, ch, id)
	if err = t.finish(err); err != nil {
		l.report(conn, err, false)
		return nil, stream{}, fmt.Errorf("greet peer on %v connection: %w", ch, err)
	}
	return h, t.stream(), nil
}

func (l *Link) greetSteps(t *talk, ch wire.Channel, id wire.SessionID) (*wire.Handshake, error) {
	if err := l.secureDial(t); err != nil {
		return nil, err
	}
	cfg, err := l.handshakeConfig(ch, id, t.binding)
	if err != nil {
		return nil, err
	}
	h, err := wire.NewDialer(cfg)
	if err != nil {
		return nil, err
	}
	hello, err := h.Hello()
	if err := t.ask(h, hello, err); err != nil {
		return nil, err
	}
	if h.Peer().Channel == wire.ChannelData && !l.commitDial(h.Senior()) {
		return nil, errors.Join(errCrossed, t.send(h.Refuse(wire.RefusedCrossed), nil))
	}
	proof, err := h.Proof()
	return h, t.ask(h, proof, err)
}
