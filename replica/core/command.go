package core

import "replicad/wire"

// command is an administrator's request being carried out. Commands run one
// at a time. Each is a list of phases; run is called again whenever something
// changed, and reports whether it got further.
type command struct {
	*Command
	run       func(n *Node, c *command) bool
	phase     int
	pending   int  // continuations that must return before the next phase
	failed    bool // one of them said no
	reqID     uint64
	asked     bool
	reply     StateErr // 0 = not here yet
	until     Time     // 0, or when a wait ends
	tries     int
	forced    bool // a promotion that raises disks: those in raise
	raise     map[uint16]bool
	linkLost  bool
	heard     bool // of a detach: the peer announced the generation in which it serves alone
	undo      []func()
	result    StateErr // answered in place of Success
	submitted uint64   // client writes when a demotion began to save
}

var commandRuns = map[CommandKind]func(*Node, *command) bool{
	CmdPrimary: (*Node).runPrimary, CmdSecondary: (*Node).runSecondary,
	CmdConnect: (*Node).runConnect, CmdDisconnect: (*Node).runDisconnect,
	CmdDetach: (*Node).runDetach, CmdInvalidate: (*Node).runInvalidate, CmdInvalidateRemote: (*Node).runInvalidate,
	CmdOutdate: (*Node).runOutdate, CmdConfig: (*Node).runConfig,
}

// ofVolume reports whether the command names a volume.
func (k CommandKind) ofVolume() bool {
	return k == CmdDetach || k == CmdInvalidate || k == CmdInvalidateRemote || k == CmdOutdate
}

// runCommand gets the current command, or the next one, a step further.
func (n *Node) runCommand() bool {
	if n.cmd == nil {
		if len(n.cmdQueue) == 0 {
			return false
		}
		c := n.cmdQueue[0]
		n.cmdQueue = n.cmdQueue[1:]
		if c.Kind.ofVolume() && n.targets(c.Vol) == nil {
			n.act(Action{Kind: ActCommandDone, Cmd: c.ID, Err: ErrNoMinor})
			return true
		}
		n.cmd = &command{Command: c, run: commandRuns[c.Kind]}
		if n.cmd.run == nil {
			panic("core: command of unknown kind")
		}
	}
	c := n.cmd
	if c.asked && c.until != 0 && n.now >= c.until && n.link.up && !n.link.dropping {
		n.log(nil, LevelError, "the peer did not answer a state change request")
		c.until = 0
		n.drop(DropTimeout)
	}
	if c.pending > 0 {
		return false
	}
	return c.run(n, c)
}

// finish answers the command; the next may start.
func (n *Node) finish(c *command, err StateErr) bool {
	n.undoAll(c)
	if err == NothingToDo {
		err = Success
	}
	if err == Success && c.result != 0 {
		err = c.result
	}
	n.cmd = nil
	n.act(Action{Kind: ActCommandDone, Cmd: c.ID, Err: err})
	return true
}

func (n *Node) undoAll(c *command) {
	undo := c.undo
	c.undo = nil
	for _, u := range undo {
		u()
	}
}

// await returns a continuation that the current phase waits for.
func (c *command) await() func(ok bool) {
	c.pending++
	return func(ok bool) {
		c.pending--
		c.failed = c.failed || !ok
	}
}

func (n *Node) commandDeadline(d *deadline) {
	if c := n.cmd; c != nil && c.until != 0 && !(c.asked && n.link.dropping) {
		d.add(c.until)
	}
}

func (n *Node) commandLinkDown() {
	if c := n.cmd; c != nil {
		c.linkLost = true
		if c.asked {
			c.asked, c.until = false, 0
		}
	}
}

// targets lists the volumes a command means.
func (n *Node) targets(vol int32) []*volume {
	if vol < 0 {
		return n.vols
	}
	for i, v := range n.vols {
		if int32(v.id) == vol {
			return n.vols[i : i+1]
		}
	}
	return nil
}

// --- cluster-wide changes

// ask requests the peer's consent to a change.
func (n *Node) ask(c *command, r wire.StateReq) {
	n.stateReqID++
	r.ID = n.stateReqID
	c.reqID, c.asked, c.reply, c.linkLost = r.ID, true, 0, false
	c.until = n.now + max(n.answerLimit(), n.cfg.Net.Timeout)
	n.send(wire.Msg{Kind: wire.KindStateReq, Body: &r}, 0)
	n.ping() // a dead link is found out soon
}

func (n *Node) stateReply(id uint64, err StateErr) {
	if c := n.cmd; c != nil && c.asked && c.reqID == id && c.reply == 0 {
		if err == 0 {
			err = ErrRefusedByPeer
		}
		c.reply, c.asked, c.until = err, false, 0
	}
}

// stateRequested answers the peer's request for consent. When both ask at
// once, the holder of the token refuses.
func (n *Node) stateRequested(r *wire.StateReq) {
	err := n.judgeRequest(r)
	n.send(wire.Msg{Kind: wire.KindStateReply, Seq: r.ID, Arg: uint64(int64(err))}, 0)
	if err != Success {
		return
	}
	for _, v := range n.targets(r.Vol) {
		n.applyRequest(v, r)
	}
}

func (n *Node) judgeRequest(r *wire.StateReq) StateErr {
	if r.Role > uint8(Secondary) || Disk(r.Disk) > UpToDate+1 || r.Conn >= uint8(connEnd) || n.targets(r.Vol) == nil {
		n.protocolError("invalid state request")
		return ErrRefusedByPeer
	}
	if c := n.cmd; c != nil {
		if c.asked && n.link.token {
			return ErrConcurrent
		}
		if c.Kind == CmdPrimary && c.phase >= primaryDrain && Role(r.Role) == Primary {
			return ErrTwoPrimaries
		}
	}
	for _, v := range n.targets(r.Vol) {
		want, ok := requested(v.st, r)
		if !ok {
			return ErrRefusedByPeer
		}
		if c := n.cmd; c != nil && c.Kind == CmdDetach && c.phase >= detachQuiesce && c.Vol == int32(v.id) {
			want.Disk = Failed // ours is leaving
		}
		if _, err := Check(v.st, want, n.rules(v)); err.Failed() {
			return err
		}
		if Role(r.Role) == Primary && v.st.PDisk <= Failed && v.st.Disk != UpToDate {
			return ErrNoUpToDateDisk // it would serve from our disk, and has not heard that it is not good
		}
		if !v.copyable(Conn(r.Conn) == StartingSyncT, Conn(r.Conn) == StartingSyncS) {
			return ErrNoUpToDateDisk
		}
		if v.syncAgreed && isStarting(Conn(r.Conn)) {
			return ErrResyncRunning // one was asked for, or agreed, that did not begin yet
		}
		if Conn(r.Conn) == Disconnecting && v.st.Role == Primary && v.st.Disk < UpToDate && !r.Force {
			return ErrNoUpToDateDisk
		}
	}
	return Success
}

// copyable reports that the disk that a full sync would copy, ours or the
// peer's, is UpToDate. (DRBD 8.4 calls any source's disk UpToDate from then on,
// "Implicitly upgraded disk": also one that was left half overwritten.)
func (v *volume) copyable(ours, theirs bool) bool {
	return !(ours && v.st.Disk != UpToDate) && !(theirs && v.st.PDisk != UpToDate)
}

// requested mirrors what the peer wants for itself into our view.
func requested(s State, r *wire.StateReq) (State, bool) {
	if r.Role != 0 {
		s.Peer = Role(r.Role)
	}
	if r.Disk != 0 && (s.PDisk >= Inconsistent || Disk(r.Disk-1) <= Failed) {
		s.PDisk = Disk(r.Disk - 1) // a forced promotion raises no disk that is not there
	}
	switch Conn(r.Conn) {
	case StandAlone, Disconnecting: // 0 = unchanged; Disconnecting ends the session, which changes the state
	case StartingSyncT:
		s.Conn = StartingSyncS
	case StartingSyncS:
		s.Conn = StartingSyncT
	default:
		return s, false
	}
	return s, true
}

func (n *Node) applyRequest(v *volume, r *wire.StateReq) {
	want, _ := requested(v.st, r)
	n.change(v, func(s *State) { s.Peer, s.PDisk = want.Peer, want.PDisk })
	switch Conn(r.Conn) {
	case Disconnecting:
		n.tornDown = true
	case StartingSyncT, StartingSyncS:
		n.agreeFullSync(v, Conn(r.Conn) == StartingSyncS)
	}
}

// --- connect, disconnect

func (n *Node) runConnect(c *command) bool {
	if c.Discard && n.role == Primary {
		return n.finish(c, ErrDiscardImpossible)
	}
	if n.conn() != StandAlone {
		return n.finish(c, NothingToDo)
	}
	n.discard, n.tentative = c.Discard, c.Tentative
	for _, v := range n.vols {
		v.ctr.Sent, v.ctr.Received = 0, 0
	}
	n.changeAll(func(s *State) { s.Conn = Unconnected })
	return n.finish(c, Success)
}

const (
	disconnectStart = iota
	disconnectAsked
	disconnectDropped
)

func (n *Node) runDisconnect(c *command) bool {
	switch conn := n.conn(); {
	case conn == StandAlone:
		return n.finish(c, Success)
	case !n.link.up:
		if conn == WFConnection {
			n.act(Action{Kind: ActStopDial, Session: n.link.session})
		}
		n.changeAll(func(s *State) { s.Conn = Disconnecting })
		n.changeAll(func(s *State) { s.Conn = StandAlone })
		return n.finish(c, Success)
	case c.phase == disconnectDropped:
		return false
	case c.phase == disconnectAsked && c.reply == 0:
		return false
	case c.phase == disconnectAsked && c.reply.Failed() && c.reply != ErrConcurrent:
		return n.finish(c, ErrRefusedByPeer)
	case c.phase == disconnectStart && n.connected() && !c.Force:
		for _, v := range n.vols {
			want := v.st
			want.Conn = Disconnecting
			if _, err := Check(v.st, want, n.rules(v)); err.Failed() {
				return n.finish(c, err)
			}
		}
		c.phase = disconnectAsked
		n.ask(c, wire.StateReq{Vol: -1, Conn: uint8(Disconnecting)})
		return true
	}
	c.phase = disconnectDropped
	n.link.standing = true
	n.drop(DropAdmin)
	return true
}

// --- detach

const (
	detachStart = iota
	detachAsked
	detachQuiesce
	detachLeave
)

func (n *Node) runDetach(c *command) bool {
	v := n.targets(c.Vol)[0]
	switch c.phase {
	case detachStart:
		return n.beginDetach(c, v)
	case detachAsked:
		switch {
		case c.linkLost:
			c.phase, c.asked, c.reqID, c.heard = detachStart, false, 0, false
		case c.reply == 0:
			return false
		case c.reply.Failed():
			return n.finish(c, ErrRefusedByPeer)
		default:
			n.quiesce(c, v)
		}
		return true
	case detachQuiesce:
		if !c.Force && !n.incoming.writesDrained() {
			return false // the Primary counts on them being here
		}
		want := v.st
		want.Disk = Failed
		if _, err := Check(v.st, want, n.rules(v)); err.Failed() && !c.Force {
			n.drop(DropReconnect) // the peer counts this disk as gone already
			return n.finish(c, err)
		}
		if v.st.Disk > Failed {
			n.dropDisk(v)
		}
		n.undoAll(c) // nothing goes to it any more; its last action may take for ever
		c.phase = detachLeave
		return true
	}
	if v.st.Disk != Diskless {
		return false
	}
	return n.finish(c, Success)
}

// detaches reports that the command is a detach of v to which the peer was asked to agree.
func (c *command) detaches(v *volume) bool {
	return c != nil && c.Kind == CmdDetach && c.reqID != 0 && c.Vol == int32(v.id)
}

// peerServesAlready reports that the peer, which agreed to a detach, has
// announced the generation in which ours is not a good disk any more.
func (n *Node) peerServesAlready(v *volume) bool { return n.cmd.detaches(v) && n.cmd.heard }

func (n *Node) beginDetach(c *command, v *volume) bool {
	switch {
	case v.st.Disk == Diskless:
		return n.finish(c, NothingToDo)
	case v.st.Disk == Attaching:
		return false // it will be something else soon
	case v.st.Disk <= Failed:
		c.phase = detachLeave
		return true
	}
	want := v.st
	want.Disk = Failed
	if _, err := Check(v.st, want, n.rules(v)); err.Failed() && !c.Force {
		return n.finish(c, err)
	}
	if n.connected() && !c.Force {
		c.phase = detachAsked
		n.ask(c, wire.StateReq{Vol: int32(v.id), Disk: uint8(Failed) + 1})
		return true
	}
	n.quiesce(c, v)
	return true
}

// quiesce stops what goes to the local disk and saves what its metadata should say.
func (n *Node) quiesce(c *command, v *volume) {
	c.phase = detachQuiesce
	n.freeze()
	v.gateHeld = true
	c.undo = append(c.undo, func() { v.gateHeld = false; n.updateGate(v); n.thaw() })
	for i := range v.sent {
		v.sent[i].mark(v.disk.bm)
	}
	gate, pages := c.await(), c.await()
	n.closeGate(v, func() { gate(true) })
	n.writeBitmap(v, nil, func(bool) { pages(true) })
}

// --- invalidate

// invalidateOffline is the phase of an invalidate without a peer.
const invalidateOffline = 3

func (n *Node) runInvalidate(c *command) bool {
	v := n.targets(c.Vol)[0]
	conn := StartingSyncT
	if c.Kind == CmdInvalidateRemote {
		conn = StartingSyncS
	}
	switch {
	case c.phase == 0 && !n.connected():
		return n.invalidateAlone(c, v)
	case c.phase == 0:
		want := v.st
		want.Conn = conn
		if _, err := Check(v.st, want, n.rules(v)); err.Failed() {
			return n.finish(c, err)
		}
		if !v.copyable(conn == StartingSyncS, conn == StartingSyncT) {
			return n.finish(c, ErrNoUpToDateDisk)
		}
		if v.syncAgreed {
			return n.finish(c, ErrResyncRunning) // as good as: the peer is getting ready
		}
		c.phase = 1
		v.syncAgreed = conn == StartingSyncS // the target may be ready before its consent arrives
		n.ask(c, wire.StateReq{Vol: int32(v.id), Conn: uint8(conn)})
		return true
	case !n.connected() && c.phase < invalidateOffline, c.linkLost:
		return n.finish(c, ErrNeedConnection)
	case c.phase == 1 && c.reply == 0:
		return false
	case c.phase == 1 && c.reply.Failed():
		v.syncAgreed = v.syncAgreed && conn == StartingSyncT // that one was the peer's wish
		return n.finish(c, ErrRefusedByPeer)
	case c.phase == 1:
		c.phase = 2
		if conn == StartingSyncT && !n.startFullTarget(v) {
			return n.finish(c, ErrNoLocalDisk)
		}
		return true
	case v.syncAgreed:
		return false
	case c.phase == 2 && v.st.Conn == Connected && v.st.PDisk < Inconsistent:
		return n.finish(c, ErrNoRemoteDisk)
	}
	return n.finish(c, Success)
}

// agreeFullSync begins what both ends consented to. The target goes first:
// only when its disk is Inconsistent, durably, does the source stop mirroring
// to it. Until then a source that loses it starts a new generation, because
// the target could still come back, or be promoted, as UpToDate.
func (n *Node) agreeFullSync(v *volume, target bool) {
	if target {
		n.startFullTarget(v)
		return
	}
	v.syncAgreed = true
}

// invalidateAlone marks everything without a peer: a Secondary gives its
// data up, a Primary takes the peer's for lost.
func (n *Node) invalidateAlone(c *command, v *volume) bool {
	target := c.Kind == CmdInvalidate
	if n.conn() > WFConnection || v.st.Disk < Inconsistent || target == (n.role == Primary) {
		return n.finish(c, ErrNeedConnection)
	}
	c.phase = invalidateOffline
	n.change(v, func(s *State) {
		if target {
			s.Disk = Inconsistent
		} else {
			s.PDisk = Inconsistent
		}
	})
	n.setAllBits(v, c.await())
	return true
}

// startFullTarget gives up this node's data for a full copy of the peer's.
// (DRBD 8.4 says Outdated until the resync runs, and would call it UpToDate
// again if the link died before.)
func (n *Node) startFullTarget(v *volume) bool {
	if v.disk.bm == nil || v.st.Disk < Inconsistent || v.st.Conn != Connected {
		return false // it went while the peer was asked
	}
	n.change(v, func(s *State) { s.Conn, s.Disk = StartingSyncT, Inconsistent })
	v.sync = resync{}
	s := n.link.session
	n.setAllBits(v, func(ok bool) {
		if ok && s == n.link.session && v.st.Conn == StartingSyncT {
			n.change(v, func(s *State) { s.Conn = WFSyncUUID })
			n.sendState(v)
		}
	})
	return true
}

// startFullSource opens the resync before the bits are set, so that the wish
// survives a link that dies now: a bitmap id that the peer lacks makes this
// node the source at the next handshake (rule 36).
func (n *Node) startFullSource(v *volume) {
	v.syncAgreed = false
	if v.disk.bm == nil || v.st.Disk != UpToDate {
		n.drop(DropReconnect) // the target waits for us in vain
		return
	}
	n.change(v, func(s *State) { s.Conn = StartingSyncS })
	v.sync = resync{}
	s := n.link.session
	syncUUID := n.openSource(v)
	n.setAllBits(v, func(ok bool) {
		n.flushDisk(v, func(r IOResult) {
			if ok && r == IOOK && s == n.link.session && v.st.Conn == StartingSyncS {
				n.announceSource(v, syncUUID)
			}
		})
	})
}

// --- outdate, config

func (n *Node) runOutdate(c *command) bool {
	if c.phase > 0 {
		return n.finish(c, Success)
	}
	if n.settling() {
		return false
	}
	c.phase = 1
	for _, v := range n.targets(c.Vol) {
		want := v.st
		want.Disk = Outdated
		next, err := Check(v.st, want, n.rules(v))
		if err == ErrConnectedOutdates || err == NothingToDo || (err == Success && next.Disk != Outdated) {
			continue // DRBD 8.4: exit 0, nothing changes
		}
		if err.Failed() {
			return n.finish(c, err)
		}
		n.change(v, func(s *State) { s.Disk = Outdated })
		n.saveSuper(v, c.await())
	}
	return true
}

// runConfig replaces the settings that may change while the resource runs.
// The volumes themselves stay.
func (n *Node) runConfig(c *command) bool {
	n.cfg.Net = c.Config.Net
	for _, vc := range c.Config.Volumes {
		if v := n.findVolume(vc.Vol); v != nil {
			v.cfg = vc
			n.updateGate(v)
		}
	}
	return n.finish(c, Success)
}
