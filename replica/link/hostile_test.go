package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/wire"
)

// stranger opens a TCP connection to a node's listener.
func stranger(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", to.String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(roundMax)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// greetAs plays the dialler of one connection with the given configuration and
// returns how it ended.
func greetAs(t testing.TB, to netip.AddrPort, cfg wire.HandshakeConfig) (*wire.Handshake, *net.TCPConn, error) {
	t.Helper()
	conn := stranger(t, to)
	h, err := wire.NewDialer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	talk := newTalk(context.Background(), conn, roundMax)
	steps := func() error {
		hello, err := h.Hello()
		if err := talk.ask(h, hello, err); err != nil {
			return err
		}
		proof, err := h.Proof()
		return talk.ask(h, proof, err)
	}
	return h, conn, talk.finish(steps())
}

func dialerConfig(n byte, secret string) wire.HandshakeConfig {
	return wire.HandshakeConfig{
		Resource: "r0", Secret: []byte(secret), Channel: wire.ChannelData,
		Instance: wire.Instance{n}, Nonce: wire.Nonce{n},
	}
}

const goodSecret = "a shared secret" // of newNode

// wantRefusal demands that the peer refused with this reason.
func wantRefusal(t testing.TB, what string, err error, want wire.Refusal) {
	t.Helper()
	if r, ok := errors.AsType[*wire.RefusedError](err); !ok || r.Reason != want || !r.ByPeer {
		t.Errorf("%s: got %v, want a refusal because %v", what, err, want)
	}
}

// TestStrangersDoNotDisturb: a session is up; everything without the secret
// bounces off, and the session carries on.
func TestStrangersDoNotDisturb(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	for name, bytes := range map[string][]byte{
		"http":        []byte("GET / HTTP/1.1\r\nHost: be1\r\n\r\n"),
		"zeroes":      make([]byte, 4096),
		"half prefix": {0x72, 0x65},
		"proof first": append([]byte("reHL\x03\x00\x00\x30"), make([]byte, 40)...),
		"refusal":     wire.AppendRefusal(nil, wire.RefusedWrongSecret),
		"a frame":     mustFrame(t, wire.Msg{Kind: wire.KindBarrier}),
	} {
		conn := stranger(t, b.ln.Addr())
		if _, err := conn.Write(bytes); err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWrite() // fails when b has already hung up, as it may
		if got, err := io.ReadAll(conn); len(got) != 0 && err == nil {
			t.Errorf("%s was answered with %x", name, got)
		}
	}
	_, _, err := greetAs(t, b.ln.Addr(), dialerConfig(9, "a guess"))
	wantRefusal(t, "bad secret", err, wire.RefusedWrongSecret)
	_, _, err = greetAs(t, b.ln.Addr(), dialerConfig(9, ""))
	wantRefusal(t, "no secret", err, wire.RefusedNoSecret)
	control := dialerConfig(9, "a guess")
	control.Channel, control.Session = wire.ChannelControl, sb.ID
	_, _, err = greetAs(t, b.ln.Addr(), control)
	wantRefusal(t, "control connection of the live session", err, wire.RefusedSession)
	checkAlive(t, sa, sb)
}

func mustFrame(t testing.TB, m wire.Msg) []byte {
	t.Helper()
	frame, err := wire.AppendMsg(nil, &m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// TestWrongSecretFromOutsideStopsNobody: only our own dial can tell us that we
// are the ones with the wrong secret.
func TestWrongSecretFromOutsideStopsNobody(t *testing.T) {
	a, b := pair(t, nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), roundMax)
	defer cancel()
	cb := connectAsync(ctx, b)
	waitFor(t, "b to listen", func() bool { return b.Addr().IsValid() })
	for range 5 {
		_, _, err := greetAs(t, b.ln.Addr(), dialerConfig(9, "a guess"))
		wantRefusal(t, "bad secret", err, wire.RefusedWrongSecret)
	}
	ra := <-connectAsync(ctx, a)
	rb := <-cb
	if ra.err != nil || rb.err != nil {
		t.Fatalf("%v and %v", ra.err, rb.err)
	}
	checkTwins(t, ra.s, rb.s)
	if !strings.Contains(b.refusalTexts(), wire.RefusedWrongSecret.String()) {
		t.Errorf("b reported %q", b.refusalTexts())
	}
}

// TestSlowloris: one byte at a time does not stretch the deadline, and the
// node goes on serving others meanwhile.
func TestSlowloris(t *testing.T) {
	a, b := pair(t, nil, nil)
	_ = b.beginConnect() // listen, without dialling
	defer b.endConnect()
	conn := stranger(t, b.ln.Addr())
	begin := time.Now()
	var failed error
	hello := bytes.Repeat([]byte{0}, wire.HelloSize)
	copy(hello, "reHL\x01\x00\x01\x00")
	for i := 0; failed == nil && i < len(hello); i++ {
		_, failed = conn.Write(hello[i : i+1])
		time.Sleep(50 * time.Millisecond)
	}
	if took := time.Since(begin); failed == nil || took > 3*time.Second {
		t.Errorf("slow stranger was served for %v: %v", took, failed)
	}
	_ = a
}

// TestHalfOpenLimit: silent connections take the slots, further ones are told
// so at once, and after the deadline the real peer gets through again.
func TestHalfOpenLimit(t *testing.T) {
	quick := func(c *Config) { c.ConnectInterval = 200 * time.Millisecond }
	a, b := pair(t, quick, quick)
	if err := b.beginConnect(); err != nil {
		t.Fatal(err)
	}
	for range HalfOpenMax {
		stranger(t, b.ln.Addr())
	}
	waitFor(t, "the slots to fill", func() bool { b.ln.mu.Lock(); defer b.ln.mu.Unlock(); return b.ln.open == HalfOpenMax })
	for range 10 {
		_, _, err := greetAs(t, b.ln.Addr(), dialerConfig(9, goodSecret))
		wantRefusal(t, "one too many", err, wire.RefusedBusy)
	}
	b.endConnect()
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
}

// TestLateLoserOfCrossing: an attempt that the peer began before the session
// was established, and goes on with afterwards, does not replace the session.
func TestLateLoserOfCrossing(t *testing.T) {
	a, b := pair(t, nil, nil)
	if err := b.beginConnect(); err != nil {
		t.Fatal(err)
	}
	h, err := wire.NewDialer(dialerConfig(1, goodSecret))
	if err != nil {
		t.Fatal(err)
	}
	k := newTalk(context.Background(), stranger(t, b.ln.Addr()), roundMax)
	hello, err := h.Hello()
	if err := k.ask(h, hello, err); err != nil {
		t.Fatal(err)
	}
	b.endConnect()
	sa, sb := connect(t, a, b)
	proof, err := h.Proof()
	wantRefusal(t, "late proof", k.finish(k.ask(h, proof, err)), wire.RefusedCrossed)
	checkAlive(t, sa, sb)
}

// TestHangUpAtEachStep: a dialler that knows the secret vanishes after every
// possible number of frames and half frames, with a FIN or an RST. The pair
// comes up all the same, without waiting for a deadline.
func TestHangUpAtEachStep(t *testing.T) {
	for step, cut := range map[string]func(*talk, *wire.Handshake) error{
		"at once": func(*talk, *wire.Handshake) error { return nil },
		"half a hello": func(k *talk, h *wire.Handshake) error {
			hello, err := h.Hello()
			return k.send(hello[:100], err)
		},
		"hello": func(k *talk, h *wire.Handshake) error { return k.send(h.Hello()) },
		"half a proof": func(k *talk, h *wire.Handshake) error {
			hello, err := h.Hello()
			if err := k.ask(h, hello, err); err != nil {
				return err
			}
			proof, err := h.Proof()
			return k.send(proof[:20], err)
		},
		"whole data connection": func(k *talk, h *wire.Handshake) error {
			hello, err := h.Hello()
			if err := k.ask(h, hello, err); err != nil {
				return err
			}
			proof, err := h.Proof()
			return k.ask(h, proof, err)
		},
	} {
		for _, linger := range []int{-1, 0} {
			t.Run(step, func(t *testing.T) { hangUp(t, cut, linger) })
		}
	}
}

func hangUp(t *testing.T, cut func(*talk, *wire.Handshake) error, linger int) {
	a, b := pair(t, nil, nil)
	if err := b.beginConnect(); err != nil {
		t.Fatal(err)
	}
	for n := range byte(5) {
		conn := stranger(t, b.ln.Addr())
		h, err := wire.NewDialer(dialerConfig(n+1, goodSecret))
		if err != nil {
			t.Fatal(err)
		}
		k := newTalk(context.Background(), conn, roundMax)
		if err := errors.Join(k.finish(cut(k, h)), conn.SetLinger(linger), conn.Close()); err != nil {
			t.Fatal(err)
		}
	}
	b.endConnect()
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
}

// TestNotTheConfiguredPeer: without a secret the address is all there is.
func TestNotTheConfiguredPeer(t *testing.T) {
	checkLeaks(t)
	b := newNode(t, listen(t, "127.0.0.1:0"), netip.MustParseAddrPort("192.0.2.1:7788"), func(c *Config) {
		c.Secret, c.AllowUnauthenticated = nil, true
	})
	if err := b.beginConnect(); err != nil {
		t.Fatal(err)
	}
	defer b.endConnect()
	_, _, err := greetAs(t, b.ln.Addr(), dialerConfig(9, ""))
	wantRefusal(t, "stranger", err, wire.RefusedNotPeer)
}

// TestSelfConnection: a node whose peer address is its own notices, and keeps
// trying, for an address can move.
func TestSelfConnection(t *testing.T) {
	checkLeaks(t)
	ln := listen(t, "127.0.0.1:0")
	n := newNode(t, ln, ln.Addr(), func(c *Config) { c.ConnectInterval = 20 * time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if texts := n.refusalTexts(); !strings.Contains(texts, wire.RefusedSelf.String()) {
		t.Errorf("reported %q", texts)
	}
}

// TestReflection: whoever answers at the peer's address sends back what he gets.
func TestReflection(t *testing.T) {
	checkLeaks(t)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			served.Go(func() { _, _ = io.Copy(conn, conn); conn.Close() })
		}
	})
	defer served.Wait()
	defer echo.Close()
	n := newNode(t, listen(t, "127.0.0.1:0"), addrPort(echo.Addr()), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := n.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if texts := n.refusalTexts(); !strings.Contains(texts, wire.RefusedSelf.String()) {
		t.Errorf("reported %q", texts)
	}
}

// recorder is a proxy in front of a node that keeps what diallers send.
type recorder struct {
	ln    net.Listener
	to    netip.AddrPort
	tasks sync.WaitGroup
	mu    sync.Mutex
	sent  []*bytes.Buffer
}

func record(t testing.TB, to netip.AddrPort) *recorder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{ln: ln, to: to}
	r.tasks.Go(r.acceptLoop)
	t.Cleanup(func() { ln.Close(); r.tasks.Wait() })
	return r
}

func (r *recorder) acceptLoop() {
	for {
		in, err := r.ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.to.String())
		if err != nil {
			in.Close()
			continue
		}
		kept := &bytes.Buffer{}
		r.mu.Lock()
		r.sent = append(r.sent, kept)
		r.mu.Unlock()
		r.tasks.Go(func() { r.forward(out, in, kept) })
		r.tasks.Go(func() { r.forward(in, out, nil) })
	}
}

// forward copies until one side ends, then ends both.
func (r *recorder) forward(to, from net.Conn, kept *bytes.Buffer) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if kept != nil {
			r.mu.Lock()
			kept.Write(buf[:n])
			r.mu.Unlock()
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// TestReplay records a whole session's handshakes on the path and plays them
// back, data and control, while the session is up.
func TestReplay(t *testing.T) {
	checkLeaks(t)
	lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	proxy := record(t, lnB.Addr())
	dead := netip.MustParseAddrPort("127.0.0.1:1") // so that only a dials
	often := func(c *Config) { c.ConnectInterval = 100 * time.Millisecond }
	a, b := newNode(t, lnA, addrPort(proxy.ln.Addr()), often), newNode(t, lnB, dead, often)
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	proxy.mu.Lock()
	recorded := make([][]byte, 0, 2)
	for _, kept := range proxy.sent {
		if kept.Len() > wire.HelloSize+wire.ProofSize {
			recorded = append(recorded, bytes.Clone(kept.Bytes()))
		}
	}
	proxy.mu.Unlock()
	if len(recorded) != 2 {
		t.Fatalf("recorded %d connections", len(recorded))
	}
	for _, dialogue := range recorded {
		conn := stranger(t, lnB.Addr())
		if _, err := conn.Write(dialogue); err != nil {
			t.Fatal(err)
		}
		// The end may be an RST, for b does not read what follows the proof.
		answer, _ := io.ReadAll(conn)
		if bytes.Contains(answer, []byte("reHL\x03\x00\x00\x30")) {
			t.Errorf("b proved itself to a replay")
		}
	}
	checkAlive(t, sa, sb)
}

// TestSessionSplice: connections of two attempts do not combine, whether the
// attacker knows the secret of the pair or not.
func TestSessionSplice(t *testing.T) {
	_, b := pair(t, nil, nil)
	if err := b.beginConnect(); err != nil {
		t.Fatal(err)
	}
	defer b.endConnect()
	old, _, err := greetAs(t, b.ln.Addr(), dialerConfig(1, goodSecret))
	if err != nil {
		t.Fatal(err)
	}
	renewed := dialerConfig(1, goodSecret)
	renewed.Nonce[5] = 5
	current, _, err := greetAs(t, b.ln.Addr(), renewed)
	if err != nil {
		t.Fatal(err)
	}
	control := func(n byte, secret string, id wire.SessionID) error {
		cfg := dialerConfig(n, secret)
		cfg.Channel, cfg.Session = wire.ChannelControl, id
		_, _, err := greetAs(t, b.ln.Addr(), cfg)
		return err
	}
	wantRefusal(t, "session given up", control(1, goodSecret, old.Session()), wire.RefusedSession)
	wantRefusal(t, "unknown session", control(1, goodSecret, wire.SessionID{1}), wire.RefusedSession)
	wantRefusal(t, "third node", control(3, goodSecret, current.Session()), wire.RefusedSession)
	wantRefusal(t, "no secret", control(1, "a guess", current.Session()), wire.RefusedWrongSecret)
	if err := control(1, goodSecret, current.Session()); err != nil {
		t.Fatalf("the right control connection: %v", err)
	}
	var s *Session
	waitFor(t, "the session", func() bool { s = b.take(); return s != nil })
	if s.ID != current.Session() {
		t.Errorf("session %v instead of %v", s.ID, current.Session())
	}
	wantRefusal(t, "the control connection again", control(1, goodSecret, current.Session()), wire.RefusedSession)
}

// TestFakeAcceptor: a fake acceptor without the secret does
// not get a session, nor anything but one proof over its own nonce.
func TestFakeAcceptor(t *testing.T) {
	checkLeaks(t)
	fake := newNode(t, listen(t, "127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:1"), func(c *Config) { c.Secret = []byte("a guess") })
	if err := fake.beginConnect(); err != nil {
		t.Fatal(err)
	}
	defer fake.endConnect()
	a := newNode(t, listen(t, "127.0.0.1:0"), fake.ln.Addr(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), roundMax)
	defer cancel()
	_, err := a.Connect(ctx)
	wantRefusal(t, "fake acceptor", err, wire.RefusedWrongSecret)
}
