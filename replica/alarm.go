package replica

import (
	"time"

	"replicad/replica/core"
)

// tickMin is the least time between two ticks, so that a deadline in the past
// cannot keep a core busy.
const tickMin = time.Millisecond

// alarm wakes the core at its deadline. The fields are guarded by the
// resource's lock.
type alarm struct {
	timer *time.Timer
	armed bool
	at    core.Time
}

func (a *alarm) init() {
	a.timer = time.NewTimer(time.Hour)
	a.timer.Stop()
}

// armAlarm sees to it that the core is woken at its deadline, or earlier: a
// deadline that moved away is left to fire, which saves resetting the timer for
// every request. Called with the lock held.
func (r *Resource) armAlarm() {
	at, ok := r.core.Deadline()
	if !ok || r.alarm.armed && r.alarm.at <= at {
		return
	}
	r.alarm.armed, r.alarm.at = true, at
	r.alarm.timer.Reset(max(time.Duration(at-r.now()), tickMin))
}

// watchDeadline is the body of the goroutine that ticks.
func (r *Resource) watchDeadline() {
	b := batch{r: r}
	for {
		select {
		case <-r.alarm.timer.C:
		case <-r.done.Done():
			return
		}
		_ = b.stepAfter(func() error {
			r.alarm.armed = false
			b.add(core.Event{Kind: core.EvTick})
			return nil
		})
		b.finish()
	}
}
