package link

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"replicad/wire"
)

// TestOverTLS runs the tests of the link, where they do not look at the bytes
// on the wire, with TLS below.
func TestOverTLS(t *testing.T) {
	overTLS = newTestCA(t, nil)
	defer func() { overTLS = nil }()
	for name, test := range map[string]func(*testing.T){
		"Connect": TestConnect, "CrossingDials": TestCrossingDials,
		"OneWay": TestOneWay, "PeerRebooted": TestPeerRebooted,
		"UnclaimedSessionEnds": TestUnclaimedSessionEnds,
		"CloseEndsTheSession":  TestCloseEndsTheSession, "SharedListener": TestSharedListener,
		"SelfConnection": TestSelfConnection, "FakeAcceptor": TestFakeAcceptor,
		"Messages": TestMessages, "ConcurrentSenders": TestConcurrentSenders, "SentIsInOrder": TestSentIsInOrder,
		"KickNeverWaits": TestKickNeverWaits, "WriteTimeout": TestWriteTimeout, "SlowPeerIsNotATimeout": TestSlowPeerIsNotATimeout,
		"CloseReleasesBuffers": TestCloseReleasesBuffers, "QueueRefuses": TestQueueRefuses, "WrongBuffer": TestWrongBuffer,
		"Reset": TestReset, "CallbackMayQueueAndKick": TestCallbackMayQueueAndKick,
	} {
		t.Run(name, test)
	}
}

// TestTLSSession: certificates alone are enough, also between hosts, and the
// session says that it is encrypted.
func TestTLSSession(t *testing.T) {
	ca := newTestCA(t, nil)
	noSecret := func(id *Identity) func(*Config) {
		return func(c *Config) { c.TLS, c.Secret = NewCredentials(id), nil }
	}
	a, b := pair(t, noSecret(ca.be(t, "be1", "be2")), noSecret(ca.be(t, "be2", "BE1")))
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	if !strings.HasPrefix(sa.Cipher, "TLS_") || sa.Cipher != sb.Cipher {
		t.Errorf("ciphers %q and %q", sa.Cipher, sb.Cipher)
	}
	open := Config{
		Resource: "r0", TLS: NewCredentials(ca.be(t, "be1", "be2")),
		Local: netip.MustParseAddrPort("10.1.0.1:7788"), Peer: netip.MustParseAddrPort("10.1.0.2:7788"),
	}
	if _, err := New(open); err != nil {
		t.Errorf("TLS without a secret between hosts: %v", err)
	}
}

// TestPinnedKeys: instead of a CA each node may trust the other's own
// certificate, and no other.
func TestPinnedKeys(t *testing.T) {
	self := func(name string) *testCA {
		return newTestCA(t, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage, c.DNSNames = false, x509.KeyUsageDigitalSignature, []string{name}
		})
	}
	one, two, other := self("be1"), self("be2"), self("be2")
	id := func(own, trusted *testCA, peer string) *Identity {
		id := &Identity{Trusted: trusted.pool(), PeerNames: []string{peer}}
		id.Certificate.Certificate, id.Certificate.PrivateKey = [][]byte{own.cert.Raw}, own.key
		return id
	}
	a, b := pair(t, with(id(one, two, "be2")), with(id(two, one, "be1")))
	sa, sb := connect(t, a, b)
	checkAlive(t, sa, sb)
	a, b = pair(t, with(id(one, two, "be2")), with(id(other, one, "be1")))
	wantBoth(t, a, b, wire.RefusedCA)
}

// TestRotation: a session goes on when the files change, new connections use
// the new ones, and with both CAs in the file there is no moment without a way.
func TestRotation(t *testing.T) {
	older, newer := newTestCA(t, nil), newTestCA(t, nil)
	a, b := tlsPair(t, older)
	sa, sb := connect(t, a, b)
	reconnect := func(what string) {
		t.Helper()
		checkAlive(t, sa, sb)
		sa.Close(errors.New(what))
		<-sa.Done()
		_, _, _ = sb.Data.Read(alloc)
		sa, sb = connect(t, a, b)
	}
	set := func(n *node, own *testCA, name, peer string, trusted *x509.CertPool) {
		id := own.be(t, name, peer)
		id.Trusted = trusted
		n.cfg.TLS.Set(id)
	}
	both := older.pool(newer)
	set(a, older, "be1", "be2", both)
	reconnect("a trusts both")
	set(b, older, "be2", "be1", both)
	reconnect("b trusts both")
	set(a, newer, "be1", "be2", both)
	reconnect("a has a new certificate")
	set(b, newer, "be2", "be1", both)
	reconnect("b has a new certificate")
	set(a, newer, "be1", "be2", newer.pool())
	set(b, newer, "be2", "be1", newer.pool())
	reconnect("the old CA is gone")
	set(a, older, "be1", "be2", older.pool())
	checkAlive(t, sa, sb) // only new connections notice
	sa.Close(errors.New("a went back"))
	_, _, _ = sb.Data.Read(alloc)
	wantBoth(t, a, b, wire.RefusedCA)
}

// wantBoth demands that the two get no session, for this reason, that both
// report it in the same words, and that neither gives up.
func wantBoth(t *testing.T, a, b *node, want wire.Refusal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), roundMax)
	defer cancel()
	ca, cb := connectAsync(ctx, a), connectAsync(ctx, b)
	waitFor(t, "both to report "+want.String(), func() bool {
		return strings.Contains(a.refusalTexts(), want.String()) && strings.Contains(b.refusalTexts(), want.String())
	})
	cancel()
	if ra, rb := <-ca, <-cb; !errors.Is(ra.err, context.Canceled) || !errors.Is(rb.err, context.Canceled) {
		t.Errorf("ended with %v and %v", ra.err, rb.err)
	}
}

// TestTLSSpeaksOnlyWhenAsked: what package tls would send on its own, outside a
// batch, would overtake or tear the records that are under way.
func TestTLSSpeaksOnlyWhenAsked(t *testing.T) {
	a, b := tlsPair(t, newTestCA(t, nil))
	sa, sb := connect(t, a, b)
	if _, err := sa.Data.out.w.sealed.tls.Write([]byte("aside")); !errors.Is(err, errAside) {
		t.Errorf("write beside the queue: %v", err)
	}
	if err := sb.Data.Queue(&wire.Msg{Kind: wire.KindBarrier, Seq: 1}, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := sb.Data.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestSealing: whatever the sizes of the vectors, the records hold their bytes
// in order, and small frames share one.
func TestSealing(t *testing.T) {
	a, b := tlsPair(t, newTestCA(t, nil))
	sa, sb := connect(t, a, b)
	s := sa.Data.out.w.sealed
	var vectors []unix.Iovec
	var want []byte
	for i, n := range []int{64, 4096, 64, recordMax, recordMax - 1, 1, 1, 5*recordMax + 17, 100} {
		p := pattern(n, byte(i))
		v := unix.Iovec{Base: &p[0]}
		v.SetLen(n)
		vectors, want = append(vectors, v), append(want, p...)
	}
	records, err := s.seal(vectors)
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(vectors)
	const overhead = 5 + 1 + 16 // header, content type, tag
	if most := len(want) + overhead*(len(want)/recordMax+4); len(records) > most {
		t.Errorf("%d bytes became %d, more than %d", len(want), len(records), most)
	}
	go func() { _, _ = sa.Data.tcp.Write(records) }()
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := sb.Data.src.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if string(got) != string(want) {
		t.Error("the bytes changed on the way")
	}
}
