// Package pki makes, reads and explains the certificates and keys of TLS links:
// files in PEM, a CA for each pair, and one certificate for each node that names
// the node as the configuration does.
//
// It knows nothing of sessions; what it reads becomes a link.Identity. Functions
// may be called from any goroutine.
package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// WarnDays is how many days before its end a certificate is warned of.
const WarnDays = 30

// fileMax bounds, in bytes, what is read of one file.
const fileMax = 256 << 10

// ErrNoCertificate means that a file holds no certificate in PEM.
var ErrNoCertificate = errors.New("holds no certificate in PEM")

// readFile reads a regular file of reasonable size.
func readFile(path string) ([]byte, os.FileInfo, error) {
	// Without O_NONBLOCK a pipe with no writer would hold the open for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|nonBlock, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() > fileMax:
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", path, fileMax)
	}
	b, err := io.ReadAll(io.LimitReader(f, fileMax))
	return b, info, err
}

// parseCertificates reads every certificate of a PEM file, at least one.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("holds a broken certificate: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, ErrNoCertificate
	}
	return certs, nil
}

// ReadCertificates reads the certificates of a file, at least one.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	text, _, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return certs, nil
}

// Names are the names that a certificate speaks for.
func Names(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// Fingerprint is the SHA-256 of a certificate, as openssl prints it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	pairs := make([]string, len(sum))
	for i := range sum {
		pairs[i] = strings.ToUpper(hex.EncodeToString(sum[i : i+1]))
	}
	return strings.Join(pairs, ":")
}

// Validity says in words how a certificate stands in time. bad means that it
// is of no use now; soon, that it will end within WarnDays.
func Validity(c *x509.Certificate, now time.Time) (text string, bad, soon bool) {
	const day = 24 * time.Hour
	left := c.NotAfter.Sub(now)
	switch at := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }; {
	case now.Before(c.NotBefore):
		return fmt.Sprintf("is not valid before %s, and it is %s here", at(c.NotBefore), at(now)), true, false
	case left < 0:
		return fmt.Sprintf("expired on %s", at(c.NotAfter)), true, false
	case left < WarnDays*day:
		return fmt.Sprintf("expires in %d days, on %s", int(left/day), at(c.NotAfter)), false, true
	default:
		return fmt.Sprintf("is valid until %s", at(c.NotAfter)), false, false
	}
}
