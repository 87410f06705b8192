package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	closeTimeout = 10 * time.Second // Close waits so long for calls in flight
	clientStall  = time.Minute      // a server that takes nothing for so long is given up
	callsMax     = 1 << 16          // calls in flight on one connection
)

// ErrClientClosed is the error of calls made or pending when a client closes.
var ErrClientClosed = errors.New("nbd client is closed")

// errTooManyCalls is given to calls beyond callsMax.
var errTooManyCalls = errors.New("too many nbd calls in flight")

// Call is one request of a Client. The caller sets the exported fields and may
// use a Call again once it is done.
type Call struct {
	Op     Op
	FUA    bool
	NoHole bool   // OpWriteZeroes only
	Offset uint64 // bytes
	Length uint32 // bytes; for OpRead and OpWrite it must be len(Data)
	Data   []byte // OpRead: filled when Err is nil. Must not be touched before Done.
	Err    error  // the outcome: nil, an [Errno], or why the connection is gone
	// Done is called once with the outcome, by the goroutine that reads replies
	// or, after a failure, by any. It must not wait; it may call Submit.
	Done func(*Call)
}

// slot is the place of one call in flight. It owns the frame, so that a Call
// whose connection failed can be used elsewhere while this frame is still queued.
type slot struct {
	call   *Call
	cookie uint64 // expected in the reply: serial number, then index
	frame  frame
}

// Client is one connection to an export. Any number of goroutines may use it;
// their requests are pipelined, and sent together where they meet.
type Client struct {
	info ExportInfo
	sock socket
	in   *inbox
	out  *outbox
	sync sync.Pool // *syncCall

	mu      sync.Mutex
	slots   []*slot // by index: the low half of the cookie
	free    []*slot
	serial  uint32 // the high half of the cookie
	pending int
	err     error // sticky: why no call can be made
	closing bool
	idle    chan struct{} // made by Close, closed when nothing is pending
	done    chan struct{} // the reader has ended
}

// Dial connects to nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME and
// selects the export. ctx bounds the handshake only. A refusal by the server is
// an *OptionError.
func Dial(ctx context.Context, uri string) (*Client, error) {
	t, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	n, err := connect(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", uri, err)
	}
	info, err := n.selectExport(t.export)
	if err != nil {
		n.close()
		return nil, fmt.Errorf("open export %q: %w", t.export, n.because(err))
	}
	if !n.stop() { // ctx ended just now and has spoilt the deadline
		n.close()
		return nil, fmt.Errorf("dial %s: %w", uri, context.Cause(ctx))
	}
	return newClient(n, info)
}

func newClient(n *negotiation, info ExportInfo) (*Client, error) {
	c := &Client{info: info, sock: n.sock, in: n.in, done: make(chan struct{})}
	out, err := newOutbox(n.sock, clientStall, nil)
	if err != nil {
		n.close()
		return nil, err
	}
	c.out = out
	c.in.src = c
	c.sync.New = newSyncCall
	go c.read()
	return c, nil
}

// Info tells what the server said of the export.
func (c *Client) Info() ExportInfo { return c.info }

// Size is the export's size in bytes.
func (c *Client) Size() uint64 { return c.info.Size }

// Submit sends calls without waiting for their replies; each one's Done tells
// the outcome.
func (c *Client) Submit(calls ...*Call) {
	for _, call := range calls {
		s, err := c.register(call)
		if err != nil {
			call.finish(err)
			continue
		}
		c.out.push(&s.frame)
	}
}

func (call *Call) finish(err error) {
	call.Err = err
	call.Done(call)
}

// register gives the call a slot and a cookie, and builds its frame.
func (c *Client) register(call *Call) (*slot, error) {
	if call.carriesData() && (len(call.Data) != int(call.Length) || call.Length > RequestBytesMax) {
		return nil, EINVAL
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, c.err
	case c.closing:
		return nil, ErrClientClosed
	case len(c.free) == 0 && len(c.slots) == callsMax:
		return nil, errTooManyCalls
	case len(c.free) == 0:
		s := &slot{cookie: uint64(len(c.slots))}
		c.slots, c.free = append(c.slots, s), append(c.free, s)
	}
	last := len(c.free) - 1
	s := c.free[last]
	c.free = c.free[:last]
	c.serial++
	c.pending++
	s.call, s.cookie = call, uint64(c.serial)<<32|s.cookie&(1<<32-1)
	s.encode()
	return s, nil
}

func (call *Call) carriesData() bool { return call.Op == OpRead || call.Op == OpWrite }

func (s *slot) encode() {
	call := s.call
	h := requestHeader{magic: magicRequest, op: call.Op, cookie: s.cookie, offset: call.Offset, length: call.Length}
	if call.FUA {
		h.flags |= cmdFUA
	}
	if call.NoHole {
		h.flags |= cmdNoHole
	}
	h.put(s.frame.header[:])
	s.frame.length = requestLen
	s.frame.payload = nil
	if call.Op == OpWrite {
		s.frame.payload = call.Data
	}
}

// Read is the inbox's source: requests made by Done functions wait for the end
// of the batch of replies, and leave together before the reader waits.
func (c *Client) Read(p []byte) (int, error) {
	c.out.release()
	n, err := c.sock.Read(p)
	c.out.hold()
	return n, err
}

// read is the reader goroutine: it matches replies with calls until the
// connection ends, then fails what is left.
func (c *Client) read() {
	err := c.readReplies()
	c.fail(err)
	c.out.release()
	c.out.quiesce()
	_ = c.sock.Close()
	close(c.done)
}

func (c *Client) readReplies() error {
	for {
		b, err := c.in.peek(simpleReplyLen)
		if err != nil {
			return fmt.Errorf("read reply: %w", unexpected(err))
		}
		magic, errno := binary.BigEndian.Uint32(b), Errno(binary.BigEndian.Uint32(b[4:]))
		cookie := binary.BigEndian.Uint64(b[8:])
		c.in.skip(simpleReplyLen)
		if magic != magicSimpleReply {
			return fmt.Errorf("%w: reply magic %#x", ErrProtocol, magic)
		}
		if err := c.complete(cookie, errno); err != nil {
			return err
		}
	}
}

// complete finishes the call of a reply whose payload, if any, comes next.
func (c *Client) complete(cookie uint64, errno Errno) error {
	call := c.take(cookie)
	if call == nil {
		return fmt.Errorf("%w: reply to a request that was not made", ErrProtocol)
	}
	if errno != 0 {
		c.finished(call, errno)
		return nil
	}
	if call.Op == OpRead {
		if err := c.in.read(call.Data); err != nil {
			err = fmt.Errorf("read payload: %w", err)
			c.finished(call, err)
			return err
		}
	}
	c.finished(call, nil)
	return nil
}

// take frees the call's slot; nil if there is no such call.
func (c *Client) take(cookie uint64) *Call {
	index := uint32(cookie)
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(index) >= len(c.slots) {
		return nil
	}
	s := c.slots[index]
	if s.call == nil || s.cookie != cookie {
		return nil
	}
	call := s.call
	s.call = nil
	c.free = append(c.free, s)
	return call
}

func (c *Client) finished(call *Call, err error) {
	call.finish(err)
	c.mu.Lock()
	c.pending--
	if c.pending == 0 && c.idle != nil {
		close(c.idle)
	}
	c.mu.Unlock()
}

// fail makes err the outcome of every call in flight and to come.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.closing {
		err = ErrClientClosed
	}
	c.err = err
	slots := c.slots
	c.slots, c.free = nil, nil
	c.mu.Unlock()
	shutdown(c.sock)
	for _, s := range slots {
		if s.call != nil {
			c.finished(s.call, err)
		}
	}
}

// Abort ends the connection at once; calls in flight fail.
func (c *Client) Abort() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	shutdown(c.sock)
	<-c.done
}

// Close waits for the calls in flight, at most ten seconds, says goodbye to the
// server and ends the connection. It must not be called by a Done function.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closing = true
	if c.idle == nil {
		c.idle = make(chan struct{})
		if c.pending == 0 {
			close(c.idle)
		}
	}
	idle := c.idle
	c.mu.Unlock()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
	c.goodbye()
	<-c.done
	return nil
}

// goodbye sends NBD_CMD_DISC and ends the stream. The server may be gone
// already, which is as good.
func (c *Client) goodbye() {
	f := &frame{length: requestLen}
	requestHeader{magic: magicRequest, op: opDisconnect}.put(f.header[:])
	c.out.push(f)
	c.out.release()
	c.out.quiesce()
	shutdown(c.sock)
}
