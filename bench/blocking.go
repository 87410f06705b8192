package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"replicad/nbd"
)

const (
	requestBytes = 28
	replyBytes   = 16
	pageBytes    = 4096
	ioTimeout    = 10 * time.Second // a server that is silent for so long is broken
	optionMax    = 64 << 10         // longest handshake reply we take
	opDisconnect = nbd.Op(protocol.TRANSMISSION_TYPE_REQUEST_DISC)
)

var errHandshake = errors.New("handshake failed")

// blockingClient has one request in flight and waits for it in the system call
// itself. At depth 1 that is the least a client can cost: two calls per
// operation, and no scheduler between the kernel's wake-up and the next request.
// One goroutine uses it; shutdown alone may be called by others.
type blockingClient struct {
	fd int // in blocking mode

	mu   sync.Mutex
	file *os.File // owns fd; nil when closed

	// A frame ends on a page boundary with its header and goes on there with its
	// payload: one piece for the system call, and an aligned payload for the copy.
	out, in []byte
	cookie  uint64
}

// dialBlocking opens the export of an NBD address as [nbd.Dial] does, for
// requests of up to block bytes.
func dialBlocking(uri string, block int) (*blockingClient, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("parse nbd address: %w", err)
	}
	network, address := "tcp", u.Host
	if u.Scheme == "nbd+unix" {
		network, address = "unix", u.Query().Get("socket")
	}
	conn, err := net.DialTimeout(network, address, ioTimeout)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	if err := openExport(conn, strings.TrimPrefix(u.Path, "/")); err != nil {
		return nil, err
	}
	return newBlockingClient(conn, block)
}

func newBlockingClient(conn net.Conn, block int) (*blockingClient, error) {
	source, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%w: %T has no descriptor", errHandshake, conn)
	}
	file, err := source.File()
	if err != nil {
		return nil, fmt.Errorf("take descriptor: %w", err)
	}
	c := &blockingClient{file: file, fd: int(file.Fd())}
	if err := unix.SetNonblock(c.fd, false); err != nil {
		return nil, errors.Join(fmt.Errorf("make socket blocking: %w", err), file.Close())
	}
	limit := unix.NsecToTimeval(ioTimeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, option, &limit); err != nil {
			return nil, errors.Join(fmt.Errorf("limit waiting: %w", err), file.Close())
		}
	}
	c.out, c.in = alignedBytes(pageBytes+block), alignedBytes(pageBytes+block)
	noise(c.payload(block), 2)
	return c, nil
}

// payload is where the data of the next write is taken from.
func (c *blockingClient) payload(n int) []byte { return c.out[pageBytes : pageBytes+n] }

// read returns n bytes from offset; they stay valid until the next call.
func (c *blockingClient) read(offset int64, n int) ([]byte, error) {
	if err := c.request(nbd.OpRead, offset, n, 0); err != nil {
		return nil, err
	}
	if err := c.reply(n); err != nil {
		return nil, err
	}
	return c.in[pageBytes : pageBytes+n], nil
}

// write sends the first n bytes of the payload to offset.
func (c *blockingClient) write(offset int64, n int) error {
	if err := c.request(nbd.OpWrite, offset, n, n); err != nil {
		return err
	}
	return c.reply(0)
}

func (c *blockingClient) flush() error {
	if err := c.request(nbd.OpFlush, 0, 0, 0); err != nil {
		return err
	}
	return c.reply(0)
}

func (c *blockingClient) request(op nbd.Op, offset int64, length, payload int) error {
	c.cookie++
	h := c.out[pageBytes-requestBytes : pageBytes+payload]
	binary.BigEndian.PutUint32(h, protocol.TRANSMISSION_MAGIC_REQUEST)
	binary.BigEndian.PutUint16(h[4:], 0)
	binary.BigEndian.PutUint16(h[6:], uint16(op))
	binary.BigEndian.PutUint64(h[8:], c.cookie)
	binary.BigEndian.PutUint64(h[16:], uint64(offset))
	binary.BigEndian.PutUint32(h[24:], uint32(length))
	for len(h) > 0 {
		n, err := ignoreInterrupt(unix.Write(c.fd, h))
		if err != nil {
			return fmt.Errorf("send request: %w", err)
		}
		h = h[n:]
	}
	return nil
}

// reply receives a reply with n bytes of payload.
func (c *blockingClient) reply(n int) error {
	h := c.in[pageBytes-replyBytes : pageBytes+n]
	want := len(h)
	for got := 0; got < want; {
		more, err := ignoreInterrupt(unix.Read(c.fd, h[got:]))
		if err != nil {
			return fmt.Errorf("receive reply: %w", err)
		}
		got += more
		if got >= replyBytes { // an error has no payload
			if err := c.check(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *blockingClient) check(h []byte) error {
	if magic := binary.BigEndian.Uint32(h); magic != protocol.TRANSMISSION_MAGIC_REPLY {
		return fmt.Errorf("%w: reply magic %#x", nbd.ErrProtocol, magic)
	}
	if cookie := binary.BigEndian.Uint64(h[8:]); cookie != c.cookie {
		return fmt.Errorf("%w: reply to request %d instead of %d", nbd.ErrProtocol, cookie, c.cookie)
	}
	if errno := nbd.Errno(binary.BigEndian.Uint32(h[4:])); errno != 0 {
		return errno
	}
	return nil
}

// ignoreInterrupt turns EINTR into "nothing yet", and the end of the stream
// into an error.
func ignoreInterrupt(n int, err error) (int, error) {
	switch {
	case err == unix.EINTR:
		return 0, nil
	case err == unix.EAGAIN:
		return 0, os.ErrDeadlineExceeded // the socket's own limit passed
	case err == nil && n == 0:
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// shutdown ends the connection under a call that waits.
func (c *blockingClient) shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
}

// close says goodbye and ends the connection.
func (c *blockingClient) close() {
	_ = c.request(opDisconnect, 0, 0, 0) // it has no reply; a server already gone is as good
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.file.Close()
	c.file = nil
}

// openExport is the client's side of the fixed newstyle handshake, in its
// shortest form: one option, GO.
func openExport(conn net.Conn, name string) error {
	var greeting protocol.NegotiationNewstyleHeader
	if err := binary.Read(conn, binary.BigEndian, &greeting); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if greeting.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || greeting.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return fmt.Errorf("%w: this is no newstyle NBD server", errHandshake)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE))
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, protocol.NEGOTIATION_ID_OPTION_GO)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(name)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, 0) // no particular information wanted
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("select export: %w", err)
	}
	return awaitExport(conn)
}

// awaitExport reads the replies to GO up to the last one.
func awaitExport(conn net.Conn) error {
	for {
		var h protocol.NegotiationReplyHeader
		if err := binary.Read(conn, binary.BigEndian, &h); err != nil {
			return fmt.Errorf("select export: %w", err)
		}
		if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || h.Length > optionMax {
			return fmt.Errorf("%w: malformed reply", errHandshake)
		}
		text := make([]byte, h.Length)
		if _, err := io.ReadFull(conn, text); err != nil {
			return fmt.Errorf("select export: %w", err)
		}
		switch {
		case h.Type == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return nil
		case h.Type != protocol.NEGOTIATION_TYPE_REPLY_INFO:
			return fmt.Errorf("%w: reply type %#x: %s", errHandshake, h.Type, text)
		}
	}
}
