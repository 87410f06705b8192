package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"replicad/config"
	"replicad/replica/link"
)

const nonBlock = unix.O_NONBLOCK

// keyModeMax are the permissions that a key may have at most: group may read.
const keyModeMax = 0o740

// Node is what a node's files say about one resource's link.
type Node struct {
	Identity *link.Identity
	dated    []dated
}

// dated is a certificate in use and the statement that brought it.
type dated struct {
	what config.Path
	cert *x509.Certificate
}

// Load reads the files of a resource's link; nil when it has no TLS. What is
// wrong with them comes as config.Errors, each with the statement's place and
// what to do. A certificate that is out of its time is no error: see Notes.
func Load(r *config.LocalResource) (*Node, error) {
	files, err := r.TLSFiles()
	if files == nil || err != nil {
		return nil, err
	}
	l := loader{resource: r.Name, files: files}
	own, certText := l.certificates(files.Cert, "tls-cert")
	keyText := l.key()
	trusted, _ := l.certificates(files.CA, "tls-ca")
	if len(l.errs) > 0 {
		return nil, l.errs
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		l.errorf(files.Key, "%s does not fit the certificate %s: %v.\n\tBoth come from one run of: replicad tls init, or tls renew", files.Key.Value, files.Cert.Value, err)
	}
	l.checkOwn(own[0], trusted)
	if len(l.errs) > 0 {
		return nil, l.errs
	}
	n := &Node{
		Identity: &link.Identity{Certificate: pair, Trusted: x509.NewCertPool(), PeerNames: files.PeerNames},
		dated:    []dated{{files.Cert, own[0]}},
	}
	for _, c := range trusted {
		n.Identity.Trusted.AddCert(c)
		n.dated = append(n.dated, dated{files.CA, c})
	}
	return n, nil
}

// loader gathers what is wrong.
type loader struct {
	resource string
	files    *config.TLSFiles
	errs     config.Errors
}

func (l *loader) errorf(at config.Path, format string, args ...any) {
	text := fmt.Sprintf("in resource %s: ", l.resource) + fmt.Sprintf(format, args...)
	l.errs = append(l.errs, &config.Error{Pos: at.Pos, Msg: text})
}

func (l *loader) read(at config.Path, what string) ([]byte, os.FileInfo) {
	text, info, err := readFile(at.Value)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.errorf(at, "%s %s does not exist.\n\tTo make it: replicad tls init %s", what, at.Value, l.resource)
	case errors.Is(err, fs.ErrPermission):
		l.errorf(at, "%s %s cannot be read by the user of this process.\n\tTo mend: chown it to that user, chmod 600", what, at.Value)
	case err != nil:
		l.errorf(at, "%s: %v.", what, err)
	}
	return text, info
}

func (l *loader) certificates(at config.Path, what string) ([]*x509.Certificate, []byte) {
	text, info := l.read(at, what)
	if info == nil || len(l.errs) > 0 {
		return nil, nil
	}
	certs, err := parseCertificates(text)
	if err != nil {
		l.errorf(at, "%s %s %v.", what, at.Value, err)
	}
	return certs, text
}

func (l *loader) key() []byte {
	at := l.files.Key
	text, info := l.read(at, "tls-key")
	if info != nil && info.Mode().Perm()&^keyModeMax != 0 {
		l.errorf(at, "tls-key %s can be read or changed by others than its owner (mode %04o).\n\tTo mend: chmod 600 %s", at.Value, info.Mode().Perm(), at.Value)
	}
	return text
}

// checkOwn finds mix-ups that the peer would only answer with a refusal.
func (l *loader) checkOwn(own *x509.Certificate, trusted []*x509.Certificate) {
	names := Names(own)
	hasName := func(want []string) bool {
		return slices.ContainsFunc(want, func(w string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, w) })
		})
	}
	at := l.files.Cert
	switch {
	case hasName(l.files.OwnNames):
	case hasName(l.files.PeerNames):
		l.errorf(at, "tls-cert %s is the certificate of the peer: it names %s, this node is %s.", at.Value, quoted(names), quoted(l.files.OwnNames))
	default:
		l.errorf(at, "tls-cert %s names %s, but this node is %s.\n\tTo make one: replicad tls init %s", at.Value, quoted(names), quoted(l.files.OwnNames), l.resource)
	}
	if !slices.ContainsFunc(trusted, func(c *x509.Certificate) bool { return !c.Equal(own) }) {
		l.errorf(l.files.CA, "tls-ca %s holds this node's own certificate: the CA's belongs there, or the peer's.", l.files.CA.Value)
	}
}

func quoted(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return "'" + strings.Join(names, "', '") + "'"
}

// Note is something about a certificate in use that an administrator must know.
type Note struct {
	At  config.Path // the statement and the file
	Bad bool        // no connection can be made with it now
	Msg string
}

// String returns "file:line: message".
func (n Note) String() string { return n.At.Pos.String() + ": " + n.Msg }

// Notes are about certificates that are out of their time, or soon will be. Of
// several that are trusted, one that still is good is enough.
func (n *Node) Notes(now time.Time) []Note {
	var notes []Note
	trusted := 0
	for i, d := range n.dated {
		text, bad, soon := Validity(d.cert, now)
		if !bad && i > 0 {
			trusted++
		}
		if bad || soon {
			msg := fmt.Sprintf("certificate %s in %s %s; to renew: replicad tls renew", d.cert.Subject.CommonName, d.what.Value, text)
			notes = append(notes, Note{At: d.what, Bad: bad, Msg: msg})
		}
	}
	for i := range notes {
		if notes[i].At == n.dated[len(n.dated)-1].what && trusted > 0 {
			notes[i].Bad = false
		}
	}
	return notes
}
