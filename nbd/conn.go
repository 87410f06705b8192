package nbd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"replicad/internal/failpoint"
)

// A batch ends when the reader runs out of complete requests, or here, so that
// the first of many requests is not kept waiting for the last.
const (
	batchRequestsMax = 128
	batchBytesMax    = 1 << 20
)

// lingerTime and lingerBytes bound how long a refused client may go on sending
// before the socket is closed under it. Closing at once would make the kernel
// throw away the error reply that says why.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 20
)

var (
	errDisconnected = errors.New("client disconnected")
	errBadMagic     = errors.New("request magic is wrong")
	errTooLong      = errors.New("write is longer than any that is served")
	errStalled      = errors.New("client stopped in the middle of a message")
	errRevoked      = errors.New("export was withdrawn")
)

// payloadGrace is how long a client may take to finish a payload after its
// export was withdrawn, to be told ESHUTDOWN instead of being cut off.
const payloadGrace = time.Second

// patience says how long the reader may wait for the client.
type patience int

const (
	patienceFixed   patience = iota // until the deadline set for the handshake
	patienceEndless                 // an idle client is welcome to stay
	patienceStall                   // the client owes us the rest of a message
)

// conn is one client connection. Its reader goroutine runs negotiation and then
// the request loop, and owns every field not said to be shared.
type conn struct {
	srv  *Server
	sock socket
	in   *inbox
	out  *outbox // shared
	info ClientInfo

	handler  Handler
	size     uint64 // bytes, a multiple of BlockSizeMin
	readOnly bool

	served     int   // requests handed to the handler since its last Drain
	batchBytes int64 // payload bytes since the last flush
	patience   patience
	armed      time.Time // when the stall limit was last set

	budget budget // shared: this connection's part of the server's budget

	revoked atomic.Bool // shared: answer ESHUTDOWN, then go

	mu       sync.Mutex // guards what follows, shared
	inFlight int        // requests whose reply is not yet written
	kicked   bool       // the read deadline was moved to wake the reader
	drained  chan struct{}
	unused   *Request

	opening  string        // guarded by srv.mu: name of the export being opened or open
	reserved bool          // guarded by srv.mu: there is one
	holding  bool          // guarded by srv.mu: its handler is open
	done     chan struct{} // closed when the connection is gone
}

func newConn(s *Server, sock socket) (*conn, error) {
	c := &conn{srv: s, sock: sock, info: peer(sock), done: make(chan struct{})}
	c.budget.max = connectionBytesMax
	c.in = newInbox(c)
	out, err := newOutbox(sock, s.cfg.StallTimeout, c.sent)
	c.out = out
	if out != nil {
		out.more = c.expectsReplies
	}
	return c, err
}

// expectsReplies reports whether other requests than the one being answered
// are still unanswered.
func (c *conn) expectsReplies() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight > 1
}

// run serves the client until it is gone.
func (c *conn) run() error {
	defer close(c.done)
	defer c.sock.Close()
	err := c.negotiate()
	if err == nil {
		err = c.transmit()
		c.finish()
	}
	if errors.Is(err, errTooLong) || errors.Is(err, errBadMagic) {
		c.linger()
	}
	return err
}

// transmit serves requests until the stream ends; the error says how.
func (c *conn) transmit() error {
	if err := c.sock.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear deadline: %w", err)
	}
	if c.revoked.Load() { // the deadline just cleared may have been the kick
		c.kick()
	}
	c.patience = patienceEndless
	for {
		b, err := c.in.peek(requestLen)
		if err != nil {
			return err
		}
		h := parseRequest(b)
		if h.magic != magicRequest {
			return errBadMagic
		}
		c.in.skip(requestLen)
		if h.op == opDisconnect {
			return errDisconnected
		}
		if err := c.accept(h); err != nil {
			return err
		}
		if err := c.limitBatch(); err != nil {
			return err
		}
	}
}

// accept takes one request in, and hands it to the handler or refuses it.
func (c *conn) accept(h requestHeader) error {
	errno := h.check(c.size, c.readOnly)
	if c.revoked.Load() {
		errno = ESHUTDOWN
	}
	if errno != 0 {
		return c.refuse(h, errno)
	}
	if h.length == 0 && h.op != OpFlush {
		c.answer(h, nil) // nothing to do, and no handler has to know
		return nil
	}
	r := c.claim(h)
	if h.op == OpWrite {
		if err := c.payload(r); err != nil {
			return err
		}
		if c.revoked.Load() { // withdrawn while the payload came in
			r.Reply(ESHUTDOWN)
			return nil
		}
	} else {
		c.in.expectSmall()
	}
	c.served++
	c.batchBytes += int64(len(r.Data))
	c.handler.Serve(r)
	return nil
}

// refuse answers a request that the handler never sees and stays in step: the
// payload of a write is read and dropped, unless it is of absurd length.
func (c *conn) refuse(h requestHeader, errno Errno) error {
	if h.op == OpWrite && h.length > RequestBytesMax {
		c.answer(h, errno)
		return errTooLong
	}
	if h.op == OpWrite {
		c.patience = patienceStall
		if err := c.in.discard(int64(h.length)); err != nil {
			return fmt.Errorf("skip payload: %w", err)
		}
		c.patience = patienceEndless
	}
	c.answer(h, errno)
	return nil
}

// answer replies to a request that needs no handler. It claims budget all the
// same: a client that never reads its replies must not pile them up here.
func (c *conn) answer(h requestHeader, err error) {
	c.admit(requestCostMin)
	c.request(h, requestCostMin).Reply(err)
}

// claim admits the request: budget first, then its buffer.
func (c *conn) claim(h requestHeader) *Request {
	n := 0
	if h.carriesData() {
		n = int(h.blocks())
	}
	cost := int64(requestCostMin)
	if n > 0 {
		cost = 1 << (classOf(n) + classShiftMin)
	}
	c.admit(cost)
	r := c.request(h, cost)
	if n > 0 {
		r.buffer = c.srv.pool.get(n)
		r.Data = r.buffer
	}
	if h.op == OpRead {
		r.lead, r.want = int(h.lead()), int(h.length)
		r.Offset, r.Length = h.offset-h.lead(), uint32(n)
	}
	return r
}

// admit claims n bytes of this connection's and of the server's budget. Before
// it waits it starts and sends everything it holds, for that is what others
// need in order to give back: so no two connections wait for each other.
func (c *conn) admit(n int64) {
	if c.budget.try(n) {
		if c.srv.budget.try(n) {
			return
		}
		c.settle()
		c.srv.budget.wait(n)
	} else {
		c.settle()
		c.budget.wait(n)
		c.srv.budget.wait(n)
	}
	c.out.hold()
}

// request takes an unused request and fills it in.
func (c *conn) request(h requestHeader, cost int64) *Request {
	c.mu.Lock()
	r := c.unused
	if r != nil {
		c.unused = r.free
	}
	c.inFlight++
	c.mu.Unlock()
	if r == nil {
		r = &Request{conn: c}
		r.frame.request = r
	}
	r.Op, r.cookie, r.cost = h.op, h.cookie, cost
	r.FUA, r.NoHole = h.flags&cmdFUA != 0, h.flags&cmdNoHole != 0
	r.Offset, r.Length = h.offset, h.length
	r.replied.Store(false)
	return r
}

// payload reads the data of a write. If it does not come, nobody is told: the
// request was never complete.
func (c *conn) payload(r *Request) error {
	c.patience = patienceStall
	err := c.in.read(r.Data)
	c.patience = patienceEndless
	if err != nil {
		c.sent([]*frame{&r.frame})
		return fmt.Errorf("read payload: %w", err)
	}
	return nil
}

// limitBatch keeps a batch from growing without end, and stops where replies no
// longer reach the client: thousands of its requests may still be in the inbox.
func (c *conn) limitBatch() error {
	if c.served < batchRequestsMax && c.batchBytes < batchBytesMax {
		return nil
	}
	c.drain()
	c.out.flush()
	c.batchBytes = 0
	return c.out.failed()
}

func (c *conn) drain() {
	if c.served > 0 {
		c.served = 0
		c.handler.Drain()
	}
}

// settle starts and sends everything the batch holds, before a wait.
func (c *conn) settle() {
	c.drain()
	c.out.release()
	c.batchBytes = 0
}

// Read is the inbox's source: it reads the socket, and ends the batch first.
func (c *conn) Read(p []byte) (int, error) {
	c.settle()
	defer c.out.hold()
	for {
		if c.patience == patienceStall {
			c.limitWait()
		}
		h, err := failpoint.Begin(failpoint.NBDReceive)
		if err != nil {
			return 0, err
		}
		n, err := c.sock.Read(p)
		h.End()
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := c.woken(); err != nil {
			return 0, err
		}
	}
}

// limitWait arms the read deadline for a client that owes us bytes. It is
// renewed at half time, so a stall is found after one half to one limit.
func (c *conn) limitWait() {
	now, limit := time.Now(), c.srv.cfg.StallTimeout
	if now.Sub(c.armed) < limit/2 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.kicked {
		c.armed = now
		_ = c.sock.SetReadDeadline(now.Add(limit)) // fails only when closed; Read tells
	}
}

// kick wakes the reader so that it looks at revoked and inFlight.
func (c *conn) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kickLocked()
}

func (c *conn) kickLocked() {
	c.kicked = true
	_ = c.sock.SetReadDeadline(time.Unix(1, 0)) // fails only when closed: awake already
}

// woken sorts out why a read deadline passed; nil means read on.
func (c *conn) woken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.kicked && c.revoked.Load() && c.inFlight == 0:
		return errRevoked
	case !c.kicked && c.patience != patienceEndless:
		return errStalled
	}
	c.kicked = false
	if c.patience == patienceStall {
		c.armed = time.Now()
		return c.sock.SetReadDeadline(c.armed.Add(payloadGrace))
	}
	c.armed = time.Time{}
	return c.sock.SetReadDeadline(time.Time{})
}

// sent gives back what written or dropped replies held. The outbox calls it
// from whichever goroutine writes.
func (c *conn) sent(fs []*frame) {
	var cost int64
	for _, f := range fs {
		r := f.request
		cost += r.cost
		if r.buffer != nil {
			c.srv.pool.put(r.buffer)
		}
		r.Data, r.buffer, f.payload = nil, nil, nil
		r.lead, r.want = 0, 0
	}
	if cost > 0 {
		c.budget.release(cost)
		c.srv.budget.release(cost)
	}
	c.recycle(fs)
}

func (c *conn) recycle(fs []*frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range fs {
		f.request.free = c.unused
		c.unused = f.request
	}
	c.inFlight -= len(fs)
	if c.inFlight > 0 {
		return
	}
	if c.revoked.Load() {
		c.kickLocked()
	}
	if c.drained != nil {
		close(c.drained)
		c.drained = nil
	}
}

// finish waits for the replies still owed and closes the handler.
func (c *conn) finish() {
	c.settle()
	c.mu.Lock()
	var drained chan struct{}
	if c.inFlight > 0 {
		drained = make(chan struct{})
		c.drained = drained
	}
	c.mu.Unlock()
	if drained != nil {
		<-drained
	}
	c.out.quiesce()
	c.handler.Close()
	c.srv.released(c)
}

// linger says that no more will be sent and lets the client finish its sentence.
func (c *conn) linger() {
	if c.sock.CloseWrite() != nil || c.sock.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.sock, lingerBytes) // ends by EOF, time or length, all the same
}
