package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testSize = 8 << 20

// memory is an export in memory. Its hooks let a test decide how requests are
// answered.
type memory struct {
	name    string
	attr    Attributes
	openErr error

	mu   sync.RWMutex
	data []byte

	// answer, when set, is called instead of replying: it decides when and how.
	answer  func(r *Request, err error)
	fault   func(r *Request) error // an error here is the outcome
	blank   func(r *Request) bool  // true: succeeds without a look at the data, which saves time
	drained func()

	opens, closes, drains, flushes, fuas atomic.Int64
}

func newMemory(name string, size int) *memory { return &memory{name: name, data: make([]byte, size)} }

func (m *memory) Name() string           { return m.name }
func (m *memory) Description() string    { return "memory for tests" }
func (m *memory) Size() uint64           { return uint64(len(m.data)) }
func (m *memory) Attributes() Attributes { return m.attr }

func (m *memory) Open(ClientInfo) (Handler, error) {
	if m.openErr != nil {
		return nil, m.openErr
	}
	m.opens.Add(1)
	return m, nil
}

func (m *memory) Serve(r *Request) {
	err := m.perform(r)
	if m.answer != nil {
		m.answer(r, err)
		return
	}
	r.Reply(err)
}

func (m *memory) perform(r *Request) error {
	if m.fault != nil {
		if err := m.fault(r); err != nil {
			return err
		}
	}
	if m.blank != nil && m.blank(r) {
		return nil
	}
	if r.FUA {
		m.fuas.Add(1)
	}
	switch r.Op {
	case OpRead:
		m.mu.RLock()
		copy(r.Data, m.data[r.Offset:])
		m.mu.RUnlock()
	case OpWrite:
		m.mu.Lock()
		copy(m.data[r.Offset:], r.Data)
		m.mu.Unlock()
	case OpFlush:
		m.flushes.Add(1)
	case OpTrim, OpWriteZeroes:
		m.mu.Lock()
		clear(m.data[r.Offset : r.Offset+uint64(r.Length)])
		m.mu.Unlock()
	}
	return nil
}

// holds reports whether the export holds want at off.
func (m *memory) holds(off int64, want []byte) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Equal(m.data[off:off+int64(len(want))], want)
}

func (m *memory) Drain() {
	m.drains.Add(1)
	if m.drained != nil {
		m.drained()
	}
}

func (m *memory) Close() { m.closes.Add(1) }

// fixture is a server on a unix socket.
type fixture struct {
	t    testing.TB
	srv  *Server
	path string
}

// serve starts a server for exports and checks at the end that closing it
// leaves no goroutine and no budget behind.
func serve(t testing.TB, cfg Config, exports ...Export) *fixture {
	t.Helper()
	before, _ := goroutines()
	srv, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exports {
		if err := srv.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	f := &fixture{t: t, srv: srv, path: filepath.Join(t.TempDir(), "s")}
	f.listen("unix:" + f.path)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Close(ctx); err != nil {
			t.Errorf("close server: %v", err)
		}
		if srv.budget.used != 0 {
			t.Errorf("%d bytes of budget were never given back", srv.budget.used)
		}
		checkGoroutines(t, before)
	})
	return f
}

// goroutines counts those that run code of this package, tests included, and
// shows all stacks.
func goroutines() (n int, stacks string) {
	buf := make([]byte, 1<<20)
	stacks = string(buf[:runtime.Stack(buf, true)])
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(stack, "replicad/nbd.(*") {
			n++
		}
	}
	return n, stacks
}

func checkGoroutines(t testing.TB, before int) {
	t.Helper()
	for deadline := time.Now().Add(wireTimeout); ; time.Sleep(time.Millisecond) {
		after, stacks := goroutines()
		if after <= before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d after:\n%s", before, after, stacks)
		}
	}
}

func (f *fixture) listen(address string) net.Addr {
	f.t.Helper()
	l, err := Listen(address)
	if err != nil {
		f.t.Fatal(err)
	}
	go func() {
		if err := f.srv.Serve(l); !errors.Is(err, ErrServerClosed) {
			f.t.Errorf("serve: %v", err)
		}
	}()
	return l.Addr()
}

func (f *fixture) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + f.path
}

func (f *fixture) dial(export string) *Client {
	f.t.Helper()
	c, err := Dial(f.t.Context(), f.uri(export))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Abort)
	return c
}

// wire is a connection driven byte by byte.
type wire struct {
	t testing.TB
	net.Conn
}

// wireTimeout is how long an answer may take: on a machine with much else to do,
// a process can stand still for seconds.
const wireTimeout = 20 * time.Second

// connectRaw connects and reads the greeting.
func (f *fixture) connectRaw() *wire {
	f.t.Helper()
	c, err := net.Dial("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	w := &wire{t: f.t, Conn: c}
	greeting := w.read(greetingLen)
	if binary.BigEndian.Uint16(greeting[16:]) != flagFixedNewstyle|flagNoZeroes {
		f.t.Fatalf("handshake flags %x", greeting[16:])
	}
	return w
}

// haggle is connectRaw followed by the client's flags.
func (f *fixture) haggle() *wire {
	w := f.connectRaw()
	w.send(binary.BigEndian.AppendUint32(nil, clientFixedNewstyle|clientNoZeroes))
	return w
}

// transmission is haggle followed by the selection of export.
func (f *fixture) transmission(export string) *wire {
	f.t.Helper()
	w := f.haggle()
	w.option(optGo, selection{name: export}.append(nil))
	for {
		kind, _ := w.reply(optGo)
		if kind == repAck {
			return w
		}
		if kind != repInfo {
			f.t.Fatalf("GO was answered with %#x", kind)
		}
	}
}

func (w *wire) send(b []byte) {
	w.t.Helper()
	_ = w.SetWriteDeadline(time.Now().Add(wireTimeout))
	if _, err := w.Write(b); err != nil {
		w.t.Fatalf("send: %v", err)
	}
}

func (w *wire) read(n int) []byte {
	w.t.Helper()
	_ = w.SetReadDeadline(time.Now().Add(wireTimeout))
	b := make([]byte, n)
	if _, err := io.ReadFull(w, b); err != nil {
		w.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// closed checks that the server says nothing more and hangs up.
func (w *wire) closed() {
	w.t.Helper()
	_ = w.SetReadDeadline(time.Now().Add(wireTimeout))
	n, err := io.Copy(io.Discard, w)
	if n != 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		w.t.Fatalf("expected a hang-up, got %d bytes and %v", n, err)
	}
}

func (w *wire) option(o option, data []byte) {
	w.t.Helper()
	w.send(appendOption(nil, o, data))
}

func (w *wire) reply(o option) (replyType, []byte) {
	w.t.Helper()
	b := w.read(optionReplyLen)
	if binary.BigEndian.Uint64(b) != magicReply || option(binary.BigEndian.Uint32(b[8:])) != o {
		w.t.Fatalf("malformed reply to option %d: %x", o, b)
	}
	return replyType(binary.BigEndian.Uint32(b[12:])), w.read(int(binary.BigEndian.Uint32(b[16:])))
}

func (w *wire) request(h requestHeader, payload []byte) {
	w.t.Helper()
	w.send(requestBytes(h, payload))
}

func requestBytes(h requestHeader, payload []byte) []byte {
	if h.magic == 0 {
		h.magic = magicRequest
	}
	b := make([]byte, requestLen, requestLen+len(payload))
	h.put(b)
	return append(b, payload...)
}

// answer reads a simple reply and returns its error; the cookie must be right.
func (w *wire) answer(cookie uint64) Errno {
	w.t.Helper()
	b := w.read(simpleReplyLen)
	if magic := binary.BigEndian.Uint32(b); magic != magicSimpleReply {
		w.t.Fatalf("reply magic %#x", magic)
	}
	if got := binary.BigEndian.Uint64(b[8:]); got != cookie {
		w.t.Fatalf("reply to %#x, expected %#x", got, cookie)
	}
	return Errno(binary.BigEndian.Uint32(b[4:]))
}

// inStep proves that the server still understands the stream.
func (w *wire) inStep() {
	w.t.Helper()
	const cookie = 0xfeedfacecafebeef
	w.request(requestHeader{op: OpRead, cookie: cookie, offset: 4096, length: 512}, nil)
	if errno := w.answer(cookie); errno != 0 {
		w.t.Fatalf("read after the case: %v", errno)
	}
	w.read(512)
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed ^ byte(i) ^ byte(i>>8)*7 ^ byte(i>>16)*13
	}
	return b
}
