package cable

import (
	"fmt"
	"io"
	"net"
	"slices"
)

// Direction is one of the two ways through a connection.
type Direction uint8

// The directions, as seen by who dialled.
const (
	Out  Direction = iota // from the dialler to the target
	Back                  // from the target to the dialler
)

// String names the direction.
func (d Direction) String() string { return [...]string{"out", "back"}[d] }

// ConnID names one connection through the cable. Numbers are not used again.
type ConnID int

// headBytes is how much of what a dialler says is kept for Duplicate.
const headBytes = 4 << 10

// wire is a connection that reaches from end to end. All but the sockets is
// guarded by the cable's lock.
type wire struct {
	id        ConnID
	near, far net.Conn
	target    string
	head      []byte // the first bytes that the dialler sent
	gone      bool
	halfOpen  [2]bool // by direction: the receiver is not told of the end
	flows     [2]flow
}

// flow is what disturbs one direction of a connection.
type flow struct {
	stalled  bool
	passed   int64 // bytes that went through
	closeAt  int64 // end the connection at that byte; 0: never
	flipAt   int64 // damage the byte before that one; 0: none
	flipMask byte
}

func (c *Cable) join(near, far net.Conn, target string) *wire {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened++
	w := &wire{id: ConnID(c.opened), near: near, far: far, target: target}
	c.wires = append(c.wires, w)
	if len(c.next) > 0 {
		t := c.next[0]
		c.next = c.next[1:]
		w.flows[t.Dir] = flow{stalled: t.Stall, closeAt: t.CloseAfter, flipAt: t.Flip, flipMask: t.Mask}
	}
	return w
}

func (c *Cable) part(w *wire) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.gone = true
	c.wires = slices.DeleteFunc(c.wires, func(other *wire) bool { return other == w })
	c.cond.Broadcast()
}

func (c *Cable) record(w *wire, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.head = append(w.head, b[:min(len(b), headBytes-len(w.head))]...)
}

func (c *Cable) isHalfOpen(w *wire, dir Direction) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return w.halfOpen[dir]
}

// waitMoving waits while the direction is stalled; false means that the
// connection ended meanwhile.
func (c *Cable) waitMoving(w *wire, dir Direction) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w.flows[dir].stalled && !w.gone && !c.ended && !c.cut {
		c.cond.Wait()
	}
	return !w.gone && !c.ended
}

// disturb applies what was ordered to bytes that arrive. last says that the
// connection ends after them.
func (c *Cable) disturb(w *wire, dir Direction, b []byte) (out []byte, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &w.flows[dir]
	start := f.passed
	f.passed += int64(len(b))
	if f.flipAt > start && f.flipAt <= f.passed {
		b[f.flipAt-start-1] ^= f.flipMask
	}
	if f.closeAt > start && f.closeAt <= f.passed {
		return b[:f.closeAt-start], true
	}
	return b, false
}

// Conns lists the connections that reach from end to end, oldest first.
func (c *Cable) Conns() []ConnID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []ConnID
	for _, w := range c.wires {
		ids = append(ids, w.id)
	}
	return ids
}

// change applies f to a connection, and reports whether it is still there.
func (c *Cable) change(id ConnID, f func(w *wire)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.wires, func(w *wire) bool { return w.id == id })
	if at < 0 {
		return false
	}
	f(c.wires[at])
	c.cond.Broadcast()
	return true
}

// SetStall holds back, or lets go, what one direction of a connection carries.
// The other direction and other connections go on. False: there is no such
// connection any more.
func (c *Cable) SetStall(id ConnID, dir Direction, stalled bool) bool {
	return c.change(id, func(w *wire) { w.flows[dir].stalled = stalled })
}

// CloseAfter ends a connection, for both its ends, once n more bytes went one
// way; n is at least 1. False: there is no such connection any more.
func (c *Cable) CloseAfter(id ConnID, dir Direction, n int64) bool {
	return c.change(id, func(w *wire) { w.flows[dir].closeAt = w.flows[dir].passed + n })
}

// Flip inverts the bits of mask in the nth byte from now that goes one way; n
// is at least 1. False: there is no such connection any more.
func (c *Cable) Flip(id ConnID, dir Direction, n int64, mask byte) bool {
	return c.change(id, func(w *wire) {
		f := &w.flows[dir]
		f.flipAt, f.flipMask = f.passed+n, mask
	})
}

// HalfOpen ends a connection for the end that dir leaves, and leaves the other
// end believing in it: what that one sends vanishes, until the cable is healed
// or closed, or it gives up itself. False: there is no such connection any more.
func (c *Cable) HalfOpen(id ConnID, dir Direction) bool {
	return c.change(id, func(w *wire) {
		w.halfOpen[dir] = true
		if dir == Out {
			_ = w.near.Close()
		} else {
			_ = w.far.Close()
		}
	})
}

// Trouble is what befalls one direction of a connection from its first byte on.
type Trouble struct {
	Dir        Direction
	Stall      bool  // nothing passes
	CloseAfter int64 // the connection ends after so many bytes; 0: it does not
	Flip       int64 // that byte is damaged, from 1; 0: none
	Mask       byte  // which of its bits
}

// TroubleNext gives one trouble to each of the next connections, in order.
// What was left of an earlier call is forgotten.
func (c *Cable) TroubleNext(troubles ...Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = slices.Clone(troubles)
}

// Duplicate opens a second connection to the same target and sends on it what
// the dialler of the first one said at its start, up to 4 KiB. What the target
// answers is dropped. The second connection ends when the target ends it, or
// with the cable.
func (c *Cable) Duplicate(id ConnID) error {
	var head []byte
	var target string
	if !c.change(id, func(w *wire) { head, target = slices.Clone(w.head), w.target }) {
		return fmt.Errorf("duplicate connection %d: it is gone", id)
	}
	conn, err := net.Dial("tcp", target)
	if err != nil {
		return fmt.Errorf("duplicate connection %d: %w", id, err)
	}
	if !c.add(conn) {
		return fmt.Errorf("duplicate connection %d: %w", id, net.ErrClosed)
	}
	c.wg.Go(func() {
		defer c.drop(conn)
		if _, err := conn.Write(head); err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
	})
	return nil
}
