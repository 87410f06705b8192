package cable

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

const patience = 5 * time.Second

// line is one connection through a cable with both its ends in hand.
type line struct {
	t         *testing.T
	c         *Cable
	listener  net.Listener
	near, far net.Conn
	id        ConnID
}

func newLine(t *testing.T) *line {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := New()
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			t.Error(err)
		}
	})
	addr, err := c.Plug(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	x := &line{t: t, c: c, listener: l, near: dial(t, addr)}
	x.far = x.accept()
	for len(c.Conns()) == 0 {
		time.Sleep(time.Millisecond)
	}
	x.id = c.Conns()[0]
	x.pass(x.near, x.far, "hello")
	x.pass(x.far, x.near, "hello yourself")
	return x
}

func (x *line) accept() net.Conn {
	x.t.Helper()
	conn, err := x.listener.Accept()
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (x *line) write(from net.Conn, text string) {
	x.t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		x.t.Fatal(err)
	}
}

// read returns what arrives, up to n bytes, and why no more did.
func (x *line) read(to net.Conn, n int, wait time.Duration) (string, error) {
	x.t.Helper()
	if err := to.SetReadDeadline(time.Now().Add(wait)); err != nil {
		x.t.Fatal(err)
	}
	buf := make([]byte, n)
	got, err := io.ReadFull(to, buf)
	return string(buf[:got]), err
}

// pass sends a text that has to arrive.
func (x *line) pass(from, to net.Conn, text string) {
	x.t.Helper()
	x.write(from, text)
	if got, err := x.read(to, len(text), patience); got != text || err != nil {
		x.t.Fatalf("%q arrived as %q: %v", text, got, err)
	}
}

func (x *line) silent(to net.Conn) {
	x.t.Helper()
	if got, err := x.read(to, 1, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		x.t.Fatalf("%q, %v; want silence", got, err)
	}
}

// closed wants the end of the connection, at once.
func (x *line) closed(to net.Conn) {
	x.t.Helper()
	if _, err := x.read(to, 1, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		x.t.Fatalf("%v; want the end of the connection", err)
	}
}

func TestStallOneDirection(t *testing.T) {
	x := newLine(t)
	if !x.c.SetStall(x.id, Out, true) {
		t.Fatal("no such connection")
	}
	x.write(x.near, "later")
	x.silent(x.far)
	x.pass(x.far, x.near, "the other way")
	x.c.SetStall(x.id, Out, false)
	if got, err := x.read(x.far, 5, patience); got != "later" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestStallOneOfTwo(t *testing.T) {
	x := newLine(t)
	second := dial(t, x.c.ends[0].listener.Addr().String())
	far := x.accept()
	x.c.SetStall(x.id, Back, true)
	x.pass(second, far, "second")
	x.pass(far, second, "second back")
	x.write(x.far, "held")
	x.silent(x.near)
	if ids := x.c.Conns(); len(ids) != 2 || ids[0] != x.id || ids[1] <= ids[0] {
		t.Errorf("connections %v", ids)
	}
}

func TestCloseAfter(t *testing.T) {
	x := newLine(t)
	x.c.CloseAfter(x.id, Out, 4)
	x.write(x.near, "truncated")
	if got, err := x.read(x.far, 9, patience); got != "trun" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", got, err)
	}
	x.closed(x.near)
	if x.c.SetStall(x.id, Out, true) && len(x.c.Conns()) > 0 {
		time.Sleep(100 * time.Millisecond)
		if x.c.SetStall(x.id, Out, true) {
			t.Error("the connection is still listed")
		}
	}
}

func TestFlip(t *testing.T) {
	x := newLine(t)
	x.c.Flip(x.id, Back, 3, 0x20)
	x.write(x.far, "abcd")
	if got, err := x.read(x.near, 4, patience); got != "abCd" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	x.pass(x.far, x.near, "abcd")
	x.pass(x.near, x.far, "abcd")
}

func TestHalfOpen(t *testing.T) {
	x := newLine(t)
	x.c.HalfOpen(x.id, Out)
	x.closed(x.near)
	x.silent(x.far)
	for range 3 {
		x.write(x.far, "into the void") // nobody says that nobody is there
	}
	x.silent(x.far)
	x.c.SetCut(false)
	x.closed(x.far)
}

func TestHalfOpenTheOtherWay(t *testing.T) {
	x := newLine(t)
	x.c.HalfOpen(x.id, Back)
	x.closed(x.far)
	x.silent(x.near)
	x.write(x.near, "into the void")
	x.silent(x.near)
}

func TestBandwidth(t *testing.T) {
	x := newLine(t)
	x.c.SetBandwidth(100 << 10)
	began := time.Now()
	x.pass(x.near, x.far, string(make([]byte, 20<<10)))
	if d := time.Since(began); d < 150*time.Millisecond {
		t.Errorf("20 KiB through 100 KiB/s took %s", d)
	}
	x.c.SetBandwidth(0)
	began = time.Now()
	x.pass(x.near, x.far, string(make([]byte, 1<<20)))
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("1 MiB without a limit took %s", d)
	}
}

func TestDuplicate(t *testing.T) {
	x := newLine(t)
	x.pass(x.near, x.far, " and more")
	if err := x.c.Duplicate(x.id); err != nil {
		t.Fatal(err)
	}
	again := x.accept()
	if got, err := x.read(again, 14, patience); got != "hello and more" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	x.write(again, "nobody hears this")
	x.pass(x.far, x.near, "the first goes on")
	if err := x.c.Duplicate(x.id + 100); err == nil {
		t.Error("a connection that never was could be duplicated")
	}
}

// A cut ends a stall's connection with all others when it heals.
func TestHealingEndsStalledConnections(t *testing.T) {
	x := newLine(t)
	x.c.SetStall(x.id, Out, true)
	x.write(x.near, "never")
	x.c.SetCut(true)
	x.c.SetCut(false)
	x.closed(x.far)
	x.closed(x.near)
}

// Trouble waits for a connection that is yet to come, and for that one alone.
func TestTroubleNext(t *testing.T) {
	x := newLine(t)
	x.c.TroubleNext(Trouble{Dir: Out, CloseAfter: 3}, Trouble{Dir: Back, Flip: 2, Mask: 1}, Trouble{Dir: Out, Stall: true})
	x.pass(x.near, x.far, "the first is spared")
	open := func() (near, far net.Conn) {
		near = dial(t, x.c.ends[0].listener.Addr().String())
		far = x.accept()
		return near, far
	}
	near, far := open()
	x.write(near, "abcdef")
	if got, err := x.read(far, 6, patience); got != "abc" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", got, err)
	}
	near, far = open()
	x.pass(near, far, "abc")
	x.write(far, "abc")
	if got, err := x.read(near, 3, patience); got != "acc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	near, far = open()
	x.write(near, "held")
	x.silent(far)
	x.pass(far, near, "the other way")
	near, far = open()
	x.pass(near, far, "the last is spared")
}
