package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"replicad/internal/cable"
	"replicad/internal/figure"
	"replicad/internal/ledger"
)

// counts is what rounds did.
type counts struct {
	rounds, failed    int
	protocols         map[string]int
	episodes          map[kind]int
	failpoints        map[string]int // by point and action
	notReached        int            // failpoints that did not strike
	takeovers         int            // the peer of a dead Primary was promoted
	refused           int            // promotions that had to be refused, and were
	issued, completed int64
	failedWrites      int64
	flushes, flushed  int64
	verified          int64 // sectors
	lostTail          int64 // completed writes missing where a tail may be
	resyncedKiB       int64
}

func newCounts() counts {
	return counts{protocols: map[string]int{}, episodes: map[kind]int{}, failpoints: map[string]int{}}
}

func (c *counts) totals(t ledger.Totals) {
	c.issued, c.completed, c.failedWrites = t.Issued, t.Completed, t.Failed
	c.flushes, c.flushed = t.Flushes, t.Flushed
}

func (c *counts) add(o counts) {
	c.rounds += o.rounds
	c.failed += o.failed
	merge(c.protocols, o.protocols)
	merge(c.episodes, o.episodes)
	merge(c.failpoints, o.failpoints)
	c.notReached += o.notReached
	c.takeovers += o.takeovers
	c.refused += o.refused
	c.issued += o.issued
	c.completed += o.completed
	c.failedWrites += o.failedWrites
	c.flushes += o.flushes
	c.flushed += o.flushed
	c.verified += o.verified
	c.lostTail += o.lostTail
	c.resyncedKiB += o.resyncedKiB
}

func merge[K comparable](into, from map[K]int) {
	for k, n := range from {
		into[k] += n
	}
}

// progress tells the end of one round in a line.
func progress(total counts, p *plan, d time.Duration, err error) {
	var kinds []string
	for _, e := range p.episodes {
		kinds = append(kinds, string(e.kind))
	}
	outcome := "ok"
	if err != nil {
		outcome = "FAILED"
	}
	fmt.Printf("%4d  seed %-13d %s  %-6s %5.1fs  %s\n", total.rounds, p.seed, p.protocol, outcome, d.Seconds(), strings.Join(kinds, " "))
}

// print prints the summary.
func (c *counts) print(w io.Writer, d time.Duration) {
	fmt.Fprintf(w, "\n%d rounds in %s, %d failed\n", c.rounds, d.Round(time.Second), c.failed)
	fmt.Fprintf(w, "protocols: A %d, B %d, C %d\n", c.protocols["A"], c.protocols["B"], c.protocols["C"])
	fmt.Fprintf(w, "writes: %d issued, %d completed, %d failed or unanswered; %d flushes, %d writes flushed\n",
		c.issued, c.completed, c.failedWrites, c.flushes, c.flushed)
	fmt.Fprintf(w, "sectors verified: %d; completed writes lost where a tail may be: %d; resynced: %d KiB\n", c.verified, c.lostTail, c.resyncedKiB)
	fmt.Fprintf(w, "takeovers: %d; promotions refused as they must be: %d\n", c.takeovers, c.refused)
	fmt.Fprintf(w, "episodes:\n")
	for _, k := range slices.Sorted(maps.Keys(c.episodes)) {
		fmt.Fprintf(w, "  %-16s %d\n", k, c.episodes[k])
	}
	fmt.Fprintf(w, "failpoints that struck (%d did not):\n", c.notReached)
	for _, k := range slices.Sorted(maps.Keys(c.failpoints)) {
		fmt.Fprintf(w, "  %-28s %d\n", k, c.failpoints[k])
	}
	figure.Print("kill-rounds", c.rounds)
	figure.Print("kill-writes-completed", c.completed)
	figure.Print("kill-writes-flushed", c.flushed)
	figure.Print("kill-sectors-verified", c.verified)
	struck := 0
	for _, n := range c.failpoints {
		struck += n
	}
	figure.Print("kill-failpoints-struck", struck)
	for _, k := range slices.Sorted(maps.Keys(c.episodes)) {
		figure.Print("kill-fault-"+string(k), c.episodes[k])
	}
}

// dumpStacks makes daemons that still run write their stacks into their logs.
func (r *round) dumpStacks() {
	for _, n := range r.nodes {
		if n.alive() {
			n.signal(syscall.SIGCONT)
			n.signal(syscall.SIGQUIT)
			select {
			case <-n.exited:
			case <-time.After(5 * time.Second):
			}
		}
	}
}

// tailLines is how much of a log a failure shows.
const tailLines = 40

// tell tells everything about a failure.
func (r *round) tell(w io.Writer, err error) {
	fmt.Fprintf(w, "\nFAILED: %v\nplan: %s\nagain: make torture SEED=%d\nfolder: %s\n", err, r.plan, r.plan.seed, r.dir)
	for _, n := range r.nodes {
		text, _, _ := strings.Cut(n.logText(), "SIGQUIT: quit")
		lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
		fmt.Fprintf(w, "--- log of %s\n%s\n", n.name, strings.Join(lines[max(0, len(lines)-tailLines):], "\n"))
	}
	fmt.Fprintln(w)
}

func direction(back bool) cable.Direction {
	if back {
		return cable.Back
	}
	return cable.Out
}
