package link

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// secureBytesMax bounds, in bytes, what we read from somebody before we
	// know his certificate to be the peer's. A chain of chainMax ordinary
	// certificates takes a quarter of it.
	secureBytesMax = 64 << 10
	// recordMax is the largest payload of a TLS record.
	recordMax = 16 << 10
)

var (
	errFlood = errors.New("too many bytes before the certificate was accepted")
	// errAside is the end of a session whose peer asks for new keys, or that
	// broke: package tls wants to send something on its own then.
	errAside = errors.New("TLS wants to send something that is no message")
)

// sealed is TLS over one connection of a link.
//
// While the handshake runs, records go straight to and from the socket. From
// carry on the link moves them itself: the reader reads many with one system
// call, and the writer makes the records of a batch in memory, with seal, and
// sends them as it sends plain frames. So TLS changes nothing about when a
// caller waits, and a frame counts as sent when write(2) of its last record returned.
//
// close_notify is neither sent nor wanted: the end of the bytes is the loss of
// the session, whoever caused it, and everything unconfirmed is resynchronised.
type sealed struct {
	tls *tls.Conn
	way *transport
	// stage gathers small frames into one record. Writer only.
	stage []byte
}

// transport is the net.Conn that package tls has below it. Read belongs to the
// goroutine that reads from the TLS connection; Write may be called by it too.
type transport struct {
	*net.TCPConn

	left int    // handshake: bytes that may still be read
	in   []byte // after carry: read from the socket and not yet consumed: in[r:w]
	r, w int

	mu      sync.Mutex
	carried bool   // records go to out instead of the socket
	sealing bool   // the writer is making records
	out     []byte // records of the batch
}

// secure prepares TLS over a connection, as its client or its server.
func secure(conn *net.TCPConn, cfg *tls.Config, client bool) *sealed {
	way := &transport{TCPConn: conn, left: secureBytesMax}
	s := &sealed{way: way}
	if client {
		s.tls = tls.Client(way, cfg)
	} else {
		s.tls = tls.Server(way, cfg)
	}
	return s
}

// Read is called by package tls.
func (t *transport) Read(p []byte) (int, error) {
	if t.in == nil {
		if t.left <= 0 {
			return 0, errFlood
		}
		n, err := t.TCPConn.Read(p[:min(len(p), t.left)])
		t.left -= n
		return n, err
	}
	if t.r == t.w {
		n, err := t.TCPConn.Read(t.in)
		if n == 0 {
			return 0, err
		}
		t.r, t.w = 0, n // an error comes again
	}
	n := copy(p, t.in[t.r:t.w])
	t.r += n
	return n, nil
}

// Write is called by package tls with whole records, in their order.
func (t *transport) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.carried:
		return t.TCPConn.Write(p)
	case !t.sealing:
		return 0, errAside
	}
	t.out = append(t.out, p...)
	return len(p), nil
}

// carry ends the handshake: both ends are known now. The caller must be the
// only user of the connection.
func (s *sealed) carry(readBuffer int) {
	s.way.in = make([]byte, readBuffer)
	s.stage = make([]byte, 0, recordMax)
	s.way.mu.Lock()
	s.way.carried = true
	s.way.mu.Unlock()
}

// begin starts to gather the records of a batch, in place of the last one's.
func (t *transport) begin() {
	t.mu.Lock()
	t.out, t.sealing = t.out[:0], true
	t.mu.Unlock()
}

// end returns the records gathered. Nobody adds to them from here on.
func (t *transport) end() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sealing = false
	return t.out
}

// seal makes TLS records of what the vectors hold and returns them. They stay
// valid until the next call, before which they must have been written. Writer
// only.
func (s *sealed) seal(vectors []unix.Iovec) ([]byte, error) {
	s.way.begin()
	err := s.addAll(vectors)
	records := s.way.end()
	if err != nil {
		return nil, err
	}
	return records, nil
}

func (s *sealed) addAll(vectors []unix.Iovec) error {
	for i := range vectors {
		if err := s.add(unsafe.Slice(vectors[i].Base, int(vectors[i].Len))); err != nil {
			return err
		}
	}
	err := s.put(s.stage)
	s.stage = s.stage[:0]
	return err
}

// add puts bytes into records: whole ones straight from where they are, the
// rest by way of stage.
func (s *sealed) add(b []byte) error {
	for len(b) > 0 {
		if whole := len(b) / recordMax * recordMax; len(s.stage) == 0 && whole > 0 {
			if err := s.put(b[:whole]); err != nil {
				return err
			}
			b = b[whole:]
			continue
		}
		n := copy(s.stage[len(s.stage):recordMax], b)
		s.stage = s.stage[:len(s.stage)+n]
		b = b[n:]
		if len(s.stage) == recordMax {
			if err := s.put(s.stage); err != nil {
				return err
			}
			s.stage = s.stage[:0]
		}
	}
	return nil
}

func (s *sealed) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := s.tls.Write(b); err != nil {
		return fmt.Errorf("seal frames: %w", err)
	}
	return nil
}

// stream is one connection of a link, authenticated: TCP, and TLS over it
// where that is configured.
type stream struct {
	tcp    *net.TCPConn
	sealed *sealed // nil = plain
}

// source is where frames are read from.
func (s stream) source() io.Reader {
	if s.sealed != nil {
		return s.sealed.tls
	}
	return s.tcp
}
