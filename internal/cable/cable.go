// Package cable is a network between two processes on one machine that can be
// cut and has a length and a width: a TCP proxy that swallows bytes instead of
// closing connections. A single connection through it can be stalled in one
// direction, closed in the middle, damaged, left half open, or opened once more.
// The demo and the tests of whole pairs stretch it between daemons.
//
// A Cable may be used from any goroutine. Each connection through it has five
// goroutines, which end with Close.
package cable

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Cable is the network between two nodes: each dials the other through
// it. It can be cut like a real one, where bytes neither arrive nor come back as
// errors, and it has a length: bytes are on the way for a while, and those on the
// way when it is cut are lost.
type Cable struct {
	mu     sync.Mutex
	cond   *sync.Cond
	cut    bool
	ended  bool
	delay  time.Duration // one way
	rate   int64         // bytes per second, of each connection and direction; 0: unlimited
	conns  map[net.Conn]struct{}
	wires  []*wire   // connections that reach from end to end, oldest first
	opened int       // wires ever
	next   []Trouble // for the connections to come
	ends   []*end
	wg     sync.WaitGroup
}

// end is where one node plugs in to reach the other.
type end struct {
	listener net.Listener
	target   string // the other node's own address
}

const (
	chunkBytes   = 64 << 10
	chunksFlying = 64 // chunks on the way, each way
)

// New returns a whole cable of no length.
func New() *Cable {
	c := &Cable{conns: map[net.Conn]struct{}{}}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// Plug returns the address through which target is reached.
func (c *Cable) Plug(target string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("plug in the cable: %w", err)
	}
	e := &end{listener: l, target: target}
	c.ends = append(c.ends, e)
	c.wg.Go(func() { c.accept(e) })
	return l.Addr().String(), nil
}

func (c *Cable) accept(e *end) {
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			return // closed
		}
		c.wg.Go(func() { c.carry(conn, e.target) })
	}
}

// carry joins a connection with one to the target. While the cable is cut the
// caller hangs, as one does who dials into a dead network.
func (c *Cable) carry(near net.Conn, target string) {
	if !c.add(near) {
		return
	}
	defer c.drop(near)
	if !c.waitWhole(near) {
		return
	}
	far, err := net.Dial("tcp", target)
	if err != nil || !c.add(far) {
		return
	}
	defer c.drop(far)
	w := c.join(near, far, target)
	defer c.part(w)
	var both sync.WaitGroup
	both.Go(func() { c.pump(w, Out) })
	both.Go(func() { c.pump(w, Back) })
	both.Wait()
}

// chunk is bytes on the way.
type chunk struct {
	data []byte
	due  time.Time
}

// pump moves bytes one way. When either connection ends, so does the other,
// after the bytes on the way have arrived.
func (c *Cable) pump(w *wire, dir Direction) {
	from, to := w.near, w.far
	if dir == Back {
		from, to = to, from
	}
	flying := make(chan chunk, chunksFlying)
	c.wg.Go(func() { c.land(w, dir, to, flying) })
	defer close(flying)
	for {
		buf := make([]byte, chunkBytes)
		n, err := from.Read(buf)
		if n > 0 {
			if dir == Out {
				c.record(w, buf[:n])
			}
			flying <- chunk{buf[:n], time.Now().Add(c.length())}
		}
		if err != nil {
			return
		}
	}
}

func (c *Cable) land(w *wire, dir Direction, to net.Conn, flying <-chan chunk) {
	defer func() {
		if !c.isHalfOpen(w, dir) {
			_ = to.Close()
		}
		for range flying { // let the other half go
		}
	}()
	for ch := range flying {
		time.Sleep(time.Until(ch.due) + c.passage(len(ch.data)))
		if !c.waitMoving(w, dir) || !c.waitWhole(to) {
			return
		}
		data, last := c.disturb(w, dir, ch.data)
		if _, err := to.Write(data); err != nil || last {
			return
		}
	}
}

func (c *Cable) length() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delay
}

// SetLength makes the cable longer or shorter, as a time one way.
func (c *Cable) SetLength(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = d
}

// SetBandwidth limits each connection to so many bytes per second each way; 0
// takes the limit away.
func (c *Cable) SetBandwidth(bytesPerSecond int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate = bytesPerSecond
}

// passage is how long n bytes take through the width of the cable.
func (c *Cable) passage(n int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rate == 0 {
		return 0
	}
	return time.Duration(int64(n) * int64(time.Second) / c.rate)
}

// waitWhole waits while the cable is cut. It returns false when the
// connection belongs to the time before a cut: its bytes are lost.
func (c *Cable) waitWhole(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.cut && !c.ended {
		c.cond.Wait()
	}
	_, alive := c.conns[conn]
	return alive && !c.ended
}

func (c *Cable) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		_ = conn.Close()
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *Cable) drop(conn net.Conn) {
	_ = conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// SetCut cuts or heals the cable. What was on the way at the cut is gone:
// with the healing the connections of before break.
func (c *Cable) SetCut(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if !cut {
		for conn := range c.conns {
			_ = conn.Close()
			delete(c.conns, conn)
		}
	}
	c.cond.Broadcast()
}

// Close ends everything.
func (c *Cable) Close() error {
	c.mu.Lock()
	c.ended = true
	for conn := range c.conns {
		_ = conn.Close()
	}
	c.cond.Broadcast()
	c.mu.Unlock()
	var errs []error
	for _, e := range c.ends {
		errs = append(errs, e.listener.Close())
	}
	c.wg.Wait()
	return errors.Join(errs...)
}
