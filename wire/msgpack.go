package wire

import "encoding/binary"

// What a msgpack body may contain. The msgpack library allocates what a
// length field says before it has seen the elements (five bytes can ask for
// gigabytes), so checkMsgpack walks a body before the library sees it.
const (
	msgpackDepthMax = 3
	msgpackItemsMax = VolumesMax
)

// checkMsgpack reports whether body is exactly one map with string keys, made
// only of nil, booleans, integers, short strings, and arrays and maps of
// these, all within the limits. The error wraps ErrMalformed.
func checkMsgpack(body []byte) error {
	s := scanner{rest: body}
	if c, ok := s.peek(); !ok || !isMap(c) {
		return malformed("msgpack body is not a map", uint64(c))
	}
	if err := s.value(msgpackDepthMax); err != nil {
		return err
	}
	if len(s.rest) != 0 {
		return malformed("bytes after the msgpack body", uint64(len(s.rest)))
	}
	return nil
}

// scanner walks msgpack bytes without decoding them.
type scanner struct{ rest []byte }

func (s *scanner) peek() (byte, bool) {
	if len(s.rest) == 0 {
		return 0, false
	}
	return s.rest[0], true
}

// take removes the next n bytes.
func (s *scanner) take(n int) ([]byte, error) {
	if n > len(s.rest) {
		return nil, malformed("msgpack value is cut short", uint64(n))
	}
	b := s.rest[:n]
	s.rest = s.rest[n:]
	return b, nil
}

// size reads a big-endian length field of n bytes.
func (s *scanner) size(n int) (uint64, error) {
	b, err := s.take(n)
	if err != nil {
		return 0, err
	}
	var wide [8]byte
	copy(wide[8-n:], b)
	return binary.BigEndian.Uint64(wide[:]), nil
}

// value walks one value; depth is how many levels may still be opened.
func (s *scanner) value(depth int) error {
	c, ok := s.peek()
	if !ok {
		return malformed("msgpack value is missing", 0)
	}
	switch {
	case isMap(c):
		return s.container(depth, 0x80, 0xde, s.pair)
	case isArray(c):
		return s.container(depth, 0x90, 0xdc, s.value)
	case isString(c):
		return s.text()
	}
	return s.scalar()
}

// pair walks one key, which must be a string, and its value.
func (s *scanner) pair(depth int) error {
	if c, ok := s.peek(); !ok || !isString(c) {
		return malformed("msgpack key is not a string", uint64(c))
	}
	if err := s.text(); err != nil {
		return err
	}
	return s.value(depth)
}

// container walks a map or an array: its length, in the type byte from fix on
// or in the two or four bytes after wide and wide+1, then its elements.
func (s *scanner) container(depth int, fix, wide byte, element func(int) error) error {
	if depth == 0 {
		return malformed("msgpack value is nested too deeply", msgpackDepthMax)
	}
	b, err := s.take(1)
	if err != nil {
		return err
	}
	count := uint64(b[0] - fix)
	if b[0] >= wide {
		count, err = s.size(2 << (b[0] - wide))
	}
	if err != nil {
		return err
	}
	if count > msgpackItemsMax {
		return malformed("msgpack container is too long", count)
	}
	for range count {
		if err := element(depth - 1); err != nil {
			return err
		}
	}
	return nil
}

// text walks one string.
func (s *scanner) text() error {
	b, err := s.take(1)
	if err != nil {
		return err
	}
	n := uint64(b[0] & 0x1f)
	if b[0] >= 0xd9 {
		n, err = s.size(1 << (b[0] - 0xd9))
	}
	if err != nil {
		return err
	}
	if n > textMax {
		return malformed("msgpack string is too long", n)
	}
	_, err = s.take(int(n))
	return err
}

// scalar walks nil, a boolean or an integer. Floats, binary strings and
// extension types have no place in a body.
func (s *scanner) scalar() error {
	b, err := s.take(1)
	if err != nil {
		return err
	}
	c := b[0]
	switch {
	case c <= 0x7f, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3:
		return nil
	case c >= 0xcc && c <= 0xcf:
		_, err = s.take(1 << (c - 0xcc))
	case c >= 0xd0 && c <= 0xd3:
		_, err = s.take(1 << (c - 0xd0))
	default:
		err = malformed("msgpack type is not allowed", uint64(c))
	}
	return err
}

func isMap(c byte) bool    { return c&0xf0 == 0x80 || c == 0xde || c == 0xdf }
func isArray(c byte) bool  { return c&0xf0 == 0x90 || c == 0xdc || c == 0xdd }
func isString(c byte) bool { return c&0xe0 == 0xa0 || c >= 0xd9 && c <= 0xdb }
