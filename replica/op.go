package replica

import "replicad/replica/core"

// Op is what a client's request asks for.
type Op uint8

// The operations of a client.
const (
	OpRead Op = iota + 1
	OpWrite
	OpFlush
	OpTrim
	OpZero
)

// IO is one client request. Off and Len are multiples of 512 and inside the
// volume. Data is the payload of a write, or where a read puts its bytes, both
// Len bytes long and best page-aligned; it belongs to the resource until Done
// was called.
type IO struct {
	Op     Op
	FUA    bool // OpWrite, OpTrim, OpZero: durable before Done
	NoHole bool // OpZero: keep the range allocated
	Len    uint32
	Off    uint64
	Data   []byte
	Done   Completer
}

// Completer hears how a request ended. An owner whose own request type has a
// Complete method can pass it as it is, without allocating.
type Completer interface {
	// Complete is called exactly once per submitted IO, from any goroutine. It must
	// return soon: it runs on the goroutine that also moves other requests. It may
	// not call back into the Handle.
	Complete(result core.IOResult)
}
