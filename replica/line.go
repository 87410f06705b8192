package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"replicad/replica/core"
	"replicad/replica/link"
	"replicad/wire"
)

const (
	// dropGrace bounds how long a session that ends in order may take to send
	// what is queued.
	dropGrace = 2 * time.Second
	// relistenPause is the wait after an error of listening.
	relistenPause = time.Second
	// queueSlack is the room in the outbox for everything that is not payload.
	queueSlack = 256 << 20
)

// channels is a set of a session's connections.
type channels uint8

const (
	onData channels = 1 << iota
	onControl
)

// line is the way to the peer: it makes one session after the other, as the
// core asks for them, and carries the core's messages.
type line struct {
	r    *Resource
	wake chan struct{}

	// Guarded by the resource's lock.
	want     core.Session       // session to make, 0 = none
	hungUp   bool               // since next: the link made for an earlier ActDial has to go
	cancel   context.CancelFunc // ends the Connect under way
	active   *session           // the session the core knows to be up
	peerRoom chan struct{}      // closed when few operations for the peer are left; nil while nobody waits

	// current is active for those without the lock. A session that is gone is
	// harmless there: its connections take nothing any more.
	current atomic.Pointer[session]
	// kickers counts the goroutines that will look for sent writes once
	// they have kicked, so that nobody else needs to be woken for them.
	kickers   atomic.Int32
	sentWake  chan struct{}
	wantsSent atomic.Bool // protocol A: the core waits for writes to be sent
}

func (l *line) init(r *Resource) {
	l.r = r
	l.wake = make(chan struct{}, 1)
	l.sentWake = make(chan struct{}, 1)
	l.wantsSent.Store(r.cfg.Core.Net.Protocol == 'A')
}

// command performs ActDial, ActStopDial and ActDrop. Called with the resource's lock held.
func (l *line) command(a *core.Action) {
	switch a.Kind {
	case core.ActDial:
		l.want = a.Session
	case core.ActStopDial:
		l.hangUp()
	case core.ActDrop:
		if s := l.active; s != nil && s.number == a.Session {
			s.drop(a.Reason)
		}
	}
	l.poke()
}

// hangUp stops listening and dialling. A session that is up goes on. Called
// with the resource's lock held.
func (l *line) hangUp() {
	l.want, l.hungUp = 0, true
	if l.cancel != nil {
		l.cancel()
	}
	l.poke()
}

func (l *line) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// queue appends a message to the outbox of its connection. Called with the
// resource's lock held, so that messages leave in the order the core emitted them.
func (l *line) queue(a *core.Action) channels {
	s := l.active
	if s == nil || s.number != a.Session {
		return 0
	}
	conn, ch := s.link.Data, onData
	if a.Msg.Kind.Channel() == wire.ChannelControl {
		conn, ch = s.link.Control, onControl
	}
	var payload []byte
	if a.Msg.HasPayload() {
		payload = l.r.bufs.slot(a.Buf).data
		l.r.bufs.hold(a.Buf)
	} else {
		a.Buf = 0
	}
	if err := conn.Queue(&a.Msg, payload, link.BufferID(a.Buf)); err != nil {
		if a.Buf != 0 {
			l.r.bufs.release(a.Buf)
		}
		// A message is missing now, so the session is of no use any more.
		s.link.Close(fmt.Errorf("queue message: %w", err))
		return 0
	}
	return ch
}

// kick lets queued messages go. It returns the last mirrored write that was
// handed to the kernel and that nobody has told the core of, 0 if there is none.
func (l *line) kick(ch channels) (core.Session, uint64) {
	s := l.current.Load()
	if s == nil {
		return 0, 0
	}
	l.kickers.Add(1)
	if ch&onData != 0 {
		s.link.Data.Kick()
	}
	if ch&onControl != 0 {
		s.link.Control.Kick()
	}
	// The count goes down before the look: see writesSent.
	l.kickers.Add(-1)
	if !l.wantsSent.Load() {
		return 0, 0
	}
	return s.number, s.sent.Swap(0)
}

// writesSent is the link's callback for mirrored writes that were handed to
// the kernel. If it finds a kicker, that one has not looked yet and will see
// the number; otherwise the notifier is woken.
func (l *line) writesSent(ls *link.Session, seq uint64) {
	s := l.current.Load()
	if s == nil || s.link != ls {
		return
	}
	s.sent.Store(seq)
	if l.kickers.Load() > 0 || !l.wantsSent.Load() {
		return
	}
	select {
	case l.sentWake <- struct{}{}:
	default:
	}
}

// notifySent is the body of the goroutine that tells the core about writes
// sent by the link's own writer.
func (r *Resource) notifySent() {
	b := batch{r: r}
	for {
		select {
		case <-r.line.sentWake:
		case <-r.done.Done():
			return
		}
		s := r.line.current.Load()
		if s == nil {
			continue
		}
		if seq := s.sent.Swap(0); seq != 0 {
			b.add(core.Event{Kind: core.EvSent, Session: s.number, Seq: seq})
			b.run()
		}
	}
}

// released is the link's callback for payload it no longer needs.
func (l *line) released(id link.BufferID) { l.r.bufs.release(core.Buf(id)) }

func (l *line) refused(remote netip.AddrPort, err error) {
	l.r.log.Warn("handshake with the peer failed", "remote", remote, "err", err)
}

// config is the link package's view of the configuration.
func (l *line) config() link.Config {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	c := &l.r.cfg
	return link.Config{
		Resource: c.Resource, Secret: []byte(c.Link.Secret), AllowUnauthenticated: c.Link.AllowUnauthenticated,
		TLS:   c.Link.TLS,
		Local: c.Link.Local, Peer: c.Link.Peer,
		ConnectInterval: c.Link.ConnectInterval, WriteTimeout: c.Link.WriteTimeout,
		QueueBytesMax: c.Limits.RequestBytes + c.Limits.PayloadBytes + queueSlack,
		Socket:        link.SocketOptions{SendBuffer: c.Link.SendBuffer, ReceiveBuffer: c.Link.ReceiveBuffer},
		Events:        link.Events{Sent: l.writesSent, Release: l.released, Refused: l.refused},
	}
}

// supervise is the body of the goroutine that makes sessions: dial when the
// core says so, run the session to its end, report it, and again.
func (l *line) supervise() {
	var way *link.Link
	for l.r.done.Err() == nil {
		ctx, cancel, number, hungUp := l.next()
		// A connect may follow at once, and with another configuration.
		if hungUp && way != nil {
			way.Close()
			way = nil
		}
		if number != 0 {
			way = l.attempt(ctx, way, number)
		} else {
			l.idle()
		}
		cancel()
	}
	if way != nil {
		way.Close()
	}
}

// next takes what the core wants, a context that ends when it wants something
// else, and whether it hung up since the last call.
func (l *line) next() (context.Context, context.CancelFunc, core.Session, bool) {
	ctx, cancel := context.WithCancel(l.r.done)
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.cancel = cancel
	hungUp := l.hungUp
	l.hungUp = false
	return ctx, cancel, l.want, hungUp
}

func (l *line) idle() {
	select {
	case <-l.wake:
	case <-l.r.done.Done():
	}
}

// attempt makes session number and runs it to its end. It returns the link to use next.
func (l *line) attempt(ctx context.Context, way *link.Link, number core.Session) *link.Link {
	if way == nil {
		var err error
		if way, err = link.New(l.config()); err != nil {
			l.refuse(number, err)
			return nil
		}
	}
	ls, err := way.Connect(ctx)
	switch refused, _ := errors.AsType[*wire.RefusedError](err); {
	case err == nil:
		l.run(number, ls)
	case ctx.Err() != nil || errors.Is(err, link.ErrClosed):
	case refused != nil:
		l.refuse(number, err)
	default:
		l.r.log.Warn("cannot connect", "err", err)
		l.pause(ctx)
	}
	return way
}

func (l *line) pause(ctx context.Context) {
	t := time.NewTimer(relistenPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// refuse tells the core that no retry will help.
func (l *line) refuse(number core.Session, err error) {
	b := batch{r: l.r}
	_ = b.stepAfter(func() error {
		if l.want == number {
			l.want = 0
			b.add(core.Event{Kind: core.EvLinkRefused, Session: number, Text: err.Error()})
		}
		return nil
	})
	b.finish()
}

// run brings a new session to the core, moves its messages until it ends, and
// reports the end as the last event of the session.
func (l *line) run(number core.Session, ls *link.Session) {
	s := &session{line: l, number: number, link: ls, arrived: batch{r: l.r, inline: true}}
	b := batch{r: l.r}
	if err := b.stepAfter(func() error { return l.install(s, &b) }); err != nil {
		ls.Close(err)
		return
	}
	b.finish()
	l.r.log.Info("link established", "session", number, "peer", ls.Peer, "dialed", ls.Dialed, "cipher", cmp.Or(ls.Cipher, "none"))
	defer context.AfterFunc(l.r.done, func() { ls.Close(ErrClosed) })()
	var readers sync.WaitGroup
	readers.Go(s.readData)
	readers.Go(s.readControl)
	readers.Wait()
	reason := s.reason()
	l.r.log.Info("link lost", "session", number, "err", ls.Err())
	_ = b.stepAfter(func() error {
		l.active = nil
		l.current.Store(nil)
		b.add(core.Event{Kind: core.EvLinkDown, Session: number, Reason: reason})
		return nil
	})
	b.finish()
}

// install makes s the active session, unless the core changed its mind meanwhile.
func (l *line) install(s *session, b *batch) error {
	if l.want != s.number || l.r.closed {
		return errors.New("no session is wanted any more")
	}
	l.want = 0
	l.active = s
	l.current.Store(s)
	b.add(core.Event{Kind: core.EvLinkUp, Session: s.number, Token: s.link.Token})
	return nil
}
