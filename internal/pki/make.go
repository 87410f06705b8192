package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of the CA's files in a folder made by Init.
const (
	CAFile    = "ca.crt"
	CAKeyFile = "ca.key"
)

const (
	// caYears is how long a CA lives.
	caYears = 10
	// backdate forgives clocks that are a little behind.
	backdate = time.Hour
)

// Validity of node certificates, in days.
const (
	DaysDefault = 730
	DaysMax     = 3650
)

// ErrExists means that a file is there already: nothing is overwritten.
var ErrExists = errors.New("is there already, and nothing is overwritten")

// Subject is one node: the names its certificate is to bear, the first of
// which names its files.
type Subject []string

// Cert is the name of the node's certificate file.
func (s Subject) Cert() string { return s[0] + ".crt" }

// Key is the name of the node's key file.
func (s Subject) Key() string { return s[0] + ".key" }

// authority is a CA with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Init makes a CA and a certificate for each node, with keys, in a folder,
// which it creates if need be. Nothing is overwritten: ErrExists.
func Init(dir string, nodes []Subject, days int, now time.Time) error {
	if err := checkSubjects(nodes, days); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	files := []string{CAFile, CAKeyFile}
	for _, n := range nodes {
		files = append(files, n.Cert(), n.Key())
	}
	for _, name := range files {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s %w", filepath.Join(dir, name), errors.Join(ErrExists, err))
		}
	}
	ca, err := newAuthority(nodes, now)
	if err != nil {
		return err
	}
	if err := writePair(dir, CAFile, CAKeyFile, ca.cert.Raw, ca.key); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := ca.issue(dir, n, days, now); err != nil {
			return err
		}
	}
	return nil
}

// Renew makes a new certificate and key for each node with the CA in a folder.
// What they replace is kept beside them, with ".old" at the end.
func Renew(dir string, nodes []Subject, days int, now time.Time) error {
	if err := checkSubjects(nodes, days); err != nil {
		return err
	}
	ca, err := readAuthority(dir)
	if err != nil {
		return err
	}
	if text, bad, _ := Validity(ca.cert, now); bad {
		return fmt.Errorf("the CA in %s %s: make a new one with replicad tls init", dir, text)
	}
	for _, n := range nodes {
		for _, name := range []string{n.Cert(), n.Key()} {
			path := filepath.Join(dir, name)
			if err := os.Rename(path, path+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("keep the old file: %w", err)
			}
		}
		if err := ca.issue(dir, n, days, now); err != nil {
			return err
		}
	}
	return nil
}

// checkSubjects refuses names that cannot name a file or a node.
func checkSubjects(nodes []Subject, days int) error {
	if days < 1 || days > DaysMax {
		return fmt.Errorf("a certificate is good for 1 to %d days, not %d", DaysMax, days)
	}
	var all []string
	for _, n := range nodes {
		for _, name := range n {
			if name == "" || strings.HasPrefix(name, ".") || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
				return fmt.Errorf("%q cannot be the name of a node", name)
			}
			if slices.Contains(all, strings.ToLower(name)) || name == "ca" {
				return fmt.Errorf("the name %q is taken", name)
			}
			all = append(all, strings.ToLower(name))
		}
	}
	return nil
}

func newAuthority(nodes []Subject, now time.Time) (*authority, error) {
	var names []string
	for _, n := range nodes {
		names = append(names, n[0])
	}
	c, err := certificate("replicad CA "+strings.Join(names, " "), now)
	if err != nil {
		return nil, err
	}
	c.NotAfter = now.AddDate(caYears, 0, 0)
	c.IsCA, c.BasicConstraintsValid, c.MaxPathLenZero = true, true, true
	c.KeyUsage = x509.KeyUsageCertSign
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return &authority{cert, key}, nil
}

// certificate is the part that a CA and a node have in common.
func certificate(name string, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backdate)}, nil
}

// issue makes a node's certificate and key.
func (ca *authority) issue(dir string, n Subject, days int, now time.Time) error {
	c, err := certificate(n[0], now)
	if err != nil {
		return err
	}
	c.NotAfter = now.AddDate(0, 0, days)
	if c.NotAfter.After(ca.cert.NotAfter) {
		c.NotAfter = ca.cert.NotAfter
	}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	// A node dials and is dialled.
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range n {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, pub, ca.key)
	if err != nil {
		return fmt.Errorf("make certificate of %s: %w", n[0], err)
	}
	return writePair(dir, n.Cert(), n.Key(), der, key)
}

func readAuthority(dir string) (*authority, error) {
	certs, err := ReadCertificates(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	text, _, err := readFile(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the CA's key is needed here for a moment: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM", filepath.Join(dir, CAKeyFile))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, CAKeyFile), err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok || !certs[0].IsCA {
		return nil, fmt.Errorf("%s and %s are no CA", filepath.Join(dir, CAFile), CAKeyFile)
	}
	return &authority{certs[0], signer}, nil
}

// writePair writes a certificate and its key, durably, the key first: a
// certificate without its key is the easier half to notice.
func writePair(dir, certName, keyName string, der []byte, key crypto.Signer) error {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	if err := writePEM(filepath.Join(dir, keyName), "PRIVATE KEY", pkcs8); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, certName), "CERTIFICATE", der)
}

func writePEM(path, kind string, der []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", kind, err)
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
