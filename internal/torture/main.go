// Command torture runs pairs of real daemons on real files and breaks things:
// processes, their I/O at named places, and the network between them. After each
// blow it holds what is left against what clients saw complete. docs/TESTING.md
// describes it.
//
// A round is a plan made from a seed; -seed n runs that plan again. The timing
// of processes is not part of the plan.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

type options struct {
	binary   string
	rounds   int
	hours    float64
	seed     uint64
	replay   bool // -seed was given
	parallel int
	keep     bool
	kind     string
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "bin/replicad", "the program to torture")
	flag.IntVar(&o.rounds, "rounds", 60, "number of rounds")
	flag.Float64Var(&o.hours, "hours", 0, "run for so long instead of a number of rounds")
	flag.Uint64Var(&o.seed, "seed", 0, "run the plan of this seed, -rounds times")
	flag.IntVar(&o.parallel, "parallel", 2, "rounds at a time")
	flag.BoolVar(&o.keep, "keep", false, "keep the folders of rounds that passed, too")
	flag.StringVar(&o.kind, "kind", "", "only plans with an episode of this kind")
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { o.replay = o.replay || f.Name == "seed" })
	binary, err := filepath.Abs(o.binary)
	if err == nil {
		_, err = os.Stat(binary)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "torture: %v (make build makes it)\n", err)
		os.Exit(2)
	}
	if o.kind != "" && !isKind(kind(o.kind)) {
		fmt.Fprintf(os.Stderr, "torture: no kind of episode is called %q\n", o.kind)
		os.Exit(2)
	}
	o.binary = binary
	if failed := torture(o); failed > 0 {
		os.Exit(1)
	}
}

// torture runs rounds until their number or the time is reached, or somebody
// interrupts, and returns how many failed.
func torture(o options) (failed int) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	began := time.Now()
	seeds := make(chan uint64)
	total := newCounts()
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range max(1, o.parallel) {
		workers.Go(func() {
			for seed := range seeds {
				began := time.Now()
				p := newPlan(seed)
				c, err := playRound(o, p)
				mu.Lock()
				total.add(c)
				progress(total, p, time.Since(began), err)
				mu.Unlock()
			}
		})
	}
feed:
	for n := 0; o.hours > 0 && time.Since(began).Hours() < o.hours || o.hours == 0 && n < o.rounds; n++ {
		seed := o.seed
		for !o.replay {
			if seed = rand.Uint64N(1 << 40); o.kind == "" || newPlan(seed).has(kind(o.kind)) {
				break
			}
		}
		select {
		case seeds <- seed:
		case <-interrupted:
			break feed
		}
	}
	close(seeds)
	workers.Wait()
	total.print(os.Stdout, time.Since(began))
	return total.failed
}

// playRound plays one plan in a folder of its own. A failure keeps the folder
// and tells everything.
func playRound(o options, p *plan) (counts, error) {
	r, err := newRound(o.binary, p)
	if err != nil {
		c := newCounts()
		c.failed++
		return c, err
	}
	r.count = newCounts()
	r.count.rounds, r.count.protocols[p.protocol] = 1, 1
	err = r.run()
	if err != nil {
		r.dumpStacks()
	}
	r.close()
	if logErr := r.readLogs(); err == nil {
		err = logErr
	}
	r.count.totals(r.led.Totals())
	if err == nil && !o.keep {
		err = os.RemoveAll(r.dir)
	}
	if err != nil {
		r.count.failed = 1
		r.tell(os.Stdout, err)
	}
	return r.count, err
}
