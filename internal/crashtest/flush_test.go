package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/nbd"
	"replicad/replica/disk/disktest"
)

const (
	flushRounds    = 10
	flushesCovered = 20 // in a round, each after a write completed
)

// TestFlushCoversAllConnections: the server says CAN_MULTI_CONN, so a FLUSH that
// one connection sent covers what completed on every other before it was sent
// (P5). Writes go to two connections, flushes to a third that never wrote; then
// both machines lose power, and each disk must have what was covered.
func TestFlushCoversAllConnections(t *testing.T) {
	for seed := range uint64(flushRounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			k := drawKnobs(rng, 'C')
			p := newPair(t, k)
			s := &served{pair: p, t: t, dir: t.TempDir()}
			for _, n := range p.nodes { // a flush that is answered early must have something to miss
				n.machine.SetPause(func(op disktest.Op) {
					if op == disktest.Sync {
						time.Sleep(2 * time.Millisecond)
					}
				})
			}
			n := p.nodes[0]
			n.must("primary", n.Primary(n.ctx(), false))
			s.serve(n)
			b := newBook()
			writeAndFlush(t, s.service(), b, rng, func() {
				p.nodes[1].machine.CutPower()
				n.machine.CutPower()
			})
			s.sendAway()
			for _, n := range p.nodes {
				size := n.Volume(0).Size()
				n.bury()
				n.machine.Crash(rng)
				image := make([]byte, size)
				if _, err := n.data.ReadAt(image, 0); err != nil {
					t.Fatal(err)
				}
				if f := b.compare(image); f.unsafe != "" || f.foreign != "" {
					t.Errorf("%s: %s%s", n.name, f.unsafe, f.foreign)
				}
			}
		})
	}
}

// writeAndFlush lets two connections write and a third flush, each time after
// another write completed, and cuts the power when the last flush was answered.
func writeAndFlush(t *testing.T, v *service, b *book, rng *rand.Rand, cut func()) {
	t.Helper()
	dial := func() *nbd.Client {
		c, err := nbd.Dial(context.Background(), v.uri)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Abort)
		return c
	}
	var wg sync.WaitGroup
	var l life
	var stop atomic.Bool
	var written atomic.Int64
	for i := range 2 {
		c, mine := dial(), rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		wg.Go(func() {
			for !stop.Load() {
				first := uint32(mine.IntN(places)*placeStride + mine.IntN(placeSectors))
				id := b.issue(first, 2, false, false)
				p := make([]byte, 2*sectorSize)
				fill(p, id, first)
				fill(p[sectorSize:], id, first+1)
				_, err := c.WriteAt(p, int64(first)*sectorSize)
				switch {
				case err == nil:
					b.completed(&l, id)
					written.Add(1)
				case !stop.Load():
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	flusher := dial()
	if flusher.Info().Flags&nbd.FlagCanMultiConn == 0 {
		t.Error("the server does not say that it can serve several connections")
	}
	covered, seen := 0, int64(0)
	for deadline := time.Now().Add(patience); covered < flushesCovered && !t.Failed() && time.Now().Before(deadline); {
		before := written.Load()
		if before == seen {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		seen = before
		issued := b.beginFlush()
		if err := flusher.Flush(); err != nil {
			t.Errorf("flush: %v", err)
		}
		b.endFlush(&l, issued)
		covered++
	}
	b.end(&l)
	stop.Store(true)
	cut()
	wg.Wait()
	if covered < flushesCovered {
		t.Errorf("only %d flushes were answered", covered)
	}
}
