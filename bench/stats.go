package main

import (
	"math"
	"slices"
	"time"
)

// percentile is the nearest-rank percentile of sorted values; 0 of none.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*percent + 99) / 100
	return sorted[max(rank, 1)-1]
}

// spread is the median, least and greatest of some values; NaN of none.
type spread struct{ median, least, greatest float64 }

func spreadOf(values []float64) spread {
	values = slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(values) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(values)
	n := len(values)
	return spread{median: (values[(n-1)/2] + values[n/2]) / 2, least: values[0], greatest: values[n-1]}
}

// key names a cell apart from its rounds.
type key struct{ workload, server string }

// summary is what the rounds of one cell have in common.
type summary struct {
	rounds    int     // without an error
	failed    int     // rounds with one
	rate      spread  // operations per second
	p50, p99  float64 // microseconds, medians over the rounds
	serverCPU float64 // microseconds per operation, median
	clientCPU float64
}

// table holds the rows of a run and what follows from them.
type table struct {
	rows  []row
	cells map[key][]row
}

func newTable(rows []row) *table {
	t := &table{rows: rows, cells: map[key][]row{}}
	for _, r := range rows {
		k := key{r.workload, r.server}
		t.cells[k] = append(t.cells[k], r)
	}
	return t
}

// summary sums up a cell; false if it was never visited.
func (t *table) summary(workload, server string) (summary, bool) {
	rows := t.cells[key{workload, server}]
	var s summary
	var rate, p50, p99, serverCPU, clientCPU []float64
	for _, r := range rows {
		if r.err != nil {
			s.failed++
			continue
		}
		s.rounds++
		rate = append(rate, r.rate())
		p50, p99 = append(p50, microseconds(r.p50)), append(p99, microseconds(r.p99))
		serverCPU, clientCPU = append(serverCPU, r.serverCPU), append(clientCPU, r.clientCPU)
	}
	s.rate = spreadOf(rate)
	s.p50, s.p99 = spreadOf(p50).median, spreadOf(p99).median
	s.serverCPU, s.clientCPU = spreadOf(serverCPU).median, spreadOf(clientCPU).median
	return s, len(rows) > 0
}

// ratio is the median over the rounds of server's rate over base's in the same
// round; NaN when no round has both.
func (t *table) ratio(workload, server, base string) float64 {
	bases := map[int]float64{}
	for _, r := range t.cells[key{workload, base}] {
		if r.err == nil {
			bases[r.round] = r.rate()
		}
	}
	var ratios []float64
	for _, r := range t.cells[key{workload, server}] {
		if b := bases[r.round]; r.err == nil && b > 0 {
			ratios = append(ratios, r.rate()/b)
		}
	}
	return spreadOf(ratios).median
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
