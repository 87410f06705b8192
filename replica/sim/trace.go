package sim

import (
	"fmt"
	"strings"

	"replicad/replica/core"
)

// A trace has one line per event, in fixed columns: virtual time, node, event,
// and the node's state after it, volume by volume: role, connection, disks,
// KiB out of sync, and actions in flight. Lines without a node are the world's.

var eventNames = map[core.EventKind]string{
	core.EvTick: "tick", core.EvRead: "read", core.EvWrite: "write", core.EvTrim: "trim", core.EvZero: "zero", core.EvFlush: "flush",
	core.EvDiskDone: "disk-done", core.EvMetaDone: "meta-done", core.EvGateClosed: "gate-closed", core.EvDetached: "detached",
	core.EvHandlerDone: "handler-done", core.EvLinkUp: "link-up", core.EvLinkDown: "link-down", core.EvLinkRefused: "link-refused",
	core.EvSent: "sent", core.EvPeer: "peer", core.EvAttach: "attach", core.EvOpen: "open", core.EvCommand: "command",
}

var actionNames = map[core.ActionKind]string{
	core.ActSend: "send", core.ActComplete: "complete", core.ActRelease: "release", core.ActDiskRead: "disk-read",
	core.ActDiskWrite: "disk-write", core.ActDiskTrim: "disk-trim", core.ActDiskZero: "disk-zero", core.ActDiskFlush: "disk-flush",
	core.ActMetaSuper: "meta-super", core.ActMetaAL: "meta-al", core.ActMetaBitmap: "meta-bitmap", core.ActCloseGate: "close-gate",
	core.ActOpenGate: "open-gate", core.ActDetach: "detach", core.ActDial: "dial", core.ActStopDial: "stop-dial", core.ActDrop: "drop",
	core.ActCommandDone: "command-done", core.ActHandler: "handler",
}

func stamp(t core.Time) string { return fmt.Sprintf("%.6f", float64(t)/1e9) }

func (w *World) tracef(format string, args ...any) {
	if w.trace != nil {
		w.trace(fmt.Sprintf("%12s -  %s", stamp(w.now), fmt.Sprintf(format, args...)))
	}
}

// traceEvent writes the line of an event that n has just stepped.
func (w *World) traceEvent(n *node, e *core.Event) {
	var b strings.Builder
	fmt.Fprintf(&b, "%12s %s  %-46s", stamp(w.now), n.name(), describeEvent(e))
	for _, v := range n.core.Status().Volumes {
		s := v.State
		fmt.Fprintf(&b, " %-9s %-14s %12s/%-12s oos %-6d", s.Role, s.Conn, s.Disk, s.PDisk, v.OutOfSync>>10)
	}
	fmt.Fprintf(&b, " live %d", len(n.live))
	w.trace(b.String())
	for i := range n.acts {
		if line := describeAction(&n.acts[i]); line != "" {
			w.trace(fmt.Sprintf("%12s %s      %s", "", n.name(), line))
		}
	}
}

func describeEvent(e *core.Event) string {
	name := eventNames[e.Kind]
	switch e.Kind {
	case core.EvPeer:
		return fmt.Sprintf("%s %d %s", name, e.Session, describeMessage(e.Msg.Kind.String(), e.Msg.Vol, e.Msg.Off, e.Msg.Len, e.Msg.Seq, e.Msg.Arg, e.Buf))
	case core.EvRead, core.EvWrite, core.EvTrim, core.EvZero:
		return fmt.Sprintf("%s v%d %d+%d buf %d fua %v", name, e.Vol, e.Off/sectorSize, e.Len/sectorSize, e.Buf, e.FUA)
	case core.EvDiskDone, core.EvMetaDone, core.EvGateClosed:
		return fmt.Sprintf("%s op %d result %d buf %d", name, e.Op, e.Result, e.Buf)
	case core.EvLinkUp, core.EvLinkDown, core.EvSent:
		return fmt.Sprintf("%s %d reason %d token %v seq %d", name, e.Session, e.Reason, e.Token, e.Seq)
	case core.EvCommand:
		return fmt.Sprintf("%s %d kind %d vol %d force %v discard %v", name, e.Cmd.ID, e.Cmd.Kind, e.Cmd.Vol, e.Cmd.Force, e.Cmd.Discard)
	case core.EvAttach:
		return fmt.Sprintf("%s v%d %v flags %x", name, e.Vol, e.Attach.Super.Gen, e.Attach.Super.Flags)
	}
	return fmt.Sprintf("%s v%d buf %d", name, e.Vol, e.Buf)
}

func describeMessage(kind string, vol uint16, off uint64, n uint32, seq, arg uint64, buf core.Buf) string {
	return fmt.Sprintf("%s v%d %d+%d seq %d.%d arg %d buf %d", kind, vol, off/sectorSize, n/sectorSize, seq>>16, seq&0xffff, arg, buf)
}

func describeAction(a *core.Action) string {
	name := actionNames[a.Kind]
	switch a.Kind {
	case core.ActSend:
		line := fmt.Sprintf("%s %d %s", name, a.Session, describeMessage(a.Msg.Kind.String(), a.Msg.Vol, a.Msg.Off, a.Msg.Len, a.Msg.Seq, a.Msg.Arg, a.Buf))
		if a.Msg.Body != nil {
			line += fmt.Sprintf(" %+v", a.Msg.Body)
		}
		return line
	case core.ActMetaSuper:
		return fmt.Sprintf("%s v%d op %d %v flags %x size %d", name, a.Vol, a.Op, a.Super.Gen, a.Super.Flags, a.Super.Size)
	case core.ActMetaAL:
		return fmt.Sprintf("%s v%d op %d %v", name, a.Vol, a.Op, a.Tx.Updates)
	case core.ActCommandDone:
		return fmt.Sprintf("%s %d: %d %s", name, a.Cmd, a.Err, a.Text)
	case core.ActLog:
		return "log v" + fmt.Sprint(a.Vol) + ": " + a.Text
	case core.ActState:
		return "state v" + fmt.Sprint(a.Vol) + ": " + a.Old.Diff(a.New)
	}
	return fmt.Sprintf("%s v%d op %d %d+%d buf %d src %d result %d session %d reason %d fua %v", name, a.Vol, a.Op, a.Off/sectorSize, a.Len/sectorSize, a.Buf, a.Src, a.Result, a.Session, a.Reason, a.FUA)
}

// logLine keeps a core's log line for scripts.
func (w *World) logLine(n *node, a *core.Action) {
	if w.script {
		w.lines = append(w.lines, n.name()+": "+a.Text)
	}
}

// summary says in one line where the nodes stand.
func (w *World) summary() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s up %v", n.name(), n.up)
		for _, v := range n.vols {
			fmt.Fprintf(&b, " %v", v.st)
		}
		fmt.Fprintf(&b, " live %d commands %d payloads %d requests %d; ", len(n.live), len(n.commands), n.bufs.payloads(), n.bufs.requests())
	}
	for _, l := range w.net.links {
		fmt.Fprintf(&b, "link %d ends %d %d", l.id, l.ends[0].state, l.ends[1].state)
		for i := range l.lanes {
			for c := range l.lanes[i] {
				q := &l.lanes[i][c]
				fmt.Fprintf(&b, " %d/%d/%v", len(q.outbox), len(q.wire), q.moving)
			}
		}
	}
	return b.String()
}
