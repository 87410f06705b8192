package core

import (
	"fmt"
	"testing"

	"replicad/bitmap"
	"replicad/wire"
)

// tape is the fuzzer's input, read as a sequence of small choices.
type tape struct{ b []byte }

func (t *tape) more() bool { return len(t.b) > 0 }

func (t *tape) pick(n int) int {
	if len(t.b) == 0 || n <= 0 {
		return 0
	}
	x := int(t.b[0])
	t.b = t.b[1:]
	return x % n
}

// storm plays an authenticated peer that says anything the codec lets
// through, clients, an administrator and failing disks, all in any order.
type storm struct {
	*rig
	tape *tape
	seqs []uint64 // numbers that messages of the core carried, or that may be guessed
	cmds uint64
}

var asyncKinds = []ActionKind{
	ActDiskRead, ActDiskWrite, ActDiskTrim, ActDiskZero, ActDiskFlush, ActMetaSuper, ActMetaAL, ActMetaBitmap, ActCloseGate, ActDetach, ActDrop,
}

func newStorm(t *testing.T, in []byte) *storm {
	s := &storm{tape: &tape{in}, seqs: []uint64{1, 1 << 16}}
	protocol := "ABC"[s.tape.pick(3)]
	switch s.tape.pick(5) {
	case 0:
		s.rig = goodPrimary(t, protocol)
	case 1:
		s.rig = serving(t)
	case 2:
		s.rig = served(t)
	case 3:
		s.rig = resyncing(t, protocol, wire.UUIDs{Current: 0xBBBB000000000000}, Generation{Current: rigGen, Bitmap: 0xBBBB000000000000})
	default:
		s.rig = resyncing(t, protocol, wire.UUIDs{Current: 0xBBBB000000000000, Bitmap: rigGen}, Generation{Current: rigGen})
	}
	for _, k := range asyncKinds {
		s.hold[k] = true
	}
	return s
}

// resyncing is a node in a resync with its peer, as source or target.
func resyncing(t *testing.T, protocol byte, u wire.UUIDs, g Generation) *rig {
	r := newRig(t, protocol, 1)
	s := goodSuper()
	s.Gen = g
	r.attach(0, s)
	r.n.vols[0].disk.bm.SetRange(3, 5)
	if g.Bitmap != 0 {
		r.promote()
	}
	r.connect(rigSize, u, peerState(Secondary, UpToDate))
	r.peer(wire.Msg{Kind: wire.KindBitmapEnd})
	if g.Bitmap == 0 {
		r.peer(wire.Msg{Kind: wire.KindSyncUUID, Arg: rigGen + UUIDNewBMOffset})
	}
	return r
}

func (s *storm) event() {
	switch s.tape.pick(16) {
	case 0, 1, 2, 3, 4, 5:
		s.speak()
	case 6, 7, 8, 9:
		s.finishOne()
	case 10, 11:
		s.client()
	case 12:
		s.command()
	case 13:
		s.now += Duration(s.tape.pick(200)) * 50e6
		s.do(Event{Kind: EvTick})
	case 14:
		s.link()
	case 15:
		s.attachAgain()
	}
	for _, m := range s.sent {
		s.seqs = append(s.seqs, m.Seq, m.Arg)
		if r, ok := m.Body.(*wire.StateReq); ok {
			s.seqs = append(s.seqs, r.ID)
		}
	}
	s.sent = s.sent[:0]
	if len(s.seqs) > 64 {
		s.seqs = s.seqs[len(s.seqs)-64:]
	}
}

func (s *storm) block() uint64 { return uint64(s.tape.pick(8)) * 4096 }

// speak sends one message: like an answer to one of ours, or made up.
func (s *storm) speak() {
	m := wire.Msg{Kind: wire.Kind(1 + s.tape.pick(int(wire.KindPingAck))), Seq: s.seqs[s.tape.pick(len(s.seqs))]}
	m.Off, m.Len, m.Flags = s.block(), 4096*uint32(1+s.tape.pick(3)), uint16(s.tape.pick(32))
	m.Arg = s.seqs[s.tape.pick(len(s.seqs))]
	s.fit(&m)
	if s.tape.pick(16) == 15 {
		s.exaggerate(&m)
	}
	payload := 0
	if m.HasPayload() {
		payload = int(m.Len)
	}
	if m.Check(payload) != nil || s.up == 0 {
		return
	}
	e := Event{Kind: EvPeer, Session: s.up, Msg: m}
	if s.tape.pick(32) == 31 {
		e.Session--
	}
	if payload > 0 {
		s.nextBuf++
		e.Buf = s.nextBuf
	}
	s.do(e)
}

// fit gives m what messages of its kind carry.
func (s *storm) fit(m *wire.Msg) {
	small := []uint64{0, 1, 4, rigGen, rigGen | 1, 0xBBBB000000000000, rigGen + UUIDNewBMOffset}
	id := func() uint64 { return small[s.tape.pick(len(small))] }
	switch m.Kind {
	case wire.KindParams:
		c := &s.n.cfg.Net
		m.Body = &wire.Params{Protocol: c.Protocol, AfterSB0: c.AfterSB0, AfterSB1: c.AfterSB1, AfterSB2: c.AfterSB2, Volumes: []uint16{0}}
	case wire.KindSizes:
		m.Body = &wire.Sizes{Disk: rigSize * uint64(s.tape.pick(3)) / 2, Current: rigSize * uint64(s.tape.pick(3)) / 2}
	case wire.KindUUIDs:
		m.Body = &wire.UUIDs{Current: id(), Bitmap: id(), H1: id(), H2: id(), Flags: uint32(s.tape.pick(8))}
	case wire.KindState:
		m.Body = &wire.State{Role: uint8(s.tape.pick(3)), Peer: uint8(s.tape.pick(3)), Conn: uint8(s.tape.pick(24)), Disk: uint8(s.tape.pick(9)), PDisk: uint8(s.tape.pick(9))}
	case wire.KindStateReq:
		m.Body = &wire.StateReq{ID: m.Seq, Vol: int32(s.tape.pick(3)) - 1, Role: uint8(s.tape.pick(3)), Conn: []uint8{0, 1, uint8(StartingSyncS), uint8(StartingSyncT)}[s.tape.pick(4)], Disk: uint8(s.tape.pick(10))}
	case wire.KindBitmap:
		m.Off, m.Len = uint64(s.tape.pick(3))*64, 64
		m.Body = &wire.Bitmap{Words: []uint64{uint64(s.tape.pick(256))}}
	case wire.KindSyncUUID:
		m.Arg = id()
	case wire.KindStateReply:
		m.Arg = uint64(int64(1 - s.tape.pick(22)))
	case wire.KindBarrier:
		m.Arg = s.n.incoming.writes
	case wire.KindWriteAck, wire.KindRecvAck, wire.KindBarrierAck, wire.KindReadNegReply, wire.KindPing, wire.KindPingAck, wire.KindBitmapEnd:
		m.Off, m.Len, m.Flags = 0, 0, 0
		if m.Kind == wire.KindBarrierAck && s.tape.pick(4) > 0 {
			m.Seq, m.Arg = s.n.openEpoch.awaiting, s.n.openEpoch.awaitingCount
		}
	}
	if m.Body != nil || m.Kind == wire.KindSyncUUID || m.Kind == wire.KindBarrier || m.Kind == wire.KindStateReply {
		m.Flags = 0
		if m.Kind != wire.KindBitmap {
			m.Off, m.Len = 0, 0
		}
	}
}

// exaggerate gives m numbers from the ends of their ranges.
func (s *storm) exaggerate(m *wire.Msg) {
	ends := []uint64{0, 512, rigSize - 512, rigSize, 1 << 32, 1<<63 - wire.RangeMax, 1<<63 - 512, 1 << 63, 1<<64 - 512, 1<<64 - 1}
	end := func() uint64 { return ends[s.tape.pick(len(ends))] }
	m.Seq, m.Arg = end(), end()
	switch b := m.Body.(type) {
	case nil:
		m.Off = end()
		m.Len = []uint32{m.Len, 512, wire.PayloadMax, wire.RangeMax}[s.tape.pick(4)]
		m.Vol = []uint16{0, 1, 1<<16 - 1}[s.tape.pick(3)]
	case *wire.Sizes:
		*b = wire.Sizes{Disk: end(), User: end(), Current: end()}
	case *wire.UUIDs:
		*b = wire.UUIDs{Current: end(), Bitmap: end(), H1: end(), H2: end(), Bits: end(), Flags: 1<<32 - 1}
	case *wire.State:
		b.Flags = 1<<8 - 1
	case *wire.StateReq:
		b.ID, b.Vol, b.Disk, b.Conn, b.Force = end(), 1<<31-1, 255, 255, true
	case *wire.Bitmap:
		m.Off = end() &^ 63
		m.Len = 64 * uint32(1+s.tape.pick(wire.BitmapWordsMax))
		b.Words = make([]uint64, m.Len/64)
		for i := range b.Words {
			b.Words[i] = 1<<64 - 1
		}
	case *wire.Params:
		b.Volumes = append(b.Volumes, 1<<16-1)
	}
}

func (s *storm) finishOne() {
	if len(s.held) == 0 {
		return
	}
	i := s.tape.pick(len(s.held))
	result := IOOK
	if s.tape.pick(24) == 23 {
		result = IOError
	}
	s.answerHeld(i, result)
}

func (s *storm) answerHeld(i int, result IOResult) {
	a := s.held[i]
	s.held = append(s.held[:i], s.held[i+1:]...)
	if a.Kind == ActDrop && a.Session != s.up {
		return // it ended by itself meanwhile
	}
	s.do(s.answer(a, result)...)
}

func (s *storm) client() {
	if len(s.asked) > 500 {
		return
	}
	s.nextBuf++
	kind := []EventKind{EvRead, EvWrite, EvWrite, EvTrim, EvZero, EvFlush}[s.tape.pick(6)]
	s.do(Event{Kind: kind, Buf: s.nextBuf, Off: s.block(), Len: 4096 * uint32(1+s.tape.pick(3)), FUA: s.tape.pick(4) == 0})
	if s.n.nextSeq > 0 && s.up != 0 && s.tape.pick(2) == 0 {
		s.do(Event{Kind: EvSent, Session: s.up, Seq: s.n.nextSeq<<16 | 0xffff})
	}
}

func (s *storm) command() {
	s.cmds++
	kind := CommandKind(1 + s.tape.pick(int(CmdOutdate)))
	s.do(Event{Kind: EvCommand, Cmd: &Command{ID: 10000 + s.cmds, Kind: kind, Force: s.tape.pick(3) == 0, Discard: s.tape.pick(8) == 0}})
}

func (s *storm) link() {
	switch {
	case s.up != 0:
		s.do(Event{Kind: EvLinkDown, Session: s.up, Reason: DropReason(s.tape.pick(5))})
	case s.dialing:
		u := wire.UUIDs{Current: []uint64{rigGen, 0xBBBB000000000000, s.n.vols[0].gen.Current, s.n.vols[0].gen.Bitmap}[s.tape.pick(4)]}
		s.shake(rigSize, u, peerState(Role(1+s.tape.pick(2)), Disk(s.tape.pick(9))))
	}
}

func (s *storm) attachAgain() {
	super, ok := s.super[0]
	if !ok {
		super = goodSuper()
	}
	bm := bitmap.New(rigSize / 4096)
	if s.tape.pick(2) == 0 {
		bm.SetRange(0, 6)
	}
	s.cmds++
	s.do(Event{Kind: EvAttach, Attach: &Attachment{Super: super, Disk: rigSize, ALSlots: 67, Cmd: 10000 + s.cmds, Bitmap: bm}})
}

// end lets everything finish and the link stay down.
func (s *storm) end() {
	for round := 0; round < 2000 && (len(s.held) > 0 || s.up != 0); round++ {
		for len(s.held) > 0 {
			s.answerHeld(0, IOOK)
		}
		if s.up != 0 {
			s.do(Event{Kind: EvLinkDown, Session: s.up, Reason: DropPing})
		}
	}
	for range 10 {
		s.now += 60e9
		s.do(Event{Kind: EvTick})
		for len(s.held) > 0 {
			s.answerHeld(0, IOOK)
		}
	}
}

// verify: what the contract promises once nothing is under way.
func (s *storm) verify(t *testing.T) {
	n, v := s.n, s.n.vols[0]
	for b := range s.asked {
		if _, ok := s.results[b]; !ok {
			t.Errorf("request %d was never answered", b)
		}
	}
	for id := uint64(10001); id <= 10000+s.cmds; id++ {
		if _, ok := s.rig.cmds[id]; !ok {
			t.Errorf("command %d was never answered (%s; running: %+v; waiting: %d)", id-10000, v.st, n.cmd, len(n.cmdQueue))
		}
	}
	check := func(what string, got, want any) {
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v (state %s)", what, got, want, v.st)
		}
	}
	check("client operations", n.clientOps, 0)
	check("freezes", n.frozen, 0)
	check("holds", n.incoming.holds, 0)
	check("peer work drained", n.incoming.drained(), true)
	check("disk actions", v.disk.running, 0)
	check("operations in the index", v.index.n, 0)
	check("operations in use", len(n.ops.all)-len(n.ops.free), 0)
	check("payload buffers held", len(s.owned), 0)
	check("pending, unacked", fmt.Sprint(v.ctr.Pending, v.ctr.Unacked, v.ctr.App), "0 0 0")
	if v.disk.al != nil {
		for e := range v.disk.al.HotExtents() {
			check(fmt.Sprintf("references of extent %d", e), v.disk.al.Refs(e), 0)
		}
	}
}

// FuzzPeer drives a core with a peer that says anything, in any state, while
// disks answer late, out of order and with errors. Whatever comes, it must not
// panic, and must answer every request and command.
func FuzzPeer(f *testing.F) {
	f.Add([]byte{})
	for seed := range uint64(40) {
		f.Add(stormInput(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 4000 {
			return
		}
		s := newStorm(t, in)
		for s.tape.more() {
			s.event()
		}
		s.end()
		s.verify(t)
		s.tell(t)
	})
}

// tell shows what happened to a failed storm.
func (s *storm) tell(t *testing.T) {
	if t.Failed() {
		for _, l := range s.logs {
			t.Log(l)
		}
	}
}

// stormInput is a simple generator's input of some length.
func stormInput(seed uint64) []byte {
	in := make([]byte, 300+seed%2000)
	x := seed*2862933555777941757 + 3037000493
	for i := range in {
		x = x*6364136223846793005 + 1442695040888963407
		in[i] = byte(x >> 56)
	}
	return in
}

// TestReviewStorms is FuzzPeer on inputs from a simple generator.
func TestReviewStorms(t *testing.T) {
	for seed := range uint64(2000) {
		in := stormInput(seed)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) {
			defer noPanic(t)
			s := newStorm(t, in)
			for s.tape.more() {
				s.event()
			}
			s.end()
			s.verify(t)
			s.tell(t)
		}) {
			return
		}
	}
}
