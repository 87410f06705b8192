package core

import (
	"fmt"
	"strings"
	"testing"

	"replicad/bitmap"
	"replicad/wire"
)

// pair is two nodes whose disks answer at once and whose messages arrive at
// once, in order: enough to follow one path through the core step by step.
// What happens under delay, reordering and crashes is the simulator's matter.
type pair struct {
	t     *testing.T
	now   Time
	nodes [2]*testNode
	cut   bool
	trace bool
}

type testNode struct {
	p       *pair
	name    string
	n       *Node
	session Session
	dialing bool
	events  []Event
	done    map[uint64]StateErr
	results map[Buf]IOResult
	logs    []string
	writes  int
	flushes int
	super   *Super
	sent    map[wire.Kind]int
	nextBuf Buf
	noSpace bool // local writes find the disk full
	onSend  func(wire.Kind)
}

func newPair(t *testing.T, protocol byte) *pair {
	return newPairOf(t, protocol, [2]uint64{16 << 20, 16 << 20})
}

// newPairOf makes a pair on new disks of these sizes in bytes.
func newPairOf(t *testing.T, protocol byte, disks [2]uint64) *pair {
	p := &pair{t: t}
	for i := range p.nodes {
		cfg := Config{Net: Defaults(), Volumes: []VolumeConfig{DefaultVolume(0)}}
		cfg.Net.Protocol = protocol
		seed := uint64(i + 1)
		x := &testNode{p: p, name: string(rune('a' + i)), done: map[uint64]StateErr{}, results: map[Buf]IOResult{}, sent: map[wire.Kind]int{}, nextBuf: 1 << 20}
		x.n = New(cfg, func() uint64 { seed = seed*6364136223846793005 + 1442695040888963407; return seed })
		p.nodes[i] = x
		x.push(Event{Kind: EvAttach, Attach: &Attachment{Super: Super{Gen: Generation{Current: UUIDJustCreated}}, Disk: disks[i], ALSlots: 67, Cmd: 1}})
		x.push(Event{Kind: EvCommand, Cmd: &Command{ID: 2, Kind: CmdConnect}})
	}
	p.settle()
	return p
}

func (x *testNode) push(e Event) { x.events = append(x.events, e) }

// settle runs events until none is left.
func (p *pair) settle() {
	for busy := true; busy; {
		busy = false
		for i, x := range p.nodes {
			for len(x.events) > 0 {
				e := x.events[0]
				x.events = x.events[1:]
				busy = true
				for _, a := range x.n.Step(p.now, e, nil) {
					x.perform(a, p.nodes[1-i])
				}
			}
		}
		a, b := p.nodes[0], p.nodes[1]
		if a.dialing && b.dialing && !p.cut {
			a.dialing, b.dialing, busy = false, false, true
			a.push(Event{Kind: EvLinkUp, Session: a.session, Token: true})
			b.push(Event{Kind: EvLinkUp, Session: b.session})
		}
	}
}

func (x *testNode) perform(a Action, peer *testNode) {
	switch a.Kind {
	case ActSend:
		x.sent[a.Msg.Kind]++
		if x.onSend != nil {
			x.onSend(a.Msg.Kind)
		}
		if x.p.cut {
			return
		}
		peer.nextBuf++
		buf := Buf(0)
		if a.Msg.HasPayload() {
			buf = peer.nextBuf
		}
		peer.push(Event{Kind: EvPeer, Session: peer.session, Msg: a.Msg, Buf: buf})
		if a.Msg.Kind == wire.KindData {
			x.push(Event{Kind: EvSent, Session: a.Session, Seq: a.Msg.Seq})
		}
	case ActComplete:
		if _, twice := x.results[a.Buf]; twice {
			x.p.t.Fatalf("request %d answered twice", a.Buf)
		}
		x.results[a.Buf] = a.Result
	case ActDiskRead:
		x.nextBuf++
		x.push(Event{Kind: EvDiskDone, Op: a.Op, Buf: x.nextBuf})
	case ActDiskWrite, ActDiskTrim, ActDiskZero:
		x.writes++
		r := IOOK
		if x.noSpace {
			r = IONoSpace
		}
		x.push(Event{Kind: EvDiskDone, Op: a.Op, Result: r})
	case ActDiskFlush:
		x.flushes++
		x.push(Event{Kind: EvDiskDone, Op: a.Op})
	case ActMetaSuper:
		x.super = a.Super
		x.push(Event{Kind: EvMetaDone, Op: a.Op})
	case ActMetaAL, ActMetaBitmap:
		x.push(Event{Kind: EvMetaDone, Op: a.Op})
	case ActCloseGate:
		x.push(Event{Kind: EvGateClosed, Op: a.Op})
	case ActDetach:
		x.push(Event{Kind: EvDetached, Vol: uint16(a.Vol)})
	case ActDial:
		x.session, x.dialing = a.Session, true
	case ActStopDial:
		x.dialing = false
	case ActDrop:
		x.push(Event{Kind: EvLinkDown, Session: a.Session, Reason: a.Reason})
		if !x.p.cut {
			peer.push(Event{Kind: EvLinkDown, Session: peer.session, Reason: DropBrokenPipe})
		}
	case ActCommandDone:
		x.done[a.Cmd] = a.Err
	case ActLog:
		x.logs = append(x.logs, a.Text)
		if x.p.trace {
			fmt.Println(x.name, a.Text)
		}
	}
}

func (x *testNode) command(c Command) StateErr {
	x.p.t.Helper()
	c.ID = uint64(100 + len(x.done))
	x.push(Event{Kind: EvCommand, Cmd: &c})
	x.p.settle()
	for range 100 {
		if _, ok := x.done[c.ID]; ok {
			break
		}
		x.p.advance(100e6)
	}
	err, ok := x.done[c.ID]
	if !ok {
		x.p.t.Fatalf("%s: command %d was not answered; state %s", x.name, c.Kind, x.n.vols[0].st)
	}
	return err
}

// advance lets time pass, with a tick for every deadline on the way.
func (p *pair) advance(d Duration) {
	end := p.now + d
	for {
		next := end
		for _, x := range p.nodes {
			if at, ok := x.n.Deadline(); ok && at < next {
				next = max(at, p.now)
			}
		}
		p.now = next
		for _, x := range p.nodes {
			x.push(Event{Kind: EvTick})
		}
		p.settle()
		if p.now >= end {
			return
		}
		p.now += 1e6
	}
}

func (p *pair) breakLink(r DropReason) {
	p.cut = true
	for _, x := range p.nodes {
		x.push(Event{Kind: EvLinkDown, Session: x.session, Reason: r})
	}
	p.settle()
}

func (p *pair) heal() { p.cut = false; p.settle() }

func (x *testNode) write(buf Buf, block uint64) {
	x.push(Event{Kind: EvWrite, Buf: buf, Off: block * bitmap.BlockSize, Len: bitmap.BlockSize})
	x.p.settle()
}

func (x *testNode) expect(state string) {
	x.p.t.Helper()
	if got := x.n.vols[0].st.String(); !strings.Contains(got, state) {
		x.p.t.Fatalf("%s is %s, want %s\n%s", x.name, got, state, strings.Join(x.logs, "\n"))
	}
}

func TestInitialSync(t *testing.T) {
	p := newPair(t, 'C')
	a, b := p.nodes[0], p.nodes[1]
	a.expect("cs:Connected ro:Secondary/Secondary ds:Inconsistent/Inconsistent")
	if err := a.command(Command{Kind: CmdPrimary}); err != ErrNoUpToDateDisk {
		t.Fatalf("promotion of an Inconsistent node: %v", err)
	}
	if err := a.command(Command{Kind: CmdPrimary, Force: true}); err != Success {
		t.Fatalf("forced promotion: %v", err)
	}
	a.expect("ro:Primary/Secondary ds:UpToDate/Inconsistent")
	p.advance(20e9)
	a.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
	b.expect("cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate")
	if a.n.vols[0].gen.Bitmap != 0 || a.n.vols[0].gen.mask() != b.n.vols[0].gen.mask() {
		t.Fatalf("generations differ: %s, %s", a.n.vols[0].gen, b.n.vols[0].gen)
	}
}

func syncedPair(t *testing.T, protocol byte) (p *pair, a, b *testNode) {
	p = newPair(t, protocol)
	a, b = p.nodes[0], p.nodes[1]
	a.command(Command{Kind: CmdPrimary, Force: true})
	p.advance(20e9)
	a.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
	return p, a, b
}

func TestWriteCutHeal(t *testing.T) {
	for _, protocol := range []byte{'A', 'B', 'C'} {
		p, a, b := syncedPair(t, protocol)
		a.write(1, 5)
		if r, ok := a.results[1]; !ok || r != IOOK {
			t.Fatalf("%c: connected write: %v %v", protocol, r, ok)
		}
		p.breakLink(DropPing)
		a.expect("cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown")
		a.write(2, 7)
		if r, ok := a.results[2]; !ok || r != IOOK {
			t.Fatalf("%c: disconnected write: %v %v", protocol, r, ok)
		}
		if got := a.n.vols[0].outOfSync(); got != 2 {
			t.Fatalf("%c: %d blocks out of sync, want the unconfirmed one and the new one", protocol, got)
		}
		p.heal()
		p.advance(2e9)
		a.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
		b.expect("cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate")
		if a.n.vols[0].outOfSync()+b.n.vols[0].outOfSync() != 0 {
			t.Fatalf("%c: bits left after the resync", protocol)
		}
	}
}

func TestSwitchover(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	a.write(1, 5)
	if err := b.command(Command{Kind: CmdPrimary}); err != ErrTwoPrimaries {
		t.Fatalf("second promotion: %v", err)
	}
	gen := a.n.vols[0].gen.mask()
	if err := a.command(Command{Kind: CmdSecondary}); err != Success {
		t.Fatalf("demotion: %v", err)
	}
	a.expect("ro:Secondary/Secondary")
	b.expect("ro:Secondary/Secondary")
	if err := b.command(Command{Kind: CmdPrimary}); err != Success {
		t.Fatalf("promotion: %v", err)
	}
	p.settle()
	a.expect("ro:Secondary/Primary ds:UpToDate/UpToDate")
	if a.n.vols[0].gen.mask() != gen || b.n.vols[0].gen.mask() != gen {
		t.Fatal("a graceful switchover changed the generation")
	}
}

func TestSplitBrain(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	p.breakLink(DropPing)
	if err := b.command(Command{Kind: CmdPrimary}); err != Success {
		t.Fatalf("promotion: %v", err)
	}
	a.write(1, 5)
	b.write(1, 6)
	a.command(Command{Kind: CmdSecondary})
	b.command(Command{Kind: CmdSecondary})
	p.heal()
	a.expect("cs:StandAlone ro:Secondary/Unknown ds:UpToDate/DUnknown")
	b.expect("cs:StandAlone ro:Secondary/Unknown ds:UpToDate/DUnknown")
	a.command(Command{Kind: CmdConnect})
	b.command(Command{Kind: CmdConnect, Discard: true})
	p.advance(2e9)
	a.expect("cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate")
}

func TestDetachAndServeThroughThePeer(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	if err := a.command(Command{Kind: CmdDetach}); err != Success {
		t.Fatalf("detach: %v", err)
	}
	a.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	b.expect("ds:UpToDate/Diskless")
	a.write(1, 9)
	a.push(Event{Kind: EvRead, Buf: 2, Off: 4096, Len: 4096})
	p.settle()
	for buf := Buf(1); buf <= 2; buf++ {
		if r, ok := a.results[buf]; !ok || r != IOOK {
			t.Fatalf("request %d through the peer: %v %v", buf, r, ok)
		}
	}
	bm := bitmap.New(16 << 20 / bitmap.BlockSize)
	bm.SetAll()
	a.push(Event{Kind: EvAttach, Attach: &Attachment{Super: *a.super, Disk: 16 << 20, ALSlots: 67, Bitmap: bm, Cmd: 50}})
	p.advance(3e9)
	a.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
}

func TestInvalidate(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	if err := a.command(Command{Kind: CmdInvalidate}); err != Success {
		t.Fatalf("invalidate: %v", err)
	}
	a.expect("cs:SyncTarget ro:Primary/Secondary ds:Inconsistent/UpToDate")
	a.write(1, 3)
	p.advance(3e9)
	a.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
	if err := a.command(Command{Kind: CmdInvalidateRemote}); err != Success {
		t.Fatalf("invalidate-remote: %v", err)
	}
	b.expect("cs:SyncTarget")
	p.advance(3e9)
	b.expect("cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate")
	if a.results[1] != IOOK {
		t.Fatal("write during the resync failed")
	}
}
