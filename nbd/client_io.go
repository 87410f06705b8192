package nbd

import (
	"errors"
	"io"
)

// chunkBytesMax is the longest range ReadAt and WriteAt ask for at once. Longer
// ones are split, which every server understands.
const chunkBytesMax = 32 << 20

// zeroBytesMax is the longest trim or zeroing of one request: the largest
// multiple of a mebibyte that the length field holds.
const zeroBytesMax = 1<<32 - 1<<20

var errNegative = errors.New("negative offset or length")

// syncCall is a Call somebody waits for.
type syncCall struct {
	Call
	done chan struct{}
}

func newSyncCall() any {
	s := &syncCall{done: make(chan struct{}, 1)}
	s.Done = func(*Call) { s.done <- struct{}{} }
	return s
}

// do makes one call and waits for its reply.
func (c *Client) do(op Op, data []byte, off uint64, length uint32, fua, noHole bool) error {
	s := c.sync.Get().(*syncCall)
	s.Op, s.Data, s.Offset, s.Length, s.FUA, s.NoHole = op, data, off, length, fua, noHole
	c.Submit(&s.Call)
	<-s.done
	err := s.Err
	s.Data, s.Err = nil, nil
	c.sync.Put(s)
	return err
}

// ReadAt implements [io.ReaderAt].
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	short := false
	if left := c.info.Size - min(uint64(off), c.info.Size); uint64(len(p)) > left {
		p, short = p[:left], true
	}
	n, err := c.chunks(OpRead, p, uint64(off), false)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements [io.WriterAt]. The data may still be in a cache when it
// returns; see Flush.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	return c.chunks(OpWrite, p, uint64(off), false)
}

// WriteFUA is WriteAt that returns when the data is on stable storage.
func (c *Client) WriteFUA(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative
	}
	return c.chunks(OpWrite, p, uint64(off), true)
}

func (c *Client) chunks(op Op, p []byte, off uint64, fua bool) (done int, err error) {
	for done < len(p) {
		part := p[done:min(len(p), done+chunkBytesMax)]
		if err := c.do(op, part, off+uint64(done), uint32(len(part)), fua, false); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// Flush returns when all writes answered so far are on stable storage.
func (c *Client) Flush() error { return c.do(OpFlush, nil, 0, 0, false, false) }

// Trim tells the server that the range's contents are no longer needed.
func (c *Client) Trim(off, length int64) error {
	return c.ranges(OpTrim, off, length, false)
}

// WriteZeroes makes the range read as zeroes. With noHole it stays allocated.
func (c *Client) WriteZeroes(off, length int64, noHole bool) error {
	return c.ranges(OpWriteZeroes, off, length, noHole)
}

func (c *Client) ranges(op Op, off, length int64, noHole bool) error {
	if off < 0 || length < 0 {
		return errNegative
	}
	for length > 0 {
		part := min(length, zeroBytesMax)
		if err := c.do(op, nil, uint64(off), uint32(part), false, noHole); err != nil {
			return err
		}
		off, length = off+part, length-part
	}
	return nil
}
