// Package wire is the byte format of the replication link: the frames of an
// established session (frame.go, body.go) and the handshake that comes before
// it (hello.go, handshake.go).
//
// # Frames
//
// Every message is one frame: a header of HeaderSize bytes, then either the
// payload of a data message or the body of a rare one, never both. All
// numbers are big-endian.
//
//	offset size
//	     0    4  magic 0x7265706C
//	     4    1  kind
//	     5    1  codec of what follows: 0 = stored as is (the only one yet)
//	     6    2  flags
//	     8    2  volume
//	    10    2  zero
//	    12    4  len, in bytes of the volume (in bits for KindBitmap)
//	    16    8  off, in bytes of the volume (in bits for KindBitmap)
//	    24    8  seq
//	    32    8  arg
//	    40    4  size of what follows the header
//	    44    4  zero (size before compression, once a codec exists)
//	    48    8  xxhash64 of what follows the header; of nothing if nothing does
//	    56    8  xxhash64 of bytes 0 to 55
//
// The header has a hash of its own so that a flipped bit in an offset cannot
// send good data to the wrong place, and so that the length that decides how
// far to read is known to be right before anything is read by it.
//
// The hashes catch accidents of memory, network cards and proxies. They are
// no defence against an attacker on the path: that is the task of TLS, which
// package link can put below.
//
// # What this package does not do
//
// It reads no socket, starts no goroutine and keeps no global state. It checks
// the form of a message and every number whose misuse could cost memory or
// overflow; whether a message makes sense at this moment is the core's
// question. All functions may be called from any goroutine; a Header or a
// Handshake belongs to one goroutine at a time.
package wire
