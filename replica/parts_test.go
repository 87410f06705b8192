package replica

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"replicad/replica/core"
	"replicad/replica/disk"
)

// TestPlanKeepsTheCoresContract: pieces cover the request, none is longer than
// its unit or crosses a multiple of it, and there are never more than admission
// counts on.
func TestPlanKeepsTheCoresContract(t *testing.T) {
	r := &Resource{bufs: newBuffers(piecesMax, payloadBytesMin)}
	v := &Volume{r: r}
	rapid.Check(t, func(t *rapid.T) {
		op := rapid.SampledFrom([]Op{OpRead, OpWrite, OpTrim, OpZero}).Draw(t, "op")
		longest := uint64(requestBytesMax / 512)
		if op == OpTrim || op == OpZero {
			longest = (1<<32 - 1) / 512
		}
		io := IO{
			Op:   op,
			Off:  rapid.Uint64Range(0, 1<<40).Draw(t, "off") * 512,
			Len:  uint32(rapid.Uint64Range(1, longest).Draw(t, "len") * 512),
			Done: make(answerChan, 1),
		}
		if op == OpRead || op == OpWrite {
			io.Data = sharedData[:io.Len]
		}
		p, result := planFor(&io)
		if result != core.IOOK || p.pieces < 1 || p.pieces > piecesMax {
			t.Fatalf("plan %+v, result %d", p, result)
		}
		b := batch{r: r}
		b.submit(v, &io, p)
		checkPieces(t, &b, &io, p)
		for i := range b.events {
			r.finishPiece(b.events[i].Buf, core.IOOK)
		}
	})
}

var sharedData = make([]byte, requestBytesMax)

func checkPieces(t *rapid.T, b *batch, io *IO, p plan) {
	if len(b.events) != p.pieces {
		t.Fatalf("%d pieces, planned %d", len(b.events), p.pieces)
	}
	at := io.Off
	for i := range b.events {
		e := &b.events[i]
		if e.Off != at || e.Len == 0 || e.Off/p.unit != (e.Off+uint64(e.Len)-1)/p.unit {
			t.Fatalf("piece %d is %d+%d, expected to start at %d", i, e.Off, e.Len, at)
		}
		if s := b.r.bufs.slot(e.Buf); io.Data != nil && (len(s.data) != int(e.Len) || &s.data[0] != &io.Data[e.Off-io.Off]) {
			t.Fatalf("piece %d has the wrong memory", i)
		}
		at += uint64(e.Len)
	}
	if at != io.Off+uint64(io.Len) {
		t.Fatalf("pieces end at %d", at)
	}
}

// TestInflightNeverMissesAnOverlap compares with a list of ranges.
func TestInflightNeverMissesAnOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type span struct {
			off uint64
			n   uint32
		}
		var f inflight
		var in []span
		draw := func(longest uint64) span {
			return span{rapid.Uint64Range(0, 1<<22).Draw(t, "off") * 512, uint32(rapid.Uint64Range(1, longest).Draw(t, "len") * 512)}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch {
			case len(in) > 0 && rapid.Bool().Draw(t, "leave"):
				i := rapid.IntRange(0, len(in)-1).Draw(t, "which")
				f.add(in[i].off, in[i].n, -1)
				in = append(in[:i], in[i+1:]...)
			default:
				s := draw(1 << 17) // up to 64 MiB
				f.add(s.off, s.n, 1)
				in = append(in, s)
			}
			q := draw(1 << 14)
			for _, s := range in {
				if s.off < q.off+uint64(q.n) && q.off < s.off+uint64(s.n) && !f.overlaps(q.off, q.n) {
					t.Fatalf("%+v overlaps %+v unnoticed", q, s)
				}
			}
		}
		for _, s := range in {
			f.add(s.off, s.n, -1)
		}
		if f.overlaps(0, 1<<31) {
			t.Fatal("something is left after everything left")
		}
	})
}

// TestGateIsClosedOnceAndOnlyWhenEmpty: many readers, one closer.
func TestGateIsClosedOnceAndOnlyWhenEmpty(t *testing.T) {
	var g gate
	g.init()
	var inside atomic.Int64
	for round := range 2000 {
		var drained atomic.Int64
		check := func(op core.Op) {
			if op == 0 {
				return
			}
			if op != core.Op(round+1) || inside.Load() != 0 {
				t.Errorf("round %d: closed by op %d with %d readers inside", round, op, inside.Load())
			}
			drained.Add(1)
		}
		g.open()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 20 {
					ok, op := g.enter()
					if ok {
						inside.Add(1)
						inside.Add(-1)
						op = g.leave()
					}
					check(op)
				}
			})
		}
		wg.Go(func() {
			if g.shut(core.Op(round + 1)) {
				check(core.Op(round + 1))
			}
		})
		wg.Wait()
		if drained.Load() != 1 {
			t.Fatalf("round %d: closed %d times", round, drained.Load())
		}
		if ok, _ := g.enter(); ok {
			t.Fatalf("round %d: entered a shut gate", round)
		}
	}
}

// TestAdmissionIsFairAndExact: random claims from many goroutines never exceed
// the limits, a large one gets its turn, and everything comes back.
func TestAdmissionIsFairAndExact(t *testing.T) {
	const slots, bytes = 10, 1000
	var a admission
	a.init(slots, bytes)
	var usedSlots, usedBytes atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		rng := rand.New(rand.NewPCG(uint64(w), 1))
		wg.Go(func() {
			for range 2000 {
				n, m := 1+rng.IntN(slots), rng.Int64N(bytes+1)
				if rng.IntN(2) == 0 || !a.try(n, m) {
					a.wait(n, m)
				}
				if usedSlots.Add(int64(n)) > slots || usedBytes.Add(m) > bytes {
					t.Error("more was let in than there is room for")
				}
				runtime.Gosched() // let the others find less room
				usedSlots.Add(int64(-n))
				usedBytes.Add(-m)
				a.give(n, m)
			}
		})
	}
	wg.Wait()
	if a.slots != slots || a.bytes != bytes || len(a.waiters) != 0 {
		t.Errorf("left: %d slots, %d bytes, %d waiters", a.slots, a.bytes, len(a.waiters))
	}
}

// TestPayloadPoolKeepsItsBudgets: neither use takes from the other, memory
// stays under the cap whatever sizes come, and every buffer comes back.
func TestPayloadPoolKeepsItsBudgets(t *testing.T) {
	b := newBuffers(1, payloadBytesMin)
	rng := rand.New(rand.NewPCG(3, 4))
	var out []core.Buf
	for range 20000 {
		if len(out) > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(len(out))
			b.release(out[i])
			out[i] = out[len(out)-1]
			out = out[:len(out)-1]
			continue
		}
		n := 512 << rng.IntN(12)
		use := budget(rng.IntN(int(budgets)))
		buf := b.tryPayload(n, use)
		if buf == 0 {
			continue
		}
		if s := b.slot(buf); len(s.data) != n || b.spent[use] > b.limit || b.isClient(buf) {
			t.Fatalf("buffer of %d instead of %d bytes, %d spent", len(s.data), n, b.spent[use])
		}
		out = append(out, buf)
		if b.held > int64(budgets)*b.limit {
			t.Fatalf("%d bytes held", b.held)
		}
	}
	for _, buf := range out {
		b.release(buf)
	}
	if b.spent != [budgets]int64{} {
		t.Errorf("%v bytes are missing", b.spent)
	}
	if b.tryPayload(payloadMax+1, budgetRead) != 0 {
		t.Error("a buffer larger than the largest class")
	}
}

// TestNoSpaceOfASyncIsAnError: ENOSPC from a flush or a durable write that may
// have lost other writes must not pass for a write's own refusal.
func TestNoSpaceOfASyncIsAnError(t *testing.T) {
	own := fmt.Errorf("write x: %w", unix.ENOSPC)
	if got := resultOf(own); got != core.IONoSpace {
		t.Errorf("a write's own: %v", got)
	}
	if got := resultOf(fmt.Errorf("write x: %w", unix.EDQUOT)); got != core.IONoSpace {
		t.Errorf("a used-up quota: %v", got)
	}
	if got := resultOf(fmt.Errorf("durable write x: %w", &disk.SyncError{Err: unix.ENOSPC})); got != core.IOError {
		t.Errorf("a lost write-back: %v", got)
	}
}
