package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"replicad/internal/ledger"
	"replicad/nbd"
)

// load is clients under whose requests things break. Everything they see goes
// into the ledger.
type load struct {
	plan   *plan
	led    *ledger.Sectors
	cancel context.CancelFunc
	conns  []*nbd.Client
	wg     sync.WaitGroup
	errnos atomic.Int64 // requests answered with an error
	broken atomic.Int64 // connections that ended on their own

	mu  sync.Mutex
	err error // what must not happen, whatever breaks
}

// startLoad connects the clients of the plan to a node.
func startLoad(p *plan, led *ledger.Sectors, n *node, seed uint64) (*load, error) {
	l := &load{plan: p, led: led}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(context.Background())
	for i := range p.clients {
		c, err := n.open()
		if err != nil {
			// A daemon that is about to die may let nobody in any more.
			l.broken.Add(1)
			continue
		}
		l.conns = append(l.conns, c)
		for task := range p.tasks {
			r := rand.New(rand.NewPCG(seed, uint64(i*p.tasks+task)))
			l.wg.Go(func() { l.work(ctx, c, r) })
		}
	}
	return l, nil
}

// work makes requests until it is told to end or the connection does.
func (l *load) work(ctx context.Context, c *nbd.Client, r *rand.Rand) {
	buf := make([]byte, l.plan.maxSize*ledger.SectorSize)
	for ctx.Err() == nil {
		err := l.request(c, r, buf)
		if err == nil {
			time.Sleep(time.Duration(r.Int64N(int64(l.plan.pause) + 1)))
			continue
		}
		if _, answered := errors.AsType[nbd.Errno](err); !answered {
			l.broken.Add(1)
			if errors.Is(err, nbd.ErrProtocol) {
				l.violated(fmt.Errorf("a client was answered against the protocol: %w", err))
			}
			return
		}
		l.errnos.Add(1)
		time.Sleep(10 * time.Millisecond)
	}
}

func (l *load) violated(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, err)
}

// request makes one request. Half of them meet in a few sectors.
func (l *load) request(c *nbd.Client, r *rand.Rand, buf []byte) error {
	area := l.plan.areaMiB << 20 / ledger.SectorSize
	n := 1 + r.IntN(1+r.IntN(l.plan.maxSize))
	first := r.IntN(area - n)
	if r.IntN(2) == 0 && !l.plan.wide {
		first = r.IntN(256)
	}
	if !l.plan.fits(first, n) {
		n = 1
	}
	off, p := l.plan.offset(first), buf[:n*ledger.SectorSize]
	switch what := r.IntN(100); {
	case what < 1:
		covered := l.led.Flush()
		err := c.Flush()
		if err == nil {
			covered()
		}
		return err
	case what < 12:
		issued := l.led.Now()
		if _, err := c.ReadAt(p, off); err != nil {
			return err
		}
		if err := l.led.CheckRead(first, p, issued); err != nil {
			l.violated(fmt.Errorf("a client read what it must not: %w", err))
		}
		return nil
	case what < 16:
		w := l.led.Issue(first, n, true)
		if what < 14 {
			return settled(w, c.Trim(off, int64(len(p))), false)
		}
		return settled(w, c.WriteZeroes(off, int64(len(p)), what == 14), false)
	default:
		w := l.led.Issue(first, n, false)
		w.Fill(p)
		write := c.WriteAt
		if what < 18 {
			write = c.WriteFUA
		}
		_, err := write(p, off)
		return settled(w, err, what < 18)
	}
}

// settled tells the ledger how a write ended.
func settled(w ledger.Write, err error, fua bool) error {
	if err != nil {
		w.Failed(err)
		return err
	}
	w.Completed(fua)
	return nil
}

// stop ends the load in order. Every request must be answered in time.
func (l *load) stop() error {
	l.cancel()
	done := make(chan struct{})
	go func() {
		l.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		l.abort()
		return errors.New("a request is not answered")
	}
	for _, c := range l.conns {
		_ = c.Close() // it may be broken, which broken counts
	}
	return l.verdict()
}

// abort ends the load of a server that is gone.
func (l *load) abort() {
	l.cancel()
	for _, c := range l.conns {
		c.Abort()
	}
	l.wg.Wait()
}

func (l *load) verdict() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
