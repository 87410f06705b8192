package nbd

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPoolGivesWhatIsAsked(t *testing.T) {
	var p pool
	for _, n := range []int{1, 511, 512, 4096, 4097, 65536, 1 << 20, 1<<20 + 1, RequestBytesMax} {
		b := p.get(n)
		if len(b) != n || misalignment(b) != 0 || cap(b)&(cap(b)-1) != 0 {
			t.Errorf("asked for %d: length %d, capacity %d, misaligned by %d", n, len(b), cap(b), misalignment(b))
		}
		p.put(b)
	}
	a := p.get(4096)
	b := p.get(4096)
	if &a[0] == &b[0] {
		t.Error("one buffer was given out twice")
	}
}

func TestPoolKeepsLittle(t *testing.T) {
	var p pool
	for range 3 * idleBytesClass >> 20 {
		p.put(alignedBytes(1 << 20))
	}
	p.put(alignedBytes(RequestBytesMax))
	kept := 0
	for i := range p.class {
		for _, b := range p.class[i].free {
			kept += cap(b)
		}
	}
	if kept != idleBytesClass {
		t.Errorf("%d bytes kept", kept)
	}
}

// TestBudgetModel: never more in use than allowed, everything granted in the
// end, in the order of asking.
func TestBudgetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 100
		b := budget{max: limit}
		claims := rapid.SliceOfN(rapid.Int64Range(1, limit), 1, 40).Draw(t, "claims")
		var wg sync.WaitGroup
		for _, n := range claims {
			wg.Go(func() {
				if !b.try(n) {
					b.wait(n)
				}
				b.mu.Lock()
				if b.used > limit {
					t.Errorf("%d in use", b.used)
				}
				b.mu.Unlock()
				b.release(n)
			})
		}
		wg.Wait()
		if b.used != 0 || len(b.waiters) != 0 {
			t.Fatalf("%d in use and %d waiting at the end", b.used, len(b.waiters))
		}
	})
}

// TestLargeClaimIsNotStarved: small claims that would fit queue behind it.
func TestLargeClaimIsNotStarved(t *testing.T) {
	b := budget{max: 100}
	b.wait(60)
	granted := make(chan struct{})
	go func() { b.wait(100); close(granted) }()
	waitFor(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.waiters) == 1 })
	if b.try(1) {
		t.Fatal("a small claim overtook the large one")
	}
	b.release(60)
	select {
	case <-granted:
	case <-time.After(wireTimeout):
		t.Fatal("the large claim was never granted")
	}
	b.release(100)
}
