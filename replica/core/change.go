package core

import (
	"replicad/internal/mutant"
	"replicad/wire"
)

// change is the one place where a volume's state changes. The wanted state is
// sanitised (consequences filled in), applied, announced, and its
// after-effects carried out. Whether it is allowed was decided before.
func (n *Node) change(v *volume, edit func(*State)) {
	old, want := v.st, v.st
	edit(&want)
	s, lines := Sanitize(old, want, n.rules(v))
	if s == old {
		return
	}
	v.st = s
	for _, line := range lines {
		n.log(v, LevelInfo, "%s", line)
	}
	n.log(v, LevelInfo, "%s", old.Diff(s))
	n.act(Action{Kind: ActState, Vol: int32(v.id), Old: old, New: s})
	n.afterChange(v, old)
}

// changeAll applies one edit to every volume.
func (n *Node) changeAll(edit func(*State)) {
	for _, v := range n.vols {
		n.change(v, edit)
	}
}

func (n *Node) rules(v *volume) Rules {
	r := Rules{
		TwoPrimaries: n.cfg.Net.AllowTwoPrimaries, Fencing: v.cfg.Fencing, OnNoData: v.cfg.OnNoData,
		HasNet: v.st.Conn != StandAlone, Open: v.opens > 0, ProtocolVersion: 101,
		ExposedCurrent: v.shownCurrent(), MetaCurrent: v.gen.Current, AttachDisk: v.attachDisk(),
		PeerNewer: v.peerNewer(),
	}
	for _, other := range n.vols {
		if other != v && other.st.Peer == Primary {
			r.OtherPeerPrimary = true
		}
	}
	return r
}

// shownCurrent is the generation that clients were shown last; with nothing
// shown, the disk's own is as good.
func (v *volume) shownCurrent() uint64 {
	switch {
	case v.unsure:
		return 0 // no disk's id
	case v.exposed == 0:
		return v.gen.Current
	}
	return v.exposed
}

// attachDisk is the state the disk would have by its own metadata alone.
func (v *volume) attachDisk() Disk {
	return AttachDisk(v.disk.super.flags, v.cfg.Fencing)
}

// peerNewer reports that the peer is UpToDate with data that follows from ours.
func (v *volume) peerNewer() bool {
	peer := v.peerTuple()
	if v.st.PDisk != UpToDate || !v.heardUUIDs || v.gen.empty() || peer.empty() || masked(peer.Current) == masked(v.gen.Current) {
		return false
	}
	_, older := descends(v.gen, peer)
	_, newer := descends(peer, v.gen)
	return older && !newer
}

// metaFlags are the superblock flags that belong to the volume's state now.
func (v *volume) metaFlags() MetaFlags {
	was := v.disk.super.flags &^ FlagFullSync
	if v.fullSync {
		was |= FlagFullSync
	}
	f := FlagsFor(v.st, was, v.crashed, !v.cfg.ALUpdates)
	if v.keepIndicator && v.st.Disk >= Inconsistent {
		f |= FlagPrimaryInd
	}
	if v.disk.behind {
		f &^= FlagWasUpToDate
	}
	if c := v.st.Conn; v.sync.opened && (c == WFBitMapS || c == StartingSyncS) {
		f |= FlagPeerOutdated // on record with the sync UUID, before the target can begin
	}
	return f
}

// indicates reports whether a state sets the primary indicator, which has a
// crash replay the activity log.
func indicates(s State) bool { return FlagsFor(s, 0, false, false)&FlagPrimaryInd != 0 }

// dropIndicator keeps the primary indicator until what the activity log
// vouched for is durable.
func (n *Node) dropIndicator(v *volume) {
	if v.writable() && !mutant.On(mutant.IndicatorBeforeData) {
		v.keepIndicator = true
	}
}

// releaseIndicator lets the kept indicator go, once everything that still was
// on its way is on disk: data first, then the bitmap, then the superblock.
func (n *Node) releaseIndicator(v *volume) {
	if !v.keepIndicator || v.indicatorOut || !n.incoming.drained() {
		return
	}
	v.indicatorOut = true
	n.flushDisk(v, func(IOResult) {
		n.writeBitmap(v, nil, func(bool) {
			v.keepIndicator, v.indicatorOut = false, false
			n.saveSuper(v, func(bool) {})
		})
	})
}

func (n *Node) afterChange(v *volume, old State) {
	if v.st.Disk == UpToDate && v.st.PDisk == UpToDate && v.st.Conn >= Connected {
		v.crashed = false
	}
	if v.st.Disk == Diskless && old.Disk == Negotiating {
		v.disk.leaving = true // Sanitize gave it up; finishDetach closes it
	}
	n.endOfSync(v, old)
	if indicates(old) && !indicates(v.st) && !n.demoting {
		n.dropIndicator(v)
	}
	if n.role == Primary && old.Disk > Inconsistent && v.st.Disk == Inconsistent && n.connected() {
		n.exposePeer(v) // agreed to become the target of a full sync
	}
	n.notePeerServed(v)
	if n.role == Primary && old.Disk > Failed && v.st.Disk <= Failed && v.exposed != 0 {
		if !v.unsure || !v.follows {
			v.follows, v.heirH1 = n.connected(), masked(v.gen.H1)
		}
		v.unsure = true
		n.noteTail(v)
		if n.peerServesAlready(v) {
			n.exposePeer(v)
		}
	}
	if old.Disk > Failed && v.st.Disk <= Failed && n.link.up && !n.hs.done {
		// The peer goes by the good disk that it was told of, and may become the
		// target of it: Outdated, while we would count it as UpToDate.
		n.drop(DropReconnect)
	}
	n.releaseIDOps(v)
	n.pauseLog(v)
	n.updateGate(v)
	if n.takesBack(v, old) || lostContact(old.PDisk, v.st.PDisk) || (old.Peer != Primary && v.st.Peer == Primary && v.st.PDisk < Inconsistent) {
		n.lostPeerData(v)
	}
	if v.disk.bm != nil && v.st.Disk > Failed && v.metaFlags() != v.disk.super.flags {
		n.saveSuper(v, func(bool) {})
	}
}

// takesBack reports that a Primary without a disk got its own again, good by
// itself, while the peer's is out of reach: that may be of the same generation.
func (n *Node) takesBack(v *volume, old State) bool {
	return n.role == Primary && old.Disk < Inconsistent && v.st.Disk == UpToDate && (v.st.PDisk < Inconsistent || v.st.Conn < Connected)
}

func syncing(c Conn) bool {
	return c == SyncSource || c == SyncTarget || c == PausedSyncS || c == PausedSyncT
}

// endOfSync cleans up after a resync that did not come to its end, or never began.
func (n *Node) endOfSync(v *volume, old State) {
	if old.Conn > Connected && v.st.Conn <= Connected && v.st.PDisk != UpToDate {
		n.loseSync(v, old.Conn)
	}
	if syncing(old.Conn) && !syncing(v.st.Conn) {
		n.abortSync(v)
	}
	if v.syncAgreed && (v.st.Disk <= Failed || v.st.PDisk <= Failed || v.st.Conn < Connected) {
		v.syncAgreed = false
		if v.st.Disk <= Failed && v.st.PDisk > Failed {
			n.drop(DropReconnect) // the peer gives up, or gave up, its data for ours, and we would count it as good
		}
	}
}

// lostContact reports whether the peer's data went out of reach between two
// peer disk states (DRBD 8.4 after_state_ch).
func lostContact(was, is Disk) bool {
	switch was {
	case Inconsistent, Consistent, UpToDate:
		return is < Inconsistent || is == DUnknown || is == Outdated
	case DUnknown:
		return is == Diskless || is == Failed || is == Outdated
	}
	return false
}

// lostPeerData starts a new data generation where the peer's copy falls, or
// stays, behind from now on: on a Primary, and on the node that serves a Primary
// whose own disk is dead. Nothing is acknowledged to anyone on the new
// generation before its id is durable.
func (n *Node) lostPeerData(v *volume) {
	serving := v.st.Role == Secondary && v.st.Peer == Primary && v.st.PDisk <= Failed && n.connected()
	alone := v.st.Disk == UpToDate && (v.st.Role == Primary || serving)
	left := alone && v.shared
	if left {
		n.leaveShared(v)
	}
	rotate := alone && v.gen.Bitmap == 0
	if rotate && !mutant.On(mutant.NoRotation) {
		v.gen = v.gen.Rotate(n.newUUID(), v.st.Role == Primary)
		n.log(v, LevelInfo, "new current UUID %s", v.gen)
	}
	switch {
	case serving:
		n.serveAlone(v)
	case rotate, left:
		n.continueAlone(v)
	}
	if n.connected() {
		n.loseSent(v) // the peer's cache died with its disk
	}
}

// continueAlone holds a Primary's data path until its new generation id is durable.
func (n *Node) continueAlone(v *volume) {
	v.exposed, v.unsure, v.tail, v.tailLost = v.gen.Current, false, 0, false
	n.freeze()
	n.saveSuper(v, func(bool) {
		if n.connected() {
			n.sendUUIDs(v) // a disk that comes back finds out that it is behind
		}
		n.thaw()
	})
}

// serveAlone holds the peer's writes until the superblock says that ours is
// the only disk: new generation id, and the indicator that has a crash replay
// our activity log.
func (n *Node) serveAlone(v *volume) {
	v.served = true
	n.incoming.holds++
	n.saveSuper(v, func(bool) {
		n.incoming.holds--
		n.sendUUIDs(v)
		n.drainIncoming()
	})
}

// newUUID draws a generation id that is none of the special values.
func (n *Node) newUUID() uint64 {
	for {
		if u := n.random() &^ 1; u > UUIDJustCreated {
			return u
		}
	}
}

// --- the gate of local reads

// updateGate opens or closes the way by which reads reach the local disk
// without passing the core.
func (n *Node) updateGate(v *volume) {
	want := v.st.Role == Primary && (v.st.Disk == UpToDate || (mutant.On(mutant.GateLeftOpen) && v.st.Disk >= Inconsistent)) &&
		!v.gateHeld && v.cfg.DiskTimeout == 0
	switch {
	case want && !v.gateOpen && !v.gateClosing:
		v.gateOpen = true
		n.act(Action{Kind: ActOpenGate, Vol: int32(v.id)})
	case !want && v.gateOpen:
		n.closeGate(v, func() {})
	}
}

// closeGate calls then when no read bypasses the core any more.
func (n *Node) closeGate(v *volume, then func()) {
	if v.gateClosing {
		v.gateThen = append(v.gateThen, then)
		return
	}
	if !v.gateOpen {
		then()
		return
	}
	v.gateOpen, v.gateClosing = false, true
	v.gateThen = append(v.gateThen, then)
	o := n.internal(v, func(IOResult, Buf) {
		v.gateClosing = false
		waiting := v.gateThen
		v.gateThen = nil
		for _, then := range waiting {
			then()
		}
		n.updateGate(v)
	})
	n.act(Action{Kind: ActCloseGate, Vol: int32(v.id), Op: o.id})
}

// --- telling the peer

func (n *Node) sendUUIDs(v *volume) {
	u := &wire.UUIDs{Current: v.gen.Current, Bitmap: v.gen.Bitmap, H1: v.gen.H1, H2: v.gen.H2}
	if v.disk.bm != nil {
		u.Bits = v.disk.bm.Count()
	} else {
		*u = wire.UUIDs{Current: v.exposed}
	}
	if n.discard {
		u.Flags |= wire.UUIDFlagDiscardMyData
	}
	if v.crashed {
		u.Flags |= wire.UUIDFlagCrashedPrimary
	}
	if v.effectiveDisk() <= Inconsistent {
		u.Flags |= wire.UUIDFlagInconsistent
	}
	n.send(wire.Msg{Kind: wire.KindUUIDs, Vol: v.id, Body: u}, 0)
}

// effectiveDisk is the disk state, or what it will be once the handshake is over.
func (v *volume) effectiveDisk() Disk {
	if v.st.Disk == Negotiating {
		return v.attachDisk()
	}
	return v.st.Disk
}

func (n *Node) sendSizes(v *volume) {
	n.send(wire.Msg{Kind: wire.KindSizes, Vol: v.id, Body: &wire.Sizes{Disk: v.disk.bytes, User: v.disk.user, Current: v.size}}, 0)
}

// sendState tells the peer this node's view. It is sent after changes of role
// or disk that the peer cannot know; the steps of a resync, which both ends
// take by themselves, send none, so that no late report undoes them.
func (n *Node) sendState(v *volume) {
	if !n.link.up || !n.hs.sent {
		return
	}
	s := &wire.State{Role: uint8(v.st.Role), Peer: uint8(v.st.Peer), Conn: uint8(v.st.Conn), Disk: uint8(v.st.Disk), PDisk: uint8(v.st.PDisk)}
	n.send(wire.Msg{Kind: wire.KindState, Vol: v.id, Body: s}, 0)
}
