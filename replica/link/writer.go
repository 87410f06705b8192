package link

import (
	"fmt"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"replicad/wire"
)

// Limits of one writev.
const (
	// batchMessagesMax keeps the vectors of a batch (two a message) below the
	// kernel's 1,024 a call.
	batchMessagesMax = 256
	// batchBytesMax bounds how long the first message of a batch waits for
	// its Sent callback behind the last. A larger message goes alone.
	batchBytesMax = 512 << 10
)

// item is one queued message. A rare message is encoded when it is queued
// (frame), so that its body may change afterwards; a hot one only when it is
// written, so that hashing its payload costs nothing under the queue's lock.
type item struct {
	msg     wire.Msg
	frame   []byte
	payload []byte
	buffer  BufferID
}

func (it *item) size() int {
	if it.frame != nil {
		return len(it.frame)
	}
	return wire.HeaderSize + len(it.payload)
}

// writer turns items into as few writev calls as possible. It belongs to
// whoever holds the writer role of its outbox. It calls writev itself instead
// of using net.Buffers (which is one writev too) for two reasons: it can stop
// where net.Buffers would wait for a slow peer, and a deadline is only armed
// when the socket is full, not on every call.
type writer struct {
	conn    *net.TCPConn
	sealed  *sealed // nil = plain
	raw     syscall.RawConn
	timeout time.Duration

	items []item // taken from the queue
	done  int    // items written and released
	batch int    // items after done that heads and iov hold

	heads      []byte // headers of the batch; never grows, iov points into it
	iov        []unix.Iovec
	endsInHead bool   // the last vector ends where heads ends
	left       int    // first vector not completely written
	bytes      int    // size of the batch
	data       bool   // the batch has mirrored writes, the last of them
	dataSeq    uint64 // with this number

	try   func(fd uintptr) bool // attempt, bound once so that a call allocates nothing
	wait  bool                  // attempt: wait for room instead of giving up
	n     int                   // attempt: bytes written, 0 = the socket is full
	errno error                 // attempt: what writev said
}

func newWriter(way stream, timeout time.Duration) (*writer, error) {
	raw, err := way.tcp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reach socket: %w", err)
	}
	w := &writer{
		conn: way.tcp, sealed: way.sealed, raw: raw, timeout: timeout,
		heads: make([]byte, 0, batchMessagesMax*wire.HeaderSize),
		iov:   make([]unix.Iovec, 0, 2*batchMessagesMax),
	}
	w.try = w.attempt
	return w, nil
}

// idle reports whether everything taken from the queue is written.
func (w *writer) idle() bool { return w.done == len(w.items) }

// give hands new items to an idle writer and returns the old slice, emptied,
// for the queue to use.
func (w *writer) give(items []item) []item {
	spare := w.items[:0]
	clear(w.items)
	w.items, w.done = items, 0
	return spare
}

// build makes the next batch out of the items taken.
func (w *writer) build() error {
	w.heads, w.iov = w.heads[:0], w.iov[:0]
	w.left, w.batch, w.bytes, w.data, w.endsInHead = 0, 0, 0, false, false
	for i := w.done; i < len(w.items) && w.batch < batchMessagesMax; i++ {
		it := &w.items[i]
		if w.batch > 0 && w.bytes+it.size() > batchBytesMax {
			break
		}
		if err := w.add(it); err != nil {
			return fmt.Errorf("encode %v: %w", it.msg.Kind, err)
		}
		w.batch++
		w.bytes += it.size()
	}
	if w.sealed == nil {
		return nil
	}
	records, err := w.sealed.seal(w.iov)
	if err != nil {
		return err
	}
	w.iov = w.iov[:0]
	w.vector(records)
	return nil
}

// add appends one message to the batch.
func (w *writer) add(it *item) error {
	if it.frame != nil {
		w.vector(it.frame)
		return nil
	}
	start := len(w.heads)
	heads, err := wire.AppendMsg(w.heads, &it.msg, it.payload)
	if err != nil {
		return err
	}
	w.heads = heads
	w.head(heads[start:])
	if len(it.payload) > 0 {
		w.vector(it.payload)
	}
	switch it.msg.Kind {
	case wire.KindData, wire.KindTrim, wire.KindZero:
		w.data, w.dataSeq = true, it.msg.Seq
	}
	return nil
}

// head appends a header; one right behind another extends its vector, so that
// a batch of acks is a single one.
func (w *writer) head(b []byte) {
	if !w.endsInHead {
		w.vector(b)
		w.endsInHead = true
		return
	}
	last := &w.iov[len(w.iov)-1]
	last.SetLen(int(last.Len) + len(b))
}

func (w *writer) vector(b []byte) {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	w.iov = append(w.iov, v)
	w.endsInHead = false
}

// flush writes the rest of the batch. With block it waits as long as the peer
// takes at least one byte per timeout; without, it returns false as soon as
// the socket is full.
func (w *writer) flush(block bool) (bool, error) {
	for w.left < len(w.iov) {
		if err := w.once(false); err != nil {
			return false, err
		}
		if w.n > 0 {
			continue
		}
		if !block {
			return false, nil
		}
		if err := w.waitForRoom(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// waitForRoom writes at least one byte, waiting at most timeout for room.
func (w *writer) waitForRoom() error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return fmt.Errorf("arm write deadline: %w", err)
	}
	if err := w.once(true); err != nil {
		return err
	}
	if err := w.conn.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("disarm write deadline: %w", err)
	}
	return nil
}

// once is one successful writev, or none (n == 0) if the socket is full and
// wait is false.
func (w *writer) once(wait bool) error {
	w.wait, w.n, w.errno = wait, 0, nil
	if err := w.raw.Write(w.try); err != nil {
		return fmt.Errorf("write frames: %w", err)
	}
	if w.errno != nil {
		return fmt.Errorf("write frames: %w", w.errno)
	}
	w.advance(w.n)
	return nil
}

// attempt calls writev on the non-blocking socket. False makes RawConn wait
// until the socket is writable and call again.
func (w *writer) attempt(fd uintptr) bool {
	rest := w.iov[w.left:]
	for {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)))
		switch errno {
		case 0:
			w.n = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return !w.wait
		default:
			w.errno = errno
			return true
		}
	}
}

// advance drops n written bytes from the front of the vectors.
func (w *writer) advance(n int) {
	for n > 0 {
		v := &w.iov[w.left]
		if n < int(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return
		}
		n -= int(v.Len)
		w.left++
	}
}
