package link

import (
	"errors"

	"replicad/wire"
)

// accept runs the acceptor's side of a handshake whose first frame, an opening
// for this resource, was already read. An error means that the connection is
// to be closed; it was reported.
func (l *Link) accept(t *talk, first []byte, wantsTLS bool) error {
	err := l.acceptSteps(t, first, wantsTLS)
	if err != nil {
		l.report(t.conn, err, true)
		l.peerShowed(err)
	}
	return err
}

func (l *Link) acceptSteps(t *talk, first []byte, wantsTLS bool) error {
	if reason := l.judgeOpening(t, wantsTLS); reason != 0 {
		return t.sendRefusal(&wire.RefusedError{Reason: reason})
	}
	if wantsTLS {
		var err error
		if first, err = l.secureAccept(t); err != nil {
			return err
		}
	}
	cfg, err := l.handshakeConfig(0, wire.SessionID{}, t.binding)
	if err != nil {
		return err
	}
	h, err := wire.NewAcceptor(cfg)
	if err != nil {
		return err
	}
	since := l.generation() // before our hello leaves: see commitInbound
	if err := t.hand(h, first); err != nil {
		return err
	}
	if h.Peer().Channel == wire.ChannelControl {
		return l.acceptControl(t, h)
	}
	return l.acceptData(t, h, since)
}

// judgeOpening decides by what can be known before anything is exchanged; 0 = fits.
func (l *Link) judgeOpening(t *talk, wantsTLS bool) wire.Refusal {
	switch hasTLS := l.cfg.TLS != nil; {
	case !l.cfg.mayConnect(addrPort(t.conn.RemoteAddr()).Addr()):
		return wire.RefusedNotPeer
	case hasTLS && !wantsTLS:
		return wire.RefusedPlain
	case wantsTLS && !hasTLS:
		return wire.RefusedTLS
	}
	return 0
}

// acceptData authenticates a data connection and keeps it until its control
// connection comes.
func (l *Link) acceptData(t *talk, h *wire.Handshake, since uint64) error {
	if err := t.challenge(h); err != nil {
		return err
	}
	in, reason := l.commitInbound(t.stream(), h, since)
	if reason != 0 {
		return t.refuse(h, reason)
	}
	// From here on the control connection may complete the session: the
	// deadline must be gone before the peer hears that it may go on.
	err := t.finish(nil)
	if err == nil {
		err = t.send(h.Proof())
	}
	if err != nil {
		l.dropInbound(in)
	}
	return err
}

// acceptControl authenticates the control connection and completes the session
// it names.
func (l *Link) acceptControl(t *talk, h *wire.Handshake) error {
	in := l.findInbound(h.Peer())
	if in == nil {
		return t.refuse(h, wire.RefusedSession)
	}
	if err := t.challenge(h); err != nil {
		return err
	}
	if !l.complete(in) {
		return t.refuse(h, wire.RefusedSession)
	}
	err := t.send(h.Proof())
	if err = t.finish(err); err != nil {
		l.dropInbound(in)
		return err
	}
	s, err := newSession(&l.cfg, in.handshake, in.stream, t.stream(), false)
	if err != nil {
		l.dropInbound(in)
		return err
	}
	l.establish(s, in)
	return nil
}

// challenge sends our hello and verifies the dialler's proof.
func (t *talk) challenge(h *wire.Handshake) error {
	hello, err := h.Hello()
	return t.ask(h, hello, err)
}

// refuse tells the other end why it is refused.
func (t *talk) refuse(h *wire.Handshake, reason wire.Refusal) error {
	return errors.Join(&wire.RefusedError{Reason: reason}, t.send(h.Refuse(reason), nil))
}

// peerShowed notes that somebody at the peer's address dialled us and failed.
// If it was the peer, our own dial can learn why, so it need not wait; unless
// the reason was that our own dial is already under way.
func (l *Link) peerShowed(err error) {
	r, ok := errors.AsType[*wire.RefusedError](err)
	if ok && r.Reason == wire.RefusedCrossed {
		return
	}
	if ok && !r.ByPeer && r.Permanent() {
		l.mu.Lock()
		l.toldPeer = true
		l.mu.Unlock()
	}
	l.hurry()
}
