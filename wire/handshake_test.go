package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// end is a handshake configuration with recognisable, unequal fields.
func end(n byte, secret string) HandshakeConfig {
	cfg := HandshakeConfig{Resource: "r0", Secret: []byte(secret), Features: 0b1100 >> n, Channel: ChannelData}
	for i := range cfg.Nonce {
		cfg.Nonce[i] = n
	}
	for i := range cfg.Instance {
		cfg.Instance[i] = n + 0x10
	}
	return cfg
}

func start(t testing.TB, d, a HandshakeConfig) (dialer, acceptor *Handshake) {
	t.Helper()
	dialer, err := NewDialer(d)
	if err != nil {
		t.Fatal(err)
	}
	acceptor, err = NewAcceptor(a)
	if err != nil {
		t.Fatal(err)
	}
	return dialer, acceptor
}

// pass hands the frame that from makes to to.
func pass(make func() ([]byte, error), to *Handshake) error {
	frame, err := make()
	if err != nil {
		return err
	}
	return to.Receive(bytes.Clone(frame))
}

// run does a whole handshake and returns the first error and who met it.
func run(d, a *Handshake) (who string, err error) {
	for _, step := range []struct {
		who  string
		make func() ([]byte, error)
		to   *Handshake
	}{{"acceptor", d.Hello, a}, {"dialer", a.Hello, d}, {"acceptor", d.Proof, a}, {"dialer", a.Proof, d}} {
		if err := pass(step.make, step.to); err != nil {
			return step.who, err
		}
	}
	return "", nil
}

func TestHandshake(t *testing.T) {
	for _, secret := range []string{"", "the secret"} {
		d, a := start(t, end(1, secret), end(2, secret))
		if who, err := run(d, a); err != nil {
			t.Fatalf("%s: %v", who, err)
		}
		if !d.Done() || !a.Done() {
			t.Error("not done")
		}
		if d.Session() != a.Session() || d.Session() == (SessionID{}) {
			t.Errorf("sessions %v and %v", d.Session(), a.Session())
		}
		if d.Token() || !a.Token() || d.Senior() || !a.Senior() {
			t.Error("token and seniority belong to exactly one end")
		}
		if d.Version() != VersionMax || d.Features() != 0b10 || a.Features() != 0b10 {
			t.Errorf("version %d, features %b and %b", d.Version(), d.Features(), a.Features())
		}
		if d.Peer().Resource != "r0" || a.Peer().Instance != end(1, "").Instance {
			t.Error("peer's hello is not reported")
		}
	}
}

func TestControlHandshakeKeepsTheSession(t *testing.T) {
	cfg := end(1, "s")
	cfg.Channel, cfg.Session = ChannelControl, SessionID{1, 2, 3}
	d, a := start(t, cfg, end(2, "s"))
	if who, err := run(d, a); err != nil {
		t.Fatalf("%s: %v", who, err)
	}
	if d.Session() != cfg.Session || a.Session() != cfg.Session || a.Peer().Channel != ChannelControl {
		t.Errorf("sessions %v and %v", d.Session(), a.Session())
	}
}

func TestHandshakeRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(d, a *HandshakeConfig)
		who    string
		want   Refusal
	}{
		"wrong secret":    {func(d, a *HandshakeConfig) { d.Secret = []byte("other") }, "acceptor", RefusedWrongSecret},
		"dialer open":     {func(d, a *HandshakeConfig) { d.Secret = nil }, "acceptor", RefusedNoSecret},
		"acceptor open":   {func(d, a *HandshakeConfig) { a.Secret = nil }, "acceptor", RefusedNoSecret},
		"wrong resource":  {func(d, a *HandshakeConfig) { d.Resource = "r1" }, "acceptor", RefusedResource},
		"same instance":   {func(d, a *HandshakeConfig) { d.Instance = a.Instance }, "acceptor", RefusedSelf},
		"reflected nonce": {func(d, a *HandshakeConfig) { d.Nonce = a.Nonce }, "acceptor", RefusedSelf},
	} {
		d, a := end(1, "s"), end(2, "s")
		c.change(&d, &a)
		dialer, acceptor := start(t, d, a)
		who, err := run(dialer, acceptor)
		refused, ok := errors.AsType[*RefusedError](err)
		if !ok || who != c.who || refused.Reason != c.want || refused.ByPeer {
			t.Errorf("%s: %s met %v", name, who, err)
			continue
		}
		checkTold(t, name, dialer, acceptor, c.want)
	}
}

// checkTold: the dialler hears the acceptor's reason, in the same words.
func checkTold(t *testing.T, name string, dialer, acceptor *Handshake, want Refusal) {
	err := dialer.Receive(acceptor.Refuse(want))
	told, ok := errors.AsType[*RefusedError](err)
	if !ok || told.Reason != want || !told.ByPeer || !strings.HasSuffix(told.Error(), want.String()) {
		t.Errorf("%s: dialler was told %v", name, err)
	}
	if err := dialer.Receive(acceptor.Refuse(want)); !errors.Is(err, ErrHandshake) {
		t.Errorf("%s: a handshake that is over took another frame: %v", name, err)
	}
	if _, err := acceptor.Proof(); err == nil {
		t.Errorf("%s: proof after a refusal", name)
	}
}

// TestAcceptorMustProveToo: a dialler does not trust whoever answers.
func TestAcceptorMustProveToo(t *testing.T) {
	d, a := start(t, end(1, "right"), end(2, "wrong"))
	if err := errors.Join(pass(d.Hello, a), pass(a.Hello, d)); err != nil {
		t.Fatal(err)
	}
	if err := pass(d.Proof, a); err == nil {
		t.Fatal("proof under another secret passed")
	}
	a.phase = phaseSendProof // a dishonest acceptor goes on
	err := pass(a.Proof, d)
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Reason != RefusedWrongSecret || d.Done() {
		t.Errorf("got %v", err)
	}
}

func TestVersionMismatch(t *testing.T) {
	for _, v := range [][2]uint16{{VersionMax + 1, VersionMax + 3}, {VersionMax + 1, VersionMax + 1}} {
		_, a := start(t, end(1, "s"), end(2, "s"))
		hello := Hello{VersionMin: v[0], VersionMax: v[1], Channel: ChannelData, HasSecret: true, Nonce: Nonce{1}, Resource: "r0"}
		err := a.Receive(hello.append(nil))
		if r, ok := errors.AsType[*RefusedError](err); !ok || r.Reason != RefusedVersion {
			t.Errorf("versions %v: %v", v, err)
		}
	}
}

// TestReplay records a good handshake and plays the dialler's side to a new
// acceptor, whose nonce differs.
func TestReplay(t *testing.T) {
	d, a := start(t, end(1, "s"), end(2, "s"))
	hello, _ := d.Hello()
	hello = bytes.Clone(hello)
	if err := errors.Join(a.Receive(hello), pass(a.Hello, d)); err != nil {
		t.Fatal(err)
	}
	proof, err := d.Proof()
	if err != nil || a.Receive(proof) != nil {
		t.Fatal(err)
	}
	_, fresh := start(t, end(1, "s"), end(3, "s"))
	if err := fresh.Receive(hello); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Hello(); err != nil {
		t.Fatal(err)
	}
	if r, ok := errors.AsType[*RefusedError](fresh.Receive(proof)); !ok || r.Reason != RefusedWrongSecret {
		t.Errorf("a recorded proof was answered with %v", r)
	}
}

// TestReflection: an attacker without the secret answers a dialler with the
// dialler's own frames, plain and with a nonce and an instance of his own.
func TestReflection(t *testing.T) {
	d, _ := start(t, end(1, "s"), end(2, "s"))
	hello, _ := d.Hello()
	if r, ok := errors.AsType[*RefusedError](d.Receive(bytes.Clone(hello))); !ok || r.Reason != RefusedSelf {
		t.Errorf("own hello: %v", r)
	}
	d, a := start(t, end(1, "s"), end(2, "not known"))
	if err := errors.Join(pass(d.Hello, a), pass(a.Hello, d)); err != nil {
		t.Fatal(err)
	}
	proof, err := d.Proof()
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := errors.AsType[*RefusedError](d.Receive(proof)); !ok || r.Reason != RefusedWrongSecret {
		t.Errorf("own proof: %v", r)
	}
}

// TestSplice: a proof made for a control connection of one session, or for a
// data connection, is worth nothing on a connection of another session.
func TestSplice(t *testing.T) {
	proofFor := func(ch Channel, id SessionID) []byte {
		cfg := end(1, "s")
		cfg.Channel, cfg.Session = ch, id
		d, a := start(t, cfg, end(2, "s"))
		if err := errors.Join(pass(d.Hello, a), pass(a.Hello, d)); err != nil {
			t.Fatal(err)
		}
		proof, _ := d.Proof()
		return proof
	}
	for _, stolen := range [][]byte{proofFor(ChannelControl, SessionID{1}), proofFor(ChannelData, SessionID{})} {
		cfg := end(1, "s")
		cfg.Channel, cfg.Session = ChannelControl, SessionID{2}
		d, a := start(t, cfg, end(2, "s"))
		if err := errors.Join(pass(d.Hello, a), pass(a.Hello, d)); err != nil {
			t.Fatal(err)
		}
		if r, ok := errors.AsType[*RefusedError](a.Receive(stolen)); !ok || r.Reason != RefusedWrongSecret {
			t.Errorf("spliced proof: %v", r)
		}
	}
}

// TestProofCoversEveryBit: whatever an attacker on the path changes in either
// hello, even with the checksum repaired, the proof no longer fits.
func TestProofCoversEveryBit(t *testing.T) {
	for bit := PrefixSize * 8; bit < (HelloSize-sumSize)*8; bit++ {
		d, a := start(t, end(1, "s"), end(2, "s"))
		hello, _ := d.Hello()
		changed := bytes.Clone(hello)
		changed[bit/8] ^= 1 << (bit % 8)
		changed = sealFrame(changed[:HelloSize-sumSize])
		if a.Receive(changed) != nil {
			continue
		}
		if err := pass(a.Hello, d); err != nil {
			continue
		}
		if err := pass(d.Proof, a); err == nil {
			t.Fatalf("hello bit %d is not covered", bit)
		}
	}
}

func TestFramesOutOfOrder(t *testing.T) {
	d, a := start(t, end(1, "s"), end(2, "s"))
	if _, err := a.Hello(); err == nil {
		t.Error("acceptor spoke first")
	}
	if _, err := d.Proof(); err == nil {
		t.Error("proof before hello")
	}
	proof := sealFrame(append(appendPrefix(nil, frameProof, 0), make([]byte, 32)...))
	if err := a.Receive(proof); !errors.Is(err, ErrHandshake) {
		t.Errorf("proof before hello: %v", err)
	}
	if err := pass(d.Hello, a); err == nil {
		t.Error("a failed handshake went on")
	}
}

func TestMalformedHellos(t *testing.T) {
	good := Hello{VersionMin: 1, VersionMax: 1, Channel: ChannelData, Nonce: Nonce{1}, Resource: "r0"}
	for name, change := range map[string]func(*Hello){
		"version 0":          func(h *Hello) { h.VersionMin = 0 },
		"inverted range":     func(h *Hello) { h.VersionMin = 2 },
		"channel 0":          func(h *Hello) { h.Channel = 0 },
		"channel 3":          func(h *Hello) { h.Channel = 3 },
		"session on data":    func(h *Hello) { h.Session[0] = 1 },
		"no session":         func(h *Hello) { h.Channel = ChannelControl },
		"no name":            func(h *Hello) { h.Resource = "" },
		"newline in a name":  func(h *Hello) { h.Resource = "r\n0" },
		"zero byte in names": func(h *Hello) { h.Resource = "r\x000" },
	} {
		h := good
		change(&h)
		if _, err := ParseHello(h.append(nil)); !errors.Is(err, ErrHandshake) {
			t.Errorf("%s: %v", name, err)
		}
	}
	frame := good.append(nil)
	frame[13] = 129
	if _, err := ParseHello(sealFrame(frame[:HelloSize-sumSize])); !errors.Is(err, ErrHandshake) {
		t.Errorf("name length 129: %v", err)
	}
	good.Resource = strings.Repeat("n", ResourceNameMax)
	if h, err := ParseHello(good.append(nil)); err != nil || h != good {
		t.Errorf("longest name: %v", err)
	}
}

func TestBadHandshakeConfig(t *testing.T) {
	for name, change := range map[string]func(*HandshakeConfig){
		"no nonce":         func(c *HandshakeConfig) { c.Nonce = Nonce{} },
		"no name":          func(c *HandshakeConfig) { c.Resource = "" },
		"long name":        func(c *HandshakeConfig) { c.Resource = strings.Repeat("n", 129) },
		"no channel":       func(c *HandshakeConfig) { c.Channel = 0 },
		"control, no id":   func(c *HandshakeConfig) { c.Channel = ChannelControl },
		"data with an id":  func(c *HandshakeConfig) { c.Session = SessionID{1} },
		"blank in a names": func(c *HandshakeConfig) { c.Resource = "r 0" },
	} {
		cfg := end(1, "s")
		change(&cfg)
		if _, err := NewDialer(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestGoldenHandshake pins the bytes of a whole handshake.
func TestGoldenHandshake(t *testing.T) {
	d, a := start(t, end(1, "the secret"), end(2, "the secret"))
	var b strings.Builder
	for _, step := range []struct {
		name string
		make func() ([]byte, error)
		to   *Handshake
	}{{"hello", d.Hello, a}, {"hello", a.Hello, d}, {"proof", d.Proof, a}, {"proof", a.Proof, d}} {
		frame, err := step.make()
		if err != nil || step.to.Receive(frame) != nil {
			t.Fatal(step.name, err)
		}
		fmt.Fprintf(&b, "%s\n%s", step.name, hex.Dump(frame))
	}
	fmt.Fprintf(&b, "session %v\nrefusal\n%s", d.Session(), hex.Dump(AppendRefusal(nil, RefusedBusy)))
	compareGolden(t, "handshake.hex", b.String())
}

func TestRefusalTexts(t *testing.T) {
	seen := map[string]bool{}
	for r := RefusedWrongSecret; r <= RefusedTLSFailed; r++ {
		if s := r.String(); s == "" || strings.HasPrefix(s, "unknown") || seen[s] {
			t.Errorf("reason %d says %q", r, s)
		}
		seen[r.String()] = true
	}
	if Refusal(200).Permanent() || !strings.Contains(Refusal(200).String(), "200") {
		t.Error("an unknown reason is printed by number and is not permanent")
	}
}

// FuzzHandshake feeds arbitrary frames, checksum repaired, to both roles in
// every phase: no panic, and never done without the secret.
func FuzzHandshake(f *testing.F) {
	d, a := start(f, end(1, "s"), end(2, "s"))
	hello, _ := d.Hello()
	f.Add(bytes.Clone(hello), AppendRefusal(nil, RefusedBusy))
	if err := errors.Join(a.Receive(hello), pass(a.Hello, d)); err != nil {
		f.Fatal(err)
	}
	proof, _ := d.Proof()
	f.Add(bytes.Clone(hello), proof)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		acceptor, _ := NewAcceptor(end(3, "unknown"))
		if acceptor.Receive(reseal(first)) == nil {
			if _, err := acceptor.Hello(); err != nil {
				t.Fatal(err)
			}
			if acceptor.Receive(reseal(second)) == nil {
				t.Fatal("acceptor was convinced")
			}
		}
		dialer, _ := NewDialer(end(4, "unknown"))
		if _, err := dialer.Hello(); err != nil {
			t.Fatal(err)
		}
		if dialer.Receive(reseal(first)) == nil && dialer.Receive(reseal(second)) == nil {
			t.Fatal("dialler was convinced")
		}
	})
}

func reseal(b []byte) []byte {
	if n, err := HandshakeFrameSize(b); err == nil && n <= len(b) {
		return sealFrame(bytes.Clone(b[:n-sumSize]))
	}
	return b
}
