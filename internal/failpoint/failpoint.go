// Package failpoint lets a test make the shipped program die, freeze or fail at
// a named place of its I/O. The places are calls of Begin and End around a system
// call or a step; what happens there is said by the environment variable
// REPLICAD_FAILPOINTS alone, so that a configuration can never switch one on:
//
//	REPLICAD_FAILPOINTS="disk.write=kill@137;disk.sync=stop@9;meta.al=eio@3+"
//
// Each rule is POINT=ACTION, optionally @N for the Nth time the place is
// reached (1 if it is left out), or @N+ for every time from the Nth on.
//
// With no rules a place costs a load and a branch. Arm is called once, before
// any other goroutine runs; everything else may be called from any goroutine.
package failpoint

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Env is the environment variable that holds the rules.
const Env = "REPLICAD_FAILPOINTS"

// armed is nil while no rule is in force. It is written by Arm alone.
var armed *plan

// plan is the rules in force.
type plan struct {
	spec   string
	points [pointCount]place
}

// place is one point: how often it was reached, and its rules.
type place struct {
	hits  atomic.Uint64
	rules []*rule
}

// rule says what happens at some hits of a point.
type rule struct {
	point  Point
	action action
	delay  time.Duration // actDelay, actJitter
	from   uint64        // first hit it is for, from 1
	onward bool          // and for all later ones
	struck atomic.Bool   // it was announced
}

func (r *rule) matches(hit uint64) bool { return hit == r.from || r.onward && hit > r.from }

// Arm puts the rules of spec into force; an empty spec changes nothing. It
// must be called before other goroutines run. The error of a bad spec lists
// what is known.
func Arm(spec string) error {
	if spec == "" {
		return nil
	}
	p, err := parse(spec)
	if err != nil {
		return err
	}
	armed = p
	return nil
}

// Check returns the error that Arm would return, and changes nothing.
func Check(spec string) error {
	_, err := parse(spec)
	return err
}

// Armed returns the rules in force, "" if there are none.
func Armed() string {
	if armed == nil {
		return ""
	}
	return armed.spec
}

// Hit is one passage through a place. The zero Hit does nothing.
type Hit struct{ after *rule }

// Begin is called right before the operation that p names. An error, EIO or
// ENOSPC, takes the operation's place: it must not be done then.
func Begin(p Point) (Hit, error) {
	if armed == nil {
		return Hit{}, nil
	}
	return armed.begin(p)
}

// Partial reports that only the first half of the operation's bytes are to be
// transferred this time.
func (h Hit) Partial() bool { return h.after != nil && h.after.action.partial() }

// End is called right after the operation, whatever its outcome.
func (h Hit) End() {
	if h.after != nil {
		h.after.finish()
	}
}

// begin does what is due before the operation. Of several rules that belong
// after it the first counts.
func (p *plan) begin(at Point) (Hit, error) {
	place := &p.points[at]
	n := place.hits.Add(1)
	var h Hit
	for _, r := range place.rules {
		if !r.matches(n) {
			continue
		}
		r.announce(n)
		switch r.action {
		case actKill:
			killSelf()
		case actStop:
			stopSelf()
		case actDelay:
			time.Sleep(r.delay)
		case actJitter:
			time.Sleep(rand.N(r.delay + 1))
		case actEIO:
			return Hit{}, syscall.EIO
		case actENOSPC:
			return Hit{}, syscall.ENOSPC
		case actKillAfter, actStopAfter, actShort, actTorn:
			if h.after == nil {
				h.after = r
			}
		}
	}
	return h, nil
}

// finish does what is due after the operation.
func (r *rule) finish() {
	switch r.action {
	case actKillAfter, actTorn:
		killSelf()
	case actStopAfter:
		stopSelf()
	}
}

// announce tells the standard error, unbuffered and once for each rule, which
// place struck: the last words of a process that is about to die.
func (r *rule) announce(hit uint64) {
	if !r.struck.Swap(true) {
		fmt.Fprintf(os.Stderr, "failpoint %s: %s at hit %d\n", r.point, r.action, hit)
	}
}

// killSelf does not return. It is a variable so that a test survives it.
var killSelf = func() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives, this goroutine does nothing more
}

// stopSelf returns once somebody continues the process.
var stopSelf = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) }
