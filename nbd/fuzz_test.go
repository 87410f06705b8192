package nbd

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// FuzzServer sends arbitrary bytes in place of a client: the handshake's first,
// whose answers are held against the specification, then, on a connection that
// is through with it, as requests.
func FuzzServer(f *testing.F) {
	hello := be32(clientFixedNewstyle | clientNoZeroes)
	good := appendOption(hello, optGo, selection{name: "r0", infos: []uint16{1, 2, 3}}.append(nil))
	good = append(good, requestBytes(requestHeader{op: OpWrite, offset: 512, length: 512}, make([]byte, 512))...)
	f.Add(good, false)
	f.Add(appendOption(appendOption(hello, optList, nil), optExportName, []byte("r0")), false)
	f.Add(requestBytes(requestHeader{op: OpRead, offset: 512, length: 512}, nil), true)
	f.Add(requestBytes(requestHeader{op: OpWriteZeroes, flags: 16, length: 512}, nil), true)
	f.Add(requestBytes(requestHeader{op: OpWrite, length: 1 << 31}, nil), true)
	long := selection{name: string(make([]byte, NameBytesMax+1))}.append(nil)
	for o := range option(12) {
		f.Add(appendOption(appendOption(be32(0), o, long), o, nil), false)
		f.Add(append(append(be32(3), "IHAVEOPT"...), append(be32(uint32(o)), 255, 255, 255, 255)...), false)
		f.Add(appendOption(appendOption(be32(2), o, selection{name: "r0"}.append(nil)), optExportName, nil), false)
	}
	m := newMemory("r0", 1<<20)
	fx := serve(f, Config{}, m)
	f.Fuzz(func(t *testing.T, b []byte, transmission bool) {
		fx.t = t
		var w *wire
		if transmission {
			w = fx.transmission("r0")
		} else {
			w = fx.connectRaw()
		}
		defer w.Close()
		go func() { _, _ = w.Write(b); _ = w.Conn.(*net.UnixConn).CloseWrite() }()
		said := hearAll(t, w)
		if m.opens.Load() != m.closes.Load() {
			waitFor(t, func() bool { return m.opens.Load() == m.closes.Load() })
		}
		if !transmission {
			checkNegotiation(t, b, append(make([]byte, greetingLen), said...))
		}
	})
}

// FuzzClient sends arbitrary bytes in place of a server: everything ends in an
// error or a result, and never in waiting.
func FuzzClient(f *testing.F) {
	greeting := binary.BigEndian.AppendUint64(nil, magicGreeting)
	greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
	greeting = binary.BigEndian.AppendUint16(greeting, 3)
	good := appendOptionReply(greeting, optGo, repInfo, appendExportInfo(nil, 1<<20, 1))
	good = appendOptionReply(good, optGo, repInfo, appendBlockSizeInfo(nil))
	good = appendOptionReply(good, optGo, repAck, nil)
	reply := make([]byte, simpleReplyLen)
	putSimpleReply(reply, 0, 1<<32)
	f.Add(append(append(good, reply...), make([]byte, 512)...))
	f.Add(appendOptionReply(greeting, optGo, repErrPolicy, []byte("no")))
	f.Add(appendOptionReply(greeting, optGo, repErrUnsupported, nil))
	f.Add(appendOptionReply(greeting, optList, repServer, appendServerReply(nil, "a", "b")))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Listen("unix:" + t.TempDir() + "/s")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go impersonate(l, b)
		uri := "nbd+unix:///?socket=" + l.Addr().String()
		if c, err := Dial(t.Context(), uri); err == nil {
			_, _ = c.ReadAt(make([]byte, 512), 0)
			_ = c.Flush()
			c.Abort()
		}
		_, _ = List(t.Context(), uri)
	})
}

// impersonate says b to everyone who connects and listens politely.
func impersonate(l net.Listener, b []byte) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = c.Write(b)
			_ = c.(*net.UnixConn).CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = io.Copy(io.Discard, c)
		}()
	}
}

// FuzzParseSelection: what is accepted is exactly what append writes.
func FuzzParseSelection(f *testing.F) {
	f.Add(selection{name: "r0", infos: []uint16{1, 3}}.append(nil))
	f.Add([]byte{255, 255, 255, 255, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSelection(b)
		if err == nil && string(s.append(nil)) != string(b) {
			t.Errorf("%x was read as %+v", b, s)
		}
	})
}

// FuzzRequestCheck: whatever passes is inside the export and whole blocks.
func FuzzRequestCheck(f *testing.F) {
	f.Add(uint16(0), uint16(1), uint64(1)<<63, uint32(512), uint64(1<<20), false)
	f.Add(uint16(0), uint16(0), uint64(1), uint32(RequestBytesMax), uint64(1<<30), false)
	f.Fuzz(func(t *testing.T, flags, op uint16, offset uint64, length uint32, size uint64, readOnly bool) {
		size -= size % BlockSizeMin
		b := make([]byte, requestLen)
		requestHeader{magic: magicRequest, flags: flags, op: Op(op), offset: offset, length: length}.put(b)
		h := parseRequest(b)
		if h.check(size, readOnly) != 0 || h.op == OpFlush {
			return
		}
		start, n := h.offset-h.lead(), h.blocks()
		if start+n < start || start+n > size || start%BlockSizeMin != 0 {
			t.Errorf("%+v passes for an export of %d", h, size)
		}
		if h.op != OpRead && (n != uint64(h.length) || readOnly) {
			t.Errorf("%+v passes", h)
		}
		if h.carriesData() && n > RequestBytesMax {
			t.Errorf("%+v needs a buffer of %d", h, n)
		}
	})
}
