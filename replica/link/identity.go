package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"replicad/wire"
)

const (
	// protocolName is the ALPN name of the link, so that no server or client
	// of another protocol can be talked into one end of it.
	protocolName = "replicad"
	// bindingLabel is RFC 9266's.
	bindingLabel = "EXPORTER-Channel-Binding"
	// chainMax is the largest number of certificates a node may show.
	chainMax = 8
)

// Identity is what a node brings into TLS: who it is, and whom it trusts. It
// must not change once it is in use.
type Identity struct {
	// Certificate is the node's own, its chain behind it, with its key.
	Certificate tls.Certificate
	// Trusted are the pinned certificates: a CA's, or the peer's own.
	Trusted *x509.CertPool
	// PeerNames are the names of which the peer's certificate must bear one,
	// as a DNS name or an IP address.
	PeerNames []string
}

// Credentials hold the Identity that new handshakes use. A session that is up
// goes on with what it was made with. Any goroutine may call the methods.
type Credentials struct{ current atomic.Pointer[Identity] }

// NewCredentials starts with id, which must not be nil.
func NewCredentials(id *Identity) *Credentials {
	c := &Credentials{}
	c.Set(id)
	return c
}

// Set replaces the identity for handshakes that have not begun yet.
func (c *Credentials) Set(id *Identity) { c.current.Store(id) }

// Identity returns the identity in use.
func (c *Credentials) Identity() *Identity { return c.current.Load() }

// tlsConfig is the same for both ends.
func (id *Identity) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		MaxVersion: tls.VersionTLS13,
		NextProtos: []string{protocolName},
		// The dialler offers its certificate whatever the acceptor hints at.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id.Certificate, nil },
		Certificates:         []tls.Certificate{id.Certificate},
		// Both ends verify with judge, right after the handshake and before
		// anything else is read or written: package tls proves possession of
		// the key, judge decides whose key it is. There it can still tell the
		// other end why, in words both log; an alert could not.
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true,
		// No resumption: every connection proves the key it is made with.
		SessionTicketsDisabled: true,
		// Batches are large; the outbox decides what goes out when.
		DynamicRecordSizingDisabled: true,
	}
}

// judge decides whether the other end of a finished TLS handshake is the peer.
// usage is what its certificate must be good for.
func (id *Identity) judge(state *tls.ConnectionState, usage x509.ExtKeyUsage, now time.Time) *wire.RefusedError {
	certs := state.PeerCertificates
	switch {
	case state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != protocolName || state.DidResume || len(certs) == 0:
		return &wire.RefusedError{Reason: wire.RefusedTLSFailed, Detail: "not the link's protocol"}
	case slices.Equal(certs[0].Raw, id.Certificate.Certificate[0]):
		return &wire.RefusedError{Reason: wire.RefusedSelf, Detail: "it shows our own certificate"}
	case len(certs) > chainMax:
		return &wire.RefusedError{Reason: wire.RefusedCA, Detail: fmt.Sprintf("%d certificates in its chain", len(certs))}
	}
	chain := x509.NewCertPool()
	for _, c := range certs[1:] {
		chain.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: id.Trusted, Intermediates: chain, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return &wire.RefusedError{Reason: reasonOf(err), Detail: err.Error()}
	}
	if !id.isPeer(certs[0]) {
		return &wire.RefusedError{
			Reason: wire.RefusedName,
			Detail: fmt.Sprintf("it names %q, not %q", namesOf(certs[0]), id.PeerNames),
		}
	}
	return nil
}

func reasonOf(err error) wire.Refusal {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return wire.RefusedExpired
	}
	return wire.RefusedCA
}

// isPeer compares whole names: wildcards and the subject say nothing here.
func (id *Identity) isPeer(c *x509.Certificate) bool {
	names := namesOf(c)
	return slices.ContainsFunc(id.PeerNames, func(want string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, want) })
	})
}

// namesOf are the names that a certificate speaks for.
func namesOf(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
