package replica

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"replicad/replica/core"
	"replicad/replica/link"
	"replicad/wire"
)

const (
	// parkedReadsMax is how many reads on the peer's behalf may wait for
	// buffers before we stop listening to it.
	parkedReadsMax = 4096
	// peerOpsCheck is how many messages pass between two looks at whether the
	// core has more of them than is good. Under protocol A nothing else bounds
	// trims, which need no buffer.
	peerOpsCheck = 1024
	// eventsMax bounds the messages that a reader brings to the core at once.
	eventsMax = 256
)

// session is one established session and its number.
type session struct {
	line   *line
	number core.Session
	link   *link.Session
	sent   atomic.Uint64 // highest write handed to the kernel, not yet told to the core; 0 = none

	dropped atomic.Uint32 // core.DropReason of ActDrop

	payload core.Buf // data reader: buffer of the frame being read
	arrived batch    // data reader's events
}

// readData is the body of the data reader: the only goroutine that waits for
// payload buffers, which holds back the peer.
func (s *session) readData() {
	b := &s.arrived
	alloc := s.alloc
	count := 0
	for {
		m, _, err := s.link.Data.Read(alloc)
		if err != nil {
			if s.payload != 0 {
				b.r.bufs.release(s.payload)
			}
			b.run()
			return
		}
		b.add(core.Event{Kind: core.EvPeer, Session: s.number, Msg: m, Buf: s.payload})
		s.payload = 0
		if s.link.Data.Buffered() < wire.HeaderSize || len(b.events) >= eventsMax {
			b.run()
		}
		if count++; count%peerOpsCheck == 0 {
			b.run()
			s.awaitPeerOps()
		}
		if m.Kind == wire.KindResyncRequest || m.Kind == wire.KindReadRequest {
			b.r.bufs.waitUnparked(parkedReadsMax, s.gone)
		}
	}
}

// alloc finds a buffer for the payload of the frame being read. What was read
// before it must not wait: neither for memory nor for the rest of this frame.
func (s *session) alloc(n int) []byte {
	bufs := s.line.r.bufs
	if s.link.Data.Buffered() < n {
		s.arrived.run()
	}
	s.payload = bufs.tryPayload(n, budgetArrived)
	if s.payload == 0 {
		s.arrived.run()
		s.payload = bufs.waitPayload(n, s.gone)
	}
	if s.payload == 0 {
		return nil
	}
	return bufs.slot(s.payload).data
}

// awaitPeerOps waits while too many of the peer's messages wait in the core.
func (s *session) awaitPeerOps() {
	l := s.line
	l.r.mu.Lock()
	if !l.r.core.Congested() {
		l.r.mu.Unlock()
		return
	}
	room := make(chan struct{})
	l.peerRoom = room
	l.r.mu.Unlock()
	select {
	case <-room:
	case <-s.link.Done():
	}
}

// checkPeerRoom lets the data reader go on. Called with the lock held.
func (l *line) checkPeerRoom() {
	if l.peerRoom != nil && !l.r.core.Congested() {
		close(l.peerRoom)
		l.peerRoom = nil
	}
}

func (s *session) gone() bool { return s.link.Err() != nil }

// readControl is the body of the control reader. It never waits for anything
// but the socket: acknowledgements and pings must get through whatever the
// disks do.
func (s *session) readControl() {
	defer s.line.r.bufs.wakeWaiters() // the data reader may wait for memory
	b := batch{r: s.line.r}
	for {
		m, _, err := s.link.Control.Read(nil)
		if err != nil {
			b.run()
			return
		}
		b.add(core.Event{Kind: core.EvPeer, Session: s.number, Msg: m})
		if s.link.Control.Buffered() < wire.HeaderSize || len(b.events) >= eventsMax {
			b.run()
		}
	}
}

// drop ends the session for the core. Called with the resource's lock held.
func (s *session) drop(reason core.DropReason) {
	if !s.dropped.CompareAndSwap(uint32(core.DropNone), uint32(reason)) {
		return
	}
	switch reason {
	case core.DropAdmin, core.DropTearDown, core.DropHandshake:
		s.line.r.wg.Go(s.closeInOrder)
	default:
		s.link.Close(fmt.Errorf("session dropped (%d)", reason))
	}
}

// closeInOrder sends what is queued, within dropGrace, and closes.
func (s *session) closeInOrder() {
	closed := errors.New("session closed")
	timer := time.AfterFunc(dropGrace, func() { s.link.Close(closed) })
	defer timer.Stop()
	// A failed flush ended the session already.
	_ = s.link.Data.Flush()
	_ = s.link.Control.Flush()
	s.link.Close(closed)
}

// reason says in the core's terms why the session ended.
func (s *session) reason() core.DropReason {
	if dropped := core.DropReason(s.dropped.Load()); dropped != core.DropNone {
		return dropped
	}
	err := s.link.Err()
	for _, protocol := range []error{wire.ErrMagic, wire.ErrHash, wire.ErrChannel, wire.ErrMalformed} {
		if errors.Is(err, protocol) {
			return core.DropProtocol
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, link.ErrQueueFull) {
		return core.DropTimeout
	}
	return core.DropBrokenPipe
}
