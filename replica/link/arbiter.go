package link

import (
	"time"

	"replicad/wire"
)

// inbound is a data connection dialled by the peer and authenticated, whose
// control connection has not arrived yet.
type inbound struct {
	stream    stream
	handshake *wire.Handshake
	expiry    *time.Timer
	// completed says that the control connection is authenticated. It is set
	// before our last proof leaves, so before the peer can have a session.
	completed bool
}

// commitDial decides, between the peer's hello and our proof, whether our own
// dial goes on. It does not when a session is there or about to be; otherwise
// only the senior node has a choice.
func (l *Link) commitDial(senior bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed, l.upLocked():
		return false
	case l.inbound != nil && (senior || l.inbound.completed):
		return false
	}
	l.dialing = senior
	return true
}

// upLocked reports whether the newest session lives.
func (l *Link) upLocked() bool { return l.current != nil && l.current.Err() == nil }

// generation counts the sessions established so far.
func (l *Link) generation() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.established
}

// endDial ends what commitDial began.
func (l *Link) endDial() {
	l.mu.Lock()
	l.dialing = false
	l.mu.Unlock()
}

// commitInbound decides, between the peer's proof and ours, whether the peer's
// attempt goes on; 0 = yes. A newer attempt replaces an older one: the peer
// has at most one, so it gave the older one up.
//
// since is the generation in which the peer's hello came. An attempt that
// began before the newest session did is a loser of crossing dials, not a sign
// that the peer lost that session. One that began later passed the peer's own
// commitDial, which by then knew of that session: see completed.
func (l *Link) commitInbound(way stream, h *wire.Handshake, since uint64) (*inbound, wire.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, wire.RefusedNotConnecting
	case l.dialing && h.Senior():
		return nil, wire.RefusedCrossed
	case l.established != since, l.inbound != nil && l.inbound.completed:
		return nil, wire.RefusedCrossed
	}
	if old := l.inbound; old != nil {
		l.forgetLocked(old)
	}
	in := &inbound{stream: way, handshake: h}
	in.expiry = time.AfterFunc(l.cfg.HandshakeTimeout, func() { l.dropInbound(in) })
	l.inbound = in
	return in, 0
}

// findInbound returns the attempt that a control connection's hello names: the
// session id must fit, and the instance, so that no other node can complete it.
func (l *Link) findInbound(hello wire.Hello) *inbound {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := l.inbound
	if in == nil || in.completed || in.handshake.Session() != hello.Session || in.handshake.Peer().Instance != hello.Instance {
		return nil
	}
	return in
}

// complete marks the attempt as complete, if it still is the current one.
func (l *Link) complete(in *inbound) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inbound != in || in.completed || l.closed {
		return false
	}
	in.completed = true
	in.expiry.Stop()
	return true
}

// dropInbound gives an attempt of the peer up. Our own dial need not wait then.
func (l *Link) dropInbound(in *inbound) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inbound == in {
		l.forgetLocked(in)
		l.hurry()
	}
}

func (l *Link) forgetLocked(in *inbound) {
	in.expiry.Stop()
	_ = in.stream.tcp.Close() // an attempt given up: nothing to learn from the error
	l.inbound = nil
}

// establish makes s the link's session, in place of any older one. The
// attempt it grew out of, if the peer dialled, ends in the same step, so that
// at no moment a dial of ours could slip in between.
func (l *Link) establish(s *Session, from *inbound) {
	l.mu.Lock()
	if from != nil && l.inbound == from {
		l.inbound = nil
	}
	old := l.current
	closed := l.closed
	if !closed {
		l.tasks.Go(s.writers.Wait)
		l.current = s
		l.established++
		l.offerLocked(s)
	}
	l.mu.Unlock()
	switch {
	case closed:
		s.Close(ErrClosed)
		s.writers.Wait()
	case old != nil:
		old.Close(ErrSuperseded)
	}
}

// offerLocked puts s where Connect finds it, for a limited time.
func (l *Link) offerLocked(s *Session) {
	if l.claim != nil {
		l.claim.Stop()
	}
	l.next = s
	l.claim = time.AfterFunc(l.cfg.HandshakeTimeout, func() { l.withdraw(s) })
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// withdraw closes a session that no Connect took in time.
func (l *Link) withdraw(s *Session) {
	l.mu.Lock()
	unclaimed := l.next == s
	if unclaimed {
		l.next = nil
	}
	l.mu.Unlock()
	if unclaimed {
		s.Close(ErrUnclaimed)
	}
}

// take hands the newest session to Connect.
func (l *Link) take() *Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.next
	if s == nil {
		return nil
	}
	l.next = nil
	l.claim.Stop()
	return s
}

// hurry lets the dialler try before its interval is over.
func (l *Link) hurry() {
	select {
	case l.dialSoon <- struct{}{}:
	default:
	}
}
