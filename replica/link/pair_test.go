package link

import (
	"context"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/wire"
)

// roundMax is far below ConnectInterval's default: a test that needs it waited
// for a retry, which is what the tests of crossing dials must not see.
const roundMax = 4 * time.Second

// node is one end of a test pair, with the record of its callbacks.
type node struct {
	*Link
	ln *Listener

	mu       sync.Mutex
	refusals []error
	released map[BufferID]int
	sent     []uint64
}

func (n *node) events() Events {
	return Events{
		Refused: func(_ netip.AddrPort, err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.refusals = append(n.refusals, err)
		},
		Release: func(id BufferID) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.released[id]++
		},
		Sent: func(_ *Session, seq uint64) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.sent = append(n.sent, seq)
		},
	}
}

func (n *node) refusalTexts() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, err := range n.refusals {
		all = append(all, err.Error())
	}
	return strings.Join(all, "; ")
}

func (n *node) releases() (total, twice int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, times := range n.released {
		total += times
		if times > 1 {
			twice++
		}
	}
	return total, twice
}

func listen(t testing.TB, addr string) *Listener {
	t.Helper()
	ln, err := Listen(netip.MustParseAddrPort(addr), ListenOptions{HandshakeTimeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ln.Close)
	return ln
}

// newNode makes a link that listens on ln and dials peer.
func newNode(t testing.TB, ln *Listener, peer netip.AddrPort, change func(*Config)) *node {
	t.Helper()
	n := &node{ln: ln, released: map[BufferID]int{}}
	cfg := Config{
		Resource: "r0", Secret: []byte("a shared secret"), Local: ln.Addr(), Peer: peer, Listener: ln,
		HandshakeTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, Events: n.events(),
	}
	if overTLS != nil {
		cfg.TLS = NewCredentials(overTLS.identity(t, "127.0.0.1", "::1"))
	}
	if change != nil {
		change(&cfg)
	}
	link, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Link = link
	t.Cleanup(link.Close)
	return n
}

// pair makes two links that know each other.
func pair(t testing.TB, changeA, changeB func(*Config)) (a, b *node) {
	t.Helper()
	checkLeaks(t)
	lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	return newNode(t, lnA, lnB.Addr(), changeA), newNode(t, lnB, lnA.Addr(), changeB)
}

// checkLeaks fails the test if goroutines are left after all other clean-ups.
func checkLeaks(t testing.TB) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; {
			if time.Now().After(deadline) {
				buf := make([]byte, 64<<10)
				t.Fatalf("goroutines left:\n%s", buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

type result struct {
	s   *Session
	err error
}

func connectAsync(ctx context.Context, n *node) <-chan result {
	c := make(chan result, 1)
	go func() {
		s, err := n.Connect(ctx)
		c <- result{s, err}
	}()
	return c
}

// connect brings the pair up, both ends at once.
func connect(t testing.TB, a, b *node) (sa, sb *Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), roundMax)
	defer cancel()
	ca, cb := connectAsync(ctx, a), connectAsync(ctx, b)
	ra, rb := <-ca, <-cb
	if ra.err != nil || rb.err != nil {
		t.Fatalf("connect: %v and %v", ra.err, rb.err)
	}
	checkTwins(t, ra.s, rb.s)
	return ra.s, rb.s
}

// checkTwins demands that the two ends are one session.
func checkTwins(t testing.TB, a, b *Session) {
	t.Helper()
	if a.ID != b.ID || a.Token == b.Token || a.Dialed == b.Dialed {
		t.Fatalf("ends differ: ids %v %v, tokens %v %v, dialed %v %v", a.ID, b.ID, a.Token, b.Token, a.Dialed, b.Dialed)
	}
}

func alloc(n int) []byte { return make([]byte, n) }

// send queues and flushes one message.
func send(t testing.TB, c *Conn, m wire.Msg, payload []byte) {
	t.Helper()
	if err := c.Queue(&m, payload, 0); err != nil {
		t.Fatalf("queue %v: %v", m.Kind, err)
	}
	if err := c.Flush(); err != nil {
		t.Fatalf("flush %v: %v", m.Kind, err)
	}
}

// checkAlive sends a ping each way and a barrier each way.
func checkAlive(t testing.TB, a, b *Session) {
	t.Helper()
	for _, ends := range [][2]*Session{{a, b}, {b, a}} {
		for _, m := range []wire.Msg{{Kind: wire.KindPing, Arg: 7}, {Kind: wire.KindBarrier, Seq: 8}} {
			from, to := ends[0].Control, ends[1].Control
			if m.Kind == wire.KindBarrier {
				from, to = ends[0].Data, ends[1].Data
			}
			send(t, from, m, nil)
			if got, _, err := to.Read(alloc); err != nil || got != m {
				t.Fatalf("got %+v, %v; want %+v", got, err, m)
			}
		}
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(roundMax); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}
