//go:build race

package nbd

import "syscall"

// raceRelease tells the race detector that what this goroutine did comes before
// what the reader of the socket does, as net.Conn.Write does and a raw writev
// does not. Writing nothing to a stream socket sends nothing.
func raceRelease(fd uintptr) { _, _ = syscall.Write(int(fd), nil) }
