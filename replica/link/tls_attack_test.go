package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/internal/figure"
	"replicad/wire"
)

// attackRefused counts for the summary of a whole run.
func attackRefused() {
	figure.Print("tls-attacks-refused", 1)
}

// TestDowngrade: a node with TLS never speaks plain and one without never TLS,
// whoever dials. Both say which of the two it was, in the same words, and both
// keep trying: the first of two nodes to be reloaded must not end StandAlone.
func TestDowngrade(t *testing.T) {
	ca := newTestCA(t, nil)
	nowhere := netip.MustParseAddrPort("127.0.0.1:1")
	for name, c := range map[string]struct {
		dialler, acceptor func(*Config)
		want              wire.Refusal
	}{
		"plain dials TLS": {often, with(ca.be(t, "be2", "be1")), wire.RefusedPlain},
		"TLS dials plain": {with(ca.be(t, "be1", "be2")), often, wire.RefusedTLS},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
			a := newNode(t, lnA, lnB.Addr(), c.dialler)
			b := newNode(t, lnB, nowhere, c.acceptor)
			wantBoth(t, a, b, c.want)
			attackRefused()
		})
	}
}

// intrude dials with TLS as somebody who knows the secret, as far as it goes.
func intrude(t testing.TB, to netip.AddrPort, id *Identity) error {
	t.Helper()
	l, err := New(Config{Resource: "r0", Secret: []byte(goodSecret), Local: to, Peer: to, TLS: NewCredentials(id)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := newTalk(context.Background(), stranger(t, to), roundMax)
	_, err = l.greetSteps(k, wire.ChannelData, wire.SessionID{})
	return k.finish(err)
}

// TestStrangersWithCertificates: a session is up; everybody who is not the
// peer bounces off with his reason, though he knows the secret, and the
// session carries on.
func TestStrangersWithCertificates(t *testing.T) {
	ca, other := newTestCA(t, nil), newTestCA(t, nil)
	victim := ca.be(t, "be2", "be1")
	a, b := pair(t, with(ca.be(t, "be1", "be2")), with(victim))
	sa, sb := connect(t, a, b)
	past := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	future := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	subject := func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "be1", nil }
	wild := func(c *x509.Certificate) { c.DNSNames = []string{"*"} }
	long := ca.issue(t, nil, "be1")
	for range chainMax + 3 {
		long.Certificate = append(long.Certificate, ca.cert.Raw)
	}
	for name, c := range map[string]struct {
		cert tls.Certificate
		want wire.Refusal
	}{
		"other CA":          {other.issue(t, nil, "be1"), wire.RefusedCA},
		"expired":           {ca.issue(t, past, "be1"), wire.RefusedExpired},
		"not yet valid":     {ca.issue(t, future, "be1"), wire.RefusedExpired},
		"another node":      {ca.issue(t, nil, "be3"), wire.RefusedName},
		"no name":           {ca.issue(t, nil), wire.RefusedName},
		"name as subject":   {ca.issue(t, subject), wire.RefusedName},
		"wildcard":          {ca.issue(t, wild), wire.RefusedName},
		"our name":          {ca.issue(t, nil, "be2"), wire.RefusedName},
		"server only":       {ca.issue(t, server, "be1"), wire.RefusedCA},
		"the CA itself":     {tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}, wire.RefusedName},
		"chain of many":     {long, wire.RefusedCA},
		"issued by a leaf":  {leafAsCA(t, ca), wire.RefusedCA},
		"self-signed by it": {selfSigned(t), wire.RefusedCA},
	} {
		id := &Identity{Certificate: c.cert, Trusted: ca.pool(), PeerNames: []string{"be2"}}
		wantRefusal(t, name, intrude(t, b.ln.Addr(), id), c.want)
		attackRefused()
	}
	// Our own certificate, stolen with its key and turned against us.
	forgetRefusals(b)
	own := secure(announce(t, b.ln.Addr()), (&Identity{Certificate: victim.Certificate}).tlsConfig(), true)
	if err := own.tls.Handshake(); err != nil {
		t.Fatal(err)
	}
	_, _ = own.tls.Write(make([]byte, wire.HelloSize)) // not looked at
	_, _ = io.Copy(io.Discard, own.tls)
	if texts := b.refusalTexts(); !strings.Contains(texts, wire.RefusedSelf.String()) {
		t.Errorf("our own: reported %q", texts)
	}
	checkAlive(t, sa, sb)
}

// leafAsCA is be1's name signed with the key of a node that is no CA.
func leafAsCA(t testing.TB, ca *testCA) tls.Certificate {
	leaf := ca.issue(t, nil, "be3")
	cert, err := x509.ParseCertificate(leaf.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	forged := (&testCA{cert: cert, key: leaf.PrivateKey.(ed25519.PrivateKey)}).issue(t, nil, "be1")
	forged.Certificate = append(forged.Certificate, leaf.Certificate[0])
	return forged
}

func selfSigned(t testing.TB) tls.Certificate {
	own := newTestCA(t, func(c *x509.Certificate) { c.DNSNames = []string{"be1"} })
	return tls.Certificate{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}
}

// TestImpostorAnswers: whoever answers at the peer's address with another
// certificate gets no session, and hears the reason.
func TestImpostorAnswers(t *testing.T) {
	ca, other := newTestCA(t, nil), newTestCA(t, nil)
	own := ca.be(t, "be1", "be2")
	expired := ca.issue(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}, "be2")
	client := ca.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "be2")
	for name, c := range map[string]struct {
		cert tls.Certificate
		want wire.Refusal
	}{
		"other CA":     {other.issue(t, nil, "be2"), wire.RefusedCA},
		"expired":      {expired, wire.RefusedExpired},
		"another node": {ca.issue(t, nil, "be3"), wire.RefusedName},
		"our own":      {own.Certificate, wire.RefusedSelf},
		"client only":  {client, wire.RefusedCA},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
			a := newNode(t, lnA, lnB.Addr(), with(own))
			impostor := newNode(t, lnB, netip.MustParseAddrPort("127.0.0.1:1"), with(&Identity{Certificate: c.cert, Trusted: ca.pool(), PeerNames: []string{"be1"}}))
			wantBoth(t, a, impostor, c.want)
			attackRefused()
		})
	}
}

// announce opens a connection and gets as far as TLS may begin.
func announce(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn := stranger(t, to)
	start, err := wire.AppendStart(nil, "r0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(start); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, wire.StartSize)
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatal(err)
	}
	if err := wire.ParseStartAnswer(answer, "r0"); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestBadTLS: old versions, other protocols, no certificate, too many of them,
// garbage, an echo. Each ends with its reason, none with a session.
func TestBadTLS(t *testing.T) {
	ca := newTestCA(t, nil)
	a, b := tlsPair(t, ca)
	sa, sb := connect(t, a, b)
	good := func() *tls.Config { return ca.be(t, "be1", "be2").tlsConfig() }
	huge := ca.issue(t, func(c *x509.Certificate) { c.DNSNames = []string{strings.Repeat("x", 60<<10)} }, "be1")
	huge.Certificate = append(huge.Certificate, huge.Certificate[0])
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"no certificate": func(c *tls.Config) { c.GetClientCertificate, c.Certificates = nil, nil },
		"other protocol": func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} },
		"no protocol":    func(c *tls.Config) { c.NextProtos = nil },
		"120 KiB of certificates": func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &huge, nil }
		},
	} {
		forgetRefusals(b)
		conn := tls.Client(announce(t, b.ln.Addr()), func() *tls.Config { c := good(); change(c); return c }())
		err := conn.Handshake()
		if err == nil {
			// In TLS 1.3 the dialler is done before it is judged.
			_, _ = conn.Write(make([]byte, wire.HelloSize))
			answer, _ := io.ReadAll(conn)
			if len(answer) > wire.RefusalSize {
				t.Errorf("%s: answered with %x", name, answer)
			}
		}
		waitFor(t, name+" to be reported", func() bool { return strings.Contains(b.refusalTexts(), wire.RefusedTLSFailed.String()) })
		attackRefused()
	}
	for name, garbage := range map[string][]byte{
		"garbage":        bytes.Repeat([]byte{0x16}, 3000),
		"a huge record":  append([]byte{0x16, 3, 1, 0xff, 0xff}, make([]byte, 70000)...),
		"a plain hello":  append([]byte("reHL\x01\x00\x01\x00"), make([]byte, 248)...),
		"an early alert": {0x15, 3, 3, 0, 2, 2, 40},
	} {
		forgetRefusals(b)
		conn := announce(t, b.ln.Addr())
		_, _ = conn.Write(garbage) // may fail, b hangs up in the middle
		_, _ = io.Copy(io.Discard, conn)
		waitFor(t, name+" to be reported", func() bool { return strings.Contains(b.refusalTexts(), wire.RefusedTLSFailed.String()) })
		attackRefused()
	}
	checkAlive(t, sa, sb)
}

// forgetRefusals lets a node report at once again.
func forgetRefusals(n *node) {
	n.mu.Lock()
	n.refusals = nil
	n.mu.Unlock()
	n.Link.mu.Lock()
	n.reported = time.Time{}
	n.Link.mu.Unlock()
}

// TestEndlessTLSHandshake: bytes that trickle in, at every stage, do not
// stretch the one deadline, nor hold a slot longer.
func TestEndlessTLSHandshake(t *testing.T) {
	a, b := tlsPair(t, newTestCA(t, nil))
	if err := b.beginConnect(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(b.endConnect)
	defer end()
	begin := time.Now()
	var slow sync.WaitGroup
	for i := range HalfOpenMax {
		open := stranger
		if i%2 == 1 {
			open = announce
		}
		conn := open(t, b.ln.Addr())
		slow.Go(func() {
			record := append([]byte{0x16, 3, 1, 0x40, 0}, make([]byte, 16<<10)...)
			for i := 0; ; i++ {
				if _, err := conn.Write(record[i : i+1]); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	slow.Wait()
	if took := time.Since(begin); took > 3500*time.Millisecond {
		t.Errorf("slow strangers were served for %v", took)
	}
	waitFor(t, "the slots", func() bool { b.ln.mu.Lock(); defer b.ln.mu.Unlock(); return b.ln.open == 0 })
	end()
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
}

// relay is a man in the middle who ends TLS on both sides and passes on what
// is inside. He has certificates that both ends accept.
type relay struct {
	ln    net.Listener
	to    netip.AddrPort
	id    *Identity
	tasks sync.WaitGroup
	mu    sync.Mutex
	heard int // bytes passed on inside TLS
}

func newRelay(t testing.TB, to netip.AddrPort, id *Identity) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, to: to, id: id}
	r.tasks.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			r.tasks.Go(func() { defer in.Close(); r.pass(in) })
		}
	})
	t.Cleanup(func() { ln.Close(); r.tasks.Wait() })
	return r
}

func (r *relay) pass(in net.Conn) {
	out, err := net.Dial("tcp", r.to.String())
	if err != nil {
		return
	}
	defer out.Close()
	start := make([]byte, wire.StartSize)
	for _, hop := range []struct{ from, to net.Conn }{{in, out}, {out, in}} {
		if _, err := io.ReadFull(hop.from, start); err != nil {
			return
		}
		if _, err := hop.to.Write(start); err != nil {
			return
		}
	}
	left, right := tls.Server(in, r.id.tlsConfig()), tls.Client(out, r.id.tlsConfig())
	if left.Handshake() != nil || right.Handshake() != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { r.copy(left, right); in.Close(); out.Close() })
	both.Go(func() { r.copy(right, left); in.Close(); out.Close() })
	both.Wait()
}

func (r *relay) copy(to, from net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		r.mu.Lock()
		r.heard += n
		r.mu.Unlock()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// TestRelayWithGoodCertificates: the CA's key is stolen, so the man in the
// middle has good certificates for both nodes and gets as far as the proofs.
// They are bound to one TLS connection each, so what he passes on does not fit.
// Without a secret he could make proofs of his own, for they have no key then:
// the CA is all there is.
func TestRelayWithGoodCertificates(t *testing.T) {
	ca := newTestCA(t, nil)
	checkLeaks(t)
	lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	thief := newRelay(t, lnB.Addr(), &Identity{Certificate: ca.issue(t, nil, "be1", "be2")})
	a := newNode(t, lnA, addrPort(thief.ln.Addr()), with(ca.be(t, "be1", "be2")))
	b := newNode(t, lnB, netip.MustParseAddrPort("127.0.0.1:1"), with(ca.be(t, "be2", "be1")))
	ctx, cancel := context.WithTimeout(t.Context(), roundMax)
	defer cancel()
	cb := connectAsync(ctx, b)
	_, err := a.Connect(ctx)
	wantRefusal(t, "relayed", err, wire.RefusedWrongSecret)
	attackRefused()
	thief.mu.Lock()
	if thief.heard < 2*wire.HelloSize+wire.ProofSize {
		t.Errorf("the relay passed only %d bytes on", thief.heard)
	}
	thief.mu.Unlock()
	cancel()
	<-cb
}

// TestTLSReplay: what a whole session's dialler sent, records and all, is
// played back to the acceptor while the session is up.
func TestTLSReplay(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t, nil)
	lnA, lnB := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	proxy := record(t, lnB.Addr())
	a := newNode(t, lnA, addrPort(proxy.ln.Addr()), with(ca.be(t, "be1", "be2")))
	b := newNode(t, lnB, netip.MustParseAddrPort("127.0.0.1:1"), with(ca.be(t, "be2", "be1")))
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	proxy.mu.Lock()
	var recorded [][]byte
	for _, kept := range proxy.sent {
		// A dial that crossed another one ends before TLS: only a wait answers it.
		if bytes.Contains(kept.Bytes(), []byte("\x16\x03\x01")) {
			recorded = append(recorded, bytes.Clone(kept.Bytes()))
		}
	}
	proxy.mu.Unlock()
	for _, dialogue := range recorded {
		forgetRefusals(b)
		conn := stranger(t, lnB.Addr())
		_, _ = conn.Write(dialogue)
		_, _ = io.Copy(io.Discard, conn)
		waitFor(t, "the replay to be refused", func() bool { return strings.Contains(b.refusalTexts(), wire.RefusedTLSFailed.String()) })
		attackRefused()
	}
	if b.generation() != 1 || len(recorded) < 2 {
		t.Errorf("%d sessions after %d replays", b.generation(), len(recorded))
	}
	checkAlive(t, sa, sb)
}

// TestTLSReflection: whoever answers at the peer's address sends back what he
// gets: the start that is expected there, then our own ClientHello.
func TestTLSReflection(t *testing.T) {
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
	n := newNode(t, listen(t, "127.0.0.1:0"), addrPort(echo.Addr()), with(newTestCA(t, nil).be(t, "be1", "be2")))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if texts := n.refusalTexts(); !strings.Contains(texts, wire.RefusedTLSFailed.String()) {
		t.Errorf("reported %q", texts)
	}
}

// TestDamagedRecords: a byte changed, a record put in or left out on the way
// ends the session, and nothing of it is delivered.
func TestDamagedRecords(t *testing.T) {
	for name, harm := range map[string]func(records []byte) []byte{
		"a flipped bit":    func(r []byte) []byte { r[len(r)/2] ^= 1; return r },
		"a flipped header": func(r []byte) []byte { r[4] ^= 1; return append(r, make([]byte, 64)...) },
		"sent twice":       func(r []byte) []byte { return append(bytes.Clone(r), r...) },
		"garbage":          func(r []byte) []byte { return append(bytes.Repeat([]byte{23, 3, 3, 0, 40}, 9), r...) },
		"a plain frame":    func([]byte) []byte { return bytes.Repeat([]byte("repl"), 16) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tlsPair(t, newTestCA(t, nil))
			sa, sb := connect(t, a, b)
			o := sa.Data.out
			if err := sa.Data.Queue(&wire.Msg{Kind: wire.KindData, Len: 4096}, pattern(4096, 1), 0); err != nil {
				t.Fatal(err)
			}
			o.mu.Lock()
			o.queue = o.w.give(o.queue)
			o.mu.Unlock()
			if err := o.w.build(); err != nil {
				t.Fatal(err)
			}
			if _, err := sa.Data.tcp.Write(harm(bytes.Clone(o.w.sealed.way.out))); err != nil {
				t.Fatal(err)
			}
			_ = sb.Data.tcp.SetReadDeadline(time.Now().Add(roundMax))
			_, payload, err := sb.Data.Read(alloc)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the damage was not noticed")
			}
			if name == "sent twice" && err == nil {
				_, payload, err = sb.Data.Read(alloc)
			}
			if err == nil || payload != nil {
				t.Fatalf("delivered %d bytes, %v", len(payload), err)
			}
			if _, _, err := sb.Control.Read(alloc); err == nil {
				t.Error("the other connection survived")
			}
		})
	}
}
