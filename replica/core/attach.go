package core

import (
	"replicad/bitmap"
	"replicad/internal/mutant"
)

// Failures of an attach, in DRBD 8.4's numbers.
const (
	ErrDiskTooSmall      StateErr = 111 // Low.dev. smaller than requested DRBD-dev. size.
	ErrMetaIO            StateErr = 118 // IO error(s) occurred during initial access to meta-data.
	ErrDiskConfigured    StateErr = 124 // Device is attached to a disk (use detach first)
	ErrNetConfigured     StateErr = 125 // Device has a net-config (use disconnect first)
	ErrDiscardImpossible StateErr = 123 // --discard-my-data not allowed when primary.
	ErrNoMinor           StateErr = 127 // Device minor not allocated
	ErrDataNotCurrent    StateErr = 150 // Can only attach to the data we lost last (see kernel log).
)

// attach takes over a backing disk whose metadata the owner has read. The
// metadata is brought up to date first (size, all bits of a new disk); the
// state follows when that is durable.
func (n *Node) attach(v *volume, a *Attachment) {
	if err := n.refuseAttach(v, a); err != Success {
		n.act(Action{Kind: ActCommandDone, Cmd: a.Cmd, Err: err})
		return
	}
	s := &a.Super
	// What a killed predecessor wrote may still be in the page cache only.
	v.disk = localDisk{bytes: a.Disk, user: a.User, bm: a.Bitmap, attaching: a, unflushed: !mutant.On(mutant.AttachCountsAsFlushed)}
	v.disk.al = bitmap.NewActivityLog(a.ALSlots)
	v.disk.al.Reset(a.ALNumber)
	v.disk.super.flags = s.Flags
	if n.role == Primary && !mutant.On(mutant.AttachWithoutIndicator) {
		v.disk.super.flags |= FlagPrimaryInd // clients may write before the handshake is over
	}
	v.gen, v.size, v.peerWrote = s.Gen, s.Size, true
	v.crashed = s.Flags&FlagCrashedPrimary != 0 || (s.Flags&FlagPrimaryInd != 0 && n.role != Primary && !mutant.On(mutant.CrashedNotNoted))
	// Flagged as the source of a resync: its end may have come while we were down.
	v.shared = s.Gen.Bitmap != 0 && s.Flags&FlagPeerOutdated != 0
	v.ctr = Counters{App: v.ctr.App, Pending: v.ctr.Pending, Unacked: v.ctr.Unacked}
	n.change(v, func(s *State) { s.Disk = Attaching })
	markAll := (s.Flags&FlagFullSync != 0 && !mutant.On(mutant.FullSyncDroppedAtAttach)) || (v.crashed && s.Flags&FlagALDisabled != 0)
	if s.Size == 0 {
		n.firstSize(v)
		markAll = true
	}
	if markAll {
		v.fullSync = true
		v.disk.bm.SetAll()
	}
	n.writeBitmap(v, nil, func(ok bool) {
		v.fullSync = v.fullSync && !ok
		n.saveSuper(v, func(saved bool) { n.attachWritten(v, ok && saved) })
	})
}

func (n *Node) refuseAttach(v *volume, a *Attachment) StateErr {
	shown := v.exposed
	switch {
	case v.st.Disk != Diskless, v.disk.leaving, v.disk.bm != nil:
		return ErrDiskConfigured
	case a.Disk < a.Super.Size, a.Disk < bitmap.BlockSize:
		return ErrDiskTooSmall
	case n.role == Primary && v.size != 0 && attachedSize(a) < v.size:
		return ErrDiskTooSmall // clients were shown more
	case n.role == Primary && (v.st.Conn < Connected || v.st.PDisk <= Failed) && shown != 0 && (v.unsure || masked(shown) != masked(a.Super.Gen.Current)):
		return ErrDataNotCurrent
	}
	return Success
}

// attachedSize is the size a disk would serve: the agreed one, or its own.
func attachedSize(a *Attachment) uint64 {
	size := a.Super.Size
	if size == 0 {
		size = a.Disk
		if a.User != 0 {
			size = min(size, a.User)
		}
	}
	return size &^ (bitmap.BlockSize - 1)
}

// firstSize gives a volume that never was attached the size of its disk.
func (n *Node) firstSize(v *volume) {
	v.size = attachedSize(v.disk.attaching)
	v.disk.bm = bitmap.New(v.size / bitmap.BlockSize)
	n.log(v, LevelInfo, "size = %d MB (%d KB)", v.size>>20, v.size>>10)
}

func (n *Node) attachWritten(v *volume, ok bool) {
	a := v.disk.attaching
	if ok {
		v.disk.ready = true
		n.finishAttach(v)
		return
	}
	v.disk.attaching = nil
	n.change(v, func(s *State) { s.Disk = Failed })
	v.disk.leaving = true
	n.act(Action{Kind: ActCommandDone, Cmd: a.Cmd, Err: ErrMetaIO})
}

// finishAttach gives the disk its state: by its metadata when there is no
// connection, else Negotiating until both ends compared generation ids. While
// a handshake is under way it waits for its end: the peer was told Diskless.
func (n *Node) finishAttach(v *volume) {
	a := v.disk.attaching
	if a == nil || !v.disk.ready || v.st.Disk != Attaching || (n.link.up && !n.hs.done) {
		return
	}
	v.disk.attaching = nil
	v.gen = v.gen.WithPrimary(n.role == Primary)
	bits := v.disk.bm.Count()
	n.log(v, LevelInfo, "%d KB (%d bits) marked out-of-sync by on disk bit-map.", bits*4, bits)
	if n.connected() {
		n.change(v, func(s *State) { s.Disk = Negotiating })
		n.sendSizes(v)
		n.sendUUIDs(v)
		n.sendState(v)
	} else {
		n.change(v, func(s *State) {
			s.Disk = AttachDisk(a.Super.Flags, v.cfg.Fencing)
			s.PDisk = AttachPDisk(a.Super.Flags)
		})
	}
	n.log(v, LevelInfo, "attached to UUIDs %s", v.gen)
	n.saveSuper(v, func(ok bool) {
		err := Success
		if !ok {
			err = ErrMetaIO
		}
		n.act(Action{Kind: ActCommandDone, Cmd: a.Cmd, Err: err})
	})
}

// pauseLog notes that the activity log rests while every bit is set on stable
// storage, nobody is connected and nobody writes (flag s of /proc/drbd). DRBD
// also rests it for a lone Primary; ours does not, because the log also
// vouches for writes that only a power cut on this node could lose.
func (n *Node) pauseLog(v *volume) {
	d := &v.disk
	if d.bm == nil {
		return
	}
	d.alPaused = v.st.Role != Primary && v.st.Conn < Connected && v.st.Disk >= Inconsistent && !v.fullSync && !d.bitmap.busy &&
		d.bm.Count() == d.bm.Bits() && d.bm.DirtyPages() == 0
}
