package replica

import (
	"sync"

	"replicad/replica/disk"
)

// copies lends memory to writes of clients while disk-timeout is set: a write
// that is given up may still be read from, long after its client has gone. At
// most as much is lent as admission lets in, and what a hung disk holds.
type copies [len(classShift)]sync.Pool

// copyOut gives the operation its own copy of data; nil for a trim.
func (op *diskOp) copyOut(c *copies, data []byte) {
	op.buf = 0
	if len(data) == 0 {
		return
	}
	class := classOf(len(data))
	m, ok := c[class].Get().(*[]byte)
	if !ok {
		fresh := disk.AlignedBuffer(1<<classShift[class], pageSize)
		m = &fresh
	}
	*m = (*m)[:len(data)]
	copy(*m, data)
	op.copied = m
}

// put takes memory back.
func (c *copies) put(m *[]byte) {
	*m = (*m)[:cap(*m)]
	c[classOf(len(*m))].Put(m)
}
