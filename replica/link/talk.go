package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"replicad/wire"
)

// talk moves the frames of one handshake under one deadline for all of it: a
// peer that sends a byte a minute gains nothing.
type talk struct {
	conn    *net.TCPConn
	rw      io.ReadWriter // conn, or TLS over it
	sealed  *sealed       // nil = plain
	binding []byte        // of the TLS connection
	ctx     context.Context
	stop    func() bool
	buf     [wire.HandshakeMax]byte
}

// newTalk arms the deadline; finish must follow.
func newTalk(ctx context.Context, conn *net.TCPConn, timeout time.Duration) *talk {
	t := &talk{conn: conn, rw: conn, ctx: ctx}
	// A failed SetDeadline means a closed socket, which the first use reports.
	_ = conn.SetDeadline(time.Now().Add(timeout))
	t.stop = context.AfterFunc(ctx, t.expire)
	return t
}

// expire ends the handshake now.
func (t *talk) expire() { _ = t.conn.SetDeadline(time.Unix(1, 0)) }

// finish ends the handshake with its error, or hands the connection over.
func (t *talk) finish(err error) error {
	if !t.stop() {
		return errors.Join(err, context.Cause(t.ctx))
	}
	if err != nil {
		return err
	}
	if err := t.conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("disarm handshake deadline: %w", err)
	}
	return nil
}

// stream is the connection once it is handed over.
func (t *talk) stream() stream { return stream{tcp: t.conn, sealed: t.sealed} }

// send writes the frame a handshake step returned, or passes its error on.
func (t *talk) send(frame []byte, err error) error {
	if err != nil {
		return err
	}
	if _, err := t.rw.Write(frame); err != nil {
		return fmt.Errorf("send handshake: %w", err)
	}
	return nil
}

// read reads exactly one frame, not a byte more: messages follow it.
func (t *talk) read() ([]byte, error) {
	if _, err := io.ReadFull(t.rw, t.buf[:wire.PrefixSize]); err != nil {
		return nil, fmt.Errorf("read handshake: %w", err)
	}
	size, err := wire.HandshakeFrameSize(t.buf[:wire.PrefixSize])
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(t.rw, t.buf[wire.PrefixSize:size]); err != nil {
		return nil, fmt.Errorf("read handshake: %w", err)
	}
	return t.buf[:size], nil
}

// receive reads one frame for h.
func (t *talk) receive(h *wire.Handshake) error {
	frame, err := t.read()
	if err != nil {
		return err
	}
	return t.hand(h, frame)
}

// ask sends the frame a handshake step returned, and takes the answer. Who
// refuses may hang up before our frame is sent: then the refusal is worth more
// than the error of sending.
func (t *talk) ask(h *wire.Handshake, frame []byte, err error) error {
	if err != nil {
		return err
	}
	sendErr := t.send(frame, nil)
	err = t.receive(h)
	if _, ok := errors.AsType[*wire.RefusedError](err); ok || sendErr == nil {
		return err
	}
	return sendErr
}

// hand gives a frame to h. When h refuses, the other end is told why.
func (t *talk) hand(h *wire.Handshake, frame []byte) error {
	err := h.Receive(frame)
	if r, ok := errors.AsType[*wire.RefusedError](err); ok && !r.ByPeer {
		return errors.Join(err, t.send(h.Refuse(r.Reason), nil))
	}
	return err
}
