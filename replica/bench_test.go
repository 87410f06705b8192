package replica

import (
	"fmt"
	"testing"
)

// BenchmarkRequest is the runtime without NBD: 4 KiB requests through a Handle,
// standalone and mirrored by protocol C to a second resource in this process.
func BenchmarkRequest(b *testing.B) {
	for _, alone := range []bool{true, false} {
		for _, op := range []Op{OpRead, OpWrite} {
			for _, depth := range []int{1, 32} {
				where := map[bool]string{true: "standalone", false: "connected"}[alone]
				what := map[Op]string{OpRead: "read", OpWrite: "write"}[op]
				b.Run(fmt.Sprintf("%s/%s/depth=%d", where, what, depth), func(b *testing.B) {
					benchmarkRequest(b, alone, op, depth)
				})
			}
		}
	}
}

func benchmarkRequest(b *testing.B, alone bool, op Op, depth int) {
	x, y := newSyncedPair(b, 'C')
	if alone {
		y.must("disconnect", y.Disconnect(testCtx(b), true))
		x.must("disconnect", x.Disconnect(testCtx(b), true))
	}
	c := x.queueClient(depth, 4096)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c.submit(IO{Op: op, Off: uint64(i*997%4096) * 4096, Len: 4096}, nil)
	}
	c.h.Drain()
	for range depth {
		<-c.free
	}
	b.StopTimer()
	c.h.Close()
}
