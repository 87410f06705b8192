package link

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"
)

// overTLS, if set, gives every node that newNode makes a certificate of this
// CA: so the tests of the plain link run over TLS too.
var overTLS *testCA

// testCA makes certificates.
type testCA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newTestCA(t testing.TB, change func(*x509.Certificate)) *testCA {
	t.Helper()
	c := template()
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	if change != nil {
		change(c)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key}
}

func template() *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: serial.String()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

// issue makes a certificate for names, each a host name or an address.
func (ca *testCA) issue(t testing.TB, change func(*x509.Certificate), names ...string) tls.Certificate {
	t.Helper()
	c := template()
	c.KeyUsage = x509.KeyUsageDigitalSignature
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	if change != nil {
		change(c)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, pub, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// identity makes a node that has these names and expects them of its peer.
func (ca *testCA) identity(t testing.TB, names ...string) *Identity {
	t.Helper()
	return &Identity{Certificate: ca.issue(t, nil, names...), Trusted: ca.pool(), PeerNames: names}
}

func (ca *testCA) pool(others ...*testCA) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, o := range others {
		pool.AddCert(o.cert)
	}
	return pool
}

// be makes the identity of one node of a pair.
func (ca *testCA) be(t testing.TB, own, peer string) *Identity {
	t.Helper()
	return &Identity{Certificate: ca.issue(t, nil, own), Trusted: ca.pool(), PeerNames: []string{peer}}
}

// often dials again soon, for tests in which no dial succeeds: the first one
// may come before the other end has registered with its listener.
func often(c *Config) { c.ConnectInterval = 50 * time.Millisecond }

// with puts an identity into a configuration.
func with(id *Identity) func(*Config) {
	return func(c *Config) {
		c.TLS = NewCredentials(id)
		often(c)
	}
}

// tlsPair makes be1 and be2 of one CA.
func tlsPair(t testing.TB, ca *testCA) (a, b *node) {
	t.Helper()
	return pair(t, with(ca.be(t, "be1", "be2")), with(ca.be(t, "be2", "be1")))
}
