package main

import (
	"errors"
	"math"
	"slices"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		values  []time.Duration
		percent int
		want    time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 50, 7},
		{[]time.Duration{7}, 99, 7},
		{[]time.Duration{1, 2}, 50, 1},
		{[]time.Duration{1, 2, 3}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 0, 1},
		{hundred, 100, 100},
	} {
		if got := percentile(c.values, c.percent); got != c.want {
			t.Errorf("p%d of %d values is %d, want %d", c.percent, len(c.values), got, c.want)
		}
	}
}

func TestSpread(t *testing.T) {
	given := []float64{5, math.NaN(), 1, 4, 2}
	if got, want := spreadOf(given), (spread{median: 3, least: 1, greatest: 5}); got != want {
		t.Errorf("spread %v, want %v", got, want)
	}
	if given[0] != 5 || !math.IsNaN(given[1]) {
		t.Error("the values were disturbed")
	}
	if got := spreadOf(slices.Repeat([]float64{math.NaN()}, 3)); !math.IsNaN(got.median) {
		t.Errorf("median of nothing is %v", got.median)
	}
}

// sample is a row of ops operations in one second.
func sample(round int, workload, server string, ops int) row {
	return row{
		round: round, workload: workload, server: server, ops: ops, bytes: int64(ops) << 12, elapsed: time.Second,
		p50: 10 * time.Microsecond, p99: 90 * time.Microsecond, serverCPU: 4, clientCPU: 3, load: 1.5,
	}
}

// A slow round slows both servers, so the ratio must come from within rounds:
// the medians alone would say 1.
func TestRatioIsTakenWithinRounds(t *testing.T) {
	table := newTable([]row{
		sample(0, "w", "base", 100), sample(0, "w", "ours", 200),
		sample(1, "w", "base", 200), sample(1, "w", "ours", 400),
		sample(2, "w", "base", 800), sample(2, "w", "ours", 200),
	})
	if got := table.ratio("w", "ours", "base"); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if got := table.ratio("w", "ours", "absent"); !math.IsNaN(got) {
		t.Errorf("ratio to a server that is not there: %v", got)
	}
}

func TestFailedRoundsDoNotCount(t *testing.T) {
	broken := sample(1, "w", "ours", 9999)
	broken.err = errors.New("broken")
	rows := []row{sample(0, "w", "ours", 100), broken, sample(0, "w", "base", 50), sample(1, "w", "base", 1)}
	table := newTable(rows)
	sum, ok := table.summary("w", "ours")
	if !ok || sum.rounds != 1 || sum.failed != 1 || sum.rate.median != 100 || sum.rate.greatest != 100 {
		t.Errorf("summary %+v", sum)
	}
	if got := table.ratio("w", "ours", "base"); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if _, ok := table.summary("w", "absent"); ok {
		t.Error("a cell that was never visited has a summary")
	}
}

func TestRowFill(t *testing.T) {
	from := time.Now()
	win := window{from: from, until: from.Add(time.Second)}
	var r row
	r.fill([]tally{
		{ops: 2, last: from.Add(time.Second), latencies: []time.Duration{3000, 1000}},
		{ops: 1, last: from.Add(2 * time.Second), latencies: []time.Duration{2000}},
	}, win, 4096)
	if r.ops != 3 || r.bytes != 3*4096 || r.elapsed != 2*time.Second || r.p50 != 2000 || r.p99 != 3000 || r.err != nil {
		t.Errorf("row %+v", r)
	}
	if r.rate() != 1.5 || r.throughput() != 1.5*4096 {
		t.Errorf("rate %v, throughput %v", r.rate(), r.throughput())
	}
	var empty row
	empty.fill([]tally{{}}, win, 4096)
	if empty.err == nil || empty.rate() != 0 {
		t.Errorf("nothing done, and no error: %+v", empty)
	}
}
