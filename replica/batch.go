package replica

import (
	"fmt"
	"runtime/debug"

	"replicad/replica/core"
)

// batch is the working memory of one goroutine that brings events to the core
// and carries out what follows. The slices are reused: in steady state a
// request allocates nothing.
//
// A batch is used by one goroutine at a time.
type batch struct {
	r *Resource
	// inline says that this goroutine may itself do disk operations that
	// normally end in the page cache. The control reader and the alarm must not:
	// a throttled page cache would delay acknowledgements and pings.
	inline bool

	events  []core.Event
	actions []core.Action
	outbox  channels // connections with messages queued by this batch
}

func (b *batch) add(e core.Event) { b.events = append(b.events, e) }

// run steps the core with the collected events and performs the actions, until
// the operations done on this goroutine bring no further event.
func (b *batch) run() {
	for len(b.events) > 0 {
		b.stepAndSend()
		b.perform()
	}
}

// stepAndSend is the first half of a round: the state changes and the peer is
// told. What is left in b.actions may be done in any order.
func (b *batch) stepAndSend() {
	b.step()
	b.flushOutbox()
}

// step brings all collected events to the core under one lock. Events of the
// next round, if any, are in b.events afterwards.
func (b *batch) step() {
	b.r.mu.Lock()
	defer b.r.unlockAfterStep()
	b.stepLocked()
}

// stepAfter is step with something to check or change first, under the same
// lock; prepare adds the events. An error of prepare is returned and nothing is
// stepped.
func (b *batch) stepAfter(prepare func() error) error {
	b.r.mu.Lock()
	defer b.r.unlockAfterStep()
	if err := prepare(); err != nil {
		clear(b.events)
		b.events = b.events[:0]
		return err
	}
	b.stepLocked()
	return nil
}

func (b *batch) stepLocked() {
	r := b.r
	if r.closed {
		b.dropEvents()
		return
	}
	now := r.now()
	for i := range b.events {
		r.account(&b.events[i])
		b.actions = r.core.Step(now, b.events[i], b.actions)
	}
	clear(b.events)
	b.events = b.events[:0]
	b.settleUnderLock()
	r.line.checkPeerRoom()
	r.armAlarm()
}

// dropEvents answers events in the place of a core that steps no more: client
// requests fail, buffers are given back.
func (b *batch) dropEvents() {
	for i := range b.events {
		e := &b.events[i]
		b.r.account(e)
		switch e.Kind {
		case core.EvGateClosed:
			b.r.volume(e.Vol).readersGone = true
			b.r.feed.notify()
		case core.EvRead, core.EvWrite, core.EvTrim, core.EvZero, core.EvFlush:
			b.r.bufs.slot(e.Buf).inCore = false
			b.actions = append(b.actions, core.Action{Kind: core.ActComplete, Buf: e.Buf, Result: core.IOShutdown})
		case core.EvDiskDone, core.EvPeer:
			if e.Buf != 0 {
				b.actions = append(b.actions, core.Action{Kind: core.ActRelease, Buf: e.Buf})
			}
		}
	}
	clear(b.events)
	b.events = b.events[:0]
}

// finish does what follows from a step that was not made by run.
func (b *batch) finish() {
	b.flushOutbox()
	b.perform()
	b.run()
}

// unlockAfterStep releases the lock, unless the core found one of its
// invariants broken. Then nothing may be acknowledged any more: the lock stays
// held and the process ends, even if somebody up the stack recovers panics.
func (r *Resource) unlockAfterStep() {
	if cause := recover(); cause != nil {
		r.log.Error("internal invariant broken; the process ends before it can do harm",
			"cause", cause, "stack", string(debug.Stack()))
		r.abort()
		panic(cause)
	}
	r.mu.Unlock()
}

// settleUnderLock performs the actions whose order counts: messages to the
// peer, metadata writes, gates, the link and state notices. All are short and
// none does I/O. The others stay in b.actions.
func (b *batch) settleUnderLock() {
	kept := b.actions[:0]
	for i := range b.actions {
		if !b.settle(&b.actions[i]) {
			kept = append(kept, b.actions[i])
		}
	}
	clear(b.actions[len(kept):])
	b.actions = kept
}

// settle performs a if its order counts, and reports whether it did.
func (b *batch) settle(a *core.Action) bool {
	r := b.r
	switch a.Kind {
	case core.ActComplete:
		r.answered(a.Buf)
		return false
	case core.ActSend:
		b.outbox |= r.line.queue(a)
	case core.ActDiskRead, core.ActDiskWrite, core.ActDiskTrim, core.ActDiskZero, core.ActDiskFlush:
		r.volume(uint16(a.Vol)).running++
		return false
	case core.ActMetaSuper, core.ActMetaAL, core.ActMetaBitmap:
		r.volume(uint16(a.Vol)).queueMeta(a)
	case core.ActOpenGate:
		r.openGate(r.volume(uint16(a.Vol)))
	case core.ActCloseGate:
		b.closeGate(r.volume(uint16(a.Vol)), a.Op)
	case core.ActDetach:
		r.volume(uint16(a.Vol)).detach()
	case core.ActDial, core.ActStopDial, core.ActDrop:
		r.line.command(a)
	case core.ActState:
		r.stateChanged(a)
	case core.ActCommandDone:
		r.commandDone(a)
	case core.ActHandler:
		b.startHandler(a)
	case core.ActLog:
		r.logs.push(a)
	default:
		return false
	}
	return true
}

// openGate lets reads past the core, inside the size the volume has now: what
// lies behind it on the disk is metadata. Reads beyond go through the core.
func (r *Resource) openGate(v *Volume) {
	s := r.core.Status()
	for i := range s.Volumes {
		if s.Volumes[i].Vol == v.number {
			v.limit.Store(s.Volumes[i].Size)
		}
	}
	v.gate.open()
}

// closeGate answers at once if no read is under way; otherwise the last reader does.
func (b *batch) closeGate(v *Volume, op core.Op) {
	if v.gate.shut(op) {
		b.add(core.Event{Kind: core.EvGateClosed, Vol: v.number, Op: op})
	}
}

// account keeps count of what the core is about to know: client requests that
// it owes an answer, and operations on a volume's disk, which is closed only
// after the core has heard of all of them.
func (r *Resource) account(e *core.Event) {
	switch e.Kind {
	case core.EvRead, core.EvWrite, core.EvTrim, core.EvZero, core.EvFlush:
		r.bufs.slot(e.Buf).inCore = true
	case core.EvDiskDone, core.EvMetaDone:
		v := r.volume(e.Vol)
		v.running--
		v.closeWhenIdle()
	}
}

// answered checks that the core answers each client request once.
func (r *Resource) answered(buf core.Buf) {
	s := r.bufs.slot(buf)
	if !s.inCore {
		panic(fmt.Sprintf("replica: request %d answered twice", buf))
	}
	s.inCore = false
}

// perform does the actions that may run in any order.
func (b *batch) perform() {
	for i := range b.actions {
		b.execute(&b.actions[i])
	}
	clear(b.actions)
	b.actions = b.actions[:0]
}

func (b *batch) execute(a *core.Action) {
	r := b.r
	switch a.Kind {
	case core.ActComplete:
		r.complete(a)
	case core.ActRelease:
		r.bufs.release(a.Buf)
	case core.ActDiskRead, core.ActDiskWrite, core.ActDiskTrim, core.ActDiskZero, core.ActDiskFlush:
		b.diskAction(a)
	}
}

// flushOutbox lets the messages queued by this batch go to the peer, as one
// write per connection. It never waits for the peer: what the socket does not
// take is left to the link's own writer, and the admission of client requests
// is what holds back a fast client.
func (b *batch) flushOutbox() {
	if b.outbox == 0 {
		return
	}
	if session, seq := b.r.line.kick(b.outbox); seq != 0 {
		b.add(core.Event{Kind: core.EvSent, Session: session, Seq: seq})
	}
	b.outbox = 0
}
