package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRoundTrip(t *testing.T) {
	m := newMemory("r0", testSize)
	f := serve(t, Config{}, m)
	address := f.listen("127.0.0.1:0")
	for _, uri := range []string{f.uri("r0"), f.uri(""), "nbd://" + address.String() + "/r0"} {
		c, err := Dial(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{512, 4096, 65536, 65536 + 512, 1 << 20, 3 << 20} {
			want := pattern(n, byte(n>>9))
			if _, err := c.WriteAt(want, 4096); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, n)
			if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %d bytes came back different, error %v", uri, n, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlushTrimZeroesAndFUA(t *testing.T) {
	m := newMemory("r0", testSize)
	c := serve(t, Config{}, m).dial("r0")
	if _, err := c.WriteFUA(pattern(8192, 1), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Flush(), c.Trim(0, 4096), c.WriteZeroes(4096, 2048, true)); err != nil {
		t.Fatal(err)
	}
	if m.fuas.Load() != 1 || m.flushes.Load() != 1 {
		t.Errorf("%d FUA writes and %d flushes arrived", m.fuas.Load(), m.flushes.Load())
	}
	want := append(make([]byte, 6144), pattern(8192, 1)[6144:]...)
	if !m.holds(0, want) {
		t.Error("trim and zeroes changed the wrong bytes")
	}
}

func TestNoHoleReachesHandler(t *testing.T) {
	m := newMemory("r0", testSize)
	seen := make(chan bool, 2)
	m.fault = func(r *Request) error { seen <- r.NoHole; return nil }
	c := serve(t, Config{}, m).dial("r0")
	for _, noHole := range []bool{true, false} {
		if err := c.WriteZeroes(0, 512, noHole); err != nil || <-seen != noHole {
			t.Errorf("NO_HOLE %v did not arrive, error %v", noHole, err)
		}
	}
}

func TestReadAtEnds(t *testing.T) {
	c := serve(t, Config{}, newMemory("r0", testSize)).dial("r0")
	b := make([]byte, 1024)
	if n, err := c.ReadAt(b, testSize-512); n != 512 || err != io.EOF {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	if n, err := c.ReadAt(b, testSize+512); n != 0 || err != io.EOF {
		t.Errorf("read beyond the end: %d, %v", n, err)
	}
	if _, err := c.WriteAt(b, testSize-512); !errors.Is(err, ENOSPC) {
		t.Errorf("write across the end: %v", err)
	}
}

// TestMisalignedReads is what nbd-tester-client's oversize test needs: reads
// of any alignment, although the handler only sees whole blocks.
func TestMisalignedReads(t *testing.T) {
	m := newMemory("r0", testSize)
	copy(m.data, pattern(testSize, 3))
	m.fault = func(r *Request) error {
		if r.Offset%BlockSizeMin != 0 || r.Length%BlockSizeMin != 0 || len(r.Data) != int(r.Length) {
			t.Errorf("handler saw offset %d, length %d", r.Offset, r.Length)
		}
		return nil
	}
	c := serve(t, Config{}, m).dial("r0")
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		off := rng.Int64N(testSize - 1)
		b := make([]byte, 1+rng.IntN(min(200_000, int(testSize-off))))
		if _, err := c.ReadAt(b, off); err != nil || !m.holds(off, b) {
			t.Fatalf("read of %d at %d: %v", len(b), off, err)
		}
	}
	if _, err := c.WriteAt(make([]byte, 100), 0); !errors.Is(err, EINVAL) {
		t.Errorf("misaligned write: %v", err)
	}
}

// TestErrorsKeepTheConnection: a failing disk is the client's to know and no
// reason to hang up.
func TestErrorsKeepTheConnection(t *testing.T) {
	m := newMemory("r0", testSize)
	type result struct{ error }
	var current atomic.Value
	current.Store(result{})
	m.fault = func(*Request) error { return current.Load().(result).error }
	c := serve(t, Config{}, m).dial("r0")
	b := make([]byte, 128<<10)
	for _, outcome := range []error{EIO, ENOSPC, ESHUTDOWN, EPERM, fmt.Errorf("wrapped: %w", ENOMEM)} {
		current.Store(result{outcome})
		_, rerr := c.ReadAt(b, 0)
		_, werr := c.WriteAt(b, 0)
		for _, err := range []error{rerr, werr, c.Flush(), c.Trim(0, 512), c.WriteZeroes(0, 512, false)} {
			if !errors.Is(err, errnoOf(outcome)) {
				t.Errorf("outcome %v arrived as %v", outcome, err)
			}
		}
	}
	current.Store(result{})
	if _, err := c.ReadAt(b, 0); err != nil {
		t.Errorf("after the faults: %v", err)
	}
}

// TestConcurrentClients checks data under many connections and goroutines,
// with replies from other goroutines in any order.
func TestConcurrentClients(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			m := newMemory("r0", testSize)
			var late sync.WaitGroup
			if async {
				m.answer = func(r *Request, err error) { late.Go(func() { r.Reply(err) }) }
			}
			f := serve(t, Config{BytesInFlightMax: RequestBytesMax}, m)
			const conns, workers = 4, 4
			var wg sync.WaitGroup
			for i := range conns {
				c := f.dial("r0")
				for j := range workers {
					region := int64(testSize / conns / workers)
					wg.Go(func() { hammer(t, c, int64(i*workers+j)*region, region) })
				}
			}
			wg.Wait()
			late.Wait()
		})
	}
}

// hammer writes and reads back random ranges of a region nobody else touches.
func hammer(t *testing.T, c *Client, base, size int64) {
	rng := rand.New(rand.NewPCG(uint64(base), 9))
	for i := range 60 {
		n := (1 + rng.Int64N(size/1024)) * 512
		off := base + rng.Int64N((size-n)/512+1)*512
		want := pattern(int(n), byte(i))
		if _, err := c.WriteAt(want, off); err != nil {
			t.Errorf("write: %v", err)
			return
		}
		got := make([]byte, n)
		if _, err := c.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d came back different, error %v", n, off, err)
			return
		}
	}
}

// TestSubmitFromDone keeps calls in flight the way a load generator does.
func TestSubmitFromDone(t *testing.T) {
	c := serve(t, Config{}, newMemory("r0", testSize)).dial("r0")
	const depth, total = 32, 5000
	var mu sync.Mutex
	left, finished := total-depth, make(chan struct{})
	done := 0
	for i := range depth {
		op := []Op{OpRead, OpWrite}[i%2]
		call := &Call{Op: op, Offset: uint64(i) * 4096, Length: 4096, Data: make([]byte, 4096)}
		call.Done = func(call *Call) {
			mu.Lock()
			defer mu.Unlock()
			if call.Err != nil {
				t.Error(call.Err)
			}
			if done++; done == total {
				close(finished)
			}
			if left > 0 {
				left--
				c.Submit(call)
			}
		}
		c.Submit(call)
	}
	select {
	case <-finished:
	case <-time.After(10 * time.Second):
		t.Fatal("calls were lost")
	}
}

// TestClientSurvivesFullPipes: both sides have more to say than sockets hold.
func TestClientSurvivesFullPipes(t *testing.T) {
	c := serve(t, Config{}, newMemory("r0", testSize)).dial("r0")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			b := make([]byte, 4<<20)
			var err error
			if i%2 == 0 {
				_, err = c.ReadAt(b, 0)
			} else {
				_, err = c.WriteAt(b, 4<<20)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestLargestRequest(t *testing.T) {
	m := newMemory("r0", RequestBytesMax)
	c := serve(t, Config{BytesInFlightMax: RequestBytesMax}, m).dial("r0")
	want := pattern(RequestBytesMax, 5)
	write := func(op Op, b []byte) error {
		done := make(chan error, 1)
		c.Submit(&Call{Op: op, Length: uint32(len(b)), Data: b, Done: func(call *Call) { done <- call.Err }})
		return <-done
	}
	if err := write(OpWrite, want); err != nil || !m.holds(0, want) {
		t.Fatalf("64 MiB write: %v", err)
	}
	got := make([]byte, RequestBytesMax)
	if err := write(OpRead, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("64 MiB read: %v", err)
	}
}

func TestClientFailsPendingCalls(t *testing.T) {
	m := newMemory("r0", testSize)
	var held []*Request
	var mu sync.Mutex
	m.answer = func(r *Request, _ error) { mu.Lock(); held = append(held, r); mu.Unlock() }
	c := serve(t, Config{}, m).dial("r0")
	errs := make(chan error, 1)
	go func() { _, err := c.ReadAt(make([]byte, 512), 0); errs <- err }()
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(held) == 1 })
	c.Abort()
	if err := <-errs; !errors.Is(err, ErrClientClosed) {
		t.Errorf("pending call ended with %v", err)
	}
	if err := c.Flush(); !errors.Is(err, ErrClientClosed) {
		t.Errorf("call after Abort ended with %v", err)
	}
	if m.closes.Load() != 0 {
		t.Error("handler was closed before its last reply")
	}
	held[0].Reply(nil)
	waitFor(t, func() bool { return m.closes.Load() == 1 })
}

// TestClientRefusesStrangeReplies: a reply that answers no call, or a call of
// the past, ends the connection; it must never complete somebody else's call.
func TestClientRefusesStrangeReplies(t *testing.T) {
	for _, cookie := range []uint64{0, 1, 2 << 32, 1<<32 | 7, 1<<64 - 1} {
		a, b := socketPair(t)
		c, err := newClient(&negotiation{sock: a, in: newInbox(a), stop: func() bool { return true }}, ExportInfo{Size: 4096})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			reply := make([]byte, simpleReplyLen)
			putSimpleReply(reply, 0, cookie)
			_, _ = io.ReadFull(b, make([]byte, requestLen))
			_, _ = b.Write(reply)
		}()
		if err := c.Flush(); !errors.Is(err, ErrProtocol) {
			t.Errorf("reply with cookie %#x: %v", cookie, err)
		}
		c.Abort()
	}
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wireTimeout); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("condition never came true")
		}
	}
}

func TestDialRefusals(t *testing.T) {
	secondary := newMemory("r1", testSize)
	secondary.openErr = errors.New("r1 is Secondary on this node")
	f := serve(t, Config{}, newMemory("r0", testSize), secondary)
	_, err := Dial(t.Context(), f.uri("r1"))
	if !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), "r1 is Secondary on this node") {
		t.Errorf("refused export: %v", err)
	}
	for _, name := range []string{"nothing", ""} { // two exports: no default
		if _, err := Dial(t.Context(), f.uri(name)); !errors.Is(err, ErrUnknownExport) {
			t.Errorf("export %q: %v", name, err)
		}
	}
	list, err := List(t.Context(), f.uri(""))
	if err != nil || len(list) != 2 || list[0].Name != "r0" || list[1].Name != "r1" || list[1].Description == "" {
		t.Errorf("list: %+v, %v", list, err)
	}
}

func TestDialKeepsToContext(t *testing.T) {
	silent, err := Listen("unix:" + t.TempDir() + "/s")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, "nbd+unix:///?socket="+silent.Addr().String())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial of a silent server: %v", err)
	}
}

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]target{
		"nbd+unix:///r0?socket=/run/a b":      {"unix", "/run/a b", "r0"},
		"nbd+unix:///r0/1?socket=/run/x":      {"unix", "/run/x", "r0/1"},
		"nbd+unix:///?socket=s":               {"unix", "s", ""},
		"nbd://host/r0":                       {"tcp", "host:10809", "r0"},
		"nbd://[::1]:99/r0":                   {"tcp", "[::1]:99", "r0"},
		"nbd://10.0.0.1":                      {"tcp", "10.0.0.1:10809", ""},
		"nbd+unix:///a%20b?socket=%2Fs%3Fx=1": {"unix", "/s?x=1", "a b"},
	} {
		if got, err := parseURI(uri); err != nil || got != want {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
	for _, uri := range []string{"nbd+unix:///r0", "nbd:///r0", "nbds://host/", "r0", "nbd://%zz"} {
		if got, err := parseURI(uri); err == nil {
			t.Errorf("%s was taken for %+v", uri, got)
		}
	}
}
