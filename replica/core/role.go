package core

import (
	"replicad/internal/mutant"
	"replicad/wire"
)

// Phases of a promotion.
const (
	primaryCheck  = iota
	primaryAsked  // the peer's consent is awaited
	primaryDrain  // everything the old Primary sent must be on disk
	primarySaving // the superblock that says Primary is on its way
)

// transientWait is how long a command waits for a handshake to end before it
// reports the transient state. The handshake has its own time limit.
const transientWait = Duration(30e9)

// runPrimary promotes this node (DRBD 8.4 drbd_set_role).
func (n *Node) runPrimary(c *command) bool {
	switch c.phase {
	case primaryCheck:
		return n.checkPrimary(c)
	case primaryAsked:
		return n.primaryConsent(c)
	case primaryDrain:
		if n.connected() != c.asked || !n.readyToPromote() {
			return n.promotionOvertaken(c)
		}
		if err := n.mayPromote(c, c.Force); err.Failed() {
			return n.finish(c, err) // a disk went meanwhile
		}
		n.becomePrimary(c)
		return true
	}
	if c.failed && !n.allData() {
		// Clients may have come already: the way back is a whole demotion.
		n.undoAll(c)
		c.run, c.phase, c.result = (*Node).runSecondary, secondaryDrain, ErrNoUpToDateDisk
		return true
	}
	return n.finish(c, Success)
}

func (n *Node) allData() bool {
	for _, v := range n.vols {
		if !n.dataAccessible(v) {
			return false
		}
	}
	return true
}

// settling reports that the state of the pair is about to change by itself:
// commands wait for that instead of being refused.
func (n *Node) settling() bool {
	if n.link.up && !n.hs.done {
		return true
	}
	for _, v := range n.vols {
		c := v.st.Conn
		if v.st.Disk == Negotiating || v.st.Disk == Attaching || (c > Connected && c < SyncSource) {
			return true
		}
	}
	return false
}

func (n *Node) checkPrimary(c *command) bool {
	if n.role == Primary {
		return n.finish(c, NothingToDo)
	}
	if c.until == 0 {
		c.until = n.now + transientWait
	}
	if n.settling() && n.now < c.until {
		return false
	}
	if c.tries > 0 && n.now < c.until {
		return false // waiting for the peer to demote itself
	}
	err := n.mayPromote(c, c.Force)
	switch {
	case err == ErrTwoPrimaries && c.tries == 0:
		// The old Primary may be about to give up, or be dead: ask it, and
		// look once more when a ping would have come back.
		c.tries = 1
		c.until = n.now + n.cfg.Net.PingTimeout + 100e6
		n.ping()
		return true
	case err == ErrTransient && n.now < c.until:
		return false
	case err.Failed():
		n.logRefusal(err)
		return n.finish(c, err)
	}
	c.until = 0
	if n.connected() {
		c.phase = primaryAsked
		r := wire.StateReq{Vol: -1, Role: uint8(Primary)}
		if c.forced {
			r.Disk = uint8(UpToDate) + 1
		}
		n.ask(c, r)
		return true
	}
	c.phase, c.asked = primaryDrain, false
	return true
}

// mayPromote checks the wanted state of every volume. force raises a disk
// that is not known to be good.
func (n *Node) mayPromote(c *command, force bool) StateErr {
	c.forced, c.raise = false, make(map[uint16]bool)
	for _, v := range n.vols {
		err := n.mayPromoteVolume(v, false)
		if err == ErrNoUpToDateDisk && force && v.st.Disk >= Inconsistent && v.st.Disk < UpToDate && v.st.PDisk != UpToDate {
			err = n.mayPromoteVolume(v, true)
			c.raise[v.id] = err == Success
			c.forced = c.forced || err == Success
		}
		if err.Failed() {
			return err
		}
	}
	return Success
}

func (n *Node) mayPromoteVolume(v *volume, raise bool) StateErr {
	want := v.st
	want.Role = Primary
	if raise {
		want.Disk = UpToDate
	}
	_, err := Check(v.st, want, n.rules(v))
	return err
}

func (n *Node) logRefusal(err StateErr) {
	for _, v := range n.vols {
		want := v.st
		want.Role = Primary
		n.log(v, LevelError, "State change failed: %s", err.Text())
		n.log(v, LevelError, "  state = %s", v.st)
		n.log(v, LevelError, " wanted = %s", want)
	}
}

func (n *Node) primaryConsent(c *command) bool {
	switch {
	case c.linkLost || !n.connected():
		c.phase, c.asked, c.linkLost, c.until, c.tries = primaryCheck, false, false, 0, 0
	case c.reply == 0:
		return false
	case c.reply == ErrConcurrent || c.reply == ErrTransient:
		c.phase, c.tries, c.until = primaryCheck, c.tries+1, n.now+100e6
		if c.tries > 20 {
			return n.finish(c, c.reply)
		}
	case c.reply == ErrTwoPrimaries && c.tries == 0:
		c.phase, c.tries, c.until = primaryCheck, 1, n.now+n.cfg.Net.PingTimeout+100e6
	case c.reply == ErrTwoPrimaries:
		return n.finish(c, ErrTwoPrimaries)
	case c.reply.Failed():
		return n.finish(c, ErrRefusedByPeer)
	default:
		c.phase, c.asked = primaryDrain, true // asked: promoted while connected
	}
	return true
}

// readyToPromote: what the old Primary sent before it went away is on disk.
func (n *Node) readyToPromote() bool {
	if mutant.On(mutant.PromoteBeforeDrain) {
		return true
	}
	if n.connected() {
		return n.incoming.writesDrained()
	}
	return n.incoming.drained()
}

// promotionOvertaken goes back to the check when the connection came or went
// since; otherwise the drain goes on.
func (n *Node) promotionOvertaken(c *command) bool {
	if n.connected() == c.asked {
		return false
	}
	if n.connected() {
		// The handshake told the peer Secondary: it must be asked.
		c.phase, c.until, c.tries = primaryCheck, 0, 0
		return true
	}
	c.phase, c.asked, c.until, c.tries = primaryCheck, false, 0, 0
	return true
}

// becomePrimary changes the role. Clients may write once the primary
// indicator, without which a crash would not replay the activity log, is durable.
func (n *Node) becomePrimary(c *command) {
	c.phase, c.asked = primarySaving, false
	n.freeze()
	c.undo = append(c.undo, n.thaw)
	n.discard = false
	renegotiate := n.connected() && c.forced
	n.role = Primary
	for _, v := range n.vols {
		raise := c.raise[v.id]
		alone := v.st.Conn < Connected || (v.st.PDisk <= Failed && !mutant.On(mutant.PromotionBesideDiskless))
		n.change(v, func(s *State) {
			s.Role = Primary
			if raise {
				s.Disk = UpToDate
			}
		})
		if raise {
			n.log(v, LevelWarn, "Forced to consider local data as UpToDate!")
		}
		n.promotedGeneration(v, alone, raise)
		v.gen = v.gen.WithPrimary(true)
		if v.disk.bm != nil {
			v.exposed = v.gen.Current
		}
		n.exposePeer(v)
		if v.disk.bm == nil {
			v.unsure, v.follows, v.heirH1 = true, true, masked(v.peerGen.H1)
		}
		n.claimResync(v)
		saved := c.await()
		if v.disk.bm == nil {
			if n.connected() {
				// A report that crossed the request may have told it otherwise, and
				// it must know that it serves: its new generation, its indicator.
				n.sendState(v)
			}
			saved(true)
			continue
		}
		n.saveSuper(v, func(ok bool) {
			saved(ok)
			n.announcePrimary(v, renegotiate)
		})
	}
}

// promotedGeneration starts a new generation for a node that will write where
// its peer does not see it.
func (n *Node) promotedGeneration(v *volume, alone, raised bool) {
	switch {
	case v.disk.bm == nil || v.st.Disk != UpToDate:
	case raised || ((alone || v.targetUnrecorded()) && v.gen.Bitmap == 0):
		if alone && !raised && v.st.PDisk != Outdated {
			n.log(v, LevelWarn, "promoted without contact with the peer: if it is Primary or has newer data, this is a split brain")
		}
		v.gen = v.gen.Rotate(n.newUUID(), true)
		n.log(v, LevelInfo, "new current UUID %s", v.gen)
	case alone && v.shared, v.targetUnrecorded():
		n.leaveShared(v)
	case alone && v.served:
		// A Primary without good data showed ours to its clients. They must
		// not go on with what ours write now: a new id keeps them away. What
		// the bitmap is relative to stays. The id that is left goes into the
		// history: the peer may have it, if it ended a resync and we did not see it.
		v.gen = v.gen.leave(n.newUUID())
		v.served = false
		n.log(v, LevelInfo, "new current UUID %s", v.gen)
	}
}

// targetUnrecorded reports that the peer is about to be our target, and has
// not said yet, by the end of its bitmap, that its superblock knows. Until then
// it holds data of our generation for good, and our writes are announced to it only.
func (v *volume) targetUnrecorded() bool {
	return v.st.Conn == WFBitMapS && !v.sync.theirEnd && masked(v.peerGen.Current) == masked(v.gen.Current)
}

// announcePrimary tells the peer about the promotion. After a forced one both
// ends compare generation ids again, and the other disk is synced.
func (n *Node) announcePrimary(v *volume, renegotiate bool) {
	if !n.connected() {
		return
	}
	n.sendUUIDs(v)
	n.sendState(v)
	if renegotiate && v.st.Conn == Connected && v.st.PDisk == Inconsistent {
		n.renegotiate(v, State{Role: v.st.Peer, Disk: v.st.PDisk, Conn: Connected})
	}
}

// claimResync: a target that becomes Primary holds the blocks it asked for
// against its own clients from now on.
func (n *Node) claimResync(v *volume) {
	for _, o := range n.ops.all {
		if o.kind == opSyncTarget && o.v == v && !o.held && !o.indexed {
			n.enter(o)
		}
	}
}

func (n *Node) setRole(r Role) {
	n.role = r
	n.changeAll(func(s *State) { s.Role = r })
}

// Phases of a demotion.
const (
	secondaryCheck   = iota
	secondaryDrain   // client requests are being answered
	secondaryConfirm // the last epoch must be stable at the peer, or marked
	secondarySave    // gates, flushes and bitmap pages
	secondaryLeave   // the superblock without the primary indicator
	secondaryDone
)

// runSecondary demotes this node. The primary indicator is cleared last: until
// then a crash replays the activity log.
func (n *Node) runSecondary(c *command) bool {
	switch c.phase {
	case secondaryCheck:
		if n.role != Primary {
			return n.finish(c, NothingToDo)
		}
		for _, v := range n.vols {
			if v.opens > 0 && !c.Force {
				return n.finish(c, ErrDeviceInUse)
			}
		}
		c.phase = secondaryDrain
	case secondaryDrain:
		if n.clientOps > 0 || n.settling() {
			return false
		}
		c.phase = secondaryConfirm
	case secondaryConfirm:
		if !n.confirmed() || n.frozen > 0 {
			return false
		}
		c.phase, c.submitted = secondarySave, n.submitted
		n.saveForDemotion(c)
	case secondarySave:
		if n.submitted != c.submitted || n.clientOps > 0 || n.settling() || !n.confirmed() || n.frozen > 0 {
			c.phase = secondaryDrain
			return true
		}
		c.phase = secondaryLeave
		n.leavePrimary(c)
	case secondaryLeave:
		c.phase = secondaryDone
		for _, v := range n.vols {
			n.sendState(v)
		}
		return n.finish(c, Success)
	}
	return true
}

// confirmed reports that no mirrored block is left whose stability at the
// peer is unknown; if there is one it asks for a barrier.
func (n *Node) confirmed() bool {
	e := &n.openEpoch
	if !n.connected() {
		return true
	}
	if e.awaiting == 0 && e.count > 0 {
		n.closeEpoch()
	}
	return e.awaiting == 0 && e.count == 0
}

func (n *Node) saveForDemotion(c *command) {
	for _, v := range n.vols {
		if !v.gateHeld {
			v.gateHeld = true
			c.undo = append(c.undo, func() { v.gateHeld = false; n.updateGate(v) })
		}
		gate := c.await()
		n.closeGate(v, func() { gate(true) })
		if !v.writable() {
			continue
		}
		flushed, pages := c.await(), c.await()
		n.flushDisk(v, func(IOResult) { flushed(true) })
		if mutant.On(mutant.IndicatorBeforeBitmap) {
			pages(true)
			continue
		}
		n.writeBitmap(v, nil, func(bool) { pages(true) })
	}
}

func (n *Node) leavePrimary(c *command) {
	n.demoting = true
	n.setRole(Secondary)
	n.demoting = false
	for _, v := range n.vols {
		v.gen, v.exposed, v.unsure = v.gen.WithPrimary(false), 0, false
		v.tail, v.tailLost = 0, false
		if v.disk.bm != nil {
			saved := c.await()
			n.saveSuper(v, func(bool) { saved(true) })
		}
	}
}
