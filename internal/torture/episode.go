package main

import (
	"errors"
	"fmt"
	"regexp"
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
		if _, err := r.primary.run("secondary", "r0"); err != nil {
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
		r.awaitStrike(r.primary, said)
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

// struckLine is what a failpoint says when it strikes.
var struckLine = regexp.MustCompile(`(?m)^failpoint \S+: `)

// playFailpoint restarts one node with a failpoint, puts it back into its
// role, and lets the load run until it struck or did not.
func (r *round) playFailpoint(e episode) error {
	victim, serving := r.peer, false
	if e.kind == failPrimary {
		victim, serving = r.primary, true
		if _, err := victim.run("secondary", "r0"); err != nil {
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
	r.awaitStrike(victim, said)
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
func (r *round) awaitStrike(victim *node, said int) {
	deadline := time.Now().Add(1500 * time.Millisecond)
	for time.Now().Before(deadline) && victim.alive() && !victim.frozen() {
		if len(struckLine.FindAllString(victim.logText(), -1)) > said {
			time.Sleep(200 * time.Millisecond) // what follows from it
			return
		}
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
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.end(serving); err != nil {
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

// playSplitBrain makes both nodes Primary while they are apart. It must be
// found when they meet, and both images be left alone until the operator says
// whose data is discarded.
func (r *round) playSplitBrain(e episode) error {
	if err := r.loadFor(e.after); err != nil {
		return err
	}
	r.cable.SetCut(true)
	if err := r.await(r.primary, "WFConnection", func(v view) bool { return v.conn == "WFConnection" }); err != nil {
		return err
	}
	time.Sleep(e.hold)
	if err := r.end(false); err != nil {
		return err
	}
	if err := r.peer.retry("primary", "r0"); err != nil {
		return err
	}
	const mark = "the other Primary was here"
	if err := r.putMark(mark); err != nil {
		return err
	}
	r.cable.SetCut(false)
	if err := r.awaitSplit(); err != nil {
		return err
	}
	if err := r.check(r.primary, nothingLost); err != nil {
		return err
	}
	if found, err := r.hasMark(r.peer, mark); err != nil || !found {
		return fmt.Errorf("what the other Primary wrote is gone before anybody decided: %w", errors.Join(errPatience, err))
	}
	return r.resolve(mark)
}

// resolve discards what the peer wrote while it was alone.
func (r *round) resolve(mark string) error {
	if err := r.peer.retry("secondary", "r0"); err != nil {
		return err
	}
	for _, n := range r.nodes {
		_, _ = n.run("disconnect", "r0") // one of them may be StandAlone already
	}
	if _, err := r.peer.run("connect", "--discard-my-data", "r0"); err != nil {
		return err
	}
	if _, err := r.primary.run("connect", "r0"); err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.check(r.primary, nothingLost); err != nil {
		return err
	}
	if found, err := r.hasMark(r.primary, mark); err != nil || found {
		return fmt.Errorf("the survivor has what was to be discarded: %w", errors.Join(errPatience, err))
	}
	return nil
}

// awaitSplit waits until one of the nodes has found the split brain and left.
func (r *round) awaitSplit() error {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		alone := false
		for _, n := range r.nodes {
			v, err := look(n)
			if err != nil {
				return err
			}
			if strings.HasPrefix(v.conn, "Sync") || v.conn == "Connected" {
				return fmt.Errorf("two nodes that were both Primary are %s", v.conn)
			}
			alone = alone || v.conn == "StandAlone"
		}
		if alone {
			return nil
		}
		time.Sleep(pollPause)
	}
	return errors.New("no node finds the split brain")
}

// putMark writes a text at the end of the peer's device, outside the ledger.
func (r *round) putMark(text string) error {
	c, err := r.peer.open()
	if err != nil {
		return err
	}
	_, err = c.WriteFUA(markBlock(text), int64(c.Size())/4096*4096-4096)
	return errors.Join(err, c.Close())
}

func (r *round) hasMark(n *node, text string) (bool, error) {
	c, err := n.open()
	if err != nil {
		return false, err
	}
	got := make([]byte, 4096)
	_, err = c.ReadAt(got, int64(c.Size())/4096*4096-4096)
	return string(got) == string(markBlock(text)), errors.Join(err, c.Close())
}

func markBlock(text string) []byte {
	b := make([]byte, 4096)
	copy(b, text)
	return b
}
