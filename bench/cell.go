package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"
)

const (
	cellGrace   = 10 * time.Second // a cell that takes longer than planned by this is aborted
	warmUpShare = 8                // the warm-up is this part of the cell
)

// row is one visit of one workload to one server.
type row struct {
	round    int
	workload string
	server   string
	ops      int
	bytes    int64
	elapsed  time.Duration
	p50, p99 time.Duration
	// CPU time per operation: of the server's processes, all together, and of
	// this one, which makes the load. NaN when unknown.
	serverCPU, clientCPU float64 // microseconds
	load                 float64 // load average over one minute
	err                  error
}

// rate is operations per second; 0 when there were none.
func (r row) rate() float64 { return perSecond(float64(r.ops), r.elapsed) }

// throughput is bytes per second.
func (r row) throughput() float64 { return perSecond(float64(r.bytes), r.elapsed) }

func perSecond(n float64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return n / d.Seconds()
}

// measure runs one cell. What goes wrong is in the row.
func measure(ctx context.Context, s *server, w workload, opt options, round int) row {
	r := row{round: round, workload: w.name, server: s.label, serverCPU: math.NaN(), clientCPU: math.NaN()}
	lanes, err := openLanes(ctx, s, w, opt.size, round)
	defer func() {
		for _, l := range lanes {
			l.close()
		}
	}()
	if err != nil {
		r.err = err
		return r
	}
	runtime.GC() // not in the middle of somebody's cell
	warm := opt.cell / warmUpShare
	begin := time.Now().Add(warm)
	win := window{from: begin, until: begin.Add(opt.cell)}
	tallies, cost := drive(ctx, s, lanes, win)
	r.fill(tallies, win, int64(w.block))
	r.serverCPU, r.clientCPU = cost.perOperation()
	r.load = loadAverage()
	return r
}

func openLanes(ctx context.Context, s *server, w workload, size int64, round int) ([]lane, error) {
	var lanes []lane
	for i := range w.conns {
		l, err := openLane(ctx, s.uri, w, newPlaces(w, i, size, round))
		if err != nil {
			return lanes, err
		}
		lanes = append(lanes, l)
	}
	return lanes, nil
}

// cost is the CPU time that some operations took.
type cost struct {
	server, client time.Duration
	ops            int64
}

// costSoFar takes stock. On a busy machine this goroutine may get to it late,
// so it counts the operations itself and does not rely on the window's ends.
func costSoFar(s *server, lanes []lane) cost {
	c := cost{server: s.cpuTime(), client: ownCPUTime()}
	for _, l := range lanes {
		c.ops += l.done()
	}
	return c
}

// perOperation is in microseconds; NaN when there were no operations.
func (c cost) perOperation() (server, client float64) {
	if c.ops <= 0 {
		return math.NaN(), math.NaN()
	}
	return microseconds(c.server) / float64(c.ops), microseconds(c.client) / float64(c.ops)
}

// drive runs the lanes through the window. The cost leaves the warm-up out.
func drive(ctx context.Context, s *server, lanes []lane, win window) ([]tally, cost) {
	ctx, cancel := context.WithDeadline(ctx, win.until.Add(cellGrace))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		for _, l := range lanes {
			l.abort()
		}
	})()
	tallies := make([]tally, len(lanes))
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() { tallies[i] = l.run(win) })
	}
	select {
	case <-time.After(time.Until(win.from)):
	case <-ctx.Done():
	}
	before := costSoFar(s, lanes)
	wg.Wait()
	after := costSoFar(s, lanes)
	return tallies, cost{after.server - before.server, after.client - before.client, after.ops - before.ops}
}

// fill sums up what the connections did.
func (r *row) fill(tallies []tally, win window, block int64) {
	var all []time.Duration
	last := win.from
	for _, t := range tallies {
		r.ops += t.ops
		all = append(all, t.latencies...)
		if t.last.After(last) {
			last = t.last
		}
		if t.err != nil && r.err == nil {
			r.err = t.err
		}
	}
	if r.ops == 0 && r.err == nil {
		r.err = fmt.Errorf("no operation ended within %v", win.until.Sub(win.from))
	}
	slices.Sort(all)
	r.bytes = int64(r.ops) * block
	r.elapsed = last.Sub(win.from)
	r.p50, r.p99 = percentile(all, 50), percentile(all, 99)
}
