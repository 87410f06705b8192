package sim

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/internal/figure"
)

var (
	seedsFlag = flag.Int("seeds", 200, "number of seeds to simulate")
	seedFlag  = flag.Uint64("seed", 0, "replay this one seed with a trace")
	firstFlag = flag.Uint64("first", 1, "first seed")
)

// coverageSeeds is how many seeds must reach every interesting situation.
const coverageSeeds = 1000

// garbagePercent lets the heap grow further than usual between collections:
// worlds are small and short-lived.
const garbagePercent = 800

// failuresMax is how many failing seeds end a run.
const failuresMax = 25

// tailLines is how much of a failing seed's trace is printed.
const tailLines = 60

func TestSim(t *testing.T) {
	if *seedFlag != 0 {
		replay(t, *seedFlag)
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent))
	start := time.Now()
	s := runSeeds(*firstFlag, *seedsFlag, failuresMax)
	seconds := time.Since(start).Seconds()
	t.Logf("%s in %.1f s, %.0f seeds/s", summarise(*seedsFlag, &s.total), seconds, float64(*seedsFlag)/seconds)
	figures(*seedsFlag, &s.total)
	figure.Print("sim-events-per-seed-min", s.shortest)
	diskFigures(&s.total)
	t.Logf("situations reached:\n%v", &s.reached)
	for _, f := range s.failed {
		t.Error(f)
	}
	if len(s.failed) > 0 {
		explain(t, s.failed[0])
		return
	}
	if s.shortest < stepsMin {
		t.Errorf("seed %d ended after %d events; %d are the least that counts as a run", s.shortestSeed, s.shortest, stepsMin)
	}
	if missing := s.reached.Missing(); *seedsFlag >= coverageSeeds && len(missing) > 0 {
		t.Errorf("%d seeds never reached: %s", *seedsFlag, strings.Join(missing, ", "))
	}
}

// sums is what many runs come to.
type sums struct {
	total        Counts
	reached      marks
	failed       []*Failure
	shortest     int // events of the shortest run that broke no promise
	shortestSeed uint64
}

func (s *sums) add(seed uint64, c *Counts, m *marks, f *Failure) {
	s.total.add(c)
	s.reached.add(m)
	switch {
	case f != nil:
		s.failed = append(s.failed, f)
	case s.shortestSeed == 0 || c.Steps < s.shortest:
		s.shortest, s.shortestSeed = c.Steps, seed
	}
}

// runSeeds simulates seeds on all cores until failures many broke a promise.
func runSeeds(first uint64, seeds, failures int) (s sums) {
	var next atomic.Uint64
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			var runner Runner
			for {
				i := next.Add(1) - 1
				mu.Lock()
				enough := i >= uint64(seeds) || len(s.failed) >= failures
				mu.Unlock()
				if enough {
					return
				}
				c, m, f := runner.Run(OptionsOf(first+i), nil)
				mu.Lock()
				s.add(first+i, &c, &m, f)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return s
}

// figures prints what a run did for the summary of a build.
func figures(seeds int, c *Counts) {
	figure.Print("sim-seeds", seeds)
	figure.Print("sim-events", c.Steps)
	figure.Print("sim-checks", c.Checks)
	for f, n := range c.Faults {
		figure.Print("sim-fault-"+faultNames[f], n)
	}
}

func summarise(seeds int, c *Counts) string {
	var faults []string
	for f, n := range c.Faults {
		faults = append(faults, fmt.Sprintf("%s %d", faultNames[f], n))
	}
	return fmt.Sprintf("%d seeds, %d events, %d requests, %d messages, %d checks; accidents: %s",
		seeds, c.Steps, c.Requests, c.Messages, c.Checks, strings.Join(faults, ", "))
}

// explain runs a failing seed again, for the end of its trace.
func explain(t *testing.T, f *Failure) {
	t.Helper()
	tail := make([]string, 0, tailLines)
	Run(OptionsOf(f.Seed), func(line string) {
		if len(tail) == tailLines {
			copy(tail, tail[1:])
			tail = tail[:tailLines-1]
		}
		tail = append(tail, line)
	})
	t.Errorf("%v\n%s\nreplay: make sim SEED=%d", f, strings.Join(tail, "\n"), f.Seed)
}

func replay(t *testing.T, seed uint64) {
	c, _, f := Run(OptionsOf(seed), func(line string) { fmt.Println(line) })
	t.Log(summarise(1, &c))
	if f != nil {
		t.Errorf("%v\nreplay: make sim SEED=%d", f, seed)
	}
}

// TestSameSeedSameRun demands that a run depends on nothing but its seed.
func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		var a, b []string
		Run(OptionsOf(seed), func(line string) { a = append(a, line) })
		Run(OptionsOf(seed), func(line string) { b = append(b, line) })
		for i := range a {
			if i >= len(b) || a[i] != b[i] {
				t.Fatalf("seed %d: line %d differs:\n%s\n%s", seed, i, a[i], b[min(i, len(b)-1)])
			}
		}
	}
}
