package sim

import (
	"fmt"
	"strings"

	"replicad/replica/core"
)

// mark is an interesting situation. A long run must reach every one of them:
// otherwise it proves less than it seems to.
type mark uint8

const (
	markCrashSource mark = iota
	markCrashTarget
	markCrashBoth
	markCrashPrimaryWriting
	markBarrierAtLoss
	markEviction
	markSplitBrain
	markManual
	markForced
	markFailover
	markRemoteRead
	markDiskError
	markDiskless
	markFlushBoth
	markRefused
	markPromotionRefused
	markStopDialRace
	markPrimaryTarget
	markResyncWrites
	markApartChecked
	markCrashRecovery
	markFlushFailed
	markOfferTaken
	markDuplicate
	markHalfOpen
	markSocketFull
	markControlStall
	markDataStall
	markEarlyReset
	markTruncated
	markDamaged
	markLate
	markLinkRefused
	markLongFreeze
	markClockJump
	markBothPromote
	markBothDiscard
	markConfigHandshake
	markUnknownVolume
	markCrashAttach
	markCrashCommand
	markCrashBothResync
	markMirrored
	markDiskGivenUp
	markServedDespiteHang
	markLateAnswer
	markEnd
)

var markNames = [markEnd]string{
	"crash of a sync source", "crash of a sync target", "both nodes down at once", "crash of a Primary with writes in flight",
	"link lost while a barrier is unanswered", "activity log full while writes wait", "split brain",
	"split brain resolved by hand", "promotion by force", "promotion while the peer is down",
	"read served by the peer", "disk error", "Primary without a disk", "flush on both disks", "request refused",
	"promotion refused", "session up although dialling was stopped", "Primary that is a sync target",
	"writes during a resync", "nodes apart and compared", "crash while the activity log is applied",
	"disk attached again after a failed flush",
	"session taken up after the peer's end was up", "two sessions for two nodes", "half-open session found out by silence",
	"full socket while frames wait", "control dead while data alive", "data dead while control alive",
	"reset within the handshake", "frame without its end", "damaged frame refused", "frame of an older session while a new one is up",
	"link refused for good", "freeze longer than the timeout", "clock jumped over the timeout",
	"both asked to be Primary at once", "both asked to give up their data at once", "configuration changed within the handshake",
	"command for a volume that is not there", "crash while a disk is attached", "crash inside a command", "both crashed during a resync",
	"both ends of a handshake concluded", "hung disk given up", "request served by the peer while the disk hangs", "late answer of a disk that was given up",
}

// marks counts how often each was reached.
type marks [markEnd]int

func (m *marks) hit(x mark) { m[x]++ }

func (m *marks) add(o *marks) {
	for i := range m {
		m[i] += o[i]
	}
}

// Missing lists the situations that were never reached.
func (m *marks) Missing() []string {
	var names []string
	for i, n := range m {
		if n == 0 {
			names = append(names, markNames[i])
		}
	}
	return names
}

func (m *marks) String() string {
	var b strings.Builder
	for i, n := range m {
		fmt.Fprintf(&b, "  %7d  %s\n", n, markNames[i])
	}
	return b.String()
}

// markCrash notes what a node was doing when it died.
func (w *World) markCrash(n *node) {
	if !n.peer().up {
		w.reached.hit(markCrashBoth)
	}
	if len(n.commands) > 0 {
		w.reached.hit(markCrashCommand)
	}
	for _, v := range n.vols {
		if v.st.Disk == core.Attaching || v.st.Disk == core.Negotiating {
			w.reached.hit(markCrashAttach)
		}
		if v.st.Conn == core.SyncSource || v.st.Conn == core.SyncTarget {
			if n.peer().syncDied && !n.peer().up {
				w.reached.hit(markCrashBothResync)
			}
			n.syncDied = true
		}
		switch {
		case v.st.Conn == core.SyncSource:
			w.reached.hit(markCrashSource)
		case v.st.Conn == core.SyncTarget:
			w.reached.hit(markCrashTarget)
		}
		if v.st.Role == core.Primary && n.bufs.requests() > 0 {
			w.reached.hit(markCrashPrimaryWriting)
		}
	}
}

// markState notes what a state change shows.
func (w *World) markState(n *node, v *volume, old, now core.State) {
	if old.Conn == core.WFReportParams && now.Conn >= core.Connected {
		n.joins(v)
		w.concluded(n, v.id, old, now.Conn)
	}
	if old.Disk > core.Failed && now.Disk == core.Failed && v.hangs() && w.opt.DiskTimeout > 0 {
		w.reached.hit(markDiskGivenUp)
	}
	if now.Role == core.Primary && now.Conn == core.SyncTarget {
		w.reached.hit(markPrimaryTarget)
	}
	if now.Role == core.Primary && now.Disk == core.Diskless && now.Conn >= core.Connected {
		w.reached.hit(markDiskless)
	}
	if old.Conn >= core.Connected && now.Conn < core.Connected && n.peer().up && len(n.peer().epochs.closed) > 0 {
		w.reached.hit(markBarrierAtLoss)
	}
	if old.Conn == core.WFReportParams && now.Conn < core.WFReportParams && w.bothChanged(v.id) {
		w.reached.hit(markSplitBrain)
	}
	if sourcing(now.Conn) && now.Role == core.Primary && n.bufs.requests() > 0 {
		w.reached.hit(markResyncWrites)
	}
}

// bothChanged reports that each node's disk has a history the other lacks.
func (w *World) bothChanged(vol int) bool {
	g := func(i int) uint64 { return w.nodes[i].vols[vol].meta.marks.Super().Bitmap &^ 1 }
	return g(0) != 0 && g(0) == g(1)
}
