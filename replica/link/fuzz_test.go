package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"replicad/wire"
)

// fuzzPatience is far above what an answer on loopback takes.
const fuzzPatience = 10 * time.Second

// utter sends b on a connection, in two pieces cut where cut says, says no more,
// and returns what came back until the other end hung up.
func utter(t *testing.T, conn *net.TCPConn, b []byte, cut uint16) []byte {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(fuzzPatience)) // a failure shows at once below
	at := int(cut) % (len(b) + 1)
	// The other end may hang up before it has read everything.
	if _, err := conn.Write(b[:at]); err == nil {
		_, _ = conn.Write(b[at:])
	}
	_ = conn.CloseWrite()
	answer, err := io.ReadAll(conn)
	if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
		t.Fatalf("neither answered nor closed after %d bytes", len(b))
	}
	return answer
}

// checkAnswer demands that a node says to a stranger at most one hello, or a
// refusal, or one after the other, and never a proof.
func checkAnswer(t *testing.T, answer []byte) {
	t.Helper()
	for frames := 0; len(answer) > 0; frames++ {
		n, err := wire.HandshakeFrameSize(answer)
		if err != nil || n > len(answer) || frames == 2 {
			t.Fatalf("a stranger was told %x", answer)
		}
		if n == wire.ProofSize {
			t.Fatalf("a node proved itself to a stranger: %x", answer)
		}
		answer = answer[n:]
	}
}

// rehash makes the hash of each handshake frame in b right, as far as the
// frames can be told apart.
func rehash(b []byte) []byte {
	b = bytes.Clone(b)
	for at := 0; at < len(b); {
		n, err := wire.HandshakeFrameSize(b[at:])
		if err != nil || at+n > len(b) {
			break
		}
		binary.BigEndian.PutUint64(b[at+n-8:], xxhash.Sum64(b[at:at+n-8]))
		at += n
	}
	return b
}

// strangerSeeds are the beginnings that a fuzzer would take long to find.
func strangerSeeds(f *testing.F) [][]byte {
	f.Helper()
	var seeds [][]byte
	for _, secret := range []string{goodSecret, "a guess", ""} {
		h, err := wire.NewDialer(dialerConfig(9, secret))
		if err != nil {
			f.Fatal(err)
		}
		hello, err := h.Hello()
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, bytes.Clone(hello), append(bytes.Clone(hello), hello...),
			append(bytes.Clone(hello), append([]byte("reHL\x03\x00\x00\x30"), make([]byte, 40)...)...),
			append([]byte("reHL\x02\x00\x00\x30"), make([]byte, 40)...))
	}
	return append(seeds, nil, []byte("reHL"), []byte("reHL\x01\x00\xff\xff"), []byte("reHL\x01\x00\x00\x00"), make([]byte, 1<<16),
		wire.AppendRefusal(nil, wire.RefusedWrongSecret), []byte("GET / HTTP/1.0\r\n\r\n"), []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
}

// FuzzStranger sends arbitrary bytes to the listener of a node that has no
// session: whatever comes, there is no session, no proof, and an end.
func FuzzStranger(f *testing.F) {
	for i, seed := range strangerSeeds(f) {
		f.Add(seed, uint16(i*37), i%2 == 0)
	}
	ln := listen(f, "127.0.0.1:0")
	n := newNode(f, ln, netip.MustParseAddrPort("127.0.0.1:1"), nil)
	if err := n.beginConnect(); err != nil {
		f.Fatal(err)
	}
	defer n.endConnect()
	f.Fuzz(func(t *testing.T, b []byte, cut uint16, repair bool) {
		if repair {
			b = rehash(b)
		}
		conn := stranger(t, ln.Addr())
		defer conn.Close()
		checkAnswer(t, utter(t, conn, b, cut))
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.Link.inbound != nil || n.Link.current != nil || n.Link.established != 0 {
			t.Fatal("a stranger got past the handshake")
		}
	})
}

// FuzzImpostor answers a node's dial with arbitrary bytes: it never makes a
// session, and is told nothing but one hello and one proof.
func FuzzImpostor(f *testing.F) {
	for i, seed := range strangerSeeds(f) {
		f.Add(seed, uint16(i*37), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint16, repair bool) {
		if repair {
			b = rehash(b)
		}
		fake, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer fake.Close()
		l, err := New(Config{Resource: "r0", Secret: []byte(goodSecret), Local: netip.MustParseAddrPort("127.0.0.1:9"), Peer: addrPort(fake.Addr())})
		if err != nil {
			t.Fatal(err)
		}
		var heard []byte
		var served sync.WaitGroup
		served.Go(func() {
			conn, err := fake.AcceptTCP()
			if err != nil {
				return
			}
			defer conn.Close()
			heard = utter(t, conn, b, cut)
		})
		err = l.dialSession(context.Background())
		served.Wait()
		if err == nil || l.current != nil || l.take() != nil {
			t.Fatal("an impostor got a session")
		}
		if len(heard) > wire.HelloSize+wire.ProofSize {
			t.Fatalf("the impostor heard %d bytes", len(heard))
		}
	})
}

// FuzzSession plays a peer that knows the secret and then sends arbitrary bytes
// on one of the connections. What Read returns must be what a plain parser
// makes of the same bytes, and the buffers asked for must be announced and
// bounded.
func FuzzSession(f *testing.F) {
	var script []byte
	for _, m := range []wire.Msg{
		{Kind: wire.KindPing, Arg: 7},
		{Kind: wire.KindWriteAck, Seq: 1 << 63},
		{Kind: wire.KindBarrier, Seq: 1},
		{Kind: wire.KindTrim, Off: 1<<63 - 1<<20, Len: 512},
	} {
		script = append(script, mustFrame(f, m)...)
	}
	payload := pattern(4096, 1)
	data, err := wire.AppendMsg(nil, &wire.Msg{Kind: wire.KindData, Len: 4096, Seq: 3}, payload)
	if err != nil {
		f.Fatal(err)
	}
	data = append(data, payload...)
	f.Add(script, false, uint16(3))
	f.Add(script[128:], true, uint16(77))
	f.Add(append(bytes.Clone(data), data[:70]...), true, uint16(64))
	f.Add(append(mustFrame(f, wire.Msg{Kind: wire.KindSizes, Body: &wire.Sizes{Disk: 1 << 63}}), data...), true, uint16(100))
	p := newSessionPipe(f)
	f.Fuzz(func(t *testing.T, b []byte, onData bool, cut uint16) {
		ch := wire.ChannelControl
		if onData {
			ch = wire.ChannelData
		}
		if len(b) > 1<<18 {
			return
		}
		b = rehashFrames(b)
		want, wantErr := plainRead(b, ch)
		got, err := p.read(t, b, ch, int(cut)%(len(b)+1))
		if len(got) != len(want) {
			t.Fatalf("read %d messages, %v; a plain parser finds %d, %v", len(got), err, len(want), wantErr)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("message %d is %s, want %s", i, got[i], want[i])
			}
		}
		for _, kind := range []error{wire.ErrMagic, wire.ErrHash, wire.ErrChannel, wire.ErrMalformed} {
			if errors.Is(err, kind) != errors.Is(wantErr, kind) {
				t.Fatalf("ended with %v, want %v", err, wantErr)
			}
		}
	})
}

// rehashFrames makes the hashes of headers right where the magic is, but not
// those of payloads: both ways are to be reached.
func rehashFrames(b []byte) []byte {
	b = bytes.Clone(b)
	for at := 0; at+wire.HeaderSize <= len(b); {
		if binary.BigEndian.Uint32(b[at:]) != 0x7265706C {
			break
		}
		size := int(binary.BigEndian.Uint32(b[at+40:]))
		binary.BigEndian.PutUint64(b[at+56:], xxhash.Sum64(b[at:at+56]))
		at += wire.HeaderSize
		if size < 0 || size > len(b)-at {
			break
		}
		at += size
	}
	return b
}

// plainRead parses a whole stream the simplest way: what each message is, and
// the error that ends it.
func plainRead(b []byte, ch wire.Channel) (all []string, err error) {
	for len(b) > 0 {
		h, err := wire.ParseHeader(b, ch)
		if err != nil {
			return all, err
		}
		b = b[wire.HeaderSize:]
		if len(b) < h.BodyLen+h.PayloadLen {
			return all, io.ErrUnexpectedEOF
		}
		part := b[:h.BodyLen+h.PayloadLen]
		if h.BodyLen > 0 {
			err = h.Body(part)
		} else if h.PayloadLen > 0 {
			err = h.VerifyPayload(part)
		}
		if err != nil {
			return all, err
		}
		all = append(all, describe(&h.Msg, part[h.BodyLen:]))
		b = b[len(part):]
	}
	return all, io.EOF
}

func describe(m *wire.Msg, payload []byte) string {
	body := m.Body
	plain := *m
	plain.Body = nil
	return fmt.Sprintf("%+v %+v %x", plain, body, xxhash.Sum64(payload))
}

// sessionPipe makes sessions over sockets without a handshake.
type sessionPipe struct {
	ln  *net.TCPListener
	cfg Config
	h   *wire.Handshake
}

func newSessionPipe(f *testing.F) *sessionPipe {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ln.Close() })
	h, err := wire.NewDialer(dialerConfig(1, goodSecret))
	if err != nil {
		f.Fatal(err)
	}
	return &sessionPipe{ln: ln, cfg: Config{WriteTimeout: time.Second, QueueBytesMax: 1 << 20}, h: h}
}

func (p *sessionPipe) socket(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	far, err := net.DialTCP("tcp", nil, p.ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	near, err = p.ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// read sends b to a session's connection, in two pieces, and reads it there.
func (p *sessionPipe) read(t *testing.T, b []byte, ch wire.Channel, cut int) (all []string, err error) {
	t.Helper()
	data, farData := p.socket(t)
	control, farControl := p.socket(t)
	defer farData.Close()
	defer farControl.Close()
	s, err := newSession(&p.cfg, p.h, stream{tcp: data}, stream{tcp: control}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.writers.Wait()
	defer s.Close(ErrClosed)
	conn, far := s.Data, farData
	if ch == wire.ChannelControl {
		conn, far = s.Control, farControl
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	sender.Go(func() {
		if _, err := far.Write(b[:cut]); err == nil {
			_, _ = far.Write(b[cut:])
		}
		_ = far.CloseWrite()
	})
	_ = conn.tcp.SetReadDeadline(time.Now().Add(fuzzPatience))
	for {
		m, payload, err := conn.Read(func(n int) []byte {
			if n <= 0 || n > wire.PayloadMax {
				t.Fatalf("a buffer of %d bytes was asked for", n)
			}
			return make([]byte, n)
		})
		if err != nil {
			if s.Err() == nil {
				t.Fatalf("the session lives on after %v", err)
			}
			return all, err
		}
		all = append(all, describe(&m, payload))
	}
}
