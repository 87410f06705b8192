package sim

import "replicad/replica/core"

// buffers is a node's table of client requests and payloads, which share one
// space of numbers. It notices a buffer that is used after it was given back,
// given back twice, or never.
type buffers struct {
	all  []buffer
	free []core.Buf
}

// buffer is a client's request or a payload.
type buffer struct {
	used    bool
	request *request // nil: a payload
	data    []content
	writers int // disk actions that read or fill it now
	vol     int
	first   uint32
	kind    uint8 // wire.Kind that brought a payload
}

// take hands out a number; which of the free ones is drawn by the caller.
func (b *buffers) take(draw func(n int) int) core.Buf {
	if len(b.free) == 0 {
		b.all = append(b.all, buffer{})
		b.free = append(b.free, core.Buf(len(b.all)))
	}
	i := draw(len(b.free))
	id := b.free[i]
	b.free[i] = b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	b.all[id-1] = buffer{used: true}
	return id
}

// get returns the buffer, or nil when the core may not name it.
func (b *buffers) get(id core.Buf) *buffer {
	if id == 0 || int(id) > len(b.all) || !b.all[id-1].used {
		return nil
	}
	return &b.all[id-1]
}

func (b *buffers) release(id core.Buf) {
	b.all[id-1] = buffer{}
	b.free = append(b.free, id)
}

// payloads counts the payload buffers that the core still owns.
func (b *buffers) payloads() int { return b.count(false) }

// requests counts the client requests that are not answered.
func (b *buffers) requests() int { return b.count(true) }

func (b *buffers) count(requests bool) (n int) {
	for i := range b.all {
		if b.all[i].used && (b.all[i].request != nil) == requests {
			n++
		}
	}
	return n
}
