package link

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"replicad/internal/figure"
	"replicad/wire"
)

// besieged is a good pair under load: a mirrors writes to b, b acknowledges
// them, for as long as the test runs. b's listener is what strangers attack.
type besieged struct {
	t      *testing.T
	a, b   *node
	sa, sb *Session
	acked  atomic.Uint64
	load   sync.WaitGroup
}

// besiege brings the pair up and starts its load.
func besiege(t *testing.T) *besieged {
	t.Helper()
	a, b := pair(t, nil, nil)
	s := &besieged{t: t, a: a, b: b}
	s.sa, s.sb = connect(t, a, b)
	s.load.Go(s.mirror)
	s.load.Go(s.acknowledge)
	s.load.Go(s.count)
	t.Cleanup(func() {
		s.sa.Close(ErrClosed)
		s.sb.Close(ErrClosed)
		s.load.Wait()
	})
	s.progress()
	return s
}

// mirror keeps about a hundred writes of 4 KiB in flight.
func (s *besieged) mirror() {
	payload := pattern(4096, 1)
	for seq := uint64(1); ; seq++ {
		for seq > s.acked.Load()+100 && s.sa.Err() == nil {
			time.Sleep(50 * time.Microsecond)
		}
		if s.sa.Data.Queue(&wire.Msg{Kind: wire.KindData, Seq: seq, Len: 4096}, payload, 0) != nil || s.sa.Data.Flush() != nil {
			return
		}
	}
}

func (s *besieged) acknowledge() {
	buf, want := make([]byte, 4096), pattern(4096, 1)
	for seq := uint64(1); ; seq++ {
		m, payload, err := s.sb.Data.Read(func(int) []byte { return buf })
		if err != nil {
			return
		}
		if m.Kind != wire.KindData || m.Seq != seq || !bytes.Equal(payload, want) {
			s.t.Errorf("%+v arrived instead of write %d", m, seq)
		}
		if s.sb.Control.Queue(&wire.Msg{Kind: wire.KindWriteAck, Seq: m.Seq}, nil, 0) != nil {
			return
		}
		s.sb.Control.Kick()
	}
}

func (s *besieged) count() {
	for {
		m, _, err := s.sa.Control.Read(alloc)
		if err != nil {
			return
		}
		s.acked.Store(m.Seq)
	}
}

// progress demands that the load goes on: 200 writes from now on.
func (s *besieged) progress() {
	s.t.Helper()
	from := s.acked.Load()
	waitFor(s.t, "200 mirrored writes", func() bool { return s.acked.Load() >= from+200 })
}

// unharmed demands that the session is the one that was there before, that
// nobody else has one, and that nothing waits to be handed to the core.
func (s *besieged) unharmed() {
	s.t.Helper()
	s.progress()
	if err := s.sb.Err(); err != nil {
		s.t.Fatalf("the good session has ended: %v", err)
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.b.Link.current != s.sb || s.b.Link.established != 1 || s.b.Link.next != nil {
		s.t.Fatalf("b has had %d sessions", s.b.Link.established)
	}
}

// hello is a dialler's hello that may be changed before it is sealed again.
func hello(t testing.TB, cfg wire.HandshakeConfig, change func(frame []byte)) []byte {
	t.Helper()
	h, err := wire.NewDialer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := h.Hello()
	if err != nil {
		t.Fatal(err)
	}
	frame = bytes.Clone(frame)
	if change != nil {
		change(frame)
	}
	return rehash(frame)
}

// say sends bytes to b as a stranger, hangs up and returns the answer.
func (s *besieged) say(b []byte) []byte { return utter(s.t, stranger(s.t, s.b.ln.Addr()), b, 0) }

// silently demands that b does not answer what is no handshake.
func (s *besieged) silently(what string, b []byte) {
	s.t.Helper()
	if got := s.say(b); len(got) != 0 {
		s.t.Errorf("%s was answered with %x", what, got)
	}
}

// refused demands one refusal as the whole answer.
func (s *besieged) refused(what string, b []byte, want wire.Refusal) {
	s.t.Helper()
	if got := s.say(b); !bytes.Equal(got, wire.AppendRefusal(nil, want)) {
		s.t.Errorf("%s was answered with %x, want the refusal because %v", what, got, want)
	}
}

// attacks are what a stranger without the secret can try on the port of a node
// with a good session. Each returns when it is over.
var attacks = []struct {
	name string
	run  func(t *testing.T, s *besieged)
}{
	{"bytes that are no handshake", func(t *testing.T, s *besieged) {
		for what, b := range map[string][]byte{
			"nothing": nil, "http": []byte("GET / HTTP/1.1\r\n\r\n"), "TLS": []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), "zeroes": make([]byte, 1<<16),
			"size 0": []byte("reHL\x01\x00\x00\x00"), "size 65535": append([]byte("reHL\x01\x00\xff\xff"), make([]byte, 1<<16)...),
			"size of a proof": append([]byte("reHL\x01\x00\x00\x30"), make([]byte, 248)...), "type 255": append([]byte("reHL\xff\x00\x01\x00"), make([]byte, 248)...),
			"half a hello": hello(t, dialerConfig(9, goodSecret), nil)[:128], "one byte short": hello(t, dialerConfig(9, goodSecret), nil)[:255],
		} {
			s.silently(what, b)
		}
	}},
	{"frames out of order", func(t *testing.T, s *besieged) {
		proof := rehash(append([]byte("reHL\x02\x00\x00\x30"), make([]byte, 40)...))
		s.silently("a proof first", proof)
		for r := wire.Refusal(1); r < 20; r++ {
			s.silently("a refusal first", wire.AppendRefusal(nil, r))
		}
		h := hello(t, dialerConfig(9, goodSecret), nil)
		if got := s.say(append(bytes.Clone(h), h...)); len(got) > wire.HelloSize {
			t.Errorf("a hello sent twice was answered with %d bytes", len(got))
		}
		for _, m := range []wire.Msg{{Kind: wire.KindPing}, {Kind: wire.KindBarrier, Seq: 1}, {Kind: wire.KindTrim, Len: 512}} {
			s.silently("a frame of a session", mustFrame(t, m))
			if got := s.say(append(bytes.Clone(h), mustFrame(t, m)...)); len(got) > wire.HelloSize {
				t.Errorf("%v after a hello was answered with %d bytes", m.Kind, len(got))
			}
		}
	}},
	{"numbers in the hello", func(t *testing.T, s *besieged) {
		for at := range wire.HelloSize - 8 {
			frame := hello(t, dialerConfig(9, goodSecret), func(b []byte) { b[at] ^= 0xff })
			checkAnswer(t, s.say(frame))
		}
		s.refused("version 65535", hello(t, dialerConfig(9, goodSecret), func(b []byte) { copy(b[8:], "\xff\xff\xff\xff") }), wire.RefusedVersion)
	}},
	{"secrets", func(t *testing.T, s *besieged) {
		for i := range byte(20) {
			_, _, err := greetAs(t, s.b.ln.Addr(), dialerConfig(i+9, "a guess"))
			wantRefusal(t, "a guess", err, wire.RefusedWrongSecret)
			_, _, err = greetAs(t, s.b.ln.Addr(), dialerConfig(i+9, ""))
			wantRefusal(t, "no secret", err, wire.RefusedNoSecret)
		}
	}},
	{"another node of the same name", func(t *testing.T, s *besieged) {
		control := dialerConfig(9, "a guess")
		control.Channel, control.Session, control.Instance = wire.ChannelControl, s.sb.ID, s.a.instance
		_, _, err := greetAs(t, s.b.ln.Addr(), control)
		wantRefusal(t, "the control connection of the session", err, wire.RefusedSession)
		third := newNode(t, listen(t, "127.0.0.1:0"), s.b.ln.Addr(), func(c *Config) { c.Secret = []byte("of another cluster") })
		ctx, cancel := context.WithTimeout(t.Context(), roundMax)
		defer cancel()
		_, err = third.Connect(ctx)
		wantRefusal(t, "a third node", err, wire.RefusedWrongSecret)
		other := newNode(t, listen(t, "127.0.0.1:0"), s.b.ln.Addr(), func(c *Config) { c.Resource = "r7" })
		_, err = other.Connect(ctx)
		wantRefusal(t, "another resource", err, wire.RefusedResource)
	}},
	{"own words sent back", func(t *testing.T, s *besieged) {
		mine := hello(t, dialerConfig(9, goodSecret), func(b []byte) { copy(b[24:], s.b.instance[:]) })
		s.refused("b's own instance", mine, wire.RefusedSelf)
		conn := stranger(t, s.b.ln.Addr())
		first := hello(t, dialerConfig(9, goodSecret), nil)
		if _, err := conn.Write(first); err != nil {
			t.Fatal(err)
		}
		theirs := make([]byte, wire.HelloSize)
		if _, err := io.ReadFull(conn, theirs); err != nil {
			t.Fatal(err)
		}
		s.refused("b's hello", theirs, wire.RefusedSelf)
	}},
	{"hang up at every byte", func(t *testing.T, s *besieged) {
		frame := hello(t, dialerConfig(9, goodSecret), nil)
		for n := 0; n <= len(frame); n += 16 {
			conn := stranger(t, s.b.ln.Addr())
			if _, err := conn.Write(frame[:n]); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetLinger(0) // the close below is then an RST
			_ = conn.Close()
		}
	}},
}

// TestSiege: a pair mirrors writes while strangers try everything on the port of
// one node. The session is never displaced, the writes go on, and in the end no
// goroutine and no memory is left.
func TestSiege(t *testing.T) {
	s := besiege(t)
	before := runtime.NumGoroutine()
	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			attack.run(t, s)
			s.t = t
			s.unharmed()
		})
	}
	s.t = t
	s.settled(before)
	figure.Print("hostile-peer-attacks", len(attacks))
}

// settled demands that goroutines and half-open connections are gone.
func (s *besieged) settled(goroutines int) {
	s.t.Helper()
	waitFor(s.t, "half-open connections to end", func() bool { return s.b.ln.halfOpen() == 0 })
	waitFor(s.t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func (l *Listener) halfOpen() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// crowdSize is how many connections at a time the descriptor limit allows: two
// ends of each are in this process.
func crowdSize(t testing.TB, want int) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return min(want, int(min(limit.Cur, 1<<20)-200)/2)
}

// TestSiegeCrowd: thousands of connections that say nothing, or begin and do not
// go on. At most HalfOpenMax of them cost anything, memory stays where it was, and
// the pair's writes go on; reports of strangers are at most one a second.
func TestSiegeCrowd(t *testing.T) {
	s := besiege(t)
	before := runtime.NumGoroutine()
	heap := liveHeap()
	n := crowdSize(t, 4000)
	begin := time.Now()
	beginnings := [][]byte{nil, []byte("r"), []byte("noise and more noise"), []byte("reHL\x01\x00\x01\x00"), hello(t, dialerConfig(9, goodSecret), nil)}
	crowd := make([]net.Conn, 0, n)
	for i := range n {
		conn, err := net.Dial("tcp", s.b.ln.Addr().String())
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		crowd = append(crowd, conn)
		// Whoever was sent away cannot write any more.
		_, _ = conn.Write(beginnings[i%len(beginnings)])
		if open := s.b.ln.halfOpen(); open > HalfOpenMax {
			t.Fatalf("%d half-open connections", open)
		}
		if i%500 == 0 {
			s.unharmed()
		}
	}
	s.unharmed()
	if grown := int64(liveHeap()) - int64(heap); grown > 16<<20 {
		t.Errorf("%d connections hold %d KiB", n, grown>>10)
	}
	for _, conn := range crowd {
		_ = conn.Close()
	}
	s.unharmed()
	s.settled(before)
	s.b.checkReports(t, time.Since(begin))
	figure.Print("half-open-connections", n)
}

// checkReports demands at most one report of strangers a second, and one at all.
func (n *node) checkReports(t *testing.T, took time.Duration) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := len(n.refusals); got == 0 || got > 2+int(took/time.Second) {
		t.Errorf("%d reports in %v", got, took)
	}
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSiegeReconnect: the session is cut while strangers hold every slot of one
// node. The pair is back without waiting for them: the other node dials too.
func TestSiegeReconnect(t *testing.T) {
	quick := func(c *Config) { c.ConnectInterval = 100 * time.Millisecond }
	a, b := pair(t, quick, quick)
	sa, _ := connect(t, a, b)
	stop := make(chan struct{})
	var strangers sync.WaitGroup
	for range 2 * HalfOpenMax {
		strangers.Go(func() { hold(b.ln.Addr(), stop) })
	}
	waitFor(t, "the slots to fill", func() bool { return b.ln.halfOpen() == HalfOpenMax })
	sa.Close(io.ErrClosedPipe)
	begin := time.Now()
	sa, sb := connect(t, a, b)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the pair came back after %v", took)
	}
	checkAlive(t, sa, sb)
	close(stop)
	strangers.Wait()
}

// hold keeps one slot of a listener taken, again and again, until stop.
func hold(addr netip.AddrPort, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		conn, err := net.DialTimeout("tcp", addr.String(), time.Second)
		if err != nil {
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		for err == nil {
			select {
			case <-stop:
				err = net.ErrClosed
			default:
				if _, err = conn.Read(make([]byte, 1)); isTimeout(err) {
					err = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				}
			}
		}
		_ = conn.Close()
	}
}

func isTimeout(err error) bool {
	nerr, ok := err.(net.Error)
	return ok && nerr.Timeout()
}

// TestSiegeSlow: handshakes a byte at a time, and such that never end, are cut
// off in time; the pair's writes go on meanwhile.
func TestSiegeSlow(t *testing.T) {
	s := besiege(t)
	before := runtime.NumGoroutine()
	var slow sync.WaitGroup
	begin := time.Now()
	for i := range HalfOpenMax {
		frame := hello(t, dialerConfig(byte(i+9), goodSecret), nil)
		conn := stranger(t, s.b.ln.Addr())
		slow.Go(func() {
			for n := 0; ; n++ {
				if _, err := conn.Write(frame[n%len(frame) : n%len(frame)+1]); err != nil {
					return
				}
				time.Sleep(time.Duration(1+i) * time.Millisecond)
			}
		})
	}
	waitFor(t, "the slow ones to be cut off", func() bool { s.progress(); return s.b.ln.halfOpen() == 0 })
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("slow strangers were served for %v", took)
	}
	slow.Wait()
	s.unharmed()
	s.settled(before)
}

// TestSiegeReplay: the handshakes of a good session, recorded on the path, are
// played back whole, in part, with another order and with each other's proofs.
func TestSiegeReplay(t *testing.T) {
	checkLeaks(t)
	lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	proxy := record(t, lnB.Addr())
	dead := netip.MustParseAddrPort("127.0.0.1:1") // so that only a dials
	a, b := newNode(t, lnA, addrPort(proxy.ln.Addr()), nil), newNode(t, lnB, dead, nil)
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	proxy.mu.Lock()
	var dialogues [][]byte
	for _, kept := range proxy.sent {
		dialogues = append(dialogues, bytes.Clone(kept.Bytes()))
	}
	proxy.mu.Unlock()
	if len(dialogues) < 2 {
		t.Fatalf("recorded %d connections", len(dialogues))
	}
	s := &besieged{t: t, a: a, b: b, sa: sa, sb: sb}
	for i, one := range dialogues {
		for _, two := range dialogues {
			mixed := append(bytes.Clone(one[:min(len(one), wire.HelloSize)]), two[min(len(two), wire.HelloSize):]...)
			checkAnswer(t, s.say(mixed))
			checkAnswer(t, s.say(append(bytes.Clone(mixed), one...)))
		}
		fresh := bytes.Clone(one[:wire.HelloSize])
		fresh[60] ^= byte(i + 1) // another nonce: the proof does not fit
		checkAnswer(t, s.say(append(rehash(fresh), one[wire.HelloSize:]...)))
	}
	checkAlive(t, sa, sb)
	if b.Link.established != 1 {
		t.Errorf("%d sessions", b.Link.established)
	}
}
