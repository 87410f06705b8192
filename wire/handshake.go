package wire

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"replicad/internal/mutant"
)

// What the hashes of the handshake are computed over starts with one of these
// labels, so that no value of one purpose can serve another.
const (
	labelProof   = "replicad link proof 1\x00"
	labelTLS     = "replicad link proof over tls 1\x00"
	labelSession = "replicad link session 1\x00"
)

// HandshakeConfig is what one end brings into the handshake of one connection.
type HandshakeConfig struct {
	Resource string
	// Secret is the shared secret; empty runs the handshake without
	// authentication (loopback, or allow-unauthenticated).
	Secret   []byte
	Instance Instance
	Nonce    Nonce // 32 fresh random bytes for every connection
	Features uint32
	// Channel and Session are what a dialler asks for. Session is the zero
	// value on the data connection. An acceptor takes both from the dialler.
	Channel Channel
	Session SessionID
	// Binding is the channel binding of the TLS connection that the handshake
	// runs in (RFC 9266, tls-exporter), nil when it runs in plain TCP.
	Binding []byte
}

// BindingSize is the size of HandshakeConfig.Binding, which RFC 9266 fixes.
const BindingSize = 32

// Handshake authenticates one connection: bytes in, bytes out, no I/O.
//
//	dialler                          acceptor
//	   | hello (nonce, channel, session)  |
//	   | -------------------------------> |  finds resource and session
//	   |                  hello (nonce)   |
//	   | <------------------------------- |
//	   | proof                            |
//	   | -------------------------------> |  verifies, commits to this attempt
//	   |                           proof  |
//	   | <------------------------------- |
//
// A proof is HMAC-SHA-256, keyed by the shared secret, over the role of its
// sender and both whole hellos: nonces (no replay), role and instances (no
// reflection), channel and session id (no connection of one session spliced
// into another), versions and features (no downgrade). The dialler proves
// first, so a stranger who dials learns nothing but a nonce. A stranger who
// answers at the peer's address obtains one proof over his own nonce, which
// is useless elsewhere but allows guessing a weak secret offline: secrets
// must be random.
//
// Inside TLS the proof also covers the channel binding, under a label of its
// own. Who relays between two TLS connections has two bindings, so the proofs
// he passes on do not fit, whatever certificates he has.
//
// Either end may send a refusal instead of its next frame. Frames of the
// wrong type or form fail with ErrHandshake and deserve no answer.
//
// The zero value is not usable. One goroutine at a time.
type Handshake struct {
	cfg    HandshakeConfig
	dialer bool
	phase  phase
	self   [HelloSize]byte // our hello as sent
	peer   [HelloSize]byte // the other end's hello as received
	hello  Hello           // peer, decoded
}

// phase is what the handshake does next.
type phase uint8

const (
	phaseSendHello phase = iota
	phaseReceiveHello
	phaseSendProof
	phaseReceiveProof
	phaseDone
	phaseFailed
)

// errPhase is a call out of order: a bug of the caller.
var errPhase = errors.New("handshake step out of order")

// NewDialer starts the handshake of a connection we dialled; Hello comes next.
func NewDialer(cfg HandshakeConfig) (*Handshake, error) {
	if cfg.Channel != ChannelData && cfg.Channel != ChannelControl {
		return nil, fmt.Errorf("start handshake: %w", badHandshake("channel"))
	}
	if (cfg.Session == SessionID{}) != (cfg.Channel == ChannelData) {
		return nil, fmt.Errorf("start handshake: %w", badHandshake("session id"))
	}
	return newHandshake(cfg, true, phaseSendHello)
}

// NewAcceptor starts the handshake of a connection we accepted; Receive of
// the dialler's hello comes next.
func NewAcceptor(cfg HandshakeConfig) (*Handshake, error) {
	return newHandshake(cfg, false, phaseReceiveHello)
}

func newHandshake(cfg HandshakeConfig, dialer bool, first phase) (*Handshake, error) {
	if err := checkResourceName(cfg.Resource); err != nil {
		return nil, fmt.Errorf("start handshake: %w", err)
	}
	if cfg.Nonce == (Nonce{}) {
		return nil, fmt.Errorf("start handshake: %w", badHandshake("nonce is not random"))
	}
	if len(cfg.Binding) != 0 && len(cfg.Binding) != BindingSize {
		return nil, fmt.Errorf("start handshake: %w", badHandshake("channel binding"))
	}
	return &Handshake{cfg: cfg, dialer: dialer, phase: first}, nil
}

// Hello returns our hello frame, to be sent now.
func (h *Handshake) Hello() ([]byte, error) {
	if h.phase != phaseSendHello {
		return nil, errPhase
	}
	hello := Hello{
		VersionMin: VersionMin, VersionMax: VersionMax,
		Channel: h.cfg.Channel, Session: h.cfg.Session,
		HasSecret: len(h.cfg.Secret) > 0, Features: h.cfg.Features,
		Instance: h.cfg.Instance, Nonce: h.cfg.Nonce, Resource: h.cfg.Resource,
	}
	hello.append(h.self[:0])
	h.phase = phaseReceiveHello
	if !h.dialer {
		h.phase = phaseReceiveProof
	}
	return h.self[:], nil
}

// Receive takes the other end's next frame. The error is a *RefusedError when
// either node refuses (send Refuse's frame if it is not ByPeer), or wraps
// ErrHandshake (say nothing and close). After an error the handshake is over.
func (h *Handshake) Receive(frame []byte) error {
	err := h.receive(frame)
	if err != nil {
		h.phase = phaseFailed
	}
	return err
}

func (h *Handshake) receive(frame []byte) error {
	t, err := openFrame(frame)
	if err != nil {
		return err
	}
	switch {
	case t == frameRefusal && h.phase != phaseDone && h.phase != phaseFailed:
		return &RefusedError{Reason: Refusal(frame[5]), ByPeer: true}
	case t == frameHello && h.phase == phaseReceiveHello:
		return h.receiveHello(frame)
	case t == frameProof && h.phase == phaseReceiveProof:
		return h.receiveProof(frame)
	}
	return badHandshake("frame out of order")
}

func (h *Handshake) receiveHello(frame []byte) error {
	hello, err := ParseHello(frame)
	if err != nil {
		return err
	}
	if reason := h.judge(&hello); reason != 0 {
		return &RefusedError{Reason: reason}
	}
	if !h.dialer {
		h.cfg.Channel, h.cfg.Session = hello.Channel, hello.Session
	} else if hello.Channel != h.cfg.Channel || hello.Session != h.cfg.Session {
		return badHandshake("answer to another connection")
	}
	copy(h.peer[:], frame)
	h.hello = hello
	h.phase = phaseSendHello
	if h.dialer {
		h.phase = phaseSendProof
	}
	return nil
}

// judge compares the other end's hello with our own configuration; 0 = fits.
func (h *Handshake) judge(hello *Hello) Refusal {
	switch {
	case hello.VersionMin > VersionMax || hello.VersionMax < VersionMin:
		return RefusedVersion
	case hello.Resource != h.cfg.Resource:
		return RefusedResource
	case hello.Instance == h.cfg.Instance || hello.Nonce == h.cfg.Nonce:
		return RefusedSelf
	case hello.HasSecret != (len(h.cfg.Secret) > 0):
		return RefusedNoSecret
	}
	return 0
}

func (h *Handshake) receiveProof(frame []byte) error {
	want := h.proof(!h.dialer)
	if !hmac.Equal(frame[PrefixSize:][:sha256.Size], want[:]) {
		return &RefusedError{Reason: RefusedWrongSecret}
	}
	h.phase = phaseSendProof
	if h.dialer {
		h.phase = phaseDone
	}
	return nil
}

// Proof returns our proof frame, to be sent now. For the acceptor this is the
// last step: sending it commits to the connection.
func (h *Handshake) Proof() ([]byte, error) {
	if h.phase != phaseSendProof {
		return nil, errPhase
	}
	mac := h.proof(h.dialer)
	frame := append(appendPrefix(nil, frameProof, 0), mac[:]...)
	h.phase = phaseReceiveProof
	if !h.dialer {
		h.phase = phaseDone
	}
	return sealFrame(frame), nil
}

// Refuse ends the handshake and returns the frame that says why.
func (h *Handshake) Refuse(reason Refusal) []byte {
	h.phase = phaseFailed
	return AppendRefusal(nil, reason)
}

// transcript is both hellos, the dialler's first.
func (h *Handshake) transcript() (dialer, acceptor []byte) {
	if h.dialer {
		return h.self[:], h.peer[:]
	}
	return h.peer[:], h.self[:]
}

// proof is what the dialler (or else the acceptor) must send.
func (h *Handshake) proof(byDialer bool) [sha256.Size]byte {
	role := byte('A')
	if byDialer || mutant.On(mutant.ProofWithoutRole) {
		role = 'D'
	}
	dialer, acceptor := h.transcript()
	if mutant.On(mutant.SessionUnproved) {
		without := func(hello []byte) []byte { return append(hello[:40:40], hello[56:HelloSize-sumSize]...) }
		dialer, acceptor = without(dialer), without(acceptor)
	}
	mac := hmac.New(sha256.New, h.cfg.Secret)
	if len(h.cfg.Binding) > 0 {
		mac.Write([]byte(labelTLS))
		mac.Write(h.cfg.Binding)
	} else {
		mac.Write([]byte(labelProof))
	}
	mac.Write([]byte{role})
	mac.Write(dialer)
	mac.Write(acceptor)
	var sum [sha256.Size]byte
	mac.Sum(sum[:0])
	return sum
}

// Done reports whether both ends have proved themselves.
func (h *Handshake) Done() bool { return h.phase == phaseDone }

// Peer is the other end's hello, valid once Receive accepted it. Before Done
// nothing in it is authenticated.
func (h *Handshake) Peer() Hello { return h.hello }

// Session is the id of the session: on the data connection the hash of both
// hellos, known once both were exchanged; on the control connection the id
// that the dialler asked for.
func (h *Handshake) Session() SessionID {
	if h.cfg.Channel == ChannelControl {
		return h.cfg.Session
	}
	dialer, acceptor := h.transcript()
	hash := sha256.New()
	hash.Write([]byte(labelSession))
	hash.Write(dialer)
	hash.Write(acceptor)
	return SessionID(hash.Sum(nil))
}

// Version is the highest version both ends speak.
func (h *Handshake) Version() uint16 { return min(VersionMax, h.hello.VersionMax) }

// Features are the optional abilities both ends have.
func (h *Handshake) Features() uint32 { return h.cfg.Features & h.hello.Features }

// Senior reports whether this node's instance id is the greater one. It is
// true on exactly one of two nodes, on both their connections.
func (h *Handshake) Senior() bool {
	return bytes.Compare(h.cfg.Instance[:], h.hello.Instance[:]) > 0
}

// Token reports whether this end holds the resolve-conflicts token of the
// session: its nonce on the data connection is the greater one. It is true on
// exactly one end, and random for each session.
func (h *Handshake) Token() bool {
	return bytes.Compare(h.cfg.Nonce[:], h.hello.Nonce[:]) > 0
}
