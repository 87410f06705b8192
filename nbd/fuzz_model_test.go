package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// listener reads what a server says, for a model that knows what it must say.
type listener struct {
	t testing.TB
	b []byte
}

func (l *listener) take(n int, what string) []byte {
	l.t.Helper()
	if n > len(l.b) {
		l.t.Fatalf("%s is missing: %x", what, l.b)
	}
	b := l.b[:n]
	l.b = l.b[n:]
	return b
}

func (l *listener) silence() {
	l.t.Helper()
	if len(l.b) != 0 {
		l.t.Fatalf("the server says %d bytes too many: %x", len(l.b), l.b[:min(len(l.b), 64)])
	}
}

// reply takes one reply to option o and returns its type.
func (l *listener) reply(o option) replyType {
	l.t.Helper()
	h := l.take(optionReplyLen, "a reply")
	if binary.BigEndian.Uint64(h) != 0x3e889045565a9 || option(binary.BigEndian.Uint32(h[8:])) != o {
		l.t.Fatalf("option %d was answered with %x", o, h)
	}
	n := binary.BigEndian.Uint32(h[16:])
	if n > 2*NameBytesMax+8 {
		l.t.Fatalf("a reply of %d bytes", n)
	}
	l.take(int(n), "the reply's data")
	return replyType(binary.BigEndian.Uint32(h[12:]))
}

// replies takes replies until the last to option o, which must be want; those
// before it are of type more.
func (l *listener) replies(o option, more, want replyType) {
	l.t.Helper()
	for {
		switch got := l.reply(o); {
		case got == want:
			return
		case got != more:
			l.t.Fatalf("option %d was answered with %#x, want %#x", o, got, want)
		}
	}
}

// checkNegotiation reads the client's bytes b once more, by the words of the NBD
// specification, and holds what the server said against them. The only export
// is r0.
func checkNegotiation(t testing.TB, b, said []byte) {
	t.Helper()
	l := &listener{t, said}
	l.take(greetingLen, "the greeting")
	if len(b) < 4 || binary.BigEndian.Uint32(b)&^3 != 0 {
		l.silence()
		return
	}
	noZeroes := b[3]&2 != 0
	b = b[4:]
	for range optionsMax {
		if len(b) < 16 || string(b[:8]) != "IHAVEOPT" {
			break
		}
		o, n := option(binary.BigEndian.Uint32(b[8:])), int64(binary.BigEndian.Uint32(b[12:]))
		if n > optionBytesMax || n > int64(len(b)-16) {
			break
		}
		if checkOption(l, o, b[16:16+n], noZeroes) {
			return
		}
		b = b[16+n:]
	}
	l.silence()
}

// checkOption takes the answer to one option and reports whether negotiation is over.
func checkOption(l *listener, o option, data []byte, noZeroes bool) bool {
	l.t.Helper()
	switch o {
	case 1: // EXPORT_NAME
		if name := string(data); name == "r0" || name == "" {
			n := 10
			if !noZeroes {
				n += 124
			}
			l.take(n, "the export's size and flags")
			return true
		}
		l.silence()
		return true
	case 2: // ABORT
		l.replies(o, repError, repAck)
		l.silence()
		return true
	case 3: // LIST
		if len(data) > 0 {
			l.replies(o, repError, repErrInvalid)
		} else {
			l.replies(o, repServer, repAck)
		}
	case 6, 7: // INFO, GO
		name, fine := selected(data)
		switch {
		case !fine:
			l.replies(o, repError, repErrInvalid)
		case name != "r0" && name != "":
			l.replies(o, repError, repErrUnknown)
		default:
			l.replies(o, repInfo, repAck)
			return o == 7
		}
	default:
		l.replies(o, repError, repErrUnsupported)
	}
	return false
}

// selected reads the data of INFO and GO with a reader instead of indices.
func selected(data []byte) (name string, fine bool) {
	r := bytes.NewReader(data)
	var nameLen uint32
	var count uint16
	if binary.Read(r, binary.BigEndian, &nameLen) != nil || nameLen > 4096 {
		return "", false
	}
	text := make([]byte, nameLen)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", false
	}
	if binary.Read(r, binary.BigEndian, &count) != nil || r.Len() != 2*int(count) {
		return "", false
	}
	return string(text), !strings.Contains(string(text), "\x00")
}

// requestModel is the device as a slice and the rules for requests, in the
// order of the specification.
type requestModel struct {
	data []byte
}

// answer says what a request is answered with, and changes the device if it
// succeeds. fatal: the connection ends after the answer.
func (m *requestModel) answer(h requestHeader, payload []byte) (want Errno, read []byte, fatal bool) {
	flags := map[Op]uint16{0: 1, 1: 1, 3: 1, 4: 1, 6: 3}
	allowed, known := flags[h.op]
	size, off, n := uint64(len(m.data)), h.offset, uint64(h.length)
	fatal = h.op == 1 && n > 64<<20
	switch {
	case !known || h.flags&^allowed != 0 || fatal:
		return EINVAL, nil, fatal
	case h.op == 3:
		if off != 0 || n != 0 {
			return EINVAL, nil, false
		}
		return 0, nil, false
	case h.op == 0 && n > 64<<20:
		return EINVAL, nil, false
	case off > size || n > size-off:
		if h.op == 1 || h.op == 6 {
			return ENOSPC, nil, false
		}
		return EINVAL, nil, false
	case h.op != 0 && (off%512 != 0 || n%512 != 0):
		return EINVAL, nil, false
	}
	switch h.op {
	case 0:
		return 0, slices.Clone(m.data[off : off+n]), false
	case 1:
		copy(m.data[off:], payload)
	default:
		clear(m.data[off : off+n])
	}
	return 0, nil, false
}

// requestTape turns the fuzzer's bytes into requests, often near a limit.
type requestTape struct{ b []byte }

func (t *requestTape) pick(n int) int {
	if len(t.b) == 0 {
		return 0
	}
	x := int(t.b[0]) % n
	t.b = t.b[1:]
	return x
}

const modelSize = 256 << 10

func (t *requestTape) request(cookie uint64) (h requestHeader, payload []byte) {
	ops := []Op{0, 1, 1, 3, 4, 6, 6, 0, 5, 7, 99, 0xffff}
	offsets := []uint64{
		0, 512, 4096, 7, modelSize - 512, modelSize - 1, modelSize, modelSize + 1, 1 << 31, 1 << 32, 1<<63 - 512, 1 << 63,
		math.MaxUint64 - 511, math.MaxUint64, 65536, 100 << 10,
	}
	lengths := []uint32{512, 4096, 0, 1, 513, 1024, 64 << 10, 128 << 10, modelSize, modelSize + 512, 64 << 20, 64<<20 + 1, 1 << 31, math.MaxUint32, math.MaxUint32 - 511, 3}
	h = requestHeader{
		magic: magicRequest, op: ops[t.pick(len(ops))], cookie: cookie,
		offset: offsets[t.pick(len(offsets))], length: lengths[t.pick(len(lengths))],
	}
	if t.pick(4) == 3 {
		h.flags = 1 << t.pick(16)
	}
	if h.op == 1 && h.length <= 1<<20 {
		payload = pattern(int(h.length), byte(cookie))
	} else if h.op == 1 && h.length <= 64<<20 {
		h.length = 4096 // half a gigabyte a run would only be slow
		payload = pattern(4096, byte(cookie))
	}
	return h, payload
}

// FuzzRequests plays sequences of requests, good, bad and absurd, all sent at
// once, and holds every answer, and the device at the end, against a model.
func FuzzRequests(f *testing.F) {
	for i := range byte(12) {
		f.Add(bytes.Repeat([]byte{i, i * 3, i * 5, i}, 8))
		f.Add([]byte{1, i, 0, 0, i, i + 1, 2, 0, 0, i, 1, 0, 5, 4, 6, 0, 0, 0, i, 0})
	}
	m := newMemory("r0", modelSize)
	fx := serve(f, Config{}, m)
	f.Fuzz(func(t *testing.T, in []byte) {
		fx.t = t
		m.mu.Lock()
		clear(m.data)
		m.mu.Unlock()
		model := &requestModel{data: make([]byte, modelSize)}
		w := fx.transmission("r0")
		defer w.Close()
		tape := requestTape{in[:min(len(in), 400)]}
		var out []byte
		type expected struct {
			errno Errno
			read  []byte
		}
		var answers []expected
		for fatal := false; !fatal && len(tape.b) > 0; {
			h, payload := tape.request(uint64(len(answers)))
			var e expected
			e.errno, e.read, fatal = model.answer(h, payload)
			answers = append(answers, e)
			out = append(out, requestBytes(h, payload)...)
		}
		go func() { _, _ = w.Write(out); _ = w.Conn.(*net.UnixConn).CloseWrite() }()
		for i, want := range answers {
			if got := w.answer(uint64(i)); got != want.errno {
				t.Fatalf("request %d was answered %v, want %v", i, got, want.errno)
			}
			if got := w.read(len(want.read)); !bytes.Equal(got, want.read) {
				t.Fatalf("request %d read something else", i)
			}
		}
		w.closed()
		if !m.holds(0, model.data) {
			t.Fatal("the device differs from the model")
		}
	})
}

// FuzzURI: what is accepted names a place to connect to.
func FuzzURI(f *testing.F) {
	for _, s := range []string{"nbd://h:1/x", "nbd+unix:///x?socket=/s", "nbd://[::1]/", "nbd:", "nbd+unix://", "nbd://h:99999/", "://", "nbd://%zz", "nbd+unix:///%00?socket=%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		got, err := parseURI(uri)
		if err != nil {
			return
		}
		if got.network != "unix" && got.network != "tcp" || got.address == "" {
			t.Fatalf("%q is %+v", uri, got)
		}
	})
}

// hearAll reads until the server hangs up.
func hearAll(t testing.TB, w *wire) []byte {
	t.Helper()
	_ = w.SetReadDeadline(time.Now().Add(wireTimeout))
	said, err := io.ReadAll(w)
	if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
		t.Fatal("the server neither answers nor hangs up")
	}
	return said
}
