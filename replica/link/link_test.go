package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/wire"
)

func TestConnect(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	if sa.Version != wire.VersionMax || sa.Peer.Addr() != sb.Local.Addr() {
		t.Errorf("version %d, addresses %v and %v", sa.Version, sa.Peer, sb.Local)
	}
}

func TestConnectIPv6(t *testing.T) {
	if probe, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skip("no IPv6 loopback")
	} else {
		probe.Close()
	}
	lnA, lnB := listen(t, "[::1]:0"), listen(t, "[::1]:0")
	a, b := newNode(t, lnA, lnB.Addr(), nil), newNode(t, lnB, lnA.Addr(), nil)
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
}

// TestCrossingDials: both ends dial at the same moment, again and again. Every
// round must end in one session on both, without waiting for a retry.
func TestCrossingDials(t *testing.T) {
	a, b := pair(t, nil, nil)
	tokens, dialed := 0, 0
	for range 200 {
		sa, sb := connect(t, a, b)
		checkAlive(t, sa, sb)
		if sa.Token {
			tokens++
		}
		if sa.Dialed {
			dialed++
		}
		reason := errors.New("next round")
		sa.Close(reason)
		sb.Close(reason)
	}
	if tokens < 50 || tokens > 150 {
		t.Errorf("the token was at one end %d of 200 times", tokens)
	}
	t.Logf("token at a %d times, a dialed %d times", tokens, dialed)
}

// TestReconnectStorm: both ends drop their sessions at bad moments, many
// times; when the storm is over the pair comes up and stays up.
func TestReconnectStorm(t *testing.T) {
	often := func(c *Config) { c.ConnectInterval = 50 * time.Millisecond }
	a, b := pair(t, often, often)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var storm sync.WaitGroup
	var sessions atomic.Int64
	for _, n := range []*node{a, b} {
		storm.Go(func() {
			for {
				s, err := n.Connect(ctx)
				if err != nil {
					return
				}
				sessions.Add(1)
				time.Sleep(time.Duration(s.ID[0]%8) * time.Millisecond)
				s.Close(errors.New("storm"))
			}
		})
	}
	storm.Wait()
	if sessions.Load() < 20 {
		t.Errorf("only %d sessions in the storm", sessions.Load())
	}
	t.Logf("%d sessions in the storm", sessions.Load())
	settle(t, a, b)
}

// settle runs both ends as a daemon would, reading and reconnecting, until
// they hold one live session.
func settle(t *testing.T, a, b *node) {
	t.Helper()
	var daemons sync.WaitGroup
	defer daemons.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer a.Close()
	defer b.Close()
	defer cancel()
	var now [2]atomic.Pointer[Session]
	for i, n := range []*node{a, b} {
		daemons.Go(func() {
			for {
				s, err := n.Connect(ctx)
				if err != nil {
					return
				}
				now[i].Store(s)
				for err == nil {
					_, _, err = s.Control.Read(alloc)
				}
			}
		})
	}
	var sa, sb *Session
	waitFor(t, "one live session", func() bool {
		sa, sb = now[0].Load(), now[1].Load()
		return sa != nil && sb != nil && sa.Err() == nil && sb.Err() == nil && sa.ID == sb.ID
	})
	checkTwins(t, sa, sb)
}

// TestPermanentRefusal: both ends learn the reason, in the same words, and
// stop, no matter who was there first.
func TestPermanentRefusal(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   wire.Refusal
	}{
		"wrong secret":   {func(c *Config) { c.Secret = []byte("another") }, wire.RefusedWrongSecret},
		"no secret":      {func(c *Config) { c.Secret = nil }, wire.RefusedNoSecret},
		"wrong resource": {func(c *Config) { c.Resource = "r1" }, wire.RefusedResource},
	} {
		for _, delay := range []time.Duration{0, 150 * time.Millisecond} {
			t.Run(name+" after "+delay.String(), func(t *testing.T) {
				a, b := pair(t, nil, c.change)
				ctx, cancel := context.WithTimeout(t.Context(), roundMax)
				defer cancel()
				// Whoever is refused goes StandAlone at once, as a daemon would.
				standAlone := func(n *node) <-chan result {
					c := make(chan result, 1)
					go func() {
						s, err := n.Connect(ctx)
						n.Close()
						c <- result{s, err}
					}()
					return c
				}
				ca := standAlone(a)
				time.Sleep(delay)
				cb := standAlone(b)
				for _, r := range []result{<-ca, <-cb} {
					refused, ok := errors.AsType[*wire.RefusedError](r.err)
					if !ok || refused.Reason != c.want || !refused.Reason.Permanent() {
						t.Errorf("got %v", r.err)
					}
				}
				for _, n := range []*node{a, b} {
					if texts := n.refusalTexts(); !strings.Contains(texts, c.want.String()) {
						t.Errorf("reported %q", texts)
					}
				}
			})
		}
	}
}

// TestOneWay: only one node can reach the other; a session comes up all the same.
func TestOneWay(t *testing.T) {
	for _, name := range []string{"a is senior", "b is senior"} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
			dead := listen(t, "127.0.0.1:0")
			nowhere := dead.Addr()
			dead.Close()
			// The only dial that can succeed may come before a listens.
			often := func(c *Config) { c.ConnectInterval = 100 * time.Millisecond }
			a, b := newNode(t, lnA, nowhere, often), newNode(t, lnB, lnA.Addr(), often)
			a.instance, b.instance = wire.Instance{1}, wire.Instance{2}
			if name == "a is senior" {
				a.instance, b.instance = b.instance, a.instance
			}
			sa, sb := connect(t, a, b)
			checkAlive(t, sa, sb)
			if sa.Dialed {
				t.Error("a dialed?")
			}
		})
	}
}

// TestPeerRebooted: the peer lost its session without our TCP noticing. The
// old session ends when, and only when, the new one is authenticated.
func TestPeerRebooted(t *testing.T) {
	a, b := pair(t, nil, nil)
	_, oldB := connect(t, a, b)
	reborn := newNode(t, listen(t, "127.0.0.1:0"), b.ln.Addr(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), roundMax)
	defer cancel()
	ra := <-connectAsync(ctx, reborn)
	if ra.err != nil {
		t.Fatal(ra.err)
	}
	<-oldB.Done()
	if !errors.Is(oldB.Err(), ErrSuperseded) {
		t.Errorf("old session ended with %v", oldB.Err())
	}
	sb, err := b.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkTwins(t, ra.s, sb)
	checkAlive(t, ra.s, sb)
}

// TestUnclaimedSessionEnds: nobody waits for the session that the peer made.
func TestUnclaimedSessionEnds(t *testing.T) {
	short := func(c *Config) { c.HandshakeTimeout = 300 * time.Millisecond }
	a, b := pair(t, short, short)
	_, oldB := connect(t, a, b)
	reborn := newNode(t, listen(t, "127.0.0.1:0"), b.ln.Addr(), nil)
	s, err := reborn.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-oldB.Done()
	if _, _, err := s.Data.Read(alloc); err == nil {
		t.Error("the session lives on unclaimed")
	}
}

func TestConnectEnds(t *testing.T) {
	a, _ := pair(t, nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r := <-connectAsync(ctx, a); !errors.Is(r.err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", r.err)
	}
	c := connectAsync(t.Context(), a)
	waitFor(t, "Connect to start", func() bool { a.Link.mu.Lock(); defer a.Link.mu.Unlock(); return a.connecting })
	if _, err := a.Connect(t.Context()); err == nil {
		t.Error("two Connects at once")
	}
	a.Close()
	if r := <-c; !errors.Is(r.err, ErrClosed) {
		t.Errorf("closed: %v", r.err)
	}
	if _, err := a.Connect(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCloseEndsTheSession: closing the link ends the session at both ends.
func TestCloseEndsTheSession(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	a.Close()
	if !errors.Is(sa.Err(), ErrClosed) {
		t.Errorf("near end: %v", sa.Err())
	}
	if _, _, err := sb.Control.Read(alloc); err == nil || !errors.Is(sb.Err(), err) {
		t.Errorf("far end: %v and %v", err, sb.Err())
	}
	if _, _, err := sb.Data.Read(alloc); err == nil {
		t.Error("the data connection survived the control connection")
	}
}

func TestOwnListener(t *testing.T) {
	checkLeaks(t)
	addr := func() netip.AddrPort {
		ln := listen(t, "127.0.0.1:0")
		defer ln.Close()
		return ln.Addr()
	}
	addrA, addrB := addr(), addr()
	make := func(local, peer netip.AddrPort) *node {
		n := &node{}
		l, err := New(Config{Resource: "r0", Local: local, Peer: peer, ConnectInterval: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		n.Link = l
		return n
	}
	a, b := make(addrA, addrB), make(addrB, addrA)
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	if a.Addr() != addrA {
		t.Errorf("listens on %v, want %v", a.Addr(), addrA)
	}
	other := make(addrA, addrB)
	if _, err := other.Connect(t.Context()); err == nil {
		t.Error("two listeners on one address")
	}
}

func TestSharedListener(t *testing.T) {
	checkLeaks(t)
	lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	for _, name := range []string{"r0", "r1"} {
		named := func(c *Config) { c.Resource = name }
		a, b := newNode(t, lnA, lnB.Addr(), named), newNode(t, lnB, lnA.Addr(), named)
		sa, sb := connect(t, a, b)
		checkAlive(t, sa, sb)
	}
	twin := newNode(t, lnA, lnB.Addr(), nil)
	if _, err := twin.Connect(t.Context()); err == nil {
		t.Error("one resource twice on one listener")
	}
}

func TestConfig(t *testing.T) {
	good := Config{
		Resource: "r0", Secret: []byte("s"),
		Local: netip.MustParseAddrPort("10.1.0.1:7788"), Peer: netip.MustParseAddrPort("10.1.0.2:7788"),
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	open := good
	open.Secret = nil
	if _, err := New(open); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("no secret between hosts: %v", err)
	}
	open.AllowUnauthenticated = true
	if _, err := New(open); err != nil {
		t.Errorf("no secret, allowed: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"no peer":  func(c *Config) { c.Peer = netip.AddrPort{} },
		"port 0":   func(c *Config) { c.Peer = netip.MustParseAddrPort("10.1.0.2:0") },
		"no local": func(c *Config) { c.Local = netip.AddrPort{} },
		"no name":  func(c *Config) { c.Resource = "" },
	} {
		bad := good
		change(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMayConnect(t *testing.T) {
	for _, c := range []struct {
		peer, from string
		want       bool
	}{
		{"10.0.0.2", "10.0.0.2", true},
		{"10.0.0.2", "10.0.0.3", false},
		{"10.0.0.2", "127.0.0.1", false},
		{"127.0.0.1", "127.0.0.2", true},
		{"127.0.0.1", "::1", true},
		{"127.0.0.1", "10.0.0.2", false},
		{"fd00::2", "fd00::2", true},
		{"fd00::2", "fd00::3", false},
		{"::ffff:10.0.0.2", "10.0.0.2", true},
	} {
		cfg := Config{Peer: netip.AddrPortFrom(netip.MustParseAddr(c.peer), 7788)}
		if got := cfg.mayConnect(netip.MustParseAddr(c.from)); got != c.want {
			t.Errorf("peer %s, from %s: %v", c.peer, c.from, got)
		}
	}
}

func TestSocketOptions(t *testing.T) {
	set := func(c *Config) {
		c.Socket = SocketOptions{SendBuffer: 64 << 10, ReceiveBuffer: 64 << 10, UserTimeout: 5 * time.Second}
	}
	a, b := pair(t, set, set)
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
}

func TestJitter(t *testing.T) {
	for range 1000 {
		if d := jitter(time.Second); d < 860*time.Millisecond || d > 1140*time.Millisecond {
			t.Fatalf("jitter made %v", d)
		}
	}
}
