package nbd

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"replicad/internal/failpoint"
)

const (
	batchFramesMax = 64 // frames in one writev; two iovecs each at most
	turnBatchesMax = 4  // batches one replying goroutine writes before it hands over
)

// frame is one message on its way out: a header and perhaps a payload.
type frame struct {
	next    *frame
	header  [requestLen]byte
	length  int    // bytes of header in use
	payload []byte // not copied; must stay unchanged until the frame is sent
	request *Request
}

// outbox sends frames with as few system calls as it can.
//
// At any time at most one goroutine writes; it owns the fields below "writer".
// Whoever pushes a frame when nobody writes becomes the writer, unless the
// outbox is held: then the owner of the connection is in the middle of a batch
// and will send everything when it releases.
//
// A writer never waits for the socket. What does not fit is left to the pump, a
// goroutine that lives until the outbox is empty.
type outbox struct {
	sock  socket
	raw   syscall.RawConn
	stall time.Duration     // the pump gives up when the socket takes nothing for so long
	sent  func(fs []*frame) // frames written or dropped; nil when nobody wants to know
	more  func() bool       // more frames are to be expected; may be nil

	mu         sync.Mutex
	head, tail *frame
	held       bool
	writing    bool
	unwritten  sync.Cond // signalled when writing ends
	err        error     // sticky: everything pushed later is dropped

	// writer
	batch   [batchFramesMax]*frame
	frames  int
	headers [batchFramesMax * requestLen]byte
	vector  [2 * batchFramesMax]unix.Iovec
	iovs    []unix.Iovec // what remains of vector
	failure syscall.Errno

	// blocked is since when the pump waits for a client that takes nothing, in
	// nanoseconds of [time.Since] started; 0 while it does not. Shared.
	blocked atomic.Int64

	tryFn, waitFn func(fd uintptr) bool // bound once: binding allocates
	pumpFn        func()
}

func newOutbox(s socket, stall time.Duration, sent func([]*frame)) (*outbox, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("get descriptor: %w", err)
	}
	o := &outbox{sock: s, raw: raw, stall: stall, sent: sent}
	o.unwritten.L = &o.mu
	o.tryFn, o.waitFn, o.pumpFn = o.try, o.tryOrWait, o.pump
	return o, nil
}

// push queues f and, if that falls to the caller, sends what is queued.
func (o *outbox) push(f *frame) {
	o.mu.Lock()
	f.next = nil
	if o.tail == nil {
		o.head = f
	} else {
		o.tail.next = f
	}
	o.tail = f
	wait := o.held || o.writing
	o.writing = o.writing || !wait
	o.mu.Unlock()
	if wait {
		return
	}
	if o.more != nil && o.more() {
		// Replies that one batch of peer acks sets free come in a row: a
		// goroutine that starts a moment later sends them in one write. At
		// queue depth 1 the replying goroutine writes by itself.
		go o.pumpFn()
		return
	}
	o.write()
}

// hold makes pushes wait for release or flush.
func (o *outbox) hold() {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
}

// release ends hold and sends what is queued.
func (o *outbox) release() { o.kick(false) }

// flush sends what is queued and keeps holding.
func (o *outbox) flush() { o.kick(true) }

func (o *outbox) kick(held bool) {
	o.mu.Lock()
	o.held = held
	idle := o.head == nil || o.writing
	o.writing = o.writing || !idle
	o.mu.Unlock()
	if !idle {
		o.write()
	}
}

// write sends until the queue is empty, the socket is full or it is another
// goroutine's turn. The caller has become the writer.
func (o *outbox) write() {
	for turn := 0; o.take(); turn++ {
		if len(o.iovs) > 0 {
			o.attempt(o.tryFn)
		}
		if len(o.iovs) > 0 || turn == turnBatchesMax {
			go o.pumpFn()
			return
		}
		o.settle()
	}
}

// pump does what write does, waiting for the socket. It is the writer, and
// tries once without arming a deadline, which costs two timer changes.
func (o *outbox) pump() {
	for {
		if len(o.iovs) > 0 {
			o.attempt(o.tryFn)
		}
		for len(o.iovs) > 0 {
			o.pumpOnce()
		}
		o.settle()
		if !o.take() {
			return
		}
	}
}

// started is the origin of outbox.blocked.
var started = time.Now()

// stuck reports whether the client has taken nothing for so long, though there
// is something for it. Any goroutine may ask.
func (o *outbox) stuck(d time.Duration) bool {
	since := o.blocked.Load()
	return since != 0 && time.Since(started)-time.Duration(since) > d
}

// pumpOnce waits until the socket takes something.
func (o *outbox) pumpOnce() {
	o.blocked.Store(int64(time.Since(started)))
	defer o.blocked.Store(0)
	if err := o.sock.SetWriteDeadline(time.Now().Add(o.stall)); err != nil {
		o.fail(fmt.Errorf("set write deadline: %w", err))
		return
	}
	o.attempt(o.waitFn)
	if err := o.sock.SetWriteDeadline(time.Time{}); err != nil {
		o.fail(fmt.Errorf("clear write deadline: %w", err))
	}
}

// attempt runs one of the two write functions on the descriptor.
func (o *outbox) attempt(fn func(fd uintptr) bool) {
	err := o.raw.Write(fn)
	if err == nil && o.failure != 0 {
		err = o.failure
	}
	if err != nil {
		o.fail(fmt.Errorf("write: %w", err))
	}
}

// take moves queued frames into the batch. It reports false, and ends the
// caller's time as writer, when there are none.
func (o *outbox) take() bool {
	o.mu.Lock()
	if o.head == nil {
		o.writing = false
		o.unwritten.Broadcast()
		o.mu.Unlock()
		return false // the fields below belong to somebody else now
	}
	n := 0
	for ; n < batchFramesMax && o.head != nil; n++ {
		o.batch[n] = o.head
		o.head = o.head.next
	}
	if o.head == nil {
		o.tail = nil
	}
	failed := o.err != nil
	o.mu.Unlock()
	o.frames = n
	o.iovs = nil
	if !failed {
		o.gather()
	}
	return true
}

// gather lists the batch's bytes. Headers are copied side by side, so a run of
// replies without payload is one piece; payloads keep their own, aligned place.
func (o *outbox) gather() {
	used, n, joined := 0, 0, false
	for _, f := range o.batch[:o.frames] {
		copy(o.headers[used:], f.header[:f.length])
		if joined {
			o.vector[n-1].Len += uint64(f.length)
		} else {
			o.vector[n] = iovec(o.headers[used : used+f.length])
			n++
		}
		used += f.length
		joined = len(f.payload) == 0
		if !joined {
			o.vector[n] = iovec(f.payload)
			n++
		}
	}
	o.iovs = o.vector[:n]
}

func iovec(b []byte) unix.Iovec { return unix.Iovec{Base: &b[0], Len: uint64(len(b))} }

// settle gives the batch's frames back to their owner.
func (o *outbox) settle() {
	if o.sent != nil && o.frames > 0 {
		o.sent(o.batch[:o.frames])
	}
	clear(o.batch[:o.frames])
	clear(o.vector[:2*o.frames]) // or the collector keeps the payloads
	o.frames = 0
}

// fail drops the batch and everything that comes after it, and wakes the
// connection's reader. It shuts down and does not close: a close waits for the
// reader, and the reader may be who got here.
func (o *outbox) fail(err error) {
	o.iovs = nil
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.mu.Unlock()
	shutdown(o.sock)
}

// quiesce waits until nobody writes. It is for the end of a connection, when
// nothing more is pushed, or the socket is down and pushes are dropped.
func (o *outbox) quiesce() {
	o.mu.Lock()
	for o.writing {
		o.unwritten.Wait()
	}
	o.mu.Unlock()
}

// failed reports why the outbox drops frames, or nil.
func (o *outbox) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// try writes until done or the socket is full.
func (o *outbox) try(fd uintptr) bool {
	o.advance(fd)
	return true
}

// tryOrWait reports false, "call me when it is writable", only if the socket
// took nothing: each call that makes progress renews the stall limit.
func (o *outbox) tryOrWait(fd uintptr) bool {
	return o.advance(fd) || len(o.iovs) == 0 || o.failure != 0
}

func (o *outbox) advance(fd uintptr) (progress bool) {
	for len(o.iovs) > 0 {
		h, err := failpoint.Begin(failpoint.NBDReply)
		if err != nil {
			o.failure = syscall.EIO
			return progress
		}
		n, errno := writev(fd, o.iovs)
		h.End()
		switch errno {
		case 0:
			o.iovs = consume(o.iovs, n)
			progress = true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return progress
		default:
			o.failure = errno
			return progress
		}
	}
	return progress
}
