package wire

import (
	"bytes"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"

	"replicad/bitmap"
	"replicad/internal/mutant"
)

// The largest values a body may carry.
const (
	// VolumesMax is the largest number of volumes in Params.
	VolumesMax = 1024
	// textMax is the longest string in a body, in bytes.
	textMax = 64
)

// The largest numbers of State, DRBD 8.4's: role Secondary, connection state
// Behind, disk state UpToDate.
const (
	roleMax = 2
	connMax = 23
	diskMax = 8
)

// bodyKindOf names the type of a message's body, bodyNone for no body. A body
// of a foreign type or a nil pointer matches no kind.
func bodyKindOf(body any) bodyKind {
	const foreign = bodyKind(255)
	switch b := body.(type) {
	case nil:
		return bodyNone
	case *Params:
		return bodyOr(bodyParams, b != nil)
	case *Sizes:
		return bodyOr(bodySizes, b != nil)
	case *UUIDs:
		return bodyOr(bodyUUIDs, b != nil)
	case *State:
		return bodyOr(bodyState, b != nil)
	case *StateReq:
		return bodyOr(bodyStateReq, b != nil)
	case *Bitmap:
		return bodyOr(bodyBitmap, b != nil)
	}
	return foreign
}

// bodyOr is k for a body that is there and a value matching no kind otherwise.
func bodyOr(k bodyKind, ok bool) bodyKind {
	if ok {
		return k
	}
	return bodyKind(255)
}

// newBody makes the empty body that a kind decodes into.
func newBody(k bodyKind) any {
	switch k {
	case bodyParams:
		return new(Params)
	case bodySizes:
		return new(Sizes)
	case bodyUUIDs:
		return new(UUIDs)
	case bodyState:
		return new(State)
	case bodyStateReq:
		return new(StateReq)
	}
	panic("wire: kind has no msgpack body")
}

// checkBody applies the limits on the values inside a body.
func checkBody(m *Msg) error {
	switch b := m.Body.(type) {
	case *Params:
		return b.check()
	case *State:
		return b.check()
	case *StateReq:
		return b.check()
	case *Bitmap:
		if len(b.Words) != m.bitmapWords() {
			return malformed("bitmap words do not match the bit count", uint64(len(b.Words)))
		}
	}
	return nil
}

func (p *Params) check() error {
	if len(p.Volumes) > VolumesMax {
		return malformed("too many volumes", uint64(len(p.Volumes)))
	}
	for i := 1; i < len(p.Volumes); i++ {
		if p.Volumes[i-1] >= p.Volumes[i] {
			return malformed("volumes are not ascending", uint64(p.Volumes[i]))
		}
	}
	for _, s := range []string{p.AfterSB0, p.AfterSB1, p.AfterSB2, p.IntegrityAlg} {
		if len(s) > textMax {
			return malformed("text too long", uint64(len(s)))
		}
	}
	return nil
}

func (s *State) check() error {
	switch {
	case s.Role > roleMax, s.Peer > roleMax:
		return malformed("unknown role", uint64(max(s.Role, s.Peer)))
	case s.Conn > connMax:
		return malformed("unknown connection state", uint64(s.Conn))
	case s.Disk > diskMax, s.PDisk > diskMax:
		return malformed("unknown disk state", uint64(max(s.Disk, s.PDisk)))
	}
	return nil
}

func (r *StateReq) check() error {
	switch {
	case r.Vol < -1 || r.Vol > 0xFFFF:
		return malformed("volume out of range", uint64(uint32(r.Vol)))
	case r.Role > roleMax:
		return malformed("unknown role", uint64(r.Role))
	case r.Conn > connMax:
		return malformed("unknown connection state", uint64(r.Conn))
	case r.Disk > diskMax+1:
		return malformed("unknown disk state", uint64(r.Disk))
	}
	return nil
}

// encodeBody encodes the body of a checked message.
func encodeBody(m *Msg) ([]byte, error) {
	body, err := encodeBodyBytes(m)
	if err != nil {
		return nil, fmt.Errorf("encode %v: %w", m.Kind, err)
	}
	if len(body) == 0 || len(body) > BodyMax {
		return nil, fmt.Errorf("encode %v: %w", m.Kind, malformed("body size out of range", uint64(len(body))))
	}
	return body, nil
}

func encodeBodyBytes(m *Msg) ([]byte, error) {
	if b, ok := m.Body.(*Bitmap); ok {
		return bitmap.AppendRLE(nil, b.Words), nil
	}
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.UseCompactInts(true)
	err := enc.Encode(m.Body)
	return buf.Bytes(), err
}

// decodeBody decodes the body of a message whose header is already checked.
func decodeBody(m *Msg, body []byte) (any, error) {
	if m.Kind == KindBitmap {
		return decodeBitmap(m, body)
	}
	if err := checkMsgpack(body); err != nil {
		return nil, err
	}
	decoded := newBody(shapes[m.Kind].body)
	if err := msgpack.Unmarshal(body, decoded); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	whole := Msg{Kind: m.Kind, Body: decoded}
	return decoded, checkBody(&whole)
}

// scratchWords is memory that a planted bug decodes every bitmap into.
var scratchWords [BitmapWordsMax]uint64

// decodeBitmap decodes exactly as many words as the header announced.
func decodeBitmap(m *Msg, body []byte) (any, error) {
	words := make([]uint64, m.bitmapWords())
	if mutant.On(mutant.BitmapWordsReused) {
		words = scratchWords[:len(words)]
		clear(words)
	}
	n, err := bitmap.DecodeRLE(body, words)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if n != len(words) && !mutant.On(mutant.ShortBitmapAccepted) {
		return nil, malformed("bitmap words do not match the bit count", uint64(n))
	}
	return &Bitmap{Words: words}, nil
}
