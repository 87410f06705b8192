package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// socketPair is two connected unix sockets.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]*net.UnixConn{}
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return conns[0], conns[1]
}

// TestInboxIsAFaithfulReader: whatever sizes it is asked for and however the
// stream is cut up, it gives the stream's bytes in order.
func TestInboxIsAFaithfulReader(t *testing.T) {
	stream := pattern(3<<20, 9)
	rapid.Check(t, func(t *rapid.T) {
		var src io.Reader = bytes.NewReader(stream)
		if rapid.Bool().Draw(t, "halved") {
			src = iotest.HalfReader(src)
		}
		in := newInbox(src)
		at := 0
		for at < len(stream) {
			n := rapid.IntRange(0, 200_000).Draw(t, "n")
			n = min(n, len(stream)-at)
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				n = min(n, directBytes)
				b, err := in.peek(n)
				if err != nil || !bytes.Equal(b, stream[at:at+n]) {
					t.Fatalf("peek %d at %d: %v", n, at, err)
				}
				in.skip(n)
			case 1:
				b := make([]byte, n)
				if err := in.read(b); err != nil || !bytes.Equal(b, stream[at:at+n]) {
					t.Fatalf("read %d at %d: %v", n, at, err)
				}
			case 2:
				if err := in.discard(int64(n)); err != nil {
					t.Fatalf("discard %d at %d: %v", n, at, err)
				}
			}
			at += n
		}
		if _, err := in.peek(1); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
	})
}

func TestInboxEnds(t *testing.T) {
	short := func() *inbox { return newInbox(bytes.NewReader(make([]byte, 100))) }
	if _, err := short().peek(101); err != io.ErrUnexpectedEOF {
		t.Errorf("peek: %v", err)
	}
	for _, n := range []int{101, directBytes} {
		if err := short().read(make([]byte, n)); err != io.ErrUnexpectedEOF {
			t.Errorf("read %d: %v", n, err)
		}
	}
	if err := short().discard(101); err != io.ErrUnexpectedEOF {
		t.Errorf("discard: %v", err)
	}
	broken := errors.New("broken")
	if err := newInbox(iotest.ErrReader(broken)).read(make([]byte, directBytes)); err != broken {
		t.Errorf("broken source: %v", err)
	}
}

// TestOutboxKeepsOrder: frames of all sizes arrive whole and in order, through
// a socket that is often full, and each is given back once.
func TestOutboxKeepsOrder(t *testing.T) {
	a, b := socketPair(t)
	returned := make(map[*frame]int)
	o, err := newOutbox(a, time.Minute, func(fs []*frame) {
		for _, f := range fs {
			returned[f]++ // only the writer calls this
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	var frames []*frame
	for i := range 1000 {
		f := &frame{length: 1 + i%requestLen}
		copy(f.header[:], pattern(requestLen, byte(i)))
		if i%3 != 0 {
			f.payload = pattern(1+i*i%50_000, byte(i))
		}
		want = append(append(want, f.header[:f.length]...), f.payload...)
		frames = append(frames, f)
	}
	got := make(chan []byte)
	go func() { all, _ := io.ReadAll(b); got <- all }()
	for i, f := range frames {
		if i%100 == 0 {
			o.hold()
		}
		o.push(f)
		if i%100 == 70 {
			o.release()
		}
	}
	o.release()
	o.quiesce()
	_ = a.CloseWrite()
	if !bytes.Equal(<-got, want) {
		t.Error("the stream is not what was pushed")
	}
	for i, f := range frames {
		if returned[f] != 1 {
			t.Fatalf("frame %d was given back %d times", i, returned[f])
		}
	}
}

func TestOutboxDropsAfterFailure(t *testing.T) {
	a, b := socketPair(t)
	dropped := 0
	o, err := newOutbox(a, 50*time.Millisecond, func(fs []*frame) { dropped += len(fs) })
	if err != nil {
		t.Fatal(err)
	}
	o.push(&frame{length: 4, payload: make([]byte, 16<<20)}) // nobody reads
	o.quiesce()
	if !errors.Is(o.failed(), os.ErrDeadlineExceeded) || dropped != 1 {
		t.Errorf("after a stall: %v, %d dropped", o.failed(), dropped)
	}
	o.push(&frame{length: 4})
	o.quiesce()
	if dropped != 2 {
		t.Errorf("%d dropped", dropped)
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		t.Errorf("the reader was not told: %v", err)
	}
}

func TestConsume(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := pattern(1000, 1)
		var iovs []unix.Iovec
		for rest := data; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			iovs = append(iovs, iovec(rest[:n]))
			rest = rest[n:]
		}
		for at := 0; at < len(data); {
			n := rapid.IntRange(1, len(data)-at).Draw(t, "n")
			at += n
			iovs = consume(iovs, n)
			if at < len(data) && *iovs[0].Base != data[at] {
				t.Fatalf("after %d bytes the vector starts elsewhere", at)
			}
		}
		if len(iovs) != 0 {
			t.Fatal("bytes remain")
		}
	})
}
