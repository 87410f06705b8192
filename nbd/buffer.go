package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

const (
	pageSize       = 4096
	classShiftMin  = 12 // 4 KiB
	classShiftMax  = 26 // RequestBytesMax
	classes        = classShiftMax - classShiftMin + 1
	idleBytesClass = 8 << 20 // bytes of one size class kept for reuse; larger buffers go to the collector
)

// pool keeps page-aligned buffers in power-of-two sizes from 4 KiB to
// RequestBytesMax. How many exist at a time is bounded by the budgets that are
// claimed before get; the pool bounds what it keeps while they are unused.
type pool struct {
	class [classes]struct {
		sync.Mutex
		free [][]byte
	}
}

// classOf is the smallest size class that holds n bytes, 0 < n <= RequestBytesMax.
func classOf(n int) int {
	return max(bits.Len(uint(n-1)), classShiftMin) - classShiftMin
}

func (p *pool) get(n int) []byte {
	c := &p.class[classOf(n)]
	c.Lock()
	if last := len(c.free) - 1; last >= 0 {
		b := c.free[last]
		c.free[last] = nil
		c.free = c.free[:last]
		c.Unlock()
		return b[:n]
	}
	c.Unlock()
	return alignedBytes(1 << (classOf(n) + classShiftMin))[:n]
}

func (p *pool) put(b []byte) {
	c := &p.class[classOf(cap(b))]
	c.Lock()
	if (len(c.free)+1)*cap(b) <= idleBytesClass {
		c.free = append(c.free, b)
	}
	c.Unlock()
}

// alignedBytes allocates n bytes that start on a page. Payloads that do not make
// the kernel's copies several times slower, and O_DIRECT refuses them.
func alignedBytes(n int) []byte {
	b := make([]byte, n)
	if misalignment(b) == 0 { // true for these sizes with today's allocator
		return b
	}
	b = make([]byte, n+pageSize)
	skip := (pageSize - misalignment(b)) % pageSize
	return b[skip : skip+n : skip+n]
}

func misalignment(b []byte) int {
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % pageSize)
}

// budget bounds a quantity in use. Claims are granted in the order they came,
// so a large claim is never starved by small ones.
type budget struct {
	mu      sync.Mutex
	used    int64
	max     int64
	waiters []claim
}

type claim struct {
	n       int64
	granted chan struct{}
}

// try claims n if that needs no waiting.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	ok := len(b.waiters) == 0 && b.used+n <= b.max
	if ok {
		b.used += n
	}
	b.mu.Unlock()
	return ok
}

// wait claims n, which must not exceed max, and waits until it is granted. The
// caller must hold nothing that others need in order to give back.
func (b *budget) wait(n int64) {
	b.mu.Lock()
	if len(b.waiters) == 0 && b.used+n <= b.max {
		b.used += n
		b.mu.Unlock()
		return
	}
	c := claim{n: n, granted: make(chan struct{})}
	b.waiters = append(b.waiters, c)
	b.mu.Unlock()
	<-c.granted
}

// release gives n back and grants what fits now.
func (b *budget) release(n int64) {
	b.mu.Lock()
	b.used -= n
	if b.used < 0 {
		panic("nbd: budget released twice")
	}
	for len(b.waiters) > 0 && b.used+b.waiters[0].n <= b.max {
		b.used += b.waiters[0].n
		close(b.waiters[0].granted)
		b.waiters = b.waiters[1:]
	}
	b.mu.Unlock()
}
