package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"time"
)

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func TestMalformedClientFlags(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize))
	for _, flags := range []uint32{1 << 2, 1 << 31, math.MaxUint32, clientFixedNewstyle | 1<<16} {
		w := f.connectRaw()
		w.send(be32(flags))
		w.closed()
	}
}

// TestMalformedOptions covers the options that are answered: each with the
// error the specification names, and the stream stays in step.
func TestMalformedOptions(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize))
	long := bytes.Repeat([]byte("x"), NameBytesMax+1)
	cases := []struct {
		name string
		opt  option
		data []byte
		want replyType
	}{
		{"unknown option", 999, nil, repErrUnsupported},
		{"unknown option with data", 0xffffffff, make([]byte, 1000), repErrUnsupported},
		{"unknown option of the largest length", 77, make([]byte, optionBytesMax), repErrUnsupported},
		{"option zero", 0, nil, repErrUnsupported},
		{"STARTTLS", 5, nil, repErrUnsupported},
		{"STRUCTURED_REPLY", 8, nil, repErrUnsupported},
		{"STRUCTURED_REPLY with data", 8, []byte("junk"), repErrUnsupported},
		{"LIST_META_CONTEXT", 9, append(be32(2), "r0\x00\x00\x00\x00"...), repErrUnsupported},
		{"SET_META_CONTEXT", 10, append(be32(2), "r0\x00\x00\x00\x00"...), repErrUnsupported},
		{"EXTENDED_HEADERS", 11, nil, repErrUnsupported},
		{"PEEK_EXPORT", 4, []byte("r0"), repErrUnsupported},
		{"LIST with payload", optList, []byte("r0"), repErrInvalid},
		{"empty GO", optGo, nil, repErrInvalid},
		{"empty INFO", optInfo, nil, repErrInvalid},
		{"short GO", optGo, be32(0), repErrInvalid},
		{"GO with name length 4 GiB in 6 bytes", optGo, []byte{255, 255, 255, 255, 0, 0}, repErrInvalid},
		{"GO with name length just over", optGo, []byte{0, 0, 0, 1, 0, 0}, repErrInvalid},
		{"GO with lying info count", optGo, append(be32(2), "r0\x00\x05"...), repErrInvalid},
		{"GO with odd info bytes", optGo, append(be32(2), "r0\x00\x01\x00"...), repErrInvalid},
		{"GO with trailing garbage", optGo, append(selection{name: "r0"}.append(nil), "garbage"...), repErrInvalid},
		{"INFO with trailing garbage", optInfo, append(selection{name: "r0"}.append(nil), 0), repErrInvalid},
		{"GO with name too long", optGo, selection{name: string(long)}.append(nil), repErrInvalid},
		{"GO with NUL in the name", optGo, selection{name: "r\x000"}.append(nil), repErrInvalid},
		{"GO with unknown name", optGo, selection{name: "nobody"}.append(nil), repErrUnknown},
		{"INFO with unknown name", optInfo, selection{name: "nobody"}.append(nil), repErrUnknown},
		{"GO with name that is not UTF-8", optGo, selection{name: "\xff\xfe"}.append(nil), repErrUnknown},
		{"GO with longest name", optGo, selection{name: string(long[1:])}.append(nil), repErrUnknown},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := f.haggle()
			w.t = t
			w.option(tc.opt, tc.data)
			if got, text := w.reply(tc.opt); got != tc.want || len(text) == 0 {
				t.Errorf("answered %#x %q, expected %#x", got, text, tc.want)
			}
			w.option(optGo, selection{name: "r0", infos: []uint16{infoName, 999}}.append(nil))
			for kind := repInfo; kind != repAck; {
				if kind, _ = w.reply(optGo); kind&repError != 0 {
					t.Fatalf("GO after the case: %#x", kind)
				}
			}
			w.inStep()
		})
	}
}

// TestFatalOptions covers what ends a negotiation.
func TestFatalOptions(t *testing.T) {
	secondary := newMemory("closed", testSize)
	secondary.openErr = errors.New("not Primary")
	f := serve(t, Config{}, newMemory("r0", testSize), secondary)
	header := func(magic uint64, o option, length uint32) []byte {
		b := binary.BigEndian.AppendUint64(nil, magic)
		return append(append(b, be32(uint32(o))...), be32(length)...)
	}
	cases := map[string][]byte{
		"bad option magic":                 header(0xbad, optList, 0),
		"unknown option of 4 GiB":          header(magicOption, 999, math.MaxUint32),
		"unknown option just too long":     header(magicOption, 999, optionBytesMax+1),
		"GO of 4 GiB":                      header(magicOption, optGo, math.MaxUint32),
		"EXPORT_NAME of 4 GiB":             header(magicOption, optExportName, math.MaxUint32),
		"EXPORT_NAME too long":             appendOption(nil, optExportName, make([]byte, NameBytesMax+1)),
		"EXPORT_NAME of nobody":            appendOption(nil, optExportName, []byte("nobody")),
		"EXPORT_NAME with NUL":             appendOption(nil, optExportName, []byte("r0\x00")),
		"EXPORT_NAME of a refused export":  appendOption(nil, optExportName, []byte("closed")),
		"EXPORT_NAME of no default export": appendOption(nil, optExportName, nil),
	}
	for name, b := range cases {
		t.Run(name, func(t *testing.T) {
			w := f.haggle()
			w.t = t
			w.send(b)
			w.closed()
		})
	}
}

func TestTooManyOptions(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize))
	w := f.haggle()
	for range optionsMax {
		w.option(999, nil)
		if kind, _ := w.reply(999); kind != repErrUnsupported {
			t.Fatalf("answered %#x", kind)
		}
	}
	w.closed()
}

func TestAbortIsAnswered(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize))
	for _, data := range [][]byte{nil, []byte("with data")} {
		w := f.haggle()
		w.option(optAbort, data)
		if kind, _ := w.reply(optAbort); kind != repAck {
			t.Errorf("ABORT answered %#x", kind)
		}
		w.closed()
	}
}

const (
	end  = testSize
	huge = math.MaxUint64 - 511
)

// refusedRequests are answered without the handler.
var refusedRequests = []struct {
	name    string
	h       requestHeader
	payload int
	want    Errno
}{
	{"unknown command", requestHeader{op: 99}, 0, EINVAL},
	{"unknown command with length", requestHeader{op: 99, length: 4096}, 0, EINVAL},
	{"unknown command with huge length", requestHeader{op: 0xffff, length: math.MaxUint32}, 0, EINVAL},
	{"CACHE not offered", requestHeader{op: 5, length: 512}, 0, EINVAL},
	{"BLOCK_STATUS not negotiated", requestHeader{op: 7, length: 512}, 0, EINVAL},
	{"RESIZE not offered", requestHeader{op: 8}, 0, EINVAL},
	{"read past end", requestHeader{op: OpRead, offset: end - 512, length: 1024}, 0, EINVAL},
	{"read beyond end", requestHeader{op: OpRead, offset: end + 512, length: 512}, 0, EINVAL},
	{"read that wraps around", requestHeader{op: OpRead, offset: huge, length: 1024}, 0, EINVAL},
	{"read at 2^63", requestHeader{op: OpRead, offset: 1 << 63, length: 512}, 0, EINVAL},
	{"read too long", requestHeader{op: OpRead, length: RequestBytesMax + 1}, 0, EINVAL},
	{"read of 4 GiB - 1", requestHeader{op: OpRead, length: math.MaxUint32}, 0, EINVAL},
	{"write past end", requestHeader{op: OpWrite, offset: end - 512, length: 1024}, 1024, ENOSPC},
	{"write beyond end", requestHeader{op: OpWrite, offset: end, length: 512}, 512, ENOSPC},
	{"long write beyond end", requestHeader{op: OpWrite, offset: end, length: 3 << 20}, 3 << 20, ENOSPC},
	{"write that wraps around", requestHeader{op: OpWrite, offset: huge, length: 1024}, 1024, ENOSPC},
	{"write at 2^63", requestHeader{op: OpWrite, offset: 1 << 63, length: 512}, 512, ENOSPC},
	{"misaligned write", requestHeader{op: OpWrite, offset: 1, length: 512}, 512, EINVAL},
	{"write of part of a block", requestHeader{op: OpWrite, length: 100}, 100, EINVAL},
	{"trim past end", requestHeader{op: OpTrim, offset: end - 512, length: 1024}, 0, EINVAL},
	{"trim of 4 GiB - 1", requestHeader{op: OpTrim, length: math.MaxUint32}, 0, EINVAL},
	{"misaligned trim", requestHeader{op: OpTrim, offset: 7, length: 512}, 0, EINVAL},
	{"zeroes past end", requestHeader{op: OpWriteZeroes, offset: end - 512, length: 1024}, 0, ENOSPC},
	{"zeroes that wrap around", requestHeader{op: OpWriteZeroes, offset: huge, length: 1024}, 0, ENOSPC},
	{"misaligned zeroes", requestHeader{op: OpWriteZeroes, length: 513}, 0, EINVAL},
	{"flush with range", requestHeader{op: OpFlush, offset: 512, length: 512}, 0, EINVAL},
	{"flush with length", requestHeader{op: OpFlush, length: 1024}, 0, EINVAL},
	{"flush with offset", requestHeader{op: OpFlush, offset: 1}, 0, EINVAL},
	{"undefined flag on read", requestHeader{op: OpRead, flags: 1 << 15, length: 512}, 0, EINVAL},
	{"undefined flag on write", requestHeader{op: OpWrite, flags: 1 << 9, length: 4096}, 4096, EINVAL},
	{"DF without structured replies", requestHeader{op: OpRead, flags: 1 << 2, length: 512}, 0, EINVAL},
	{"REQ_ONE on read", requestHeader{op: OpRead, flags: 1 << 3, length: 512}, 0, EINVAL},
	{"NO_HOLE on write", requestHeader{op: OpWrite, flags: cmdNoHole, length: 512}, 512, EINVAL},
	{"FAST_ZERO not advertised", requestHeader{op: OpWriteZeroes, flags: 1 << 4, length: 512}, 0, EINVAL},
	{"FAST_ZERO with NO_HOLE", requestHeader{op: OpWriteZeroes, flags: 1<<4 | cmdNoHole, length: 512}, 0, EINVAL},
	{"PAYLOAD_LEN not negotiated", requestHeader{op: OpWrite, flags: 1 << 5, length: 512}, 512, EINVAL},
	// Of no length: unspecified, harmless, and answered as done.
	{"zero-length read", requestHeader{op: OpRead}, 0, 0},
	{"zero-length read at odd offset", requestHeader{op: OpRead, offset: 33}, 0, 0},
	{"zero-length read beyond end", requestHeader{op: OpRead, offset: end + 1}, 0, EINVAL},
	{"zero-length write", requestHeader{op: OpWrite}, 0, 0},
	{"zero-length write with FUA", requestHeader{op: OpWrite, flags: cmdFUA}, 0, 0},
	{"zero-length trim", requestHeader{op: OpTrim}, 0, 0},
	{"zero-length zeroes", requestHeader{op: OpWriteZeroes}, 0, 0},
}

// TestMalformedRequests: each is answered with the error the specification
// names, reaches no handler, and leaves the stream in step.
func TestMalformedRequests(t *testing.T) {
	m := newMemory("r0", testSize)
	m.fault = func(r *Request) error {
		if r.Offset != 4096 || r.Op != OpRead {
			t.Errorf("the handler saw %v at %d", r.Op, r.Offset)
		}
		return nil
	}
	f := serve(t, Config{}, m)
	for i, tc := range refusedRequests {
		t.Run(tc.name, func(t *testing.T) {
			w := f.transmission("r0")
			w.t = t
			tc.h.cookie = 1000 + uint64(i)
			w.request(tc.h, make([]byte, tc.payload))
			if got := w.answer(tc.h.cookie); got != tc.want {
				t.Errorf("answered %v, expected %v", got, tc.want)
			}
			w.inStep()
		})
	}
	if len(m.data) != testSize || !m.holds(0, make([]byte, testSize)) {
		t.Error("a refused request changed the export")
	}
}

// TestMalformedRequestsInOneBatch sends refused and good requests as one piece.
func TestMalformedRequestsInOneBatch(t *testing.T) {
	w := serve(t, Config{}, newMemory("r0", testSize)).transmission("r0")
	var b []byte
	b = append(b, requestBytes(requestHeader{op: 99, cookie: 1, length: 9}, nil)...)
	b = append(b, requestBytes(requestHeader{op: OpWrite, cookie: 2, offset: testSize, length: 512}, make([]byte, 512))...)
	b = append(b, requestBytes(requestHeader{op: OpRead, cookie: 3, length: 512}, nil)...)
	b = append(b, requestBytes(requestHeader{op: OpFlush, cookie: 4, length: 1}, nil)...)
	w.send(b)
	if e := w.answer(1); e != EINVAL {
		t.Errorf("unknown command: %v", e)
	}
	if e := w.answer(2); e != ENOSPC {
		t.Errorf("write past end: %v", e)
	}
	if e := w.answer(3); e != 0 {
		t.Errorf("read: %v", e)
	}
	w.read(512)
	if e := w.answer(4); e != EINVAL {
		t.Errorf("flush with length: %v", e)
	}
}

func TestReadOnly(t *testing.T) {
	m := newMemory("r0", testSize)
	m.attr.ReadOnly = true
	f := serve(t, Config{}, m)
	if flags := f.dial("r0").Info().Flags; flags&FlagReadOnly == 0 || flags&(FlagSendTrim|FlagSendWriteZeroes) != 0 {
		t.Errorf("flags %#x", flags)
	}
	for _, op := range []Op{OpWrite, OpTrim, OpWriteZeroes} {
		w := f.transmission("r0")
		payload := 0
		if op == OpWrite {
			payload = 512
		}
		w.request(requestHeader{op: op, cookie: 7, length: 512}, make([]byte, payload))
		if got := w.answer(7); got != EPERM {
			t.Errorf("op %d on a read-only export: %v", op, got)
		}
		w.inStep()
	}
}

// TestFatalRequests: the error is told where there is a request to answer, then
// the connection ends; other connections do not notice.
func TestFatalRequests(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize))
	other := f.transmission("r0")
	t.Run("write of 4 GiB - 1", func(t *testing.T) {
		w := f.transmission("r0")
		w.request(requestHeader{op: OpWrite, cookie: 5, length: math.MaxUint32}, make([]byte, 1<<20))
		if got := w.answer(5); got != EINVAL {
			t.Errorf("answered %v", got)
		}
		w.closed()
	})
	t.Run("bad request magic", func(t *testing.T) {
		w := f.transmission("r0")
		w.request(requestHeader{magic: 0xdeadbeef, op: OpRead, length: 512}, nil)
		w.closed()
	})
	t.Run("1 MiB of noise", func(t *testing.T) {
		w := f.transmission("r0")
		_, _ = w.Write(pattern(1<<20, 77)) // the server may hang up in the middle
		w.closed()
	})
	t.Run("hang up in the middle of a write", func(t *testing.T) {
		w := f.transmission("r0")
		w.request(requestHeader{op: OpWrite, cookie: 5, length: 1 << 20}, make([]byte, 1000))
		_ = w.Close()
	})
	t.Run("hang up in the middle of a header", func(t *testing.T) {
		w := f.transmission("r0")
		w.send(make([]byte, 11))
		_ = w.Close()
	})
	other.inStep()
}

func TestDisconnectRequest(t *testing.T) {
	m := newMemory("r0", testSize)
	f := serve(t, Config{}, m)
	w := f.transmission("r0")
	b := requestBytes(requestHeader{op: OpWrite, cookie: 1, length: 512}, make([]byte, 512))
	w.send(append(b, requestBytes(requestHeader{op: opDisconnect}, nil)...))
	if errno := w.answer(1); errno != 0 {
		t.Errorf("write before DISC: %v", errno)
	}
	w.closed()
	waitFor(t, func() bool { return m.closes.Load() == 1 && len(f.srv.Clients("r0")) == 0 })
}

// TestSilentClients: whoever stops half way is cut off in time, and an idle
// client is not.
func TestSilentClients(t *testing.T) {
	f := serve(t, Config{HandshakeTimeout: 150 * time.Millisecond, StallTimeout: 150 * time.Millisecond}, newMemory("r0", testSize))
	idle := f.transmission("r0")
	f.connectRaw().closed()
	half := f.haggle()
	half.send(appendOption(nil, optGo, make([]byte, 40))[:30])
	half.closed()
	drip := f.haggle()
	go func() { // an option now and then does not buy time
		for {
			if _, err := drip.Write(appendOption(nil, 999, nil)); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	waitFor(t, func() bool {
		f.srv.mu.Lock()
		defer f.srv.mu.Unlock()
		return len(f.srv.conns) == 1
	})
	payload := f.transmission("r0")
	payload.request(requestHeader{op: OpWrite, length: 1 << 20}, make([]byte, 100))
	payload.closed()
	skipped := f.transmission("r0")
	skipped.request(requestHeader{op: OpWrite, offset: testSize, length: 1 << 20}, make([]byte, 100))
	skipped.closed()
	idle.inStep()
}
