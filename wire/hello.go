package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Versions of the frame format and the message vocabulary this build speaks.
const (
	VersionMin uint16 = 1
	VersionMax uint16 = 1
)

// ResourceNameMax is the longest resource name, in bytes.
const ResourceNameMax = 128

// Handshake frames have fixed sizes, so that a stranger can make us read and
// keep at most HelloSize bytes. Every one starts with PrefixSize bytes: magic
// (4), type (1), reason of a refusal (1), size of the whole frame (2); it ends
// with the xxhash64 of all bytes before.
//
// The layout of hello, refusal and start never changes, whatever the version:
// two nodes of any versions must be able to tell each other that they do not
// fit.
const (
	PrefixSize   = 8
	HelloSize    = 256
	ProofSize    = 48
	RefusalSize  = 16
	HandshakeMax = HelloSize

	helloMagic = 0x7265484C // "reHL"
	sumSize    = 8
)

// frameType tells the frames of a handshake apart.
type frameType uint8

const (
	frameHello   frameType = 1
	frameProof   frameType = 2
	frameRefusal frameType = 3
	frameStart   frameType = 4
)

func (t frameType) size() int {
	switch t {
	case frameHello:
		return HelloSize
	case frameProof:
		return ProofSize
	case frameRefusal:
		return RefusalSize
	case frameStart:
		return StartSize
	}
	return 0
}

// Instance identifies one running node. It is drawn at random when the
// resource starts and lives as long as the process.
type Instance [16]byte

// Nonce is the random challenge of one end of one connection.
type Nonce [32]byte

// SessionID identifies one session. Both nodes compute it from the handshake
// of the data connection, so neither can choose it.
type SessionID [16]byte

// String is the id in hexadecimal.
func (id SessionID) String() string { return fmt.Sprintf("%x", id[:]) }

// Hello is the first frame of either end of a connection.
//
//	offset size
//	     0    8  prefix
//	     8    2  lowest version
//	    10    2  highest version
//	    12    1  channel
//	    13    1  length of the resource name
//	    14    2  flags, helloSecret…
//	    16    4  features: optional abilities; a session uses what both have
//	    20    4  zero
//	    24   16  instance
//	    40   16  session; zero on the data connection
//	    56   32  nonce
//	    88  128  resource name, zero-padded
//	   216   32  room; sent as zero, ignored
//	   248    8  xxhash64 of bytes 0 to 247
type Hello struct {
	VersionMin uint16
	VersionMax uint16
	Channel    Channel
	HasSecret  bool
	Features   uint32
	Instance   Instance
	Session    SessionID
	Nonce      Nonce
	Resource   string
}

// helloSecret says that the sender has a shared secret and will prove it.
const helloSecret uint16 = 1

// ErrHandshake means that the bytes are no valid handshake frame: the sender
// is not a replicad node, and gets no answer.
var ErrHandshake = errors.New("not a handshake frame")

func badHandshake(what string) error { return fmt.Errorf("%w: %s", ErrHandshake, what) }

// HandshakeFrameSize reads the first PrefixSize bytes of a handshake frame and
// returns the size of the whole frame, at most HandshakeMax. The error wraps
// ErrHandshake.
func HandshakeFrameSize(prefix []byte) (int, error) {
	if len(prefix) < PrefixSize {
		return 0, badHandshake("cut short")
	}
	if binary.BigEndian.Uint32(prefix) != helloMagic {
		return 0, badHandshake("wrong magic")
	}
	size := frameType(prefix[4]).size()
	if size == 0 || size != int(binary.BigEndian.Uint16(prefix[6:])) {
		return 0, badHandshake("unknown type or wrong size")
	}
	return size, nil
}

// openFrame checks a whole handshake frame and returns its type.
func openFrame(frame []byte) (frameType, error) {
	size, err := HandshakeFrameSize(frame)
	if err != nil {
		return 0, err
	}
	if len(frame) != size {
		return 0, badHandshake("wrong length")
	}
	body := frame[:size-sumSize]
	if binary.BigEndian.Uint64(frame[size-sumSize:]) != xxhash.Sum64(body) {
		return 0, badHandshake("wrong checksum")
	}
	return frameType(frame[4]), nil
}

// appendPrefix starts a frame and sealFrame ends it.
func appendPrefix(dst []byte, t frameType, reason Refusal) []byte {
	dst = binary.BigEndian.AppendUint32(dst, helloMagic)
	dst = append(dst, byte(t), byte(reason))
	return binary.BigEndian.AppendUint16(dst, uint16(t.size()))
}

func sealFrame(frame []byte) []byte {
	return binary.BigEndian.AppendUint64(frame, xxhash.Sum64(frame))
}

// append encodes a hello whose fields were checked.
func (h *Hello) append(dst []byte) []byte {
	start := len(dst)
	be := binary.BigEndian
	dst = appendPrefix(dst, frameHello, 0)
	dst = be.AppendUint16(dst, h.VersionMin)
	dst = be.AppendUint16(dst, h.VersionMax)
	dst = append(dst, byte(h.Channel), byte(len(h.Resource)))
	dst = be.AppendUint16(dst, h.flags())
	dst = be.AppendUint32(dst, h.Features)
	dst = be.AppendUint32(dst, 0)
	dst = append(dst, h.Instance[:]...)
	dst = append(dst, h.Session[:]...)
	dst = append(dst, h.Nonce[:]...)
	dst = append(dst, h.Resource...)
	dst = append(dst, make([]byte, start+HelloSize-sumSize-len(dst))...)
	return append(dst, sealFrame(dst[start:])[HelloSize-sumSize:]...)
}

func (h *Hello) flags() uint16 {
	if h.HasSecret {
		return helloSecret
	}
	return 0
}

// ParseHello decodes the hello frame that opens a connection, so that a
// listener shared by several resources can find the one that is meant. The
// error wraps ErrHandshake.
func ParseHello(frame []byte) (Hello, error) {
	t, err := openFrame(frame)
	if err != nil {
		return Hello{}, err
	}
	if t != frameHello {
		return Hello{}, badHandshake("not a hello")
	}
	h := decodeHello(frame)
	return h, h.check(frame)
}

// decodeHello reads the fields of a hello frame of the right size.
func decodeHello(b []byte) Hello {
	be := binary.BigEndian
	name := b[88:][:min(int(b[13]), ResourceNameMax)]
	return Hello{
		VersionMin: be.Uint16(b[8:]),
		VersionMax: be.Uint16(b[10:]),
		Channel:    Channel(b[12]),
		HasSecret:  be.Uint16(b[14:])&helloSecret != 0,
		Features:   be.Uint32(b[16:]),
		Instance:   Instance(b[24:40]),
		Session:    SessionID(b[40:56]),
		Nonce:      Nonce(b[56:88]),
		Resource:   string(name),
	}
}

// check validates the fields of a hello; frame is its encoding.
func (h *Hello) check(frame []byte) error {
	switch {
	case h.VersionMin == 0 || h.VersionMin > h.VersionMax:
		return badHandshake("version range")
	case h.Channel != ChannelData && h.Channel != ChannelControl:
		return badHandshake("channel")
	case (h.Session == SessionID{}) != (h.Channel == ChannelData):
		return badHandshake("session id")
	case int(frame[13]) != len(h.Resource):
		return badHandshake("length of the resource name")
	}
	return checkResourceName(h.Resource)
}

// checkResourceName accepts 1 to ResourceNameMax printable ASCII characters
// without blanks: the name of a stranger may end in a log.
func checkResourceName(name string) error {
	if len(name) == 0 || len(name) > ResourceNameMax {
		return badHandshake("length of the resource name")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' {
			return badHandshake("character in the resource name")
		}
	}
	return nil
}

// AppendRefusal appends the frame that tells the other end why it is refused.
func AppendRefusal(dst []byte, reason Refusal) []byte {
	var frame [RefusalSize]byte
	return append(dst, sealFrame(appendPrefix(frame[:0], frameRefusal, reason))...)
}
