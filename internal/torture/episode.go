package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

// play plays one episode: load, fault, the operator's reaction, check.
func (r *round) play(e episode) error {
	steps := map[kind]func(episode) error{
		killPrimary: r.playKillPrimary, primaryDeadCut: r.playKillPrimary,
		killSecondary: r.playKillSecondary, killBoth: r.playKillBoth, killInResync: r.playKillInResync,
		killInRecovery: r.playKillInRecovery, stopBoth: r.playStopBoth,
		stopPrimary: r.playStopPrimary, stopSecondary: r.playStopSecondary,
		failPrimary: r.playFailpoint, failSecondary: r.playFailpoint,
		linkCut: r.playLink, linkStall: r.playLink, linkHalfOpen: r.playLink, linkClose: r.playLink,
		linkHandshake: r.playLink,
		linkFlip:      r.playLink, linkSlow: r.playLink, linkDuplicate: r.playLink,
		splitBrain: r.playSplitBrain, switchover: r.playSwitchover,
	}
	if e.slow != "" {
		if err := r.slowDown(e); err != nil {
			return err
		}
	}
	return steps[e.kind](e)
}

// slowDown restarts the peer with delays at places of its I/O; before the death
// of both, one after the other, the Primary as well.
func (r *round) slowDown(e episode) error {
	both := e.kind == killBoth && e.resume
	if both {
		if err := r.primary.retry("secondary", "r0"); err != nil {
			return err
		}
	}
	for _, n := range r.nodes {
		if n == r.primary && !both {
			continue
		}
		if err := n.stop(); err != nil {
			return err
		}
		if err := n.launch(e.slow); err != nil {
			return err
		}
		if err := n.awaitAnswer(); err != nil {
			return err
		}
	}
	if err := r.settle(); err != nil || !both {
		return err
	}
	return r.primary.retry("primary", "r0")
}

// loadFor starts the load and lets it run.
func (r *round) loadFor(d time.Duration) error {
	if err := r.begin(); err != nil {
		return err
	}
	time.Sleep(d)
	return nil
}

// playKillPrimary kills the Primary. With the link cut first, what is on the
// way is lost; else the kernel still sends what it has.
func (r *round) playKillPrimary(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	if e.kind == primaryDeadCut {
		r.cable.SetCut(true)
	}
	r.primary.kill()
	if err := r.endDead(); err != nil {
		return err
	}
	return r.takeOver(e.promote)
}

// takeOver is the operator after the Primary's death: the peer is promoted, if
// it has what the Primary had, or the Primary is started again.
func (r *round) takeOver(promote bool) error {
	current, err := r.peerIsCurrent()
	if err != nil {
		return err
	}
	if !promote || !current {
		r.cable.SetCut(false)
		return r.comeBack()
	}
	if err := r.peer.retry("primary", "r0"); err != nil {
		return err
	}
	r.count.takeovers++
	r.swap()
	if err := r.check(r.primary, r.afterTakeover()); err != nil {
		return err
	}
	r.cable.SetCut(false)
	return r.settle()
}

// comeBack starts what died, and makes the Primary what it was: all that
// completed must be there.
func (r *round) comeBack() error {
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.primary.retry("primary", "r0"); err != nil {
		return err
	}
	return r.check(r.primary, nothingLost)
}

// peerIsCurrent reports whether the dead Primary went on without its peer
// before it died, which an operator must know before promoting: the generation
// id on its disk is then another.
func (r *round) peerIsCurrent() (bool, error) {
	dead, err := r.primary.run("get-gi", "r0")
	if err != nil {
		return false, err
	}
	alive, err := r.peer.run("get-gi", "r0")
	if err != nil {
		return false, err
	}
	a, _, _ := strings.Cut(dead, ":")
	b, _, _ := strings.Cut(alive, ":")
	if len(a) != 16 || len(b) != 16 {
		return false, fmt.Errorf("get-gi says %q and %q", dead, alive)
	}
	v, err := look(r.peer)
	// The lowest bit says only that the node is Primary.
	return a[:15] == b[:15] && v.disk == "UpToDate", err
}

func (r *round) playKillSecondary(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.peer.kill()
	time.Sleep(e.hold)
	if err := r.startPeer(e); err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	return r.end(false)
}

// startPeer starts the peer, as slow as the episode wants it.
func (r *round) startPeer(e episode) error {
	if err := r.peer.launch(e.slow); err != nil {
		return err
	}
	return r.peer.awaitAnswer()
}

// playKillBoth kills both. Either both come back and the Primary is what it
// was, or its peer comes back first, alone, and is promoted.
func (r *round) playKillBoth(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	if e.resume {
		r.peer.kill()
		time.Sleep(e.hold / 100)
		r.primary.kill()
	} else {
		r.primary.kill()
		r.peer.kill()
	}
	if err := r.endDead(); err != nil {
		return err
	}
	if err := r.peer.start(); err != nil {
		return err
	}
	current, err := r.peerIsCurrent()
	if err != nil {
		return err
	}
	if !e.promote || !current {
		return r.comeBack()
	}
	if err := r.peer.retry("primary", "r0"); err != nil {
		return err
	}
	r.count.takeovers++
	r.swap()
	p := nothingLost
	if r.plan.protocol != "C" {
		p = subset
	}
	if err := r.check(r.primary, p); err != nil {
		return err
	}
	return r.settle()
}

// playKillInResync lets the peer fall behind, and kills while it catches up. A
// target that is not complete must not be promoted.
func (r *round) playKillInResync(e episode) error {
	if err := r.loadFor(100 * time.Millisecond); err != nil {
		return err
	}
	r.peer.kill()
	time.Sleep(e.after)
	r.cable.SetBandwidth(4 << 20)
	if err := r.startPeer(e); err != nil {
		return err
	}
	_ = r.awaitFor(2*time.Second, r.peer, func(v view) bool { return v.conn == "SyncTarget" })
	time.Sleep(e.hold / 4)
	if e.victims&2 != 0 {
		r.primary.kill()
		if err := r.endDead(); err != nil {
			return err
		}
		if err := r.refusesPromotion(); err != nil {
			return err
		}
	}
	if e.victims&1 != 0 {
		r.peer.kill()
	}
	r.cable.SetBandwidth(0)
	if e.victims&2 != 0 {
		return r.comeBack()
	}
	if err := r.settle(); err != nil {
		return err
	}
	return r.end(false)
}

// refusesPromotion tries to promote the peer of a dead Primary. If its disk is
// not complete, it must refuse.
func (r *round) refusesPromotion() error {
	_ = r.awaitFor(3*time.Second, r.peer, func(v view) bool { return v.conn == "WFConnection" })
	v, err := look(r.peer)
	if err != nil || v.disk == "UpToDate" {
		return err
	}
	if _, err := r.peer.run("primary", "r0"); err == nil {
		return fmt.Errorf("a node that is %s let itself be promoted", v.disk)
	}
	r.count.refused++
	return nil
}

func (r *round) awaitFor(d time.Duration, n *node, ok func(view) bool) error {
	deadline := time.Now().Add(d)
	for time.Now().Before(deadline) {
		if v, err := look(n); err == nil && ok(v) {
			return nil
		}
		time.Sleep(pollPause / 4)
	}
	return errPatience
}

// playKillInRecovery kills the Primary, and kills it again on its way back. Its
// peer stays what it is: what completed must survive every one of the starts.
func (r *round) playKillInRecovery(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.primary.kill()
	if err := r.endDead(); err != nil {
		return err
	}
	for _, rules := range e.starts {
		said := len(struckLine.FindAllString(r.primary.logText(), -1))
		if err := r.primary.launch(rules); err != nil {
			return err
		}
		if err := r.primary.awaitAnswer(); err != nil && !errors.Is(err, errEnded) {
			return err
		}
		r.awaitStrike(r.primary, said, rules)
		r.countStruck(r.primary, said, rules)
		r.primary.kill()
	}
	return r.comeBack()
}

// playStopBoth freezes both nodes for longer than they wait for each other.
func (r *round) playStopBoth(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.primary.signal(sigStop)
	r.peer.signal(sigStop)
	time.Sleep(2*time.Second + e.hold)
	r.peer.signal(sigCont)
	time.Sleep(e.hold / 10)
	r.primary.signal(sigCont)
	if err := r.settle(); err != nil {
		return err
	}
	return r.end(false)
}

// playStopPrimary freezes the Primary until its peer has noticed. Then it goes
// on, or it is killed and its peer promoted.
func (r *round) playStopPrimary(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.primary.signal(sigStop)
	if err := r.await(r.peer, "WFConnection", func(v view) bool { return v.conn == "WFConnection" }); err != nil {
		return err
	}
	time.Sleep(e.hold)
	return r.thawOrKillPrimary(e)
}

func (r *round) thawOrKillPrimary(e episode) error {
	if e.resume {
		r.primary.signal(sigCont)
		if err := r.settle(); err != nil {
			return err
		}
		return r.end(false)
	}
	r.primary.kill()
	if err := r.endDead(); err != nil {
		return err
	}
	return r.takeOver(e.promote)
}

// playStopSecondary freezes the Secondary until the Primary has noticed.
func (r *round) playStopSecondary(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.peer.signal(sigStop)
	if err := r.await(r.primary, "WFConnection", func(v view) bool { return v.conn == "WFConnection" }); err != nil {
		return err
	}
	time.Sleep(e.hold)
	if !e.resume {
		r.peer.kill()
	}
	if err := r.settle(); err != nil {
		return err
	}
	return r.end(false)
}

// playLink disturbs the network for a while.
func (r *round) playLink(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.disturb(e)
	time.Sleep(e.hold)
	if e.kind == linkCut || e.kind == linkHalfOpen || e.kind == linkStall {
		// Long enough to be noticed, or short: both happen.
		if e.resume {
			time.Sleep(2 * time.Second)
		}
		r.cable.SetCut(false)
	}
	r.cable.TroubleNext()
	r.cable.SetBandwidth(0)
	r.cable.SetLength(r.plan.length)
	if err := r.settle(); err != nil {
		return err
	}
	return r.end(false)
}

func (r *round) disturb(e episode) {
	dir := direction(e.back)
	ids := r.cable.Conns()
	if len(ids) == 0 && e.kind != linkCut && e.kind != linkSlow && e.kind != linkHandshake {
		return // the link is down on its own just now
	}
	switch e.kind {
	case linkCut:
		r.cable.SetCut(true)
	case linkHandshake:
		r.cable.TroubleNext(e.nexts...)
		r.cable.SetCut(false) // breaks what there is
	case linkSlow:
		r.cable.SetBandwidth(1 << 20)
		r.cable.SetLength(30 * time.Millisecond)
	case linkStall:
		r.cable.SetStall(ids[e.conn%len(ids)], dir, true)
	case linkHalfOpen:
		r.cable.HalfOpen(ids[e.conn%len(ids)], dir)
	case linkClose:
		r.cable.CloseAfter(ids[e.conn%len(ids)], dir, e.bytes)
	case linkFlip:
		r.cable.Flip(ids[e.conn%len(ids)], dir, e.bytes, e.mask)
	case linkDuplicate:
		for _, id := range ids {
			if err := r.cable.Duplicate(id); err != nil {
				r.led.Note("%v", err)
			}
		}
	}
}

func (r *round) playSwitchover(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	if err := r.end(false); err != nil {
		return err
	}
	return r.switchOver()
}
