package core

import (
	"slices"
	"strings"
	"testing"

	"replicad/wire"
)

const diskTimeout = Duration(5e9)

// later lets time pass; the owner ticks whenever the deadline says so.
func (r *rig) later(d Duration) {
	end := r.now + d
	for {
		at, ok := r.n.Deadline()
		if !ok || at > end {
			break
		}
		r.now = max(r.now, at)
		r.do(Event{Kind: EvTick})
		r.peer(wire.Msg{Kind: wire.KindPingAck})
	}
	r.now = end
}

// hang makes the disk leave every action unanswered.
func (r *rig) hang() {
	for k := range r.n.vols {
		r.n.vols[k].cfg.DiskTimeout = diskTimeout
	}
	for _, k := range []ActionKind{ActDiskRead, ActDiskWrite, ActDiskTrim, ActDiskZero, ActDiskFlush, ActMetaSuper, ActMetaAL, ActMetaBitmap} {
		r.hold[k] = true
	}
}

// mustHave demands that requests were completed without an error.
func (r *rig) mustHave(bufs ...Buf) {
	r.t.Helper()
	for _, b := range bufs {
		if got, ok := r.results[b]; !ok || got != IOOK {
			r.t.Errorf("request %d: %v, answered %v\n%q", b, got, ok, r.logs)
		}
	}
}

func (r *rig) mustNotHave(bufs ...Buf) {
	r.t.Helper()
	for _, b := range bufs {
		if got, ok := r.results[b]; ok {
			r.t.Errorf("request %d was answered too early: %v", b, got)
		}
	}
}

func (r *rig) logged(part string) bool {
	return slices.ContainsFunc(r.logs, func(l string) bool { return strings.Contains(l, part) })
}

// TestDiskTimeoutServesFromPeer: the local disk hangs under a write, a read
// and a flush. After disk-timeout the clients are answered with the peer's
// help; the disk stays Failed until its last action came back, and nothing
// that comes back late is taken for an answer.
func TestDiskTimeoutServesFromPeer(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096}) // makes the extent hot
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.hang()
	r.do(Event{Kind: EvWrite, Buf: 2, Off: 4096, Len: 4096}, Event{Kind: EvRead, Buf: 3, Off: 8192, Len: 4096}, Event{Kind: EvFlush, Buf: 4})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	b := r.lastSent(wire.KindBarrier)
	r.peer(wire.Msg{Kind: wire.KindBarrierAck, Seq: b.Seq, Arg: b.Arg})
	if len(r.results) != 1 {
		t.Fatalf("answered while the disk hangs: %v", r.results)
	}
	r.later(diskTimeout - 1e6)
	r.expect("ds:UpToDate/UpToDate")
	r.later(2e6)
	r.expect("ds:Failed/UpToDate")
	r.mustNotHave(2, 4) // the peer's new generation id is not durable yet
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 2, Bitmap: rigGen}})
	r.mustHave(2, 4)
	m := r.lastSent(wire.KindReadRequest)
	if m == nil {
		t.Fatal("the read did not go to the peer")
	}
	r.peer(wire.Msg{Kind: wire.KindReadReply, Seq: m.Seq, Off: m.Off, Len: m.Len})
	r.mustHave(3)
	if !r.logged("did not answer for 5000 ms (disk-timeout)") {
		t.Errorf("log: %q", r.logs)
	}
	r.later(100 * diskTimeout)
	r.expect("ds:Failed/UpToDate")
	r.attach(0, goodSuper())
	if r.cmds[1000] != ErrDiskConfigured {
		t.Errorf("attach while a late write may still land: %v", r.cmds[1000])
	}
	r.release(IOOK)
	r.expect("ds:Diskless/UpToDate")
	if len(r.owned) > 0 {
		t.Errorf("buffers that the core still holds: %v", r.owned)
	}
	r.do(Event{Kind: EvWrite, Buf: 5, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.mustHave(5)
}

// TestDiskTimeoutAfterAnError: one action fails, and the disk with it; another
// one, already on the disk, hangs. Its client is answered all the same.
func TestDiskTimeoutAfterAnError(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096}) // makes the extent hot
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.hang()
	r.do(Event{Kind: EvRead, Buf: 2, Len: 4096}, Event{Kind: EvWrite, Buf: 3, Off: 4096, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	read := r.held[0]
	r.held = r.held[1:]
	r.do(Event{Kind: EvDiskDone, Op: read.Op, Result: IOError})
	r.expect("ds:Failed/UpToDate")
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 2, Bitmap: rigGen}})
	r.mustNotHave(3)
	r.later(diskTimeout + 1e6)
	r.mustHave(3)
	r.expect("ds:Failed/UpToDate")
	r.release(IOOK)
	r.expect("ds:Diskless/UpToDate")
}

// TestDetachOfAHungDisk: clients do not wait for the detach of a disk that
// hangs, which ends when the disk answers.
func TestDetachOfAHungDisk(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.do(Event{Kind: EvWrite, Buf: 1, Len: 4096}) // makes the extent hot
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.hang()
	r.hold[ActMetaBitmap], r.hold[ActMetaSuper] = false, false
	r.do(Event{Kind: EvWrite, Buf: 2, Off: 4096, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 7, Kind: CmdDetach}})
	r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: r.lastSent(wire.KindStateReq).Body.(*wire.StateReq).ID, Arg: uint64(Success)})
	r.expect("ds:Failed/UpToDate")
	r.peer(wire.Msg{Kind: wire.KindUUIDs, Body: &wire.UUIDs{Current: rigGen + 2, Bitmap: rigGen}})
	r.do(Event{Kind: EvWrite, Buf: 3, Off: 8192, Len: 4096})
	r.peer(wire.Msg{Kind: wire.KindWriteAck, Seq: r.lastSent(wire.KindData).Seq})
	r.mustHave(3)
	r.later(diskTimeout + 1e6)
	r.mustHave(2)
	if _, done := r.cmds[7]; done {
		t.Error("detached while a late write may still land")
	}
	r.release(IOOK)
	if r.cmds[7] != Success {
		t.Errorf("detach: %v", r.cmds[7])
	}
}

// TestDiskTimeoutOnSecondary: a mirrored write whose disk hangs is refused, so
// that the Primary goes on alone.
func TestDiskTimeoutOnSecondary(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, UpToDate))
	r.hang()
	r.peer(data(77, 3, wire.FlagWantWriteAck), wire.Msg{Kind: wire.KindBarrier, Seq: 1, Arg: 1})
	r.later(diskTimeout + 1e6)
	r.expect("cs:WFConnection ro:Secondary/Unknown ds:Failed/DUnknown") // its barrier could not be kept
	if m := r.lastSent(wire.KindNegAck); m == nil || m.Seq != 77 {
		t.Errorf("no negative ack: %v", r.sent)
	}
	if r.lastSent(wire.KindBarrierAck) != nil {
		t.Error("an epoch whose write hangs was acked")
	}
	r.release(IOOK)
	r.expect("ds:Diskless")
	if m := r.lastSent(wire.KindWriteAck); m != nil {
		t.Error("the late answer was sent as an ack")
	}
}

// TestDiskTimeoutWhileAttaching: a disk that hangs at once does not hold the
// attach command for ever.
func TestDiskTimeoutWhileAttaching(t *testing.T) {
	r := newRig(t, 'C', 1)
	r.hang()
	r.attach(0, goodSuper())
	r.later(diskTimeout + 1e6)
	if got := r.cmds[1000]; got != ErrMetaIO {
		t.Errorf("attach: %v", got)
	}
	r.release(IOOK)
	r.expect("ds:Diskless")
}

// TestDiskTimeoutAfterAPause: a process that did not run for hours (a paused
// machine) does not blame its disk.
func TestDiskTimeoutAfterAPause(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.hang()
	r.do(Event{Kind: EvRead, Buf: 1, Len: 4096})
	r.now += 1000 * diskTimeout
	r.do(Event{Kind: EvTick})
	r.peer(wire.Msg{Kind: wire.KindPingAck})
	r.expect("ds:UpToDate/UpToDate")
	r.release(IOOK)
	r.later(2 * diskTimeout)
	r.mustHave(1)
	if r.logged("disk-timeout") {
		t.Errorf("log %q", r.logs)
	}
}

// TestDiskTimeoutOff: without the option the core waits for ever, and reads
// go into the client's memory.
func TestDiskTimeoutOff(t *testing.T) {
	r := goodPrimary(t, 'C')
	r.hang()
	r.n.vols[0].cfg.DiskTimeout = 0
	r.do(Event{Kind: EvRead, Buf: 1, Len: 4096})
	if a := r.held[0]; a.Kind != ActDiskRead || a.Buf != 1 {
		t.Errorf("action %+v", a)
	}
	r.later(100 * diskTimeout)
	r.expect("ds:UpToDate/UpToDate")
}
