package replica

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"replicad/replica/core"
)

// feed tells those who watch that something changed. The fields are guarded by
// the resource's lock.
type feed struct {
	changed chan struct{} // closed at the next change
	subs    map[*Subscription]struct{}
}

func (f *feed) init() {
	f.changed = make(chan struct{})
	f.subs = make(map[*Subscription]struct{})
}

// notify wakes everybody who waits on Changed.
func (f *feed) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed) publish(c Change) {
	for s := range f.subs {
		select {
		case s.c <- c:
		default:
			s.skipped.Add(1)
		}
	}
}

// Subscription is a stream of changes.
type Subscription struct {
	C       <-chan Change
	c       chan Change
	r       *Resource
	skipped atomic.Uint64
}

// Subscribe starts a stream of changes that holds up to size of them for a
// slow reader; more are dropped and counted. Close ends it.
func (r *Resource) Subscribe(size int) *Subscription {
	c := make(chan Change, max(size, 1))
	s := &Subscription{C: c, c: c, r: r}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed.subs[s] = struct{}{}
	return s
}

// Skipped returns how many changes were dropped since the last call.
func (s *Subscription) Skipped() uint64 { return s.skipped.Swap(0) }

// Close ends the stream. C is not closed.
func (s *Subscription) Close() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	delete(s.r.feed.subs, s)
}

// Changed returns a channel that is closed at the next change of the
// resource's state or of the number of openers. Take it before looking at
// Status, or a change may be missed.
func (r *Resource) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.feed.changed
}

// stateChanged performs ActState. Called with the lock held.
func (r *Resource) stateChanged(a *core.Action) {
	r.feed.publish(Change{At: r.wallTime(r.now()), Vol: a.Vol, Old: a.Old, New: a.New})
	r.feed.notify()
	if a.Old.Conn != core.StandAlone && a.New.Conn == core.StandAlone {
		r.line.hangUp() // whatever ended the link, nobody shall reach us now
	}
	if a.Old.Role == core.Primary && a.New.Role != core.Primary && a.Vol >= 0 {
		r.revoke(r.volume(uint16(a.Vol)))
	}
}

// revokeTimeout bounds how long clients may take to let go of a volume that
// was demoted under them.
const revokeTimeout = 30 * time.Second

// revoke makes the owner send away the clients of a volume. Called with the lock held.
func (r *Resource) revoke(v *Volume) {
	if v.openers == 0 || r.cfg.Revoke == nil || r.closing {
		return // Close revokes by itself
	}
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.done, revokeTimeout)
		defer cancel()
		r.cfg.Revoke(ctx, v.number)
	})
}

// WaitConnect waits until the resource is connected. It returns ErrStandAlone
// when nobody is trying to connect, ErrClosed, or the context's error.
func (r *Resource) WaitConnect(ctx context.Context) error {
	return r.waitFor(ctx, func(s *core.Status) (bool, error) {
		low := lowestConn(s)
		if low == core.StandAlone {
			return false, ErrStandAlone
		}
		return low >= core.Connected, nil
	})
}

// WaitSync waits until the resource is connected with no resync running or
// due. It returns ErrLinkDown when the link stays down for longer than
// linkTimeout at a stretch (0 = for ever), ErrClosed, or the context's error.
func (r *Resource) WaitSync(ctx context.Context, linkTimeout time.Duration) error {
	var down *time.Timer // runs while the link is down, nil without a limit
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if linkTimeout > 0 {
		down = time.AfterFunc(linkTimeout, func() { cancel(ErrLinkDown) })
		defer down.Stop()
	}
	wasUp := false
	return r.waitFor(ctx, func(s *core.Status) (bool, error) {
		up := lowestConn(s) >= core.Connected
		switch {
		case down == nil || up == wasUp:
		case up:
			down.Stop()
		default:
			down.Reset(linkTimeout)
		}
		wasUp = up
		return up && !syncPending(s), nil
	})
}

// waitFor looks at the state after each change until done says so.
func (r *Resource) waitFor(ctx context.Context, done func(*core.Status) (bool, error)) error {
	for {
		r.mu.Lock()
		changed, closed := r.feed.changed, r.closed
		s := r.core.Status()
		r.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if ok, err := done(&s); ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for state: %w", context.Cause(ctx))
		}
	}
}

func lowestConn(s *core.Status) core.Conn {
	low := core.Behind
	for i := range s.Volumes {
		low = min(low, s.Volumes[i].State.Conn)
	}
	return low
}

// syncPending reports that a resync runs, is being prepared or is still due.
func syncPending(s *core.Status) bool {
	for i := range s.Volumes {
		st := s.Volumes[i].State
		due := st.Disk == core.UpToDate && st.PDisk == core.Inconsistent ||
			st.Disk == core.Inconsistent && st.PDisk == core.UpToDate ||
			st.Disk == core.Negotiating || st.PDisk == core.Negotiating
		if st.Conn != core.Connected || due {
			return true
		}
	}
	return false
}
