package replica

import "sync"

// admission bounds the client requests inside a resource, by number and by
// bytes. It is claimed at the edge, for a whole request at once, so that nothing
// further inside ever waits for space.
type admission struct {
	mu      sync.Mutex
	slots   int
	bytes   int64
	waiters []*claim // first come, first served: a large request is not starved by small ones
}

type claim struct {
	slots int
	bytes int64
	ready chan struct{}
}

func (a *admission) init(slots int, bytes int64) { a.slots, a.bytes = slots, bytes }

// try claims without waiting. It fails while others wait.
func (a *admission) try(slots int, bytes int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.waiters) == 0 && a.take(slots, bytes)
}

func (a *admission) take(slots int, bytes int64) bool {
	if slots > a.slots || bytes > a.bytes {
		return false
	}
	a.slots -= slots
	a.bytes -= bytes
	return true
}

// wait claims, waiting for its turn.
func (a *admission) wait(slots int, bytes int64) {
	a.mu.Lock()
	if len(a.waiters) == 0 && a.take(slots, bytes) {
		a.mu.Unlock()
		return
	}
	c := &claim{slots: slots, bytes: bytes, ready: make(chan struct{})}
	a.waiters = append(a.waiters, c)
	a.mu.Unlock()
	<-c.ready
}

// give returns a claim and lets in whoever fits now.
func (a *admission) give(slots int, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.slots += slots
	a.bytes += bytes
	for len(a.waiters) > 0 && a.take(a.waiters[0].slots, a.waiters[0].bytes) {
		close(a.waiters[0].ready)
		a.waiters = a.waiters[1:]
	}
}
