package main

import (
	"errors"
	"regexp"
	"strings"
	"time"
)

// struckLine is what a failpoint says when it strikes.
var struckLine = regexp.MustCompile(`(?m)^failpoint \S+: `)

// playFailpoint restarts one node with a failpoint, puts it back into its
// role, and lets the load run until it struck or did not.
func (r *round) playFailpoint(e episode) error {
	victim, serving := r.peer, false
	if e.kind == failPrimary {
		victim, serving = r.primary, true
		if err := victim.retry("secondary", "r0"); err != nil {
			return err
		}
	}
	if err := victim.stop(); err != nil {
		return err
	}
	said := len(struckLine.FindAllString(victim.logText(), -1))
	if err := victim.launch(e.rules); err != nil {
		return err
	}
	up, err := r.bringUp(victim, serving)
	if err != nil {
		return err
	}
	if serving && !up {
		// It never served: nothing is at stake but that it comes back.
		victim.kill()
		r.countStruck(victim, said, e.rules)
		return r.comeBack()
	}
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.awaitStrike(victim, said, e.rules)
	r.countStruck(victim, said, e.rules)
	return r.afterStrike(e, victim, serving)
}

// bringUp waits until a node that may fail on the way is connected and, if it
// is to serve, Primary. False: it did fail.
func (r *round) bringUp(victim *node, serving bool) (bool, error) {
	err := victim.awaitAnswer()
	if errors.Is(err, errEnded) || errors.Is(err, errFrozen) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	good := r.awaitFor(5*time.Second, victim, func(v view) bool {
		return v.conn == "Connected" && v.disk == "UpToDate" && v.peerDisk == "UpToDate"
	})
	if good != nil || !serving {
		return good == nil, nil
	}
	_, err = victim.run("primary", "r0")
	return err == nil, nil
}

// awaitStrike waits until the failpoint struck, or probably never will.
func (r *round) awaitStrike(victim *node, said int, rules string) {
	deadline := time.Now().Add(1500 * time.Millisecond)
	for time.Now().Before(deadline) && victim.alive() && !victim.frozen() {
		if len(struckLine.FindAllString(victim.logText(), -1)) > said {
			awaitEffect(victim, rules)
			return
		}
		time.Sleep(pollPause)
	}
}

// awaitEffect waits until a failpoint that struck did what it does: on a busy
// machine a killed process is still there for a while.
func awaitEffect(victim *node, rules string) {
	_, action, _ := strings.Cut(rules, "=")
	there := func() bool { return true }
	switch {
	case strings.HasPrefix(action, "kill"), strings.HasPrefix(action, "torn"):
		there = func() bool { return !victim.alive() }
	case strings.HasPrefix(action, "stop"):
		there = victim.frozen
	default:
		time.Sleep(200 * time.Millisecond)
	}
	for deadline := time.Now().Add(patience); !there() && time.Now().Before(deadline); {
		time.Sleep(pollPause)
	}
}

func (r *round) countStruck(victim *node, said int, rules string) {
	name, _, _ := strings.Cut(rules, "@")
	if len(struckLine.FindAllString(victim.logText(), -1)) > said {
		r.count.failpoints[name]++
	} else {
		r.count.notReached++
	}
}

// afterStrike is the operator after a failpoint struck: a dead Primary is
// taken over from, a frozen node is thawed or killed, a node without its disk
// gets it back.
func (r *round) afterStrike(e episode, victim *node, serving bool) error {
	dead := !victim.alive()
	switch {
	case dead && serving:
		if err := r.endDead(); err != nil {
			return err
		}
		victim.kill()
		return r.takeOver(e.promote)
	case serving && victim.frozen():
		if err := r.await(r.peer, "WFConnection", func(v view) bool { return v.conn == "WFConnection" }); err != nil {
			return err
		}
		return r.thawOrKillPrimary(e)
	case victim.frozen() && !e.resume:
		victim.kill()
	}
	err := r.settle()
	if err == nil {
		err = r.end(serving)
	}
	if err != nil && !dead && !victim.alive() {
		return r.afterStrike(e, victim, serving) // it struck only now
	}
	if err != nil {
		return err
	}
	return r.disarm(victim, serving)
}

// disarm restarts a node that may still have a failpoint before it.
func (r *round) disarm(victim *node, serving bool) error {
	if serving {
		// It may strike in this very moment, which is fine: nobody writes.
		if _, err := victim.run("secondary", "r0"); err != nil && victim.alive() && !victim.frozen() {
			r.led.Note("%v", err)
		}
	}
	victim.kill()
	return r.comeBack()
}
