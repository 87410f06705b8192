package sim

import "replicad/replica/core"

// what says what a timer is for.
type what uint8

const (
	atTick what = iota
	atDiskEffect
	atDiskDone
	atMetaDone
	atGate
	atDetached
	atHandler
	atAttach
	atCommand
	atFastRead
	atClient
	atWrite
	atDeliver
	atConnect
	atUp
	atDown
	atChaos
	atThaw
	atDie
	atLate
	atWithdraw
	atWatch
)

// nobody is the node of a timer that belongs to the world, not to a process.
const nobody = int8(-1)

// timer is something that will happen. One that belongs to a node's process
// dies with it: life must then still be the node's.
type timer struct {
	at   core.Time
	seq  uint64
	arg  uint64
	life uint32
	what what
	node int8
}

func (t *timer) before(o *timer) bool {
	return t.at < o.at || t.at == o.at && t.seq < o.seq
}

// clock is a binary heap of timers; equal times fire in the order added.
type clock struct {
	heap []timer
	seq  uint64
}

func (c *clock) add(t timer) {
	c.seq++
	t.seq = c.seq
	c.heap = append(c.heap, t)
	i := len(c.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !c.heap[i].before(&c.heap[parent]) {
			break
		}
		c.heap[i], c.heap[parent] = c.heap[parent], c.heap[i]
		i = parent
	}
}

func (c *clock) next() (timer, bool) {
	if len(c.heap) == 0 {
		return timer{}, false
	}
	return c.heap[0], true
}

func (c *clock) pop() {
	last := len(c.heap) - 1
	c.heap[0] = c.heap[last]
	c.heap = c.heap[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			return
		}
		if right := child + 1; right < last && c.heap[right].before(&c.heap[child]) {
			child = right
		}
		if !c.heap[child].before(&c.heap[i]) {
			return
		}
		c.heap[i], c.heap[child] = c.heap[child], c.heap[i]
		i = child
	}
}

// nodeClock is a node's monotonic clock: it starts anywhere, drifts, and jumps
// forward when the machine was away. The core reads no other; nothing in it
// depends on the time of day.
type nodeClock struct {
	base  core.Time // reading at world time since
	since core.Time
	ppm   int64         // how much too fast it runs
	late  core.Duration // how late the process gets its ticks
}

// at reads the clock at a world time.
func (c *nodeClock) at(world core.Time) core.Time {
	d := world - c.since
	return c.base + d + d*core.Time(c.ppm)/1e6
}

// world tells when the clock will have reached a reading.
func (c *nodeClock) world(reading core.Time) core.Time {
	d := reading - c.base
	if d <= 0 {
		return c.since
	}
	t := c.since + core.Time(float64(d)*1e6/float64(1e6+c.ppm))
	for c.at(t) < reading {
		t += max(1, reading-c.at(t))
	}
	return t
}

// jump moves the reading forward, or, while the machine is stopped, holds it back.
func (c *nodeClock) jump(now core.Time, d core.Duration) {
	c.base, c.since = c.at(now)+d, now
}
