package nbd

import "io"

const (
	inboxBytes  = 256 << 10 // holds a batch of 32 writes of 4 KiB with room to spare
	directBytes = 64 << 10  // payloads from here on are read past the inbox
)

// inbox reads a stream with few system calls: much at a time, but large
// payloads straight to where they belong. Only the reader goroutine uses it.
type inbox struct {
	src  io.Reader // every Read of it may wait
	buf  []byte
	r, w int
	// ahead is how much may be read beyond what is asked for: nothing while large
	// payloads stream, so that each is copied once and to an aligned place.
	ahead int
}

func newInbox(src io.Reader) *inbox {
	return &inbox{src: src, buf: alignedBytes(inboxBytes), ahead: inboxBytes}
}

// buffered is the number of bytes that can be had without reading.
func (in *inbox) buffered() int { return in.w - in.r }

// peek returns the next n bytes, n <= half the buffer, without consuming them. They
// stay valid until the next call. A stream that ends before the first of them
// is io.EOF, one that ends between them io.ErrUnexpectedEOF.
func (in *inbox) peek(n int) ([]byte, error) {
	for in.buffered() < n {
		if err := in.fill(n); err != nil {
			return nil, err
		}
	}
	return in.buf[in.r : in.r+n], nil
}

func (in *inbox) fill(n int) error {
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r >= len(in.buf)/2 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	end := min(len(in.buf), max(in.r+n, in.w+in.ahead))
	got, err := in.src.Read(in.buf[in.w:end])
	in.w += got
	if got > 0 {
		return nil
	}
	if err == io.EOF && in.buffered() > 0 {
		return io.ErrUnexpectedEOF
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// expectSmall allows reading ahead again, after a message that shows that large
// payloads no longer come one after the other.
func (in *inbox) expectSmall() { in.ahead = inboxBytes }

// skip consumes n bytes that peek has shown.
func (in *inbox) skip(n int) { in.r += n }

// read fills p.
func (in *inbox) read(p []byte) error {
	if len(p) < directBytes {
		in.ahead = inboxBytes
		return in.readSmall(p)
	}
	in.ahead = 0
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	for n < len(p) {
		got, err := in.src.Read(p[n:])
		if n += got; got == 0 {
			return unexpected(err)
		}
	}
	return nil
}

// readSmall fills p through the buffer, which takes what follows p along.
func (in *inbox) readSmall(p []byte) error {
	b, err := in.peek(len(p))
	if err != nil {
		return unexpected(err)
	}
	copy(p, b)
	in.skip(len(p))
	return nil
}

// discard consumes n bytes, however many, without keeping them.
func (in *inbox) discard(n int64) error {
	for {
		step := min(n, int64(in.buffered()))
		in.skip(int(step))
		if n -= step; n == 0 {
			return nil
		}
		if err := in.fill(1); err != nil {
			return unexpected(err)
		}
	}
}

func unexpected(err error) error {
	switch err {
	case io.EOF:
		return io.ErrUnexpectedEOF
	case nil:
		return io.ErrNoProgress
	}
	return err
}
