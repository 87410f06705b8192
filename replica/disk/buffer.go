package disk

import "unsafe"

const (
	// bounceSize is the length of an aligned copy buffer, bytes.
	bounceSize = 256 << 10
	// bounceCount is how many of them one device may hold. The next unaligned
	// transfer waits: memory stays bounded.
	bounceCount = 4
)

// AlignedBuffer returns n zero bytes whose address is a multiple of align, a
// power of two. Transfers of such buffers to a block device need no copy.
func AlignedBuffer(n, align int) []byte {
	raw := make([]byte, n+align)
	skip := 0
	if rest := int(addressOf(raw) & uintptr(align-1)); rest != 0 {
		skip = align - rest
	}
	return raw[skip : skip+n : skip+n]
}

func aligned(p []byte, align int) bool {
	return addressOf(p)&uintptr(align-1) == 0
}

func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// bouncePool hands out at most bounceCount aligned buffers, made when first
// needed and kept from then on.
type bouncePool struct {
	align int
	free  chan []byte // nil entries are buffers not made yet
}

func (b *bouncePool) init(align int) {
	b.align = align
	b.free = make(chan []byte, bounceCount)
	for range bounceCount {
		b.free <- nil
	}
}

func (b *bouncePool) get() []byte {
	if buf := <-b.free; buf != nil {
		return buf
	}
	return AlignedBuffer(bounceSize, b.align)
}

func (b *bouncePool) put(buf []byte) { b.free <- buf }
