package core

import (
	"strings"
	"testing"

	"replicad/bitmap"
	"replicad/wire"
)

// rig is one core with a scripted peer: the tests of the review say what
// arrives, and which actions are answered late.
type rig struct {
	t       *testing.T
	n       *Node
	now     Time
	session Session
	hold    map[ActionKind]bool
	held    []Action
	sent    []wire.Msg
	results map[Buf]IOResult
	cmds    map[uint64]StateErr
	super   map[int32]Super // as last durable
	logs    []string
	nextBuf Buf
	queue   []Event
	owned   map[Buf]bool // payload buffers that the core holds
	asked   map[Buf]bool // client requests
	up      Session      // the session that is up, 0 = none
	dialing bool
}

const (
	rigSize = 16 << 20
	rigGen  = 0xAAAA000000000000
)

func newRig(t *testing.T, protocol byte, vols int) *rig {
	cfg := Config{Net: Defaults()}
	cfg.Net.Protocol = protocol
	for i := range vols {
		cfg.Volumes = append(cfg.Volumes, DefaultVolume(uint16(i)))
	}
	seed := uint64(1)
	r := &rig{
		t: t, hold: map[ActionKind]bool{}, results: map[Buf]IOResult{}, cmds: map[uint64]StateErr{},
		super: map[int32]Super{}, nextBuf: 1 << 20, owned: map[Buf]bool{}, asked: map[Buf]bool{},
	}
	r.n = New(cfg, func() uint64 { seed = seed*6364136223846793005 + 1442695040888963407; return seed })
	return r
}

func goodSuper() Super {
	return Super{Gen: Generation{Current: rigGen}, Flags: FlagConsistent | FlagWasUpToDate, Size: rigSize}
}

func (r *rig) attach(vol uint16, s Super) {
	r.do(Event{Kind: EvAttach, Vol: vol, Attach: &Attachment{Super: s, Disk: rigSize, ALSlots: 67, Cmd: 1000, Bitmap: bitmap.New(rigSize / 4096)}})
}

func (r *rig) do(events ...Event) {
	r.queue = append(r.queue, events...)
	for len(r.queue) > 0 {
		e := r.queue[0]
		r.queue = r.queue[1:]
		r.note(e)
		for _, a := range r.n.Step(r.now, e, nil) {
			r.take(a)
		}
	}
}

// note keeps account of what an event gives to the core.
func (r *rig) note(e Event) {
	switch e.Kind {
	case EvPeer, EvDiskDone:
		if e.Buf != 0 {
			r.owned[e.Buf] = true
		}
	case EvRead, EvWrite, EvTrim, EvZero, EvFlush:
		r.asked[e.Buf] = true
	case EvLinkUp:
		r.up, r.dialing = e.Session, false
	case EvLinkDown:
		if e.Session == r.up {
			r.up = 0
		}
	}
}

func (r *rig) take(a Action) {
	if r.hold[a.Kind] {
		r.held = append(r.held, a)
		return
	}
	switch a.Kind {
	case ActSend:
		r.sent = append(r.sent, a.Msg)
	case ActComplete:
		if _, twice := r.results[a.Buf]; twice {
			r.t.Fatalf("request %d answered twice", a.Buf)
		}
		r.results[a.Buf] = a.Result
	case ActDial:
		r.session, r.dialing = a.Session, true
	case ActStopDial:
		r.dialing = false
	case ActRelease:
		if !r.owned[a.Buf] {
			r.t.Fatalf("buffer %d released, which the core does not hold", a.Buf)
		}
		delete(r.owned, a.Buf)
	case ActCommandDone:
		r.cmds[a.Cmd] = a.Err
	case ActLog:
		r.logs = append(r.logs, a.Text)
	default:
		r.queue = append(r.queue, r.answer(a, IOOK)...)
	}
}

// answer is the completion of an action.
func (r *rig) answer(a Action, result IOResult) []Event {
	switch a.Kind {
	case ActDiskRead:
		r.nextBuf++
		e := Event{Kind: EvDiskDone, Op: a.Op, Result: result}
		if a.Buf == 0 && result == IOOK {
			e.Buf = r.nextBuf
		}
		return []Event{e}
	case ActDiskWrite, ActDiskTrim, ActDiskZero, ActDiskFlush:
		return []Event{{Kind: EvDiskDone, Op: a.Op, Result: result}}
	case ActMetaSuper:
		if result == IOOK {
			r.super[a.Vol] = *a.Super
		}
		return []Event{{Kind: EvMetaDone, Op: a.Op, Result: result}}
	case ActMetaAL, ActMetaBitmap:
		return []Event{{Kind: EvMetaDone, Op: a.Op, Result: result}}
	case ActCloseGate:
		return []Event{{Kind: EvGateClosed, Op: a.Op}}
	case ActDetach:
		return []Event{{Kind: EvDetached, Vol: uint16(a.Vol)}}
	case ActDrop:
		return []Event{{Kind: EvLinkDown, Session: a.Session, Reason: a.Reason}}
	}
	return nil
}

// release answers everything held, and holds no more.
func (r *rig) release(result IOResult) {
	held := r.held
	r.held, r.hold = nil, map[ActionKind]bool{}
	for _, a := range held {
		r.do(r.answer(a, result)...)
	}
}

func (r *rig) peer(msgs ...wire.Msg) {
	for _, m := range msgs {
		e := Event{Kind: EvPeer, Session: r.session, Msg: m}
		if m.HasPayload() {
			r.nextBuf++
			e.Buf = r.nextBuf
		}
		r.do(e)
	}
}

// connect brings the link up and plays the peer's side of the handshake.
func (r *rig) connect(size uint64, u wire.UUIDs, states ...wire.State) {
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1001, Kind: CmdConnect}})
	r.shake(size, u, states...)
}

func (r *rig) shake(size uint64, u wire.UUIDs, states ...wire.State) {
	r.do(Event{Kind: EvLinkUp, Session: r.session})
	c := &r.n.cfg.Net
	p := &wire.Params{Protocol: c.Protocol, AfterSB0: c.AfterSB0, AfterSB1: c.AfterSB1, AfterSB2: c.AfterSB2}
	for i := range states {
		p.Volumes = append(p.Volumes, uint16(i))
	}
	r.peer(wire.Msg{Kind: wire.KindParams, Body: p})
	for i := range states {
		vol := uint16(i)
		s, disk := states[i], size
		if Disk(s.Disk) == Diskless {
			disk = 0
		}
		r.peer(
			wire.Msg{Kind: wire.KindSizes, Vol: vol, Body: &wire.Sizes{Disk: disk, Current: size}},
			wire.Msg{Kind: wire.KindUUIDs, Vol: vol, Body: &u},
			wire.Msg{Kind: wire.KindState, Vol: vol, Body: &s},
		)
	}
}

func peerState(role Role, disk Disk) wire.State {
	return wire.State{Role: uint8(role), Conn: uint8(WFReportParams), Disk: uint8(disk)}
}

func (r *rig) expect(state string) {
	r.t.Helper()
	if got := r.n.vols[0].st.String(); !strings.Contains(got, state) {
		r.t.Fatalf("state %s, want %s\n%v", got, state, r.logs)
	}
}

// lastSent returns the last message of a kind, or nil.
func (r *rig) lastSent(k wire.Kind) *wire.Msg {
	for i := len(r.sent) - 1; i >= 0; i-- {
		if r.sent[i].Kind == k {
			return &r.sent[i]
		}
	}
	return nil
}

func (r *rig) promote() {
	r.t.Helper()
	r.do(Event{Kind: EvCommand, Cmd: &Command{ID: 1002, Kind: CmdPrimary}})
	if m := r.lastSent(wire.KindStateReq); m != nil {
		if id := m.Body.(*wire.StateReq).ID; r.cmds[1002] == 0 {
			r.peer(wire.Msg{Kind: wire.KindStateReply, Seq: id, Arg: uint64(Success)})
		}
	}
	if r.cmds[1002] != Success {
		r.t.Fatalf("promotion: %v\n%v", r.cmds[1002], r.logs)
	}
}

func data(seq, block uint64, flags uint16) wire.Msg {
	return wire.Msg{Kind: wire.KindData, Seq: seq, Off: block * 4096, Len: 4096, Flags: flags}
}

// goodPrimary is an UpToDate Primary connected to an UpToDate Secondary.
func goodPrimary(t *testing.T, protocol byte) *rig {
	r := newRig(t, protocol, 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.promote()
	r.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
	return r
}

// serving is an UpToDate Secondary that serves a Diskless Primary.
func serving(t *testing.T) *rig {
	r := newRig(t, 'C', 1)
	r.attach(0, goodSuper())
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Primary, Diskless))
	r.expect("cs:Connected ro:Secondary/Primary ds:UpToDate/Diskless")
	return r
}

// served is a Diskless Primary whose peer is UpToDate.
func served(t *testing.T) *rig {
	r := newRig(t, 'C', 1)
	r.connect(rigSize, wire.UUIDs{Current: rigGen}, peerState(Secondary, UpToDate))
	r.promote()
	r.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	return r
}

// failDisk makes the local disk fail: at a mirrored write, or at a client's read.
func (r *rig) failDisk(m ...wire.Msg) {
	r.hold[ActDiskWrite], r.hold[ActDiskRead] = true, true
	if len(m) > 0 {
		r.peer(m...)
	} else {
		r.do(Event{Kind: EvRead, Buf: 99, Len: 4096})
	}
	r.release(IOError)
	r.t.Helper()
	if d := r.n.vols[0].st.Disk; d != Diskless {
		r.t.Fatalf("the disk did not fail: %v", d)
	}
}
