package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"replicad/wire"
)

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i)*31 + byte(i>>8) + seed
	}
	return p
}

// TestMessages moves every size class: in the read buffer, across its end, and
// straight into the payload's buffer.
func TestMessages(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	sizes := []uint32{512, 4096, 4096, directReadMin - 512, directReadMin, directReadMin + 512, 128 << 10, 512, dataReadBuffer, wire.PayloadMax, 4096}
	go func() {
		for i, size := range sizes {
			m := wire.Msg{Kind: wire.KindData, Seq: uint64(i), Off: 4096, Len: size}
			if err := sa.Data.Queue(&m, pattern(int(size), byte(i)), BufferID(i+1)); err != nil {
				t.Error(err)
			}
			rare := wire.Msg{Kind: wire.KindSizes, Vol: uint16(i), Body: &wire.Sizes{Disk: uint64(i)}}
			if err := sa.Data.Queue(&rare, nil, 0); err != nil {
				t.Error(err)
			}
			rare.Body.(*wire.Sizes).Disk = 99 // reused at once, as Queue allows
		}
		if err := sa.Data.Flush(); err != nil {
			t.Error(err)
		}
	}()
	for i, size := range sizes {
		m, payload, err := sb.Data.Read(alloc)
		if err != nil || m.Seq != uint64(i) || m.Len != size || !bytes.Equal(payload, pattern(int(size), byte(i))) {
			t.Fatalf("message %d: %+v, %v", i, m, err)
		}
		m, _, err = sb.Data.Read(alloc)
		if err != nil || m.Body.(*wire.Sizes).Disk != uint64(i) {
			t.Fatalf("body %d: %+v, %v", i, m, err)
		}
	}
	waitFor(t, "all buffers", func() bool { total, _ := a.releases(); return total == len(sizes) })
	a.mu.Lock()
	defer a.mu.Unlock()
	if last := a.sent[len(a.sent)-1]; last != uint64(len(sizes)-1) {
		t.Errorf("sent up to %d", last)
	}
}

// TestConcurrentSenders: many goroutines queue, flush and kick at once. Each
// one's messages arrive in its order, none twice, and every buffer comes back
// exactly once.
func TestConcurrentSenders(t *testing.T) {
	const senders, each = 8, 500
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	var wg sync.WaitGroup
	for id := range senders {
		wg.Go(func() {
			payload := pattern(4096, byte(id))
			for i := range each {
				m := wire.Msg{Kind: wire.KindData, Vol: uint16(id), Seq: uint64(i), Len: 4096}
				if err := sa.Data.Queue(&m, payload, BufferID(id*each+i+1)); err != nil {
					t.Error(err)
					return
				}
				if i%3 == 0 {
					sa.Data.Kick()
				} else if err := sa.Data.Flush(); err != nil {
					t.Error(err)
					return
				}
			}
			sa.Data.Kick()
		})
	}
	var next [senders]uint64
	buf := make([]byte, 4096)
	for range senders * each {
		m, payload, err := sb.Data.Read(func(int) []byte { return buf })
		if err != nil {
			t.Fatal(err)
		}
		if m.Seq != next[m.Vol] || !bytes.Equal(payload, pattern(4096, byte(m.Vol))) {
			t.Fatalf("sender %d: message %d instead of %d", m.Vol, m.Seq, next[m.Vol])
		}
		next[m.Vol]++
	}
	wg.Wait()
	waitFor(t, "all buffers", func() bool { total, twice := a.releases(); return total == senders*each && twice == 0 })
	waitFor(t, "an empty queue", func() bool { return sa.Data.Queued() == 0 })
}

// TestSentIsInOrder: numbers only grow, and a message is sent before the Flush
// that wrote it returns.
func TestSentIsInOrder(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	go func() {
		for {
			if _, _, err := sb.Data.Read(alloc); err != nil {
				return
			}
		}
	}()
	for seq := range uint64(300) {
		m := wire.Msg{Kind: wire.KindTrim, Seq: seq, Len: 4096}
		if err := sa.Data.Queue(&m, nil, 0); err != nil {
			t.Fatal(err)
		}
		if seq%4 == 3 {
			if err := sa.Data.Flush(); err != nil {
				t.Fatal(err)
			}
			a.mu.Lock()
			if last := a.sent[len(a.sent)-1]; last != seq {
				t.Errorf("flush of %d returned when %d was sent", seq, last)
			}
			a.mu.Unlock()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := 1; i < len(a.sent); i++ {
		if a.sent[i] <= a.sent[i-1] {
			t.Fatalf("sent %d after %d", a.sent[i], a.sent[i-1])
		}
	}
}

// fill queues and kicks until the socket takes no more.
func fill(t *testing.T, s *Session) (messages int) {
	t.Helper()
	payload := pattern(wire.PayloadMax, 3) // not all alike: a piece sent twice must show
	for s.Data.Queued() < 8<<20 {
		m := wire.Msg{Kind: wire.KindData, Seq: uint64(messages), Len: wire.PayloadMax}
		if err := s.Data.Queue(&m, payload, BufferID(messages+1)); err != nil {
			t.Fatal(err)
		}
		messages++
		s.Data.Kick()
		if messages > 512 {
			t.Fatal("the socket never fills")
		}
	}
	return messages
}

// TestKickNeverWaits: the peer does not read. Kick returns, Flush waits until
// the peer reads again, and nothing is lost.
func TestKickNeverWaits(t *testing.T) {
	long := func(c *Config) { c.WriteTimeout = time.Minute }
	a, b := pair(t, long, long)
	sa, sb := connect(t, a, b)
	begin := time.Now()
	n := fill(t, sa)
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("kicking %d messages took %v", n, took)
	}
	flushed := make(chan error, 1)
	go func() { flushed <- sa.Data.Flush() }()
	select {
	case err := <-flushed:
		t.Fatalf("flush into a full socket returned %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	buf := make([]byte, wire.PayloadMax)
	for i := range n {
		m, _, err := sb.Data.Read(func(int) []byte { return buf })
		if err != nil || m.Seq != uint64(i) {
			t.Fatalf("message %d: %+v, %v", i, m, err)
		}
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
	if total, twice := a.releases(); total != n || twice != 0 {
		t.Errorf("%d of %d buffers released, %d twice", total, n, twice)
	}
}

// TestWriteTimeout: a peer that takes nothing for a whole WriteTimeout ends
// the session, and every buffer comes back.
func TestWriteTimeout(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.WriteTimeout = 200 * time.Millisecond }, nil)
	sa, _ := connect(t, a, b)
	n := fill(t, sa)
	if err := sa.Data.Flush(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("flush: %v", err)
	}
	<-sa.Done()
	waitFor(t, "all buffers", func() bool { total, twice := a.releases(); return total == n && twice == 0 })
	waitFor(t, "the control connection to end", func() bool {
		return errors.Is(sa.Control.Queue(&wire.Msg{Kind: wire.KindPing}, nil, 0), os.ErrDeadlineExceeded)
	})
}

// TestSlowPeerIsNotATimeout: a peer that reads a little all the time keeps the
// session, however long the whole batch takes.
func TestSlowPeerIsNotATimeout(t *testing.T) {
	small := func(c *Config) {
		c.WriteTimeout = 300 * time.Millisecond
		c.Socket = SocketOptions{SendBuffer: 16 << 10, ReceiveBuffer: 16 << 10}
	}
	a, b := pair(t, small, small)
	sa, sb := connect(t, a, b)
	flushed := make(chan error, 1)
	const n = 3
	go func() {
		payload := make([]byte, wire.PayloadMax)
		for i := range n {
			if err := sa.Data.Queue(&wire.Msg{Kind: wire.KindData, Seq: uint64(i), Len: wire.PayloadMax}, payload, 0); err != nil {
				t.Error(err)
			}
		}
		flushed <- sa.Data.Flush()
	}()
	begin := time.Now()
	left := n * (wire.HeaderSize + wire.PayloadMax)
	buf := make([]byte, 256<<10)
	for left > 0 {
		time.Sleep(50 * time.Millisecond)
		got, err := sb.Data.tcp.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		left -= got
	}
	if err := <-flushed; err != nil {
		t.Errorf("flush after %v: %v", time.Since(begin), err)
	}
	t.Logf("took %v", time.Since(begin))
}

// TestCloseReleasesBuffers: whatever is queued when the session ends, by
// either end, comes back once.
func TestCloseReleasesBuffers(t *testing.T) {
	for name, end := range map[string]func(near, far *Session){
		"closed here":  func(near, _ *Session) { near.Close(errors.New("enough")) },
		"closed there": func(_, far *Session) { far.Close(errors.New("enough")) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, nil, nil)
			sa, sb := connect(t, a, b)
			n := fill(t, sa)
			end(sa, sb)
			<-sa.Done()
			waitFor(t, "all buffers", func() bool { total, twice := a.releases(); return total == n && twice == 0 })
			if err := sa.Data.Queue(&wire.Msg{Kind: wire.KindBarrier}, nil, 1); err == nil || err.Error() != sa.Err().Error() {
				t.Errorf("queue after the end: %v", err)
			}
			if err := sa.Data.Flush(); name == "closed here" && err == nil {
				t.Error("flush after the end of a session that lost messages succeeded")
			}
			sa.Data.Kick()
			if sa.Data.Queued() != 0 {
				t.Errorf("%d bytes queued", sa.Data.Queued())
			}
		})
	}
}

func TestQueueRefuses(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.QueueBytesMax = 10000 }, nil)
	sa, _ := connect(t, a, b)
	payload := make([]byte, 4096)
	data := wire.Msg{Kind: wire.KindData, Len: 4096}
	for range 2 {
		if err := sa.Data.Queue(&data, payload, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := sa.Data.Queue(&data, payload, 0); !errors.Is(err, ErrQueueFull) {
		t.Errorf("third: %v", err)
	}
	if got := sa.Data.Queued(); got != 2*(4096+wire.HeaderSize) {
		t.Errorf("%d bytes queued", got)
	}
	if err := sa.Control.Queue(&data, payload, 0); !errors.Is(err, wire.ErrChannel) {
		t.Errorf("data on control: %v", err)
	}
	if err := sa.Data.Queue(&wire.Msg{Kind: wire.KindData, Len: 512}, payload, 0); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("wrong payload size: %v", err)
	}
	if err := sa.Data.Queue(&wire.Msg{Kind: wire.KindSizes}, nil, 0); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("missing body: %v", err)
	}
}

// TestCorruptionEndsTheSession: whatever byte of a data frame changes on the
// way, the payload is not delivered and the session ends.
func TestCorruptionEndsTheSession(t *testing.T) {
	for _, at := range []int{0, 5, 20, 45, 60, wire.HeaderSize, wire.HeaderSize + 4095} {
		t.Run(fmt.Sprint("byte ", at), func(t *testing.T) {
			a, b := pair(t, nil, nil)
			sa, sb := connect(t, a, b)
			payload := pattern(4096, 1)
			frame, err := wire.AppendMsg(nil, &wire.Msg{Kind: wire.KindData, Len: 4096}, payload)
			if err != nil {
				t.Fatal(err)
			}
			frame = append(frame, payload...)
			frame[at] ^= 0x10
			if _, err := sa.Data.tcp.Write(frame); err != nil {
				t.Fatal(err)
			}
			_, buf, err := sb.Data.Read(alloc)
			if !errors.Is(err, wire.ErrHash) && !errors.Is(err, wire.ErrMagic) {
				t.Fatalf("got %v", err)
			}
			if (buf != nil) != (at >= wire.HeaderSize) {
				t.Errorf("buffer returned with the error: %t", buf != nil)
			}
			if _, _, err := sa.Control.Read(alloc); err == nil {
				t.Error("the other connection survived")
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	frame := mustFrame(t, wire.Msg{Kind: wire.KindBarrier})
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"end between frames": {frame, io.EOF},
		"end inside a frame": {append(bytes.Clone(frame), frame[:30]...), io.ErrUnexpectedEOF},
		"wrong channel":      {append(bytes.Clone(frame), mustFrame(t, wire.Msg{Kind: wire.KindPing})...), wire.ErrChannel},
		"garbage":            {append(bytes.Clone(frame), make([]byte, 64)...), wire.ErrMagic},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, nil, nil)
			sa, sb := connect(t, a, b)
			if _, err := sa.Data.tcp.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			if err := sa.Data.tcp.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if m, _, err := sb.Data.Read(alloc); err != nil || m.Kind != wire.KindBarrier {
				t.Fatalf("first frame: %v", err)
			}
			if _, _, err := sb.Data.Read(alloc); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if !errors.Is(sb.Err(), c.want) {
				t.Errorf("session ended with %v", sb.Err())
			}
		})
	}
}

func TestWrongBuffer(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	send(t, sa.Data, wire.Msg{Kind: wire.KindData, Len: 512}, make([]byte, 512))
	if _, _, err := sb.Data.Read(func(int) []byte { return nil }); !errors.Is(err, ErrBuffer) {
		t.Errorf("got %v", err)
	}
}

// TestReset: an RST (unread data at close) ends both ends.
func TestReset(t *testing.T) {
	a, b := pair(t, nil, nil)
	sa, sb := connect(t, a, b)
	if err := sb.Data.tcp.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	sb.Close(errors.New("crash"))
	if _, _, err := sa.Data.Read(alloc); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	<-sa.Done()
}

// TestCallbackMayQueueAndKick: Sent runs without locks of the outbox.
func TestCallbackMayQueueAndKick(t *testing.T) {
	var once sync.Once
	a, b := pair(t, func(c *Config) {
		c.Events.Sent = func(s *Session, _ uint64) {
			once.Do(func() {
				if err := s.Data.Queue(&wire.Msg{Kind: wire.KindBarrier, Seq: 77}, nil, 0); err != nil {
					t.Error(err)
				}
				s.Data.Kick()
			})
		}
	}, nil)
	sa, sb := connect(t, a, b)
	send(t, sa.Data, wire.Msg{Kind: wire.KindTrim, Len: 512}, nil)
	for _, want := range []wire.Kind{wire.KindTrim, wire.KindBarrier} {
		if m, _, err := sb.Data.Read(alloc); err != nil || m.Kind != want {
			t.Fatalf("got %v, %v", m.Kind, err)
		}
	}
}

// TestSteadyStateAllocatesNothing: queue, flush, read of a 4 KiB write and
// queue, kick, read of its ack.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Events = Events{Release: func(BufferID) {}, Sent: func(*Session, uint64) {}} }, nil)
	sa, sb := connect(t, a, b)
	payload, buf := pattern(4096, 1), make([]byte, 4096)
	give := func(int) []byte { return buf }
	data, ack := wire.Msg{Kind: wire.KindData, Len: 4096}, wire.Msg{Kind: wire.KindWriteAck}
	n := testing.AllocsPerRun(500, func() {
		data.Seq++
		if sa.Data.Queue(&data, payload, 1) != nil || sa.Data.Flush() != nil {
			t.Fatal(sa.Err())
		}
		m, _, err := sb.Data.Read(give)
		if err != nil {
			t.Fatal(err)
		}
		ack.Seq = m.Seq
		if sb.Control.Queue(&ack, nil, 0) != nil {
			t.Fatal(sb.Err())
		}
		sb.Control.Kick()
		if m, _, err = sa.Control.Read(give); err != nil || m.Seq != data.Seq {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a round trip", n)
	}
}

// benchmarkSend measures 4 KiB writes in batches, one way.
func benchmarkSend(b *testing.B, batch int, write func(*Conn)) {
	x, y := pair(b, func(c *Config) { c.Events = Events{} }, nil)
	sx, sy := connect(b, x, y)
	payload, buf := pattern(4096, 1), make([]byte, 4096)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for range b.N {
			if _, _, err := sy.Data.Read(func(int) []byte { return buf }); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	m := wire.Msg{Kind: wire.KindData, Len: 4096}
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		for sx.Data.Queue(&m, payload, 0) != nil {
			if err := sx.Data.Flush(); err != nil {
				b.Fatal(err)
			}
		}
		if i%batch == batch-1 {
			write(sx.Data)
		}
	}
	if err := sx.Data.Flush(); err != nil {
		b.Fatal(err)
	}
	<-read
	b.StopTimer()
}

func BenchmarkSend(b *testing.B) {
	flush := func(c *Conn) { _ = c.Flush() }
	for _, batch := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("flush/batch=%d", batch), func(b *testing.B) { benchmarkSend(b, batch, flush) })
		b.Run(fmt.Sprintf("kick/batch=%d", batch), func(b *testing.B) { benchmarkSend(b, batch, (*Conn).Kick) })
	}
}

// BenchmarkRoundTrip is the link's part of a protocol C write at queue depth 1:
// data there, ack back, each end's reader a goroutine of its own.
func BenchmarkRoundTrip(b *testing.B) {
	for name, write := range map[string]func(*Conn){
		"flush": func(c *Conn) { _ = c.Flush() }, "kick": (*Conn).Kick, "background": wakeBackground,
	} {
		b.Run(name, func(b *testing.B) { benchmarkRoundTrip(b, write) })
	}
}

// wakeBackground leaves all writing to the background writer: what Kick would
// be without writing inline.
func wakeBackground(c *Conn) {
	o := c.out
	o.mu.Lock()
	idle := o.err == nil && !o.writing && len(o.queue) > 0
	o.writing = o.writing || idle
	o.mu.Unlock()
	if idle {
		o.handoff <- struct{}{}
	}
}

func benchmarkRoundTrip(b *testing.B, write func(*Conn)) {
	x, y := pair(b, func(c *Config) { c.Events = Events{} }, nil)
	sx, sy := connect(b, x, y)
	payload, buf := pattern(4096, 1), make([]byte, 4096)
	go func() {
		for {
			m, _, err := sy.Data.Read(func(int) []byte { return buf })
			if err != nil {
				return
			}
			if sy.Control.Queue(&wire.Msg{Kind: wire.KindWriteAck, Seq: m.Seq}, nil, 0) == nil {
				write(sy.Control)
			}
		}
	}()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if err := sx.Data.Queue(&wire.Msg{Kind: wire.KindData, Seq: uint64(i), Len: 4096}, payload, 0); err != nil {
			b.Fatal(err)
		}
		write(sx.Data)
		if _, _, err := sx.Control.Read(alloc); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
}
