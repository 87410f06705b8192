package nbd

import "sync/atomic"

// requestCostMin is what a request without payload claims of the budgets, so
// that one number bounds both bytes and requests in flight.
const requestCostMin = 4096

// Request is one request of a client, from Handler.Serve until its Reply.
type Request struct {
	Op     Op
	FUA    bool   // the data must be on stable storage before the reply
	NoHole bool   // WRITE_ZEROES only: the range must stay allocated
	Offset uint64 // bytes from the start of the export
	Length uint32 // bytes; 0 for FLUSH
	// Data is the payload of a write, or where a read puts its bytes, all of
	// them when it replies without error. It starts on a page, is Length long,
	// and belongs to the Handler until it replies; nil for other requests.
	Data []byte

	conn    *conn
	cookie  uint64
	buffer  []byte // pooled memory behind Data
	lead    int    // bytes before what a misaligned read asked for
	want    int    // bytes a read asked for
	cost    int64
	replied atomic.Bool
	frame   frame
	free    *Request // list of unused requests of the connection
}

// Reply answers the request and gives Data back; the request must not be used
// afterwards. A nil error is success. An [Errno] is sent as it is, a
// [syscall.Errno] as its nearest relative, anything else as EIO. Reply does not
// wait for the client. It may be called from any goroutine, once: a second
// reply would answer somebody else's request, so it panics.
func (r *Request) Reply(err error) {
	if !r.replied.CompareAndSwap(false, true) {
		panic("nbd: request answered twice")
	}
	errno := errnoOf(err)
	putSimpleReply(r.frame.header[:], errno, r.cookie)
	r.frame.length = simpleReplyLen
	if errno == 0 && r.want > 0 {
		r.frame.payload = r.buffer[r.lead : r.lead+r.want]
	}
	r.conn.out.push(&r.frame)
}
