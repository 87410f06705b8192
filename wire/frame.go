package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"replicad/internal/mutant"
)

// HeaderSize is the size of every frame header, in bytes.
const HeaderSize = 64

// BodyMax is the largest encoded body of a rare message, in bytes.
const BodyMax = 16 << 10

// FrameMax is the largest frame, in bytes.
const FrameMax = HeaderSize + PayloadMax

const (
	headerMagic  = 0x7265706C // "repl"
	headerHashed = HeaderSize - 8
)

// Frame errors. Each means that the connection can no longer be trusted to be
// at a frame boundary or in step, so the session must end.
var (
	// ErrShort means that fewer bytes were given than a whole header, body or payload.
	ErrShort = errors.New("frame is cut short")
	// ErrMagic means that the bytes are not a frame header.
	ErrMagic = errors.New("not a frame header")
	// ErrHash means that the bytes changed on their way.
	ErrHash = errors.New("checksum does not match")
	// ErrChannel means that a kind came on the connection it does not belong to.
	ErrChannel = errors.New("message on the wrong channel")
	// ErrMalformed means that a message breaks a rule of the format.
	ErrMalformed = errors.New("malformed message")
)

// malformed is ErrMalformed with the rule that was broken and by which value.
func malformed(rule string, value uint64) error {
	return fmt.Errorf("%w: %s (%d)", ErrMalformed, rule, value)
}

// Header is a parsed frame header: the message without its body, and what is
// needed to read and check what follows.
type Header struct {
	Msg        Msg // Body is nil until Header.Body filled it.
	BodyLen    int // bytes of body that follow, at most BodyMax
	PayloadLen int // bytes of payload that follow, at most PayloadMax; one of the two is zero
	sum        uint64
}

// AppendMsg appends the header of m, and its body if it has one, to dst. The
// payload is hashed but not copied: it must follow the appended bytes on the
// connection, unchanged. A message without a body allocates nothing when dst
// has room for HeaderSize bytes. On error dst is returned as it came.
func AppendMsg(dst []byte, m *Msg, payload []byte) ([]byte, error) {
	if err := m.Check(len(payload)); err != nil {
		return dst, err
	}
	if m.Body != nil {
		return appendWithBody(dst, m)
	}
	return appendHeader(dst, m, len(payload), xxhash.Sum64(payload)), nil
}

// appendWithBody appends header and body of a rare message.
func appendWithBody(dst []byte, m *Msg) ([]byte, error) {
	body, err := encodeBody(m)
	if err != nil {
		return dst, err
	}
	dst = appendHeader(dst, m, len(body), xxhash.Sum64(body))
	return append(dst, body...), nil
}

// appendHeader appends the HeaderSize bytes of m followed by size bytes whose hash is sum.
func appendHeader(dst []byte, m *Msg, size int, sum uint64) []byte {
	start := len(dst)
	be := binary.BigEndian
	dst = be.AppendUint32(dst, headerMagic)
	dst = append(dst, byte(m.Kind), 0)
	dst = be.AppendUint16(dst, m.Flags)
	dst = be.AppendUint16(dst, m.Vol)
	dst = be.AppendUint16(dst, 0)
	dst = be.AppendUint32(dst, m.Len)
	dst = be.AppendUint64(dst, m.Off)
	dst = be.AppendUint64(dst, m.Seq)
	dst = be.AppendUint64(dst, m.Arg)
	dst = be.AppendUint32(dst, uint32(size))
	dst = be.AppendUint32(dst, 0)
	dst = be.AppendUint64(dst, sum)
	return be.AppendUint64(dst, xxhash.Sum64(dst[start:]))
}

// ParseHeader decodes the first HeaderSize bytes of b, which arrived on
// channel ch, and checks them: hash, kind, channel, flags, range and the size
// of what follows. The errors wrap ErrShort, ErrMagic, ErrHash, ErrChannel or
// ErrMalformed. It allocates nothing unless it fails.
func ParseHeader(b []byte, ch Channel) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, ErrShort
	}
	b = b[:HeaderSize]
	be := binary.BigEndian
	if be.Uint32(b) != headerMagic {
		return Header{}, ErrMagic
	}
	if be.Uint64(b[headerHashed:]) != xxhash.Sum64(b[:headerHashed]) && !mutant.On(mutant.HeaderUnchecked) {
		return Header{}, fmt.Errorf("header: %w", ErrHash)
	}
	if b[5] != 0 || be.Uint16(b[10:]) != 0 || be.Uint32(b[44:]) != 0 {
		return Header{}, malformed("reserved header field is set", uint64(b[5]))
	}
	h := Header{Msg: parseScalars(b), sum: be.Uint64(b[48:])}
	return h, h.check(ch, be.Uint32(b[40:]))
}

// parseScalars decodes the message fields of a header.
func parseScalars(b []byte) Msg {
	be := binary.BigEndian
	m := Msg{
		Kind:  Kind(b[4]),
		Flags: be.Uint16(b[6:]),
		Vol:   be.Uint16(b[8:]),
		Len:   be.Uint32(b[12:]),
		Off:   be.Uint64(b[16:]),
		Seq:   be.Uint64(b[24:]),
		Arg:   be.Uint64(b[32:]),
	}
	if mutant.On(mutant.ArgTruncated) {
		m.Arg = uint64(uint32(m.Arg))
	}
	if mutant.On(mutant.FlagsTruncated) {
		m.Flags &= FlagFUA | FlagNoHole | FlagWantRecvAck
	}
	return m
}

// check validates a header whose hash is right and sets the sizes.
func (h *Header) check(ch Channel, size uint32) error {
	m := &h.Msg
	if !m.Kind.Valid() {
		return malformed("unknown kind", uint64(m.Kind))
	}
	if m.Kind.Channel() != ch && !mutant.On(mutant.ChannelUnchecked) {
		return fmt.Errorf("%w: %v on %v", ErrChannel, m.Kind, ch)
	}
	if err := m.checkScalars(); err != nil {
		return fmt.Errorf("%v: %w", m.Kind, err)
	}
	if shapes[m.Kind].body != bodyNone {
		return h.setBodyLen(size)
	}
	h.PayloadLen = m.payloadLen()
	if mutant.On(mutant.SizeUnchecked) {
		h.PayloadLen = int(size)
	}
	if int64(size) != int64(h.PayloadLen) {
		return malformed("wrong payload size for "+shapes[m.Kind].name, uint64(size))
	}
	return nil
}

// setBodyLen accepts the announced size of a body.
func (h *Header) setBodyLen(size uint32) error {
	if size == 0 || size > BodyMax {
		return malformed("body size out of range", uint64(size))
	}
	h.BodyLen = int(size)
	return nil
}

// VerifyPayload checks the payload that followed the header. The error wraps
// ErrShort or ErrHash.
func (h *Header) VerifyPayload(payload []byte) error {
	if len(payload) != h.PayloadLen {
		return fmt.Errorf("%v payload: %w", h.Msg.Kind, ErrShort)
	}
	if xxhash.Sum64(payload) != h.sum && !mutant.On(mutant.PayloadUnchecked) {
		return fmt.Errorf("%v payload: %w", h.Msg.Kind, ErrHash)
	}
	return nil
}

// Body checks and decodes the body that followed the header into h.Msg.Body,
// which then points to memory of its own. The errors wrap ErrShort, ErrHash
// or ErrMalformed, and then h.Msg.Body stays nil.
func (h *Header) Body(body []byte) error {
	if len(body) != h.BodyLen || h.BodyLen == 0 {
		return fmt.Errorf("%v body: %w", h.Msg.Kind, ErrShort)
	}
	if xxhash.Sum64(body) != h.sum && !mutant.On(mutant.BodyUnchecked) {
		return fmt.Errorf("%v body: %w", h.Msg.Kind, ErrHash)
	}
	decoded, err := decodeBody(&h.Msg, body)
	if err != nil {
		return fmt.Errorf("%v body: %w", h.Msg.Kind, err)
	}
	h.Msg.Body = decoded
	return nil
}
