package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"replicad/internal/figure"
	"replicad/replica/core"
	"replicad/wire"
)

// turncoat is a peer that knows the secret, completes both handshakes as a good
// one would, and then says what it likes. It drives its sockets byte by byte.
type turncoat struct {
	t             *testing.T
	data, control *net.TCPConn
	readers       sync.WaitGroup
	deaf          atomic.Bool // read nothing any more
	over          chan struct{}

	mu    sync.Mutex
	heard []wire.Msg // without payload
}

// handshake runs the dialler's side on one new connection.
func handshake(t *testing.T, to netip.AddrPort, cfg wire.HandshakeConfig) (*wire.Handshake, *net.TCPConn, error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", to.String(), time.Second)
	if err != nil {
		return nil, nil, err
	}
	h, err := wire.NewDialer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second)) // a dead socket shows below
	for _, frame := range []func() ([]byte, error){h.Hello, h.Proof} {
		b, err := frame()
		if err == nil {
			_, err = conn.Write(b)
		}
		answer := make([]byte, wire.HandshakeMax)
		if err == nil {
			_, err = io.ReadFull(conn, answer[:wire.PrefixSize])
		}
		size, sizeErr := wire.HandshakeFrameSize(answer)
		if err == nil && sizeErr == nil {
			_, err = io.ReadFull(conn, answer[wire.PrefixSize:size])
		}
		if err = errors.Join(err, sizeErr); err == nil {
			err = h.Receive(answer[:size])
		}
		if err != nil {
			_ = conn.Close()
			return nil, nil, err
		}
	}
	_ = conn.SetDeadline(time.Time{})
	return h, conn.(*net.TCPConn), nil
}

// turn dials victim with the right secret until it has a session.
func turn(t *testing.T, victim *testNode) *turncoat {
	t.Helper()
	instance := wire.Instance{0: 0xEE, 15: byte(time.Now().UnixNano())}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		f, err := dialTurncoat(t, victim, instance)
		if err == nil && f.welcome() {
			return f
		}
		if time.Now().After(deadline) {
			t.Fatalf("no session: %v\n%s", err, victim.state())
		}
	}
}

// welcome waits for the victim's first messages. A node that is not done with the
// session before may let a new one go unused.
func (f *turncoat) welcome() bool {
	for begin := time.Now(); time.Since(begin) < 3*time.Second; time.Sleep(time.Millisecond) {
		if _, ok := f.last(wire.KindState); ok {
			return true
		}
	}
	f.hangUp()
	<-f.over
	return false
}

func dialTurncoat(t *testing.T, victim *testNode, instance wire.Instance) (*turncoat, error) {
	cfg := wire.HandshakeConfig{
		Resource: "r0", Secret: []byte("s3cret"), Instance: instance, Channel: wire.ChannelData,
		Nonce: wire.Nonce{1: byte(time.Now().UnixNano()), 2: byte(time.Now().UnixNano() >> 8), 3: 1},
	}
	h, data, err := handshake(t, victim.cfg.Link.Local, cfg)
	if err != nil {
		return nil, err
	}
	cfg.Channel, cfg.Session = wire.ChannelControl, h.Session()
	cfg.Nonce[4] = 1
	_, control, err := handshake(t, victim.cfg.Link.Local, cfg)
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	f := &turncoat{t: t, data: data, control: control, over: make(chan struct{})}
	f.readers.Go(func() { f.listen(data, wire.ChannelData) })
	f.readers.Go(func() { f.listen(control, wire.ChannelControl) })
	go func() { f.readers.Wait(); close(f.over) }()
	return f, nil
}

// listen keeps the messages of one connection until it ends.
func (f *turncoat) listen(conn *net.TCPConn, ch wire.Channel) {
	defer f.hangUp() // a session ends as a whole
	buf := make([]byte, wire.FrameMax)
	for {
		for f.deaf.Load() {
			time.Sleep(10 * time.Millisecond)
			if _, err := conn.Write(nil); err != nil {
				return
			}
		}
		if _, err := io.ReadFull(conn, buf[:wire.HeaderSize]); err != nil {
			return
		}
		h, err := wire.ParseHeader(buf, ch)
		if err != nil {
			f.t.Errorf("the victim sends nonsense: %v", err)
			return
		}
		rest := buf[:h.BodyLen+h.PayloadLen]
		if _, err := io.ReadFull(conn, rest); err != nil {
			return
		}
		if h.BodyLen > 0 {
			if err := h.Body(rest); err != nil {
				f.t.Errorf("the victim sends nonsense: %v", err)
			}
		}
		if h.Msg.Kind == wire.KindPing && !f.deaf.Load() {
			f.send(wire.Msg{Kind: wire.KindPingAck, Arg: h.Msg.Arg})
		}
		f.mu.Lock()
		f.heard = append(f.heard, h.Msg)
		f.mu.Unlock()
	}
}

func (f *turncoat) hangUp() {
	_ = f.data.Close() // nothing depends on either
	_ = f.control.Close()
}

// last returns the newest message of a kind.
func (f *turncoat) last(k wire.Kind) (m wire.Msg, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.heard) - 1; i >= 0; i-- {
		if f.heard[i].Kind == k {
			return f.heard[i], true
		}
	}
	return m, false
}

func (f *turncoat) await(k wire.Kind) wire.Msg {
	f.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if m, ok := f.last(k); ok {
			return m
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("no %v arrives", k)
		}
	}
}

// raw sends bytes on a channel. The victim may have hung up.
func (f *turncoat) raw(ch wire.Channel, b []byte) {
	conn := f.data
	if ch == wire.ChannelControl {
		conn = f.control
	}
	_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
	_, _ = conn.Write(b)
}

// send sends well-formed messages, with a payload of zeroes where one belongs.
func (f *turncoat) send(msgs ...wire.Msg) {
	for _, m := range msgs {
		f.raw(m.Kind.Channel(), encoded(f.t, m))
	}
}

func encoded(t *testing.T, m wire.Msg) []byte {
	var payload []byte
	if m.HasPayload() {
		payload = make([]byte, m.Len)
	}
	b, err := wire.AppendMsg(nil, &m, payload)
	if err != nil {
		t.Errorf("encode %v: %v", m.Kind, err)
	}
	return append(b, payload...)
}

// forged is a header out of any numbers, with right hashes, and what follows it.
func forged(m wire.Msg, size uint32, rest []byte) []byte {
	b := make([]byte, 0, wire.HeaderSize+len(rest))
	b = append(b, "repl"...)
	b = append(b, byte(m.Kind), 0, byte(m.Flags>>8), byte(m.Flags), byte(m.Vol>>8), byte(m.Vol), 0, 0)
	b = be(b, uint64(m.Len), 4)
	b = be(b, m.Off, 8)
	b = be(b, m.Seq, 8)
	b = be(b, m.Arg, 8)
	b = be(b, uint64(size), 4)
	b = be(b, 0, 4)
	b = be(b, xxhash.Sum64(rest), 8)
	return append(be(b, xxhash.Sum64(b), 8), rest...)
}

// be appends the low n bytes of v, the highest first.
func be(b []byte, v uint64, n int) []byte {
	for i := n - 1; i >= 0; i-- {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}

// befriend plays the first messages of a session as the mirror of the victim:
// same settings, same size, the generation given.
func (f *turncoat) befriend(gen wire.UUIDs) {
	f.t.Helper()
	state := *f.await(wire.KindState).Body.(*wire.State)
	params := *f.await(wire.KindParams).Body.(*wire.Params)
	sizes := *f.await(wire.KindSizes).Body.(*wire.Sizes)
	state.Role, state.Disk = uint8(core.Secondary), uint8(core.UpToDate)
	f.send(wire.Msg{Kind: wire.KindParams, Body: &params}, wire.Msg{Kind: wire.KindSizes, Body: &sizes},
		wire.Msg{Kind: wire.KindUUIDs, Body: &gen}, wire.Msg{Kind: wire.KindState, Body: &state})
}

// victim is a node whose good peer is away, and what must not change.
type victim struct {
	a, b *testNode
	log  *logBook
	gen  core.Generation
	data []byte
}

// logBook keeps a node's log lines.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// since returns what was logged after line n.
func (l *logBook) since(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[n:], "")
}

// await waits until the log says text after line n.
func (l *logBook) await(t *testing.T, n int, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(l.since(n), text); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q:\n%s", text, l.since(n))
		}
	}
}

func (l *logBook) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// newVictim makes a synced pair with some data and takes the good peer away.
// A primary victim has started a generation of its own then.
func newVictim(t *testing.T, primary bool) *victim {
	t.Helper()
	a, b := newPair(t, 'C')
	v := &victim{a: a, b: b, log: &logBook{}}
	a.must("close", a.Close(testCtx(t)))
	a.cfg.Log = slog.New(slog.NewTextHandler(v.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.start()
	a.up()
	b.up()
	a.must("primary --force", a.Primary(testCtx(t), true))
	a.await("initial sync", inSync)
	c := a.client()
	for i := range uint64(16) {
		c.write(i*8192, pattern(byte(i), 8192))
	}
	c.flush()
	c.h.Close()
	if !primary {
		a.must("secondary", a.Secondary(testCtx(t)))
	}
	b.must("disconnect", b.Disconnect(testCtx(t), false))
	v.settle()
	return v
}

// settle waits for the victim to be alone and notes what it holds.
func (v *victim) settle() {
	v.a.t.Helper()
	v.a.await("the peer to be gone", func(s core.State) bool { return s.Conn == core.WFConnection })
	v.gen = v.a.Status().Volumes[0].Gen
	v.data = readImage(v.a.t, v.a.image, v.a.Volume(0).Size())
}

// unharmed demands the same data and the same generation as before.
func (v *victim) unharmed(t *testing.T) {
	t.Helper()
	v.a.await("the attacker to be gone", func(s core.State) bool { return s.Conn == core.WFConnection || s.Conn == core.StandAlone })
	s := v.a.Status().Volumes[0]
	if s.Gen != v.gen || s.State.Disk != core.UpToDate {
		t.Errorf("%s, generation %v, was %v", v.a.state(), s.Gen, v.gen)
	}
	if s.State.Role != core.Primary && s.Counters.App|s.Counters.Pending|s.Counters.Unacked != 0 {
		t.Errorf("work is left: %+v", s.Counters)
	}
	if !bytes.Equal(readImage(t, v.a.image, uint64(len(v.data))), v.data) {
		t.Error("data was changed")
	}
}

// treason is one thing that a turncoat does after the handshake.
type treason struct {
	name string
	do   func(f *turncoat)
	// log is what the victim says about the end of the session; "" if it takes
	// no notice and the session goes on.
	log string
}

const (
	aProtocolError = "ProtocolError"
	malformed      = "malformed message"
)

// anyState are treasons that must fail whatever state the session is in.
func anyState(size uint64) []treason {
	say := func(msgs ...wire.Msg) func(*turncoat) { return func(f *turncoat) { f.send(msgs...) } }
	forge := func(ch wire.Channel, m wire.Msg, size uint32, rest string) func(*turncoat) {
		return func(f *turncoat) { f.raw(ch, forged(m, size, []byte(rest))) }
	}
	data, control := wire.ChannelData, wire.ChannelControl
	list := []treason{
		{"length 2^32-1", forge(data, wire.Msg{Kind: wire.KindData, Len: math.MaxUint32}, math.MaxUint32, ""), malformed},
		{"length 2^32-512", forge(data, wire.Msg{Kind: wire.KindTrim, Len: math.MaxUint32 - 511}, 0, ""), malformed},
		{"offset 2^63-512", forge(data, wire.Msg{Kind: wire.KindTrim, Off: 1<<63 - 512, Len: 512}, 0, ""), malformed},
		{"offset 2^64-512", forge(data, wire.Msg{Kind: wire.KindTrim, Off: math.MaxUint64 - 511, Len: 1024}, 0, ""), malformed},
		{"body of 2^32-1", forge(data, wire.Msg{Kind: wire.KindParams}, math.MaxUint32, ""), malformed},
		{"unknown kind", forge(data, wire.Msg{Kind: 200}, 0, ""), malformed},
		{"unknown flags", forge(data, wire.Msg{Kind: wire.KindBarrier, Flags: 1 << 15}, 0, ""), malformed},
		{"an ack on the data connection", forge(data, wire.Msg{Kind: wire.KindWriteAck}, 0, ""), "wrong channel"},
		{"a barrier on the control connection", forge(control, wire.Msg{Kind: wire.KindBarrier}, 0, ""), "wrong channel"},
		{"deep msgpack", forge(data, wire.Msg{Kind: wire.KindState}, 4096, strings.Repeat("\x81\xa1v\x91", 1024)), malformed},
		{"wide msgpack", forge(data, wire.Msg{Kind: wire.KindUUIDs}, 8, "\x81\xa1v\xdd\xff\xff\xff\xff"), malformed},
		{"bitmap bomb", forge(data, wire.Msg{Kind: wire.KindBitmap, Len: 64}, 10, "\xfd\xff\xff\xff\xff\xff\xff\xff\xff\x01"), malformed},
		{"noise", func(f *turncoat) { f.raw(data, pattern(9, 4096)) }, "not a frame header"},
		{"noise on control", func(f *turncoat) { f.raw(control, pattern(9, 4096)) }, "not a frame header"},
		{"a flipped bit", func(f *turncoat) {
			b := encoded(f.t, wire.Msg{Kind: wire.KindBarrier, Seq: 9})
			b[30] ^= 1
			f.raw(data, b)
		}, "checksum"},
		{"half a frame, then the end", func(f *turncoat) {
			f.raw(data, encoded(f.t, wire.Msg{Kind: wire.KindBarrier})[:33])
			_ = f.data.CloseWrite()
		}, "unexpected EOF"},
		{"half a frame, then silence", func(f *turncoat) {
			f.deaf.Store(true)
			f.raw(data, encoded(f.t, wire.Msg{Kind: wire.KindBarrier})[:33])
		}, "NetworkFailure"},
		{"beyond the end", say(wire.Msg{Kind: wire.KindTrim, Off: size, Len: 512}), aProtocolError},
		{"across the end", say(wire.Msg{Kind: wire.KindOutOfSync, Off: size - 512, Len: 1024}), aProtocolError},
		{"a volume that is not there", say(wire.Msg{Kind: wire.KindBitmapEnd, Vol: math.MaxUint16}), aProtocolError},
		{"parameters again", say(wire.Msg{Kind: wire.KindParams, Body: &wire.Params{Protocol: 'C', Volumes: []uint16{0}}}), aProtocolError},
		{"a bitmap out of turn", say(wire.Msg{Kind: wire.KindBitmap, Len: 64, Body: &wire.Bitmap{Words: []uint64{1}}}), aProtocolError},
		{"the end of a bitmap out of turn", say(wire.Msg{Kind: wire.KindBitmapEnd}), aProtocolError},
		{"a sync UUID out of turn", say(wire.Msg{Kind: wire.KindSyncUUID, Arg: 7}), aProtocolError},
		{"a negative ack beyond the end", say(wire.Msg{Kind: wire.KindNegAck, Off: 1 << 40, Len: 512}), aProtocolError},
		{"a state out of range", say(wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: 0, Conn: 23, Disk: 8}}), ""},
		{"numbers at their ends in a state request", say(wire.Msg{Kind: wire.KindStateReq, Body: &wire.StateReq{ID: math.MaxUint64, Vol: math.MaxUint16 - 1, Role: 2}}), "invalid state request"},
	}
	unknown := []uint64{0, 1, 12345, 1 << 32, 1<<63 - 1, math.MaxUint64}
	// Late answers are no crime: an operation may have ended meanwhile.
	for _, kind := range []wire.Kind{wire.KindRecvAck, wire.KindWriteAck, wire.KindReadNegReply, wire.KindStateReply, wire.KindPingAck, wire.KindResyncNegReply} {
		var msgs []wire.Msg
		for _, seq := range unknown {
			m := wire.Msg{Kind: kind, Seq: seq, Arg: 1}
			if kind == wire.KindResyncNegReply {
				m.Len = 4096
			}
			msgs = append(msgs, m, m)
		}
		list = append(list, treason{fmt.Sprintf("%v that nobody asked for", kind), say(msgs...), ""})
	}
	for kind, said := range map[wire.Kind]string{
		wire.KindReadReply: "read reply that nobody asked for", wire.KindResyncReply: "resync reply that nobody asked for",
		wire.KindResyncWriteAck: "resync ack that nobody waits for", wire.KindResyncNegAck: "resync ack that nobody waits for",
	} {
		list = append(list, treason{fmt.Sprintf("%v that nobody asked for", kind), say(wire.Msg{Kind: kind, Seq: 77, Len: 4096, Arg: 9}), said})
	}
	return append(list, treason{"barrier ack that nobody asked for", say(wire.Msg{Kind: wire.KindBarrierAck, Seq: 99, Arg: 1}), "barrier ack 99"})
}

// commit has a turncoat do one thing and looks at how the session ends.
func (v *victim) commit(t *testing.T, tr treason, gen wire.UUIDs, ready func(core.State) bool) {
	t.Helper()
	f := turn(t, v.a)
	defer func() { f.hangUp(); <-f.over }()
	f.befriend(gen)
	v.a.await("the session to stand", ready)
	mark := v.log.count()
	tr.do(f)
	if tr.log == "" {
		// One question on each connection, behind what was said there.
		f.send(wire.Msg{Kind: wire.KindPing, Arg: 4711},
			wire.Msg{Kind: wire.KindStateReq, Body: &wire.StateReq{ID: 4712, Role: uint8(core.Secondary)}})
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			pong, _ := f.last(wire.KindPingAck)
			reply, _ := f.last(wire.KindStateReply)
			if pong.Arg == 4711 && reply.Seq == 4712 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the session has ended or hangs:\n%s", v.log.since(mark))
			}
		}
		f.hangUp()
	} else {
		select {
		case <-f.over:
		case <-time.After(patience):
			t.Fatalf("the session goes on:\n%s", v.log.since(mark))
		}
	}
	v.unharmed(t)
	v.log.await(t, mark, tr.log)
}

// TestTurncoat: a peer that knows the secret breaks the protocol in every way. The
// session ends with a reason in the log, or the message is of no effect; data and
// generations stay; and the good peer is welcome afterwards.
func TestTurncoat(t *testing.T) {
	noLeaks(t, func() {
		t.Run("secondary", secondaryVictim)
		t.Run("primary", primaryVictim)
	})
	figure.Print("hostile-peer-attacks", 2*len(anyState(testSize)))
}

// primaryVictim: the turncoat shows up as the outdated peer of a Primary that
// serves a client, and commits each treason while bitmaps are exchanged.
func primaryVictim(t *testing.T) {
	v := newVictim(t, true)
	v.data = v.data[:128<<10] // the client below writes behind
	stop := make(chan struct{})
	var load sync.WaitGroup
	defer load.Wait()
	stopped := sync.OnceFunc(func() { close(stop) })
	defer stopped()
	c := v.a.client()
	var written atomic.Int64
	load.Go(func() {
		defer c.h.Close()
		for round := byte(0); ; round++ {
			select {
			case <-stop:
				return
			default:
			}
			off := 1<<20 + uint64(round)*4096
			want := pattern(round, 4096)
			c.write(off, want)
			if got := c.read(off, 4096); !bytes.Equal(got, want) {
				t.Errorf("block at %d is not what was written", off)
				return
			}
			written.Add(1)
		}
	})
	exchanging := func(s core.State) bool { return s.Conn == core.WFBitMapS }
	outdated := wire.UUIDs{Current: v.gen.Bitmap}
	for _, tr := range append(anyState(v.a.Volume(0).Size()),
		treason{"writes to a Primary", func(f *turncoat) { f.send(wire.Msg{Kind: wire.KindData, Seq: 1, Len: 4096}) }, "ProtocolError"},
		treason{"trims on a Primary", func(f *turncoat) { f.send(wire.Msg{Kind: wire.KindTrim, Seq: 1, Len: 1 << 20}) }, "ProtocolError"},
	) {
		if strings.HasSuffix(tr.name, "bitmap out of turn") {
			continue // here it is its turn
		}
		t.Run(tr.name, func(t *testing.T) {
			before := written.Load()
			v.commit(t, tr, outdated, exchanging)
			for deadline := time.Now().Add(patience); written.Load() < before+3; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the client is not served any more: %s", v.a.state())
				}
			}
		})
	}
	stopped()
	load.Wait()
	v.b.connect()
	v.a.await("the good peer", inSync)
	v.b.await("the good peer", inSync)
	sameData(t, v.a, v.b)
	for _, n := range []*testNode{v.a, v.b} {
		n.must("close", n.Close(testCtx(t)))
	}
}

func secondaryVictim(t *testing.T) {
	v := newVictim(t, false)
	for _, tr := range anyState(v.a.Volume(0).Size()) {
		t.Run(tr.name, func(t *testing.T) { v.commit(t, tr, uuidsOf(v.gen), connected) })
	}
	v.b.connect()
	v.a.await("the good peer", inSync)
	v.b.await("the good peer", inSync)
	sameData(t, v.a, v.b)
	for _, n := range []*testNode{v.a, v.b} {
		n.must("close", n.Close(testCtx(t)))
	}
}

func uuidsOf(g core.Generation) wire.UUIDs {
	return wire.UUIDs{Current: g.Current, Bitmap: g.Bitmap, H1: g.H1, H2: g.H2}
}

// floodTime is how long a flood goes on that the node has every right to take.
const floodTime = time.Second

// floodBytesMax is how much memory a flood may make a node hold, beside its named
// budgets of payload: see "Bounds of memory" in docs/PROTOCOL.md.
const floodBytesMax = 192 << 20

// floods are what a peer can ask for without end while it reads no answer. Where
// each is answered by a message, the session ends once too many answers wait.
var floods = []struct {
	name string
	msg  wire.Msg
	log  string // how the session ends, "" if it may go on
}{
	{"pings", wire.Msg{Kind: wire.KindPing, Arg: 1}, "send queue is full"},
	{"state requests", wire.Msg{Kind: wire.KindStateReq, Body: &wire.StateReq{ID: 1, Role: uint8(core.Secondary)}}, "send queue is full"},
	{"barriers", wire.Msg{Kind: wire.KindBarrier, Seq: 1}, "send queue is full"},
	{"resync requests", wire.Msg{Kind: wire.KindResyncRequest, Seq: 1, Len: 1 << 20}, "send queue is full"},
	{"reads", wire.Msg{Kind: wire.KindReadRequest, Seq: 1, Len: 1 << 20}, ""},
	{"small reads", wire.Msg{Kind: wire.KindReadRequest, Seq: 1, Len: 512}, ""},
	{"states", wire.Msg{Kind: wire.KindState, Body: &wire.State{Role: 2, Peer: 2, Conn: 10, Disk: 8, PDisk: 8}}, ""},
	{"marks", wire.Msg{Kind: wire.KindOutOfSync, Len: 4096}, ""}, // last: the mark stays
}

// TestTurncoatFloods: a peer asks without end and reads no answer. The node's
// memory and its log stay within bounds, and the good peer is welcome afterwards.
func TestTurncoatFloods(t *testing.T) {
	v := newVictim(t, false)
	for _, flood := range floods {
		t.Run(flood.name, func(t *testing.T) {
			mark := v.log.count()
			v.drown(t, bytes.Repeat(encoded(t, flood.msg), 1000), flood.msg.Kind.Channel(), flood.log != "")
			v.log.await(t, mark, flood.log)
			if lines := v.log.count() - mark; lines > 200 {
				t.Errorf("%d lines in the log", lines)
			}
		})
	}
	v.b.connect()
	v.a.await("the good peer", inSync)
	v.b.await("the good peer", inSync)
	sameData(t, v.a, v.b)
}

// drown floods the victim with b from a peer that reads nothing, for a while or
// until the session ends.
func (v *victim) drown(t *testing.T, b []byte, ch wire.Channel, toTheEnd bool) {
	before := heapNow()
	f := turn(t, v.a)
	defer func() { f.hangUp(); <-f.over }()
	f.befriend(uuidsOf(v.gen))
	v.a.await("the session to stand", connected)
	f.deaf.Store(true)
	most, sent := before, 0
	for begin, over := time.Now(), false; !over && (toTheEnd || time.Since(begin) < floodTime); {
		f.raw(ch, b)
		sent += len(b)
		most = max(most, heapNow())
		select {
		case <-f.over:
			over = true
		default:
		}
		if time.Since(begin) > patience {
			t.Fatalf("the session goes on after %d MiB: %s", sent>>20, v.a.state())
		}
	}
	t.Logf("%d MiB sent, %d MiB held at most; %s", sent>>20, (most-before)>>20, v.a.state())
	if most > before+floodBytesMax {
		t.Errorf("%d MiB held", (most-before)>>20)
	}
}

func heapNow() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
