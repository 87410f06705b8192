package core

import (
	"replicad/bitmap"
	"replicad/internal/mutant"
	"replicad/wire"
)

// resync is one volume's share of a running resynchronisation.
//
// The target pulls: it asks for runs of out-of-sync blocks, the source holds
// each from the read to the target's ack. Bits are cleared on both ends only
// after a barrier that follows the ack was acknowledged: the target's page
// cache is not stable storage.
//
// Who holds a block, and when (a rule for each side, so that nobody waits in a
// circle): the source from the request on. A target that is Primary from its
// request on, because its own clients could overwrite the block meanwhile; a
// Secondary target from the reply on, because mirrored writes that the source
// sent before the reply must pass first.
type resync struct {
	running   bool       // target: requests may go out; source: the sync UUID is out
	from      Generation // target: the source's tuple as the resync began
	total     uint64     // bits at the start
	start     Time
	cursor    uint64 // target: where the next request starts
	inFlight  uint64 // target: bytes asked for and not written
	budget    int64  // target: bytes it may ask for now
	refilled  Time
	starved   bool // the budget stops the next request
	source    bool
	run       uint64 // tells this resync from others
	theirEnd  bool   // source: the target's bitmap is complete
	opened    bool   // source: the sync UUID is in our tuple
	begun     bool   // source: the target asked for a block, so it is Inconsistent by now
	confirmed bool   // source: the barrier out now was sent after the resync began
	acked     [2][]span
	ackedBits uint64
}

type span struct{ first, n uint64 }

const (
	syncRequestBlocks = 256 // 1 MiB
	syncTick          = Duration(50e6)
)

// --- bitmap exchange

// becomeSource begins as WFBitMapS: with the whole device dirty, durably, for a
// full sync, then with our bitmap.
func (n *Node) becomeSource(v *volume, full bool) {
	v.sync = resync{}
	if !full {
		n.sendBitmap(v)
		return
	}
	s := n.link.session
	n.setAllBits(v, func(ok bool) {
		if ok && s == n.link.session && v.st.Conn == WFBitMapS {
			n.sendBitmap(v)
		}
	})
}

// becomeTarget begins as WFBitMapT. That this node's data is not current must
// be durable before the exchange goes on: after a crash it would come back as
// good as before.
func (n *Node) becomeTarget(v *volume, full bool) {
	v.sync = resync{}
	n.incoming.holds++
	n.saveSuper(v, func(bool) {
		n.incoming.holds--
		n.drainIncoming()
	})
	if full {
		n.incoming.holds++ // the source's bitmap waits
		n.setAllBits(v, func(bool) {
			n.incoming.holds--
			n.drainIncoming()
		})
	}
}

// setAllBits marks the whole device, durably. The full-sync flag in the
// superblock makes an attach repeat it if we crash half way.
func (n *Node) setAllBits(v *volume, then func(ok bool)) {
	v.fullSync = true
	v.disk.bm.SetAll()
	n.log(v, LevelInfo, "Writing the whole bitmap, full sync required after drbd_sync_handshake.")
	n.saveSuper(v, func(ok bool) {
		if !ok {
			then(false)
			return
		}
		if mutant.On(mutant.FullSyncFlagEarly) {
			v.fullSync = false
			n.saveSuper(v, func(bool) {})
		}
		n.writeBitmap(v, nil, func(ok bool) {
			if ok {
				v.fullSync = false
			}
			n.saveSuper(v, func(saved bool) { then(ok && saved) })
		})
	})
}

// sendBitmap sends every page that has a bit set, then the end mark.
func (n *Node) sendBitmap(v *volume) {
	bm := v.disk.bm
	const words = bitmap.PageBits / 64
	for w := 0; w < bm.WordCount(); w += words {
		count := min(words, bm.WordCount()-w)
		first := uint64(w) * 64
		bits := min(uint64(count)*64, bm.Bits()-first)
		if bm.CountRange(first, bits) == 0 {
			continue
		}
		body := &wire.Bitmap{Words: bm.Words(w, count)}
		n.send(wire.Msg{Kind: wire.KindBitmap, Vol: v.id, Off: first, Len: uint32(bits), Body: body}, 0)
	}
	n.send(wire.Msg{Kind: wire.KindBitmapEnd, Vol: v.id}, 0)
}

func (n *Node) receiveBitmap(v *volume, m *wire.Msg, b *wire.Bitmap) {
	if v.st.Conn == Connected && (v.st.Disk < Inconsistent || v.st.PDisk < Inconsistent) {
		return // a disk failed while this was on its way
	}
	if c := v.st.Conn; v.disk.bm == nil || (c != WFBitMapS && c != WFBitMapT) || m.Off%64 != 0 {
		n.protocolError("bitmap out of turn")
		return
	}
	v.disk.bm.OrWords(int(m.Off/64), b.Words)
}

func (n *Node) receiveBitmapEnd(v *volume) {
	switch v.st.Conn {
	case WFBitMapT:
		n.sendBitmap(v)
		n.change(v, func(s *State) { s.Conn = WFSyncUUID })
	case WFBitMapS:
		if !v.sync.theirEnd {
			v.sync.theirEnd = true
			n.startSource(v)
		}
	default:
		if v.st.Conn == Connected && (v.st.Disk < Inconsistent || v.st.PDisk < Inconsistent) {
			return
		}
		n.protocolError("end of bitmap out of turn")
	}
}

func (n *Node) logBegan(v *volume, as string) {
	bits := v.sync.total
	n.log(v, LevelInfo, "Began resync as %s (will sync %d KB [%d bits set]).", as, bits*4, bits)
}

// --- the end of a session

// abandonPeerWork forgets what the lost peer was to answer. Writes that
// arrived from it still reach the disk.
func (n *Node) abandonPeerWork() {
	for _, v := range n.vols {
		v.sync = resync{}
	}
	for i := range n.ops.all {
		n.abandon(n.ops.all[i])
	}
	n.drainIncoming()
}

func (n *Node) abandon(o *op) {
	switch o.kind {
	case opSyncTarget:
		if !o.held { // no reply arrived: nothing is on its way to our disk
			n.unready(o)
			o.v.ctr.Pending--
			n.unacked.remove(o)
			n.leave(o)
			n.freeOp(o)
		}
	case opSyncSource:
		if o.seq != 0 { // read and sent
			n.endSyncSource(o)
		} else if o.blockers > 0 || n.unready(o) {
			n.endSyncSource(o)
		}
	case opPeerRead:
		if o.blockers > 0 || n.unready(o) {
			n.peerReadDone(o, IOError, 0)
		}
	}
}

// unready takes an operation out of the queue of those whose turn has come.
func (n *Node) unready(o *op) bool {
	for i, r := range n.ready {
		if r == o {
			n.ready = append(n.ready[:i], n.ready[i+1:]...)
			return true
		}
	}
	return false
}

// abortSync ends a volume's resync because a disk is gone.
func (n *Node) abortSync(v *volume) { v.sync = resync{} }
