package nbd

import (
	"net"
	"testing"
)

// TestNoAllocations: in the steady state neither server nor client allocates
// for a 4 KiB read or write. AllocsPerRun counts the whole process.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	f := serve(t, Config{}, newMemory("r0", testSize))
	async := newMemory("async", testSize)
	replies := make(chan *Request, 64)
	async.answer = func(r *Request, _ error) { replies <- r }
	go func() {
		for r := range replies {
			r.Reply(nil)
		}
	}()
	t.Cleanup(func() { close(replies) })
	if err := f.srv.Add(async); err != nil {
		t.Fatal(err)
	}
	tcp := f.listen("127.0.0.1:0").(*net.TCPAddr)
	b := make([]byte, 4096)
	for name, uri := range map[string]string{"unix": f.uri("r0"), "tcp": "nbd://" + tcp.String() + "/r0", "async": f.uri("async")} {
		c, err := Dial(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Abort)
		for op, do := range map[string]func() error{
			"read":  func() error { _, err := c.ReadAt(b, 4096); return err },
			"write": func() error { _, err := c.WriteAt(b, 4096); return err },
			"flush": c.Flush,
		} {
			if n := testing.AllocsPerRun(2000, func() {
				if err := do(); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%s over %s: %v allocations", op, name, n)
			}
		}
		if n := testing.AllocsPerRun(200, batchOf32(c)); n != 0 {
			t.Errorf("32 requests at once over %s: %v allocations", name, n)
		}
	}
}

// batchOf32 keeps 32 calls in flight once.
func batchOf32(c *Client) func() {
	done := make(chan error, 32)
	calls := make([]*Call, 32)
	for i := range calls {
		calls[i] = &Call{
			Op: []Op{OpRead, OpWrite}[i%2], Offset: uint64(i) * 4096, Length: 4096, Data: make([]byte, 4096),
			Done: func(call *Call) { done <- call.Err },
		}
	}
	return func() {
		c.Submit(calls...)
		for range calls {
			if err := <-done; err != nil {
				panic(err)
			}
		}
	}
}

func BenchmarkRead4K(b *testing.B) {
	c := serve(b, Config{}, newMemory("r0", testSize)).dial("r0")
	p := make([]byte, 4096)
	for b.Loop() {
		if _, err := c.ReadAt(p, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMixed4KDepth32(b *testing.B) {
	batch := batchOf32(serve(b, Config{}, newMemory("r0", testSize)).dial("r0"))
	for b.Loop() {
		batch()
	}
}
