package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/protocol"
	gonbd "github.com/pojntfx/go-nbd/pkg/server"

	"replicad/nbd"
)

func dial(t *testing.T, uri string) *blockingClient {
	t.Helper()
	c, err := dialBlocking(uri, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func exchange(t *testing.T, c *blockingClient) {
	t.Helper()
	for _, n := range []int{512, 4096, 64 << 10} {
		want := bytes.Clone(c.payload(n))
		stamp(want[:n/2], 77, uint64(n))
		copy(c.payload(n), want)
		if err := c.write(8192, n); err != nil {
			t.Fatal(err)
		}
		got, err := c.read(8192, n)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: equal %v, error %v", n, bytes.Equal(got, want), err)
		}
	}
}

func TestBlockingClient(t *testing.T) {
	e := newExport()
	c := dial(t, serveExport(t, e))
	exchange(t, c)
	if err := c.flush(); err != nil || e.flushes.Load() != 1 {
		t.Errorf("flush: %v, %d of them", err, e.flushes.Load())
	}
	if _, err := c.read(testSize, 4096); !errors.Is(err, nbd.EINVAL) {
		t.Errorf("read past the end: %v, want EINVAL", err)
	}
	exchange(t, c) // still in step after an error
}

// go-nbd answers reads with two writes and speaks another dialect of the
// handshake.
func TestBlockingClientWithGoNBD(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err == nil {
			exports := []*gonbd.Export{{Backend: backend.NewMemoryBackend(make([]byte, testSize))}}
			_ = gonbd.Handle(conn, exports, nil)
			_ = conn.Close()
		}
	}()
	exchange(t, dial(t, "nbd+unix:///?socket="+path))
}

// greeted is a server's side of the handshake, up to the end of the option.
func greeted(reply ...byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_OLDSTYLE)
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	return append(binary.BigEndian.AppendUint16(b, 1), reply...)
}

func optionReply(kind, length uint32) []byte {
	b := binary.BigEndian.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, protocol.NEGOTIATION_ID_OPTION_GO)
	b = binary.BigEndian.AppendUint32(b, kind)
	return binary.BigEndian.AppendUint32(b, length)
}

func TestBlockingHandshakeRefused(t *testing.T) {
	for name, c := range map[string]struct {
		greeting []byte
		want     error
	}{
		"no NBD server":    {[]byte("HTTP/1.1 400 Bad Request\r\n"), errHandshake},
		"refusal":          {greeted(optionReply(protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, 0)...), errHandshake},
		"absurd length":    {greeted(optionReply(protocol.NEGOTIATION_TYPE_REPLY_INFO, 1<<31)...), errHandshake},
		"wrong magic":      {greeted(make([]byte, 20)...), errHandshake},
		"end of stream":    {nil, io.EOF},
		"end within reply": {greeted(optionReply(protocol.NEGOTIATION_TYPE_REPLY_INFO, 4)...), io.EOF},
	} {
		uri := script(t, c.greeting, func(conn net.Conn) {
			if !errors.Is(c.want, io.EOF) {
				_, _ = io.Copy(io.Discard, conn)
			} else {
				_, _ = io.ReadFull(conn, make([]byte, 4+16+6))
			}
		})
		if name == "end of stream" {
			uri = script(t, nil, func(net.Conn) {})
		}
		if _, err := dialBlocking(uri, 4096); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestBlockingRepliesRefused(t *testing.T) {
	reply := func(magic uint32, cookie uint64) []byte {
		b := binary.BigEndian.AppendUint32(nil, magic)
		return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 0), cookie)
	}
	for name, c := range map[string]struct {
		reply []byte
		want  error
	}{
		"wrong magic":   {reply(1, 1), nbd.ErrProtocol},
		"wrong cookie":  {reply(protocol.TRANSMISSION_MAGIC_REPLY, 2), nbd.ErrProtocol},
		"end of stream": {reply(protocol.TRANSMISSION_MAGIC_REPLY, 1)[:9], io.ErrUnexpectedEOF},
	} {
		uri := script(t, greeted(optionReply(protocol.NEGOTIATION_TYPE_REPLY_ACK, 0)...), func(conn net.Conn) {
			_, _ = io.ReadFull(conn, make([]byte, 4+16+6+requestBytes))
			_, _ = conn.Write(c.reply)
		})
		if _, err := dial(t, uri).read(0, 4096); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestIgnoreInterrupt(t *testing.T) {
	if n, err := ignoreInterrupt(0, os.ErrClosed); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := ignoreInterrupt(5, nil); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestShutdownAfterCloseIsHarmless(t *testing.T) {
	c, err := dialBlocking(serveExport(t, newExport()), 4096)
	if err != nil {
		t.Fatal(err)
	}
	c.close()
	c.shutdown()
}
