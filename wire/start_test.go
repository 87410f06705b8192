package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func mustStart(t testing.TB, resource string) []byte {
	t.Helper()
	frame, err := AppendStart(nil, resource)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// TestStart: an opening tells which of the two ways the dialler wants, and
// says it in the bytes that are pinned here.
func TestStart(t *testing.T) {
	frame := mustStart(t, "r0")
	compareGolden(t, "start.hex", hex.Dump(frame))
	if o, err := ParseOpening(frame); err != nil || o != (Opening{Resource: "r0", TLS: true}) {
		t.Errorf("start: %+v, %v", o, err)
	}
	if size, err := HandshakeFrameSize(frame); err != nil || size != StartSize {
		t.Errorf("size %d, %v", size, err)
	}
	d, a := start(t, end(1, "s"), end(2, "s"))
	hello, err := d.Hello()
	if err != nil {
		t.Fatal(err)
	}
	if o, err := ParseOpening(hello); err != nil || o != (Opening{Resource: "r0"}) {
		t.Errorf("hello: %+v, %v", o, err)
	}
	// Inside a handshake a start has no place.
	if err := a.Receive(frame); !errors.Is(err, ErrHandshake) {
		t.Errorf("start inside a handshake: %v", err)
	}
	longest := strings.Repeat("x", ResourceNameMax)
	if o, err := ParseOpening(mustStart(t, longest)); err != nil || o.Resource != longest {
		t.Errorf("longest name: %v", err)
	}
	for _, bad := range []string{"", "a b", longest + "x", "a\nb"} {
		if _, err := AppendStart(nil, bad); !errors.Is(err, ErrHandshake) {
			t.Errorf("name %q: %v", bad, err)
		}
	}
}

// TestStartAnswer: a refusal before TLS is worth no more than who may have
// said it, so none of them is final.
func TestStartAnswer(t *testing.T) {
	if err := ParseStartAnswer(mustStart(t, "r0"), "r0"); err != nil {
		t.Error(err)
	}
	if err := ParseStartAnswer(mustStart(t, "r1"), "r0"); !errors.Is(err, ErrHandshake) {
		t.Errorf("other resource: %v", err)
	}
	d, _ := start(t, end(1, "s"), end(2, "s"))
	hello, _ := d.Hello()
	if err := ParseStartAnswer(hello, "r0"); !errors.Is(err, ErrHandshake) {
		t.Errorf("hello: %v", err)
	}
	for r := RefusedWrongSecret; r <= RefusedTLSFailed; r++ {
		err := ParseStartAnswer(AppendRefusal(nil, r), "r0")
		refused, ok := errors.AsType[*RefusedError](err)
		if !ok || refused.Reason != r || !refused.ByPeer || refused.Permanent() {
			t.Errorf("%v: %v, permanent", r, err)
		}
	}
}

// TestProofIsBoundToItsChannel: a proof fits one TLS connection, or plain TCP,
// and nothing else. That is what a relay cannot get around.
func TestProofIsBoundToItsChannel(t *testing.T) {
	one, two := bytes.Repeat([]byte{1}, BindingSize), bytes.Repeat([]byte{2}, BindingSize)
	for name, c := range map[string]struct {
		d, a []byte
		fits bool
	}{
		"same": {one, one, true}, "plain": {nil, nil, true},
		"two channels": {one, two, false}, "dialler plain": {nil, one, false}, "acceptor plain": {one, nil, false},
	} {
		dc, ac := end(1, "s"), end(2, "s")
		dc.Binding, ac.Binding = c.d, c.a
		d, a := start(t, dc, ac)
		_, err := run(d, a)
		refused, _ := errors.AsType[*RefusedError](err)
		if (err == nil) != c.fits || !c.fits && refused.Reason != RefusedWrongSecret {
			t.Errorf("%s: %v", name, err)
		}
	}
	short := end(1, "s")
	short.Binding = one[:5]
	if _, err := NewDialer(short); !errors.Is(err, ErrHandshake) {
		t.Errorf("short binding: %v", err)
	}
}

// FuzzOpening feeds what a stranger may send first: no panic, and a name that
// may be logged, or an error.
func FuzzOpening(f *testing.F) {
	f.Add(mustStart(f, "r0"))
	d, _ := start(f, end(1, "s"), end(2, "s"))
	hello, _ := d.Hello()
	f.Add(bytes.Clone(hello))
	f.Add(AppendRefusal(nil, RefusedTLS))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame := reseal(b)
		o, err := ParseOpening(frame)
		if err != nil && !errors.Is(err, ErrHandshake) {
			t.Fatalf("untyped: %v", err)
		}
		if err == nil && checkResourceName(o.Resource) != nil {
			t.Fatalf("bad name %q", o.Resource)
		}
		err = ParseStartAnswer(frame, "r0")
		if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Permanent() {
			t.Fatalf("a stranger ended the attempts: %v", err)
		}
	})
}
