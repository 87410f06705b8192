package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
)

// kind is what an operation of a workload does.
type kind int

const (
	kindRead kind = iota
	kindWrite
	kindWriteFlush // one write, and when it is answered one flush: one operation
)

// workload is one row of the table.
type workload struct {
	name       string
	kind       kind
	block      int  // bytes of a read or write
	depth      int  // operations in flight on each connection
	conns      int  // connections
	sequential bool // else random
}

// workloads are named as the field does: r and w for random reads and writes of
// 4 KiB, sr and sw for sequential ones, q for depth and c for connections.
var workloads = []workload{
	{name: "r4q1", kind: kindRead, block: 4 << 10, depth: 1, conns: 1},
	{name: "w4q1", kind: kindWrite, block: 4 << 10, depth: 1, conns: 1},
	{name: "r4q32", kind: kindRead, block: 4 << 10, depth: 32, conns: 1},
	{name: "w4q32", kind: kindWrite, block: 4 << 10, depth: 32, conns: 1},
	{name: "r4q32c4", kind: kindRead, block: 4 << 10, depth: 8, conns: 4},
	{name: "w4q32c4", kind: kindWrite, block: 4 << 10, depth: 8, conns: 4},
	{name: "sr1m", kind: kindRead, block: 1 << 20, depth: 8, conns: 1, sequential: true},
	{name: "sw1m", kind: kindWrite, block: 1 << 20, depth: 8, conns: 1, sequential: true},
	{name: "wflush", kind: kindWriteFlush, block: 4 << 10, depth: 1, conns: 1},
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

func findWorkload(name string) (workload, bool) {
	i := slices.IndexFunc(workloads, func(w workload) bool { return w.name == name })
	if i < 0 {
		return workload{}, false
	}
	return workloads[i], true
}

// describe says in words what the workload is.
func (w workload) describe() string {
	order := "random"
	if w.sequential {
		order = "sequential"
	}
	conns := "1 connection"
	if w.conns > 1 {
		conns = strconv.Itoa(w.conns) + " connections"
	}
	return fmt.Sprintf("%s %s of %d KiB, depth %d, %s", order, w.kind, w.block>>10, w.depth*w.conns, conns)
}

func (k kind) String() string {
	switch k {
	case kindRead:
		return "read"
	case kindWrite:
		return "write"
	}
	return "write, then flush,"
}

// places yields where the operations of one connection go. It is the same
// sequence for every server.
type places struct {
	block  int64
	blocks int64 // in the span
	next   int64 // sequential
	rng    *rand.Rand
}

// newPlaces makes the sequence of connection number conn of w over span bytes.
func newPlaces(w workload, conn int, span int64, round int) *places {
	p := &places{block: int64(w.block), blocks: span / int64(w.block)}
	if w.sequential {
		p.next = p.blocks / int64(w.conns) * int64(conn)
		return p
	}
	p.rng = rand.New(rand.NewPCG(uint64(round), uint64(conn)))
	return p
}

// offset is the next operation's place in bytes.
func (p *places) offset() int64 {
	if p.rng != nil {
		return p.rng.Int64N(p.blocks) * p.block
	}
	at := p.next
	p.next = (p.next + 1) % p.blocks
	return at * p.block
}
