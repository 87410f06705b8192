package cable

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo answers every byte with itself.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func plugged(t *testing.T) (*Cable, string) {
	c := New()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	addr, err := c.Plug(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	return c, addr
}

func dial(t *testing.T, addr string) net.Conn {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask sends a word and waits for the echo.
func ask(conn net.Conn, patience time.Duration) error {
	if _, err := conn.Write([]byte("word")); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 4))
	return err
}

func TestCutSwallowsAndHealingBreaks(t *testing.T) {
	c, addr := plugged(t)
	conn := dial(t, addr)
	if err := ask(conn, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	c.SetCut(true)
	if err := ask(conn, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("through a cut cable: %v, want silence", err)
	}
	late := dial(t, addr)
	if err := ask(late, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("dialled into a cut cable: %v, want silence", err)
	}
	c.SetCut(false)
	if err := ask(conn, 5*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from before the cut: %v, want it broken", err)
	}
	if err := ask(dial(t, addr), 5*time.Second); err != nil {
		t.Errorf("after the healing: %v", err)
	}
}

func TestLength(t *testing.T) {
	c, addr := plugged(t)
	const length = 50 * time.Millisecond
	c.SetLength(length)
	conn := dial(t, addr)
	began := time.Now()
	if err := ask(conn, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d < 2*length {
		t.Errorf("there and back took %s, want at least %s", d, 2*length)
	}
}

func TestEndsPassOn(t *testing.T) {
	_, addr := plugged(t)
	conn := dial(t, addr)
	if err := ask(conn, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end of one direction: %v, want EOF", err)
	}
}

// The bytes on the way when the cable is cut never arrive.
func TestBytesOnTheWayAreLost(t *testing.T) {
	c := New()
	t.Cleanup(func() { _ = c.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	addr, err := c.Plug(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, addr)
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	c.SetLength(100 * time.Millisecond)
	if _, err := conn.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	c.SetCut(true)
	time.Sleep(200 * time.Millisecond)
	c.SetCut(false)
	if err := far.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := far.Read(make([]byte, 4)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes arrived, %v", n, err)
	}
}
