package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"replicad/internal/figure"
)

// besieged is a server with one good client that reads and writes all the time.
type besieged struct {
	*fixture
	export *memory
	rounds atomic.Int64
	stop   func()
}

// besiege starts the server and its good client; hooks of the export are set first.
func besiege(t *testing.T, cfg Config, hooks ...func(m *memory)) *besieged {
	t.Helper()
	s := &besieged{export: newMemory("r0", testSize)}
	s.export.blank = func(r *Request) bool { return r.Length >= 1<<20 } // none of the good client's
	for _, set := range hooks {
		set(s.export)
	}
	s.fixture = serve(t, cfg, s.export)
	good := s.dial("r0")
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		got := make([]byte, 4096)
		for round := byte(0); ; round++ {
			select {
			case <-stop:
				return
			default:
			}
			want := pattern(4096, round)
			if _, err := good.WriteAt(want, 4<<20); err != nil {
				t.Errorf("the good client: %v", err)
				return
			}
			if _, err := good.ReadAt(got, 4<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the good client reads something else, %v", err)
				return
			}
			s.rounds.Add(1)
		}
	})
	s.stop = sync.OnceFunc(func() { close(stop); load.Wait() })
	t.Cleanup(s.stop)
	s.progress()
	return s
}

// progress demands that the good client is served: 50 rounds from now on.
func (s *besieged) progress() {
	s.t.Helper()
	from := s.rounds.Load()
	s.eventually("50 rounds of the good client", func() bool { return s.rounds.Load() >= from+50 })
}

// eventually is waitFor with patience for a loaded machine.
func (s *besieged) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not so after 30 s", what)
		}
	}
}

// bytesInFlight is what all requests hold.
func (s *besieged) bytesInFlight() int64 {
	s.srv.budget.mu.Lock()
	defer s.srv.budget.mu.Unlock()
	return s.srv.budget.used
}

func (s *besieged) connections() int {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	return len(s.srv.conns)
}

// ask asks for n bytes again and again without reading a reply, until the server
// hangs up.
func (w *wire) ask(n uint32) {
	for cookie := uint64(0); ; cookie++ {
		if _, err := w.Write(requestBytes(requestHeader{op: OpRead, cookie: cookie, length: n}, nil)); err != nil {
			return
		}
	}
}

// TestSiegeDeafClients: clients ask for more than they will ever read. Each holds
// its own part of the budget and no more, others are served, and when the limit
// for stalls is over they are gone and everything they held is free.
func TestSiegeDeafClients(t *testing.T) {
	const deaf = 3
	s := besiege(t, Config{BytesInFlightMax: (deaf + 1) * connectionBytesMax, StallTimeout: 4 * time.Second})
	for range deaf {
		go s.transmission("r0").ask(4 << 20)
	}
	most := int64(0)
	s.eventually("the deaf clients fill their parts", func() bool {
		most = max(most, s.bytesInFlight())
		return most >= deaf*(connectionBytesMax-8<<20)
	})
	s.progress()
	s.eventually("the deaf clients are gone", func() bool {
		most = max(most, s.bytesInFlight())
		return s.connections() == 1
	})
	if most > deaf*connectionBytesMax+1<<20 {
		t.Errorf("%d deaf clients held %d MiB", deaf, most>>20)
	}
	s.progress()
	s.stop()
	s.eventually("everything is given back", func() bool { return s.bytesInFlight() == 0 })
}

// TestSiegeWholeBudget: so many clients that their parts exceed the budget of the
// server. It is never exceeded, and a good client waits its turn, no longer than
// the limit for stalls.
func TestSiegeWholeBudget(t *testing.T) {
	s := besiege(t, Config{BytesInFlightMax: 2 * connectionBytesMax, StallTimeout: 500 * time.Millisecond})
	for range 8 {
		go s.transmission("r0").ask(1 << 20)
	}
	most := int64(0)
	s.eventually("all of them are gone", func() bool {
		most = max(most, s.bytesInFlight())
		return s.connections() == 1 && most > connectionBytesMax
	})
	if most > 2*connectionBytesMax {
		t.Errorf("%d MiB were in flight", most>>20)
	}
	s.progress()
}

// TestSiegeDeadClientIsForgotten: a client asks for much and reads nothing. Once it
// is given up, what it still has waiting in our buffers is not carried out.
func TestSiegeDeadClientIsForgotten(t *testing.T) {
	var served atomic.Int64
	s := besiege(t, Config{StallTimeout: 300 * time.Millisecond}, func(m *memory) {
		m.fault = func(r *Request) error {
			if r.Length == 8<<20 {
				served.Add(1)
			}
			return nil
		}
	})
	w := s.transmission("r0")
	w.send(bytes.Repeat(requestBytes(requestHeader{op: OpRead, length: 8 << 20}, nil), 4000))
	s.eventually("the client is given up", func() bool { return s.connections() == 1 })
	// Its part of the budget, then nothing but what was under way.
	if got := served.Load(); got > connectionBytesMax/(8<<20)+4 {
		t.Errorf("%d reads of 8 MiB were carried out for a client that reads nothing", got)
	}
	s.progress()
}

// TestSiegeHalfRequests: clients stop in every place of a request. They are cut
// off in time, the handler never sees half a request, and nobody else waits.
func TestSiegeHalfRequests(t *testing.T) {
	s := besiege(t, Config{StallTimeout: 500 * time.Millisecond})
	whole := requestBytes(requestHeader{op: OpWrite, length: 64 << 10}, pattern(64<<10, 3))
	for n := requestLen; n < len(whole); n += 7000 {
		s.transmission("r0").send(whole[:n])
	}
	for n := 1; n < requestLen; n++ { // an unfinished header is an idle client: it may stay
		w := s.transmission("r0")
		w.send(whole[:n])
		_ = w.Close()
	}
	s.progress()
	s.eventually("the others are gone", func() bool { return s.connections() == 1 })
	if !s.export.holds(0, make([]byte, 64<<10)) {
		t.Error("half a write was carried out")
	}
	s.progress()
}

// TestSiegeHaggling: options without end, and export names beyond the limit. The
// number of options and the time of a negotiation are bounded.
func TestSiegeHaggling(t *testing.T) {
	s := besiege(t, Config{HandshakeTimeout: time.Second})
	for _, b := range [][]byte{
		appendOption(nil, optExportName, make([]byte, NameBytesMax+1)),
		appendOption(nil, optExportName, bytes.Repeat([]byte("x"), NameBytesMax+1)),
		appendOption(nil, optExportName, bytes.Repeat([]byte("x"), optionBytesMax+1)),
		append([]byte("IHAVEOPT"), 0, 0, 0, 1, 255, 255, 255, 255),
	} {
		w := s.haggle()
		w.send(b)
		w.closed()
	}
	for _, o := range []option{optList, optInfo, optGo, 999} {
		w := s.haggle()
		answered := 0
		go func() { // ends when the server hangs up
			for {
				if _, err := w.Write(appendOption(nil, o, nil)); err != nil {
					return
				}
			}
		}()
		for {
			_ = w.SetReadDeadline(time.Now().Add(wireTimeout))
			head := make([]byte, optionReplyLen)
			if _, err := io.ReadFull(w, head); err != nil {
				break
			}
			w.read(int(binary.BigEndian.Uint32(head[16:])))
			answered++
		}
		if answered > 2*optionsMax {
			t.Errorf("option %d was answered %d times", o, answered)
		}
	}
	s.progress()
}

// TestSiegeCrowd: thousands of clients. At most ConnectionsMax are kept, the good
// one is served, memory stays within what so many connections may take, the log
// gets a few lines, and afterwards others get in again.
func TestSiegeCrowd(t *testing.T) {
	const most = 64
	book := &lineCounter{}
	s := besiege(t, Config{ConnectionsMax: most, HandshakeTimeout: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(book, nil))})
	n := crowdSize(t, 4000)
	before := heapNow()
	begin := time.Now()
	crowd := make([]net.Conn, 0, n)
	for i := range n {
		conn, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		crowd = append(crowd, conn)
		if kept := s.connections(); kept > most {
			t.Fatalf("%d clients are kept", kept)
		}
		if i%1000 == 0 {
			s.progress()
		}
	}
	if grown := int64(heapNow()) - int64(before); grown > (most+32)*inboxBytes {
		t.Errorf("%d clients hold %d KiB", n, grown>>10)
	}
	for _, conn := range crowd {
		_ = conn.Close()
	}
	s.progress()
	s.eventually("the others are gone", func() bool { return s.connections() == 1 })
	s.transmission("r0").inStep()
	if lines, allowed := book.lines.Load(), complaintsMax*(2+int64(time.Since(begin)/time.Second)); lines > allowed {
		t.Errorf("%d lines in the log, at most %d are for %d clients that came to nothing", lines, allowed, n)
	}
	figure.Print("half-open-connections", n)
}

type lineCounter struct{ lines atomic.Int64 }

func (l *lineCounter) Write(p []byte) (int, error) {
	l.lines.Add(int64(bytes.Count(p, []byte("\n"))))
	return len(p), nil
}

func heapNow() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// crowdSize is how many connections at a time the descriptor limit allows: both
// ends of each may be in this process.
func crowdSize(t testing.TB, want int) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return min(want, int(min(limit.Cur, 1<<20)-200)/2)
}

// TestSiegeRequests: one good client and, beside it, clients that send what is
// absurd without end. None of it reaches the handler.
func TestSiegeRequests(t *testing.T) {
	s := besiege(t, Config{}, func(m *memory) {
		m.fault = func(r *Request) error {
			if r.Offset+uint64(r.Length) > testSize || r.Offset+uint64(r.Length) < r.Offset || r.Length > RequestBytesMax && r.Op <= OpWrite {
				t.Errorf("the handler saw %v of %d at %d", r.Op, r.Length, r.Offset)
			}
			return nil
		}
	})
	for _, h := range []requestHeader{
		{op: OpRead, length: math.MaxUint32},
		{op: OpRead, offset: math.MaxUint64, length: math.MaxUint32},
		{op: OpRead, offset: testSize - 1, length: 2},
		{op: OpTrim, offset: math.MaxUint64 - 511, length: 512},
		{op: OpWriteZeroes, offset: 1 << 63, length: math.MaxUint32 - 511},
		{op: OpFlush, flags: 0xffff},
		{op: 0xffff, flags: 0xffff, offset: math.MaxUint64, length: math.MaxUint32},
	} {
		w := s.transmission("r0")
		var sender sync.WaitGroup
		const times = 2000
		sender.Go(func() {
			for cookie := range uint64(times) {
				h.cookie = cookie
				w.request(h, nil)
			}
		})
		for cookie := range uint64(times) {
			if got := w.answer(cookie); got == 0 {
				t.Fatalf("%+v succeeds", h)
			}
		}
		sender.Wait()
		w.inStep()
		_ = w.Close()
	}
	s.progress()
}

// TestSiegeVanishingClients: clients go away in the middle of payloads and of
// replies, with their requests in flight at a slow handler. All of it is given
// back, and the handler of each is closed once.
func TestSiegeVanishingClients(t *testing.T) {
	const n = 40
	var late sync.WaitGroup
	s := besiege(t, Config{}, func(m *memory) {
		m.answer = func(r *Request, err error) {
			if r.Length == 64<<10 {
				late.Go(func() { time.Sleep(20 * time.Millisecond); r.Reply(err) })
				return
			}
			r.Reply(err)
		}
	})
	closed := s.export.closes.Load()
	for i := range n {
		w := s.transmission("r0")
		var b []byte
		for range 20 {
			b = append(b, requestBytes(requestHeader{op: OpRead, length: 64 << 10}, nil)...)
		}
		b = append(b, requestBytes(requestHeader{op: OpWrite, length: 1 << 20}, make([]byte, i*1000))...)
		w.send(b)
		_ = w.Close()
	}
	s.eventually("the others are gone", func() bool { return s.connections() == 1 })
	late.Wait()
	if got := s.export.closes.Load() - closed; got != n {
		t.Errorf("%d handlers closed, want %d", got, n)
	}
	s.stop()
	s.eventually("everything is given back", func() bool { return s.bytesInFlight() == 0 })
}

// TestSiegeShutdown: an export is withdrawn, then the server closed, while all
// kinds of bad clients hang on. A client that reads nothing is cut off after
// replyGrace, others at once; nobody is waited for longer.
func TestSiegeShutdown(t *testing.T) {
	s := besiege(t, Config{})
	hangOn := func() {
		for range 5 {
			s.connectRaw()
			s.haggle().send([]byte("IHAVE"))
			s.transmission("r0").send(requestBytes(requestHeader{op: OpWrite, length: 1 << 20}, make([]byte, 100)))
			w := s.transmission("r0")
			for range 40 {
				w.request(requestHeader{op: OpRead, length: 1 << 20}, nil)
			}
		}
	}
	s.stop()
	for _, end := range []func(ctx context.Context) error{
		func(ctx context.Context) error { return s.srv.Disconnect(ctx, "r0") },
		s.srv.Close,
	} {
		hangOn()
		begin := time.Now()
		err := end(t.Context())
		if took := time.Since(begin); err != nil || took > replyGrace+8*time.Second {
			t.Errorf("%v, after %v", err, took)
		}
	}
}
