package link

import "testing"

// TestTLSAllocatesLittle: the link itself allocates nothing over TLS either.
// Package tls allocates a few bytes for each record it reads; a payload it would
// be if it were 4 KiB.
func TestTLSAllocatesLittle(t *testing.T) {
	overTLS = newTestCA(t, nil)
	defer func() { overTLS = nil }()
	result := testing.Benchmark(func(b *testing.B) { benchmarkRoundTrip(b, (*Conn).Kick) })
	if bytes, n := result.AllocedBytesPerOp(), result.AllocsPerOp(); bytes >= 4096 || n > 12 {
		t.Errorf("%d bytes in %d allocations for a 4 KiB write and its ack", bytes, n)
	}
}

// BenchmarkTLS is BenchmarkSend and BenchmarkRoundTrip over TLS.
func BenchmarkTLS(b *testing.B) {
	overTLS = newTestCA(b, nil)
	defer func() { overTLS = nil }()
	b.Run("send", BenchmarkSend)
	b.Run("roundtrip", BenchmarkRoundTrip)
}
