// Package nbd serves and uses network block devices: a pipelined server for
// the fixed newstyle protocol, and a pipelined client for tests, benchmarks
// and the demo.
//
// It knows nothing of replication. What a request does to data is the business
// of a [Handler]; this package owns sockets, buffers, bounds and errors. It does
// not attach a device to the kernel, offer TLS, structured replies or metadata
// contexts: their options are answered "unsupported", and clients go on without.
//
// Shape of one server connection:
//
//	socket ─► reader goroutine ─► Handler.Serve, Serve, … ─► Handler.Drain
//	                                   │ Request.Reply, from any goroutine
//	socket ◄─ one writev per batch ◄───┴── outbox
//
// The reader serves every request it already holds before it lets the replies
// go, so that a client at queue depth 32 costs two system calls per 32 requests.
// A reply given while the reader waits for the client is written at once by the
// goroutine that gave it. No goroutine that gives a reply ever waits for a slow
// client: what the socket does not take goes to a goroutine of the connection.
//
// What a hostile client can do is bounded, each bound by a test named TestSiege…
// or TestMalformed…:
//
//   - [Config] limits clients at a time, bytes in flight, and the time of a
//     negotiation and of a stall. One client holds at most RequestBytesMax of the
//     bytes in flight, and one that takes nothing of its replies is given up
//     after the stall limit; what it still asked for is not carried out.
//   - A client whose export was withdrawn has two seconds to take its replies.
//   - The log gets at most five warnings about clients a second.
//   - Form and range of every request are checked before memory is claimed.
//
// [Server], [Client] and [Request.Reply] may be used from any goroutine.
package nbd

// Limits of the server. The protocol allows a server to choose them; each is
// checked before memory is allocated on a client's word.
const (
	// RequestBytesMax is the largest READ or WRITE that is served. It is larger
	// than what is advertised because old clients ignore the advertisement.
	RequestBytesMax = 64 << 20
	// BlockSizeMin is the granularity, in bytes, of offsets and lengths a
	// Handler sees, and the advertised minimum. Reads of any alignment are
	// served by reading the blocks around them.
	BlockSizeMin = 512
	// BlockSizePreferred is the advertised preferred block size.
	BlockSizePreferred = 4096
	// BlockSizeMax is the advertised maximum: what every known client keeps to.
	BlockSizeMax = 32 << 20
	// NameBytesMax is the longest export name, description or error text that
	// the protocol allows.
	NameBytesMax = 4096

	optionBytesMax = 64 << 10 // longest option a client may send
	optionsMax     = 256      // options a client may send before it must choose an export
)

// Op is what a request asks for. The values are those on the wire.
type Op uint16

// The requests a Handler is given.
const (
	OpRead        Op = 0
	OpWrite       Op = 1
	OpFlush       Op = 3
	OpTrim        Op = 4
	OpWriteZeroes Op = 6

	opDisconnect Op = 2 // never reaches a Handler
)

// Attributes are the promises of an export that clients are told of.
type Attributes struct {
	// ReadOnly makes the server refuse every change with EPERM.
	ReadOnly bool
	// MultiConn promises that a FLUSH or FUA answered on one connection covers
	// the writes answered on all connections of this export.
	MultiConn bool
	// Rotational hints that seeks are expensive.
	Rotational bool
}

// ClientInfo describes one client connection.
type ClientInfo struct {
	Export  string // name the client asked for, resolved
	Network string // "unix" or "tcp"
	Address string // remote address; empty for most unix clients
	PID     int32  // process id of a unix client, 0 when unknown
	UID     uint32 // user id of a unix client, meaningful only when PID is not 0
}

// Export is one device offered to clients. Its methods are called from many
// goroutines.
type Export interface {
	// Name identifies the export; it must not change.
	Name() string
	// Description is a sentence for people who list the exports.
	Description() string
	// Size is the device's size in bytes. What exceeds a multiple of
	// BlockSizeMin is not offered. A connection keeps the size it began with.
	Size() uint64
	// Attributes reports the promises; a connection keeps what it began with.
	Attributes() Attributes
	// Open is called when a client selects the export. An error refuses it:
	// the client gets NBD_REP_ERR_POLICY and the error's text. Otherwise the
	// device counts as held open until the Handler's Close.
	Open(info ClientInfo) (Handler, error)
}

// Handler serves the requests of one connection.
type Handler interface {
	// Serve starts r. The connection's reader goroutine calls it in the order
	// of arrival. It may call r.Reply before it returns, or any goroutine may
	// later, exactly once either way. The request is within the export and
	// aligned to BlockSizeMin; a trim or zeroing may be up to 4 GiB long.
	Serve(r *Request)
	// Drain is called by the reader goroutine when no further complete request
	// is at hand, or the batch is long enough: whatever Serve queued must be
	// started now. It must not wait for replies.
	Drain()
	// Close is called once, after the last reply was written or dropped.
	Close()
}
