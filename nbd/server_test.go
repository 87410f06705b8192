package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestExportNameOption(t *testing.T) {
	for _, noZeroes := range []bool{false, true} {
		f := serve(t, Config{}, newMemory("r0", testSize+100))
		w := f.connectRaw()
		flags, length := clientFixedNewstyle, 10+exportZeroesLen
		if noZeroes {
			flags, length = flags|clientNoZeroes, 10
		}
		w.send(be32(flags))
		w.option(optExportName, []byte("r0"))
		b := w.read(length)
		if size := binary.BigEndian.Uint64(b); size != testSize {
			t.Errorf("size %d: odd bytes at the end must not be offered", size)
		}
		if got := TransmissionFlags(binary.BigEndian.Uint16(b[8:])); got != (Attributes{}).transmissionFlags() {
			t.Errorf("flags %#x", got)
		}
		if !bytes.Equal(b[10:], make([]byte, length-10)) {
			t.Error("the reserved bytes are not zero")
		}
		w.inStep()
	}
}

// TestNewstyleClient: a client that never heard of fixed newstyle.
func TestNewstyleClient(t *testing.T) {
	w := serve(t, Config{}, newMemory("r0", testSize)).connectRaw()
	w.send(be32(0))
	w.option(optExportName, nil)
	w.read(10 + exportZeroesLen)
	w.inStep()
}

func TestInfoOption(t *testing.T) {
	m := newMemory("r0", testSize)
	m.attr = Attributes{MultiConn: true, Rotational: true}
	m.openErr = errors.New("not Primary")
	w := serve(t, Config{}, m).haggle()
	w.option(optInfo, selection{infos: []uint16{infoName, infoDescription, infoBlockSize}}.append(nil))
	info := ExportInfo{}
	name := ""
	for {
		kind, data := w.reply(optInfo)
		if kind == repAck {
			break
		}
		if binary.BigEndian.Uint16(data) == infoName {
			name = string(data[2:])
		}
		if err := info.merge(optionReply{kind, data}); err != nil {
			t.Fatal(err)
		}
	}
	want := ExportInfo{
		Description: "memory for tests", Size: testSize,
		Flags:        FlagHasFlags | FlagSendFlush | FlagSendFUA | FlagSendTrim | FlagSendWriteZeroes | FlagCanMultiConn | FlagRotational,
		BlockSizeMin: 512, BlockSizePreferred: 4096, BlockSizeMax: 32 << 20,
	}
	if info != want || name != "r0" {
		t.Errorf("INFO told %+v and name %q", info, name)
	}
	w.option(optGo, selection{name: "r0"}.append(nil)) // still in negotiation
	if kind, text := w.reply(optGo); kind != repErrPolicy || string(text) != "not Primary" {
		t.Errorf("GO: %#x %q", kind, text)
	}
	if m.opens.Load() != 0 {
		t.Error("the export was opened")
	}
}

func TestAddRefuses(t *testing.T) {
	srv, err := NewServer(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Add(newMemory("a", 512)); err != nil {
		t.Fatal(err)
	}
	if err := srv.Add(newMemory("a", 512)); !errors.Is(err, ErrDuplicateExport) {
		t.Errorf("second export of a name: %v", err)
	}
	for _, name := range []string{"a\x00b", strings.Repeat("n", NameBytesMax+1)} {
		if err := srv.Add(newMemory(name, 512)); !errors.Is(err, ErrBadExportName) {
			t.Errorf("name of %d bytes: %v", len(name), err)
		}
	}
	if _, err := NewServer(Config{BytesInFlightMax: RequestBytesMax - 1}); err == nil {
		t.Error("a budget too small for one request was accepted")
	}
}

func TestClientsCountAndRemove(t *testing.T) {
	a, b := newMemory("a", testSize), newMemory("b", testSize)
	f := serve(t, Config{}, a, b)
	f.dial("a")
	f.dial("a")
	other := f.dial("b")
	if got := f.srv.Clients("a"); len(got) != 2 || got[0].PID == 0 || got[0].Export != "a" {
		t.Errorf("clients of a: %+v", got)
	}
	if err := f.srv.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if n := len(f.srv.Clients("a")); n != 0 || a.closes.Load() != 2 {
		t.Errorf("%d clients and %d closed handlers after Remove", n, a.closes.Load())
	}
	if _, err := Dial(t.Context(), f.uri("a")); !errors.Is(err, ErrUnknownExport) {
		t.Errorf("dial after Remove: %v", err)
	}
	if err := other.Flush(); err != nil {
		t.Errorf("client of the other export: %v", err)
	}
}

// TestDisconnectWaitsForReplies is a demotion: what was accepted is answered,
// what comes later gets ESHUTDOWN, then the connection ends.
func TestDisconnectWaitsForReplies(t *testing.T) {
	m := newMemory("r0", testSize)
	held := make(chan *Request, 1)
	m.answer = func(r *Request, _ error) { held <- r }
	f := serve(t, Config{}, m)
	w := f.transmission("r0")
	w.request(requestHeader{op: OpWrite, cookie: 1, length: 512}, make([]byte, 512))
	r := <-held
	finished := make(chan error, 1)
	go func() { finished <- f.srv.Disconnect(context.Background(), "r0") }()
	waitFor(t, func() bool {
		w.request(requestHeader{op: OpWrite, cookie: 2, length: 512}, make([]byte, 512))
		select {
		case again := <-held: // revocation has not arrived yet
			again.Reply(nil)
			return w.answer(2) != 0
		case <-time.After(50 * time.Millisecond):
			return w.answer(2) == ESHUTDOWN
		}
	})
	select {
	case err := <-finished:
		t.Fatalf("Disconnect returned %v before the last reply", err)
	default:
	}
	r.Reply(nil)
	if errno := w.answer(1); errno != 0 {
		t.Errorf("the accepted write ended with %v", errno)
	}
	w.closed()
	if err := <-finished; err != nil || m.closes.Load() != 1 {
		t.Errorf("Disconnect: %v; handler closed %d times", err, m.closes.Load())
	}
}

// TestDisconnectGivesUp: a handler that never answers does not hold Disconnect
// beyond its context, and is closed only after it did answer.
func TestDisconnectGivesUp(t *testing.T) {
	m := newMemory("r0", testSize)
	held := make(chan *Request, 1)
	m.answer = func(r *Request, _ error) { held <- r }
	f := serve(t, Config{}, m)
	w := f.transmission("r0")
	w.request(requestHeader{op: OpFlush, cookie: 1}, nil)
	r := <-held
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := f.srv.Disconnect(ctx, "r0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Disconnect: %v", err)
	}
	w.closed()
	if m.closes.Load() != 0 || len(f.srv.Clients("r0")) != 1 {
		t.Error("the handler was closed before its last reply")
	}
	r.Reply(nil)
	waitFor(t, func() bool { return m.closes.Load() == 1 })
}

// TestDisconnectDuringPayload: a client that stopped in the middle of a write
// does not hold up a demotion, one that goes on is told ESHUTDOWN.
func TestDisconnectDuringPayload(t *testing.T) {
	m := newMemory("r0", testSize)
	f := serve(t, Config{}, m)
	stuck, slow := f.transmission("r0"), f.transmission("r0")
	for _, w := range []*wire{stuck, slow} {
		w.request(requestHeader{op: OpWrite, cookie: 1, length: 1 << 20}, make([]byte, 1000))
	}
	waitFor(t, func() bool { // both requests are being read
		f.srv.budget.mu.Lock()
		defer f.srv.budget.mu.Unlock()
		return f.srv.budget.used == 2<<20
	})
	finished := make(chan error, 1)
	go func() { finished <- f.srv.Disconnect(context.Background(), "r0") }()
	time.Sleep(50 * time.Millisecond)
	slow.send(make([]byte, 1<<20-1000))
	if errno := slow.answer(1); errno != ESHUTDOWN {
		t.Errorf("the write was answered %v", errno)
	}
	slow.closed()
	stuck.closed()
	if err := <-finished; err != nil {
		t.Error(err)
	}
}

// slowDescription lets a test act between Open and the first request.
type slowDescription struct {
	*memory
	entered, proceed chan struct{}
}

func (e *slowDescription) Description() string {
	e.entered <- struct{}{}
	<-e.proceed
	return "slow"
}

// TestDisconnectBeforeFirstRequest: the wake-up must survive the change of
// deadlines at the end of the handshake.
func TestDisconnectBeforeFirstRequest(t *testing.T) {
	e := &slowDescription{newMemory("r0", testSize), make(chan struct{}), make(chan struct{})}
	f := serve(t, Config{}, e)
	w := f.haggle()
	w.option(optGo, selection{name: "r0"}.append(nil))
	<-e.entered
	finished := make(chan error, 1)
	go func() { finished <- f.srv.Disconnect(context.Background(), "r0") }()
	time.Sleep(20 * time.Millisecond)
	close(e.proceed)
	select {
	case err := <-finished:
		if err != nil || e.closes.Load() != 1 {
			t.Errorf("Disconnect: %v; %d handlers closed", err, e.closes.Load())
		}
	case <-time.After(wireTimeout):
		t.Error("Disconnect waits for a client that was never woken")
	}
}

// slowOpen lets a test act while an export is being opened.
type slowOpen struct {
	*memory
	entered, proceed chan struct{}
}

func (e *slowOpen) Open(info ClientInfo) (Handler, error) {
	e.entered <- struct{}{}
	<-e.proceed
	return e.memory.Open(info)
}

// TestDisconnectDuringOpen: a client between Open and its first request must
// not slip through a demotion.
func TestDisconnectDuringOpen(t *testing.T) {
	e := &slowOpen{newMemory("r0", testSize), make(chan struct{}), make(chan struct{})}
	f := serve(t, Config{}, e)
	w := f.haggle()
	w.option(optGo, selection{name: "r0"}.append(nil))
	<-e.entered
	finished := make(chan error, 1)
	go func() { finished <- f.srv.Disconnect(context.Background(), "r0") }()
	time.Sleep(20 * time.Millisecond)
	select {
	case err := <-finished:
		t.Fatalf("Disconnect overlooked the client: %v", err)
	default:
	}
	close(e.proceed)
	if kind, _ := w.reply(optGo); kind != repErrShutdown {
		t.Errorf("GO was answered %#x", kind)
	}
	if err := <-finished; err != nil || e.closes.Load() != 1 {
		t.Errorf("Disconnect: %v; %d handlers closed", err, e.closes.Load())
	}
}

func TestServerClose(t *testing.T) {
	m := newMemory("r0", testSize)
	f := serve(t, Config{}, m)
	idle, haggling := f.transmission("r0"), f.haggle()
	if err := f.srv.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	idle.closed()
	haggling.closed()
	if _, err := Dial(t.Context(), f.uri("r0")); err == nil {
		t.Error("a closed server was reached")
	}
	if m.closes.Load() != 1 {
		t.Errorf("%d handlers closed", m.closes.Load())
	}
	l, err := Listen("unix:" + t.TempDir() + "/s")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.srv.Serve(l); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	var log lockedBuffer
	f := serve(t, Config{ConnectionsMax: 2, Logger: slog.New(slog.NewTextHandler(&log, nil))}, newMemory("r0", testSize))
	a := f.transmission("r0")
	f.transmission("r0")
	if _, err := Dial(t.Context(), f.uri("r0")); err == nil {
		t.Error("a third client was let in")
	}
	waitFor(t, func() bool { return strings.Contains(log.String(), "turned away") })
	_ = a.Close()
	waitFor(t, func() bool {
		c, err := Dial(t.Context(), f.uri("r0"))
		if err == nil {
			c.Abort()
		}
		return err == nil
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestReplierNeverWaits: a client that reads nothing must not hold up whoever
// replies, for that may be the goroutine that serves everybody.
func TestReplierNeverWaits(t *testing.T) {
	m := newMemory("r0", testSize)
	held := make(chan *Request, 64)
	m.answer = func(r *Request, _ error) { held <- r }
	f := serve(t, Config{StallTimeout: 300 * time.Millisecond}, m)
	w := f.transmission("r0")
	const n = 12
	for i := range uint64(n) {
		w.request(requestHeader{op: OpRead, cookie: i, length: 4 << 20}, nil)
	}
	start := time.Now()
	for range n {
		(<-held).Reply(nil)
	}
	if waited := time.Since(start); waited > 250*time.Millisecond {
		t.Errorf("replying took %v", waited)
	}
	waitFor(t, func() bool { return m.closes.Load() == 1 }) // given up after the stall limit
	if f.srv.budget.used != 0 {
		t.Errorf("%d bytes of budget are still held", f.srv.budget.used)
	}
}

// TestUnreadErrorsAreBounded: a client that sends bad requests and reads no
// replies must not make the server remember them all.
func TestUnreadErrorsAreBounded(t *testing.T) {
	f := serve(t, Config{StallTimeout: 200 * time.Millisecond}, newMemory("r0", testSize))
	w := f.transmission("r0")
	_ = w.SetWriteDeadline(time.Now().Add(10 * time.Second))
	bad := bytes.Repeat(requestBytes(requestHeader{op: 99}, nil), 10000)
	for range 100 {
		if _, err := w.Write(bad); err != nil {
			return // the server gave the client up, as it should
		}
	}
	t.Error("28 MB of unread errors were taken")
}

// TestBudgetSharedFairly: large requests of many connections pass through a
// budget that holds only one of them at a time.
func TestBudgetSharedFairly(t *testing.T) {
	m := newMemory("r0", testSize)
	var late sync.WaitGroup
	m.answer = func(r *Request, err error) { late.Go(func() { r.Reply(err) }) }
	f := serve(t, Config{BytesInFlightMax: RequestBytesMax}, m)
	var wg sync.WaitGroup
	for i := range 6 {
		c := f.dial("r0")
		for j := range 4 {
			wg.Go(func() {
				size := []int{4096, testSize}[(i+j)%2]
				for range 20 {
					if _, err := c.ReadAt(make([]byte, size), 0); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	late.Wait()
}

// TestLargestBehindSmall: replies held back for the batch must not stand in the
// way of the request that needs the whole budget.
func TestLargestBehindSmall(t *testing.T) {
	w := serve(t, Config{}, newMemory("r0", RequestBytesMax)).transmission("r0")
	b := requestBytes(requestHeader{op: OpRead, cookie: 1, length: 512}, nil)
	w.send(append(b, requestBytes(requestHeader{op: OpRead, cookie: 2, length: RequestBytesMax}, nil)...))
	if errno := w.answer(1); errno != 0 {
		t.Error(errno)
	}
	w.read(512)
	if errno := w.answer(2); errno != 0 {
		t.Error(errno)
	}
	w.read(RequestBytesMax)
}

// TestDrainEndsEveryBatch: a handler that starts nothing before Drain must
// still answer everything, with one Drain for a batch that came as one.
func TestDrainEndsEveryBatch(t *testing.T) {
	m := newMemory("r0", testSize)
	var queue []*Request // reader goroutine only
	m.answer = func(r *Request, _ error) { queue = append(queue, r) }
	m.drained = func() {
		for _, r := range queue {
			r.Reply(nil)
		}
		queue = nil
	}
	w := serve(t, Config{}, m).transmission("r0")
	var b []byte
	const n = 20
	for i := range uint64(n) {
		b = append(b, requestBytes(requestHeader{op: OpRead, cookie: i, length: 512}, nil)...)
	}
	w.send(b)
	for i := range uint64(n) {
		if errno := w.answer(i); errno != 0 {
			t.Fatal(errno)
		}
		w.read(512)
	}
	if d := m.drains.Load(); d != 1 {
		t.Errorf("%d drains for one batch", d)
	}
}

func TestReplyTwicePanics(t *testing.T) {
	m := newMemory("r0", testSize)
	recovered := make(chan any, 1)
	m.answer = func(r *Request, _ error) {
		defer func() { recovered <- recover() }()
		r.Reply(nil)
		r.Reply(nil)
	}
	serve(t, Config{}, m).transmission("r0").inStep()
	if text := fmt.Sprint(<-recovered); !strings.Contains(text, "answered twice") {
		t.Errorf("recovered %v", text)
	}
}

func TestPayloadsAreAligned(t *testing.T) {
	m := newMemory("r0", testSize)
	m.fault = func(r *Request) error {
		if misalignment(r.Data) != 0 {
			t.Errorf("%d bytes at %p", len(r.Data), r.Data)
		}
		return nil
	}
	c := serve(t, Config{}, m).dial("r0")
	for n := 512; n <= 4<<20; n *= 2 {
		if _, err := c.WriteAt(make([]byte, n), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadAt(make([]byte, n), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTruncatedStreams(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize))
	stream := be32(clientFixedNewstyle | clientNoZeroes)
	stream = appendOption(stream, optList, nil)
	stream = appendOption(stream, optGo, selection{name: "r0", infos: []uint16{3}}.append(nil))
	stream = append(stream, requestBytes(requestHeader{op: OpWrite, length: 512}, make([]byte, 512))...)
	for n := range len(stream) {
		w := f.connectRaw()
		w.send(stream[:n])
		_ = w.Conn.(interface{ CloseWrite() error }).CloseWrite()
		_ = w.SetReadDeadline(time.Now().Add(wireTimeout))
		if _, err := io.Copy(io.Discard, w); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		_ = w.Close()
	}
}
