package replica

import (
	"sync"
	"sync/atomic"

	"replicad/replica/core"
	"replicad/replica/disk"
)

// Buffers that the core knows by number: pieces of client requests, whose
// bytes belong to the client's connection, and payload buffers, which are
// pooled here. Both live in one table so that a number says which.

const (
	pageSize = 4096
	// payloadMax is the largest payload buffer: wire.PayloadMax.
	payloadMax = 1 << 20
	// payloadBytesMin is the least budget: a few payloads of the largest size.
	payloadBytesMin = 8 * payloadMax
)

// classShift are the sizes of pooled buffers as powers of two: 4 KiB to 1 MiB.
var classShift = [...]uint{12, 14, 16, 18, 20}

func classOf(n int) int {
	for c, shift := range classShift {
		if n <= 1<<shift {
			return c
		}
	}
	return -1
}

// budget tells apart the two uses of payload buffers. Neither may starve the
// other: what arrives is written to disk and freed whatever the peer does, what
// is sent is freed only when the peer reads it.
type budget uint8

const (
	budgetArrived budget = iota // payload that came from the peer
	budgetRead                  // payload read from the local disk for the peer
	budgets
)

// slot is one entry of the buffer table.
type slot struct {
	refs atomic.Int32 // core, messages in the outbox, disk operations
	data []byte
	next uint32 // free list

	// Payload only.
	class  int8
	budget budget

	// Client pieces only.
	req  *request
	vol  *Volume
	off  uint64
	len  uint32
	mark bool // counted in vol.inflight
	// inCore says that the core has the piece and owes an answer. Guarded by
	// the resource's lock.
	inCore bool
}

// buffers is the table and the pool.
type buffers struct {
	slots   []slot // [0] unused: Buf 0 means none
	clients uint32 // slots 1..clients are client pieces

	mu        sync.Mutex
	freePiece uint32
	freeSlot  uint32
	pool      [len(classShift)][][]byte
	spent     [budgets]int64 // bytes handed out
	limit     int64          // of each budget
	held      int64          // bytes of pooled memory that exist, handed out or not
	waiting   *sync.Cond     // the data reader waits here
	parked    []diskOp       // reads for the peer that wait for budgetRead
	unpark    func(diskOp)   // starts a parked operation again
	requests  *request       // free list
}

func newBuffers(pieces int, payloadBytes int64) *buffers {
	payloads := int(budgets) * int(payloadBytes/pageSize)
	b := &buffers{slots: make([]slot, 1+pieces+payloads), clients: uint32(pieces), limit: payloadBytes}
	b.waiting = sync.NewCond(&b.mu)
	for i := uint32(1); i < uint32(len(b.slots)); i++ {
		if i <= b.clients {
			b.slots[i].next, b.freePiece = b.freePiece, i
		} else {
			b.slots[i].next, b.freeSlot = b.freeSlot, i
		}
	}
	return b
}

func (b *buffers) slot(n core.Buf) *slot { return &b.slots[n] }

func (b *buffers) isClient(n core.Buf) bool { return uint32(n) <= b.clients }

// piece takes a free client slot. Admission guarantees that there is one.
func (b *buffers) piece() core.Buf {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.freePiece
	if n == 0 {
		panic("replica: more client requests than were admitted")
	}
	b.freePiece = b.slots[n].next
	b.slots[n].refs.Store(1)
	return core.Buf(n)
}

// tryPayload returns a payload buffer of n bytes with one reference, 0 if the
// budget is spent or n is too large.
func (b *buffers) tryPayload(n int, use budget) core.Buf {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takePayload(n, use)
}

func (b *buffers) takePayload(n int, use budget) core.Buf {
	class := classOf(n)
	if class < 0 {
		return 0
	}
	size := int64(1) << classShift[class]
	if b.spent[use]+size > b.limit || b.freeSlot == 0 {
		return 0
	}
	b.spent[use] += size
	i := b.freeSlot
	s := &b.slots[i]
	b.freeSlot = s.next
	s.data = b.memory(class)[:n]
	s.class, s.budget = int8(class), use
	s.refs.Store(1)
	return core.Buf(i)
}

// memory takes pooled memory of a class, or makes it.
func (b *buffers) memory(class int) []byte {
	if m := b.unpool(class); m != nil {
		return m
	}
	size := int64(1) << classShift[class]
	for c := len(classShift) - 1; c >= 0 && b.held+size > b.limit*int64(budgets); {
		if b.unpool(c) == nil {
			c--
			continue
		}
		b.held -= 1 << classShift[c]
	}
	b.held += size
	return disk.AlignedBuffer(int(size), pageSize)
}

// unpool takes free memory of a class, nil if there is none.
func (b *buffers) unpool(class int) []byte {
	free := b.pool[class]
	if len(free) == 0 {
		return nil
	}
	m := free[len(free)-1]
	free[len(free)-1] = nil
	b.pool[class] = free[:len(free)-1]
	return m
}

// waitPayload is tryPayload for budgetArrived that waits; it returns 0 when gone
// reports true. Whoever makes gone true calls wakeWaiters.
func (b *buffers) waitPayload(n int, gone func() bool) core.Buf {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if gone() {
			return 0
		}
		if buf := b.takePayload(n, budgetArrived); buf != 0 {
			return buf
		}
		b.waiting.Wait()
	}
}

func (b *buffers) wakeWaiters() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting.Broadcast()
}

func (b *buffers) hold(n core.Buf) {
	if b.slots[n].refs.Add(1) <= 1 {
		panic("replica: reference taken on a free buffer")
	}
}

// release drops one reference. The last one frees a payload buffer, or
// completes a client's piece.
func (b *buffers) release(n core.Buf) {
	s := &b.slots[n]
	switch left := s.refs.Add(-1); {
	case left < 0:
		panic("replica: buffer released twice")
	case left > 0:
	case b.isClient(n):
		s.req.pieceDone()
	default:
		b.freePayload(n)
	}
}

func (b *buffers) freePayload(n core.Buf) {
	op, ok := b.returnPayload(n)
	if ok {
		b.unpark(op)
	}
}

// returnPayload puts a payload buffer back, and takes out a parked operation
// that may now find room.
func (b *buffers) returnPayload(n core.Buf) (diskOp, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.slots[n]
	size := 1 << classShift[s.class]
	b.pool[s.class] = append(b.pool[s.class], s.data[:size])
	b.spent[s.budget] -= int64(size)
	s.data = nil
	s.next, b.freeSlot = b.freeSlot, uint32(n)
	if s.budget == budgetArrived {
		b.waiting.Broadcast()
		return diskOp{}, false
	}
	if len(b.parked) == 0 {
		return diskOp{}, false
	}
	op := b.parked[0]
	b.parked = b.parked[1:]
	b.waiting.Broadcast()
	return op, true
}

// readBuffer takes a buffer for a read on the peer's behalf, or parks the
// operation until there is room for it. The length is at most payloadMax.
func (b *buffers) readBuffer(op diskOp) (buf core.Buf, parked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	buf = b.takePayload(int(op.len), budgetRead)
	if buf != 0 {
		return buf, false
	}
	b.parked = append(b.parked, op)
	return 0, true
}

// waitUnparked waits until at most limit reads for the peer wait for buffers, or
// gone reports true.
func (b *buffers) waitUnparked(limit int, gone func() bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.parked) > limit && !gone() {
		b.waiting.Wait()
	}
}
