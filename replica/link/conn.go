package link

import (
	"errors"
	"fmt"
	"io"
	"net"

	"replicad/internal/failpoint"
	"replicad/wire"
)

// Sizes of the read buffers: large enough that one read(2) brings many frames
// at high queue depth. directReadMin is the rest of a payload, in bytes, from
// which on it is worth its own read(2) straight into the payload's buffer.
const (
	dataReadBuffer    = 256 << 10
	controlReadBuffer = 64 << 10
	directReadMin     = 32 << 10
)

// ErrBuffer means that the alloc function given to Read returned a buffer of
// another size than it was asked for.
var ErrBuffer = errors.New("payload buffer has the wrong size")

// BufferID names a payload buffer of the caller. 0 is no buffer.
type BufferID uint32

// Conn is one of the two connections of a session.
//
// Read and Buffered belong to one goroutine. Queue, Flush, Kick and Queued may
// be called by any.
type Conn struct {
	channel wire.Channel
	tcp     *net.TCPConn
	src     io.Reader // tcp, or TLS over it
	session *Session
	out     *outbox

	buf  []byte // read from the socket and not yet consumed: buf[r:w]
	r, w int
}

func newConn(ch wire.Channel, way stream, s *Session, cfg *Config) (*Conn, error) {
	w, err := newWriter(way, cfg.WriteTimeout)
	if err != nil {
		return nil, err
	}
	size := dataReadBuffer
	if ch == wire.ChannelControl {
		size = controlReadBuffer
	}
	if way.sealed != nil {
		way.sealed.carry(size)
	}
	c := &Conn{channel: ch, tcp: way.tcp, src: way.source(), session: s, buf: make([]byte, size)}
	c.out = newOutbox(ch, w, s, cfg.queueBytesMax(ch), &cfg.Events)
	return c, nil
}

// Queue appends m, and the payload it announces, to what is to be sent.
// Messages leave in the order of the calls. Queue never waits and does no I/O:
// Flush or Kick must follow. The payload must stay unchanged until Release was
// called with buffer; m and its body may be reused at once.
//
// An error means that the message was not queued and buffer is still the
// caller's: the session's error, ErrQueueFull, or a malformed message.
func (c *Conn) Queue(m *wire.Msg, payload []byte, buffer BufferID) error {
	return c.out.push(m, payload, buffer)
}

// Flush writes what is queued and returns when everything queued before the
// call was handed to the kernel, or with the session's error. It waits for a
// slow peer, up to Config.WriteTimeout without progress. It must not be called
// from an Events callback, nor by a goroutine that the peer may be waiting
// for (a reader): both ends could wait for each other for ever.
func (c *Conn) Flush() error { return c.out.flush() }

// Kick makes sure that what is queued will be written, and never waits for the
// peer: it writes as much as the socket takes and leaves the rest to the
// connection's background writer. An error ends the session.
func (c *Conn) Kick() { c.out.kick() }

// Queued is the number of bytes queued and not yet handed to the kernel.
func (c *Conn) Queued() int64 { return c.out.bytes.Load() }

// Buffered is the number of bytes that Read can use without a system call. A
// reader that finds fewer than wire.HeaderSize may want to act on what it has
// before it calls Read again.
func (c *Conn) Buffered() int { return c.w - c.r }

// Read returns the next message, waiting for it. The payload, if the message
// has one, is read into the buffer that alloc returns for its size and was
// verified. After an error the session is closed; a payload returned with the
// error is a buffer from alloc that the caller must take back.
func (c *Conn) Read(alloc func(n int) []byte) (wire.Msg, []byte, error) {
	h, err := failpoint.Begin(failpoint.LinkReceive)
	var m wire.Msg
	var payload []byte
	if err == nil {
		m, payload, err = c.read(alloc)
		h.End()
	}
	if err != nil {
		c.session.Close(fmt.Errorf("read %v connection: %w", c.channel, err))
		return wire.Msg{}, payload, c.session.Err()
	}
	return m, payload, nil
}

func (c *Conn) read(alloc func(n int) []byte) (wire.Msg, []byte, error) {
	b, err := c.peek(wire.HeaderSize)
	if err != nil {
		return wire.Msg{}, nil, err
	}
	h, err := wire.ParseHeader(b, c.channel)
	if err != nil {
		return wire.Msg{}, nil, err
	}
	c.r += wire.HeaderSize
	if h.BodyLen > 0 {
		return c.readBody(h)
	}
	if h.PayloadLen == 0 {
		return h.Msg, nil, nil
	}
	payload := alloc(h.PayloadLen)
	return h.Msg, payload, c.readPayload(&h, payload)
}

// readBody takes h by value: its body escapes, and the header of a hot
// message must not.
func (c *Conn) readBody(h wire.Header) (wire.Msg, []byte, error) {
	b, err := c.peek(h.BodyLen)
	if err != nil {
		return wire.Msg{}, nil, midFrame(err)
	}
	c.r += h.BodyLen
	err = h.Body(b)
	return h.Msg, nil, err
}

func (c *Conn) readPayload(h *wire.Header, payload []byte) error {
	if len(payload) != h.PayloadLen {
		return fmt.Errorf("%w: %d instead of %d", ErrBuffer, len(payload), h.PayloadLen)
	}
	n := copy(payload, c.buf[c.r:c.w])
	c.r += n
	rest := payload[n:]
	if len(rest) >= directReadMin {
		if _, err := io.ReadFull(c.src, rest); err != nil {
			return midFrame(err)
		}
	} else if len(rest) > 0 {
		b, err := c.peek(len(rest))
		if err != nil {
			return midFrame(err)
		}
		c.r += copy(rest, b)
	}
	return h.VerifyPayload(payload)
}

// peek returns the next n bytes without consuming them, reading as much as
// there is room for. n is at most the size of the buffer.
func (c *Conn) peek(n int) ([]byte, error) {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.r+n > len(c.buf) {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		got, err := c.src.Read(c.buf[c.w:])
		if c.w += got; err != nil && c.w-c.r < n {
			if c.w > c.r {
				err = midFrame(err)
			}
			return nil, err
		}
	}
	return c.buf[c.r : c.r+n], nil
}

// midFrame tells an end inside a frame from one between frames.
func midFrame(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
