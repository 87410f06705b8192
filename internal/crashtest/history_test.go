package crashtest

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	blockBytes = 4096
	checkMax   = 10 * time.Second // for one history
)

// history is what the clients of a device asked and were told, block by block.
type history struct {
	clock  atomic.Int64
	lastID atomic.Uint32
	mu     sync.Mutex
	blocks map[int][]porcupine.Operation
	count  int
}

func newHistory() *history { return &history{blocks: map[int][]porcupine.Operation{}} }

// access is one block's part of a request.
type access struct {
	write bool
	value uint32 // the number of the write; 0 for zeroes
}

// torn is the value of a block that shows more than one write.
const torn = math.MaxUint32

// add notes an answer, or with open set that none came: the request may take
// effect at any later time, or never.
func (h *history) add(client, block int, a access, call int64, open bool) {
	op := porcupine.Operation{ClientId: client, Input: a, Call: call, Output: a.value, Return: math.MaxInt64}
	if !open {
		op.Return = h.clock.Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blocks[block] = append(h.blocks[block], op)
	h.count++
}

// register is a block: it holds what was written last, zeroes at first.
var register = porcupine.Model{
	Init: func() any { return uint32(0) },
	Step: func(state, input, output any) (bool, any) {
		a := input.(access)
		if a.write {
			return true, a.value
		}
		return output == state, state
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v = %v", input, output) },
}

// check holds every block's history against a register.
func (h *history) check() (verdicts map[int]porcupine.CheckResult) {
	h.mu.Lock()
	defer h.mu.Unlock()
	verdicts = map[int]porcupine.CheckResult{}
	for block, ops := range h.blocks {
		verdicts[block] = porcupine.CheckOperationsTimeout(register, withoutUnseen(ops), checkMax)
	}
	return verdicts
}

// withoutUnseen leaves out the writes without an answer whose value no read saw
// that ended after they began: such a write can always be the last of all, so
// the verdict is the same, and is found much sooner.
func withoutUnseen(ops []porcupine.Operation) []porcupine.Operation {
	return slices.DeleteFunc(slices.Clone(ops), func(w porcupine.Operation) bool {
		a := w.Input.(access)
		if !a.write || w.Return != math.MaxInt64 {
			return false
		}
		return !slices.ContainsFunc(ops, func(r porcupine.Operation) bool {
			return r.Input == access{value: a.value} && r.Return >= w.Call
		})
	})
}

// mustBeLinearizable fails the test unless every block behaved like a register.
func (h *history) mustBeLinearizable(t *testing.T) {
	t.Helper()
	for block, verdict := range h.check() {
		if verdict == porcupine.Ok {
			continue
		}
		t.Errorf("block %d: the history of %d operations is %v", block, len(h.blocks[block]), verdict)
		for _, op := range h.blocks[block] {
			t.Logf("block %d: client %d, %d to %d: %+v", block, op.ClientId, op.Call, op.Return, op.Input)
		}
	}
}

// valueOf reads which write a block shows.
func valueOf(p []byte, block int) uint32 {
	first := uint32(block * blockBytes / sectorSize)
	id, ok := identify(p[:sectorSize], first)
	for s := 1; ok && s < blockBytes/sectorSize; s++ {
		next, good := identify(p[s*sectorSize:][:sectorSize], first+uint32(s))
		ok = good && next == id
	}
	if !ok {
		return torn
	}
	return id
}

func fillBlock(p []byte, id uint32, block int) {
	for s := range blockBytes / sectorSize {
		fill(p[s*sectorSize:][:sectorSize], id, uint32(block*blockBytes/sectorSize+s))
	}
}

// TestCheckerRejects: histories that no register can have made.
func TestCheckerRejects(t *testing.T) {
	type step struct {
		access
		call, ret int64
	}
	w := func(v uint32, call, ret int64) step { return step{access{true, v}, call, ret} }
	r := func(v uint32, call, ret int64) step { return step{access{false, v}, call, ret} }
	const never = math.MaxInt64
	for name, c := range map[string]struct {
		steps []step
		want  porcupine.CheckResult
	}{
		"in order":                   {[]step{r(0, 1, 2), w(1, 3, 4), r(1, 5, 6)}, porcupine.Ok},
		"a stale read":               {[]step{w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)}, porcupine.Illegal},
		"a lost write":               {[]step{w(1, 1, 2), r(0, 3, 4)}, porcupine.Illegal},
		"overlapping, either":        {[]step{w(1, 1, 4), w(2, 2, 3), r(1, 5, 6)}, porcupine.Ok},
		"a read that goes back":      {[]step{w(1, 1, 2), w(2, 3, 10), r(2, 4, 5), r(1, 6, 7)}, porcupine.Illegal},
		"no answer, happens late":    {[]step{w(1, 1, 2), w(2, 3, never), r(1, 4, 5), r(2, 6, 7)}, porcupine.Ok},
		"no answer, never happens":   {[]step{w(1, 1, 2), w(2, 3, never), r(1, 4, 5)}, porcupine.Ok},
		"no answer, happens twice":   {[]step{w(1, 1, never), w(2, 2, 3), r(1, 4, 5), w(3, 6, 7), r(1, 8, 9)}, porcupine.Illegal},
		"content that nobody wrote":  {[]step{w(1, 1, 2), r(torn, 3, 4)}, porcupine.Illegal},
		"zeroes where data was":      {[]step{w(1, 1, 2), w(0, 3, 4), r(0, 5, 6)}, porcupine.Ok},
		"a write before it is asked": {[]step{r(1, 1, 2), w(1, 3, 4)}, porcupine.Illegal},
	} {
		h := newHistory()
		for i, s := range c.steps {
			h.blocks[0] = append(h.blocks[0], porcupine.Operation{ClientId: i, Input: s.access, Output: s.value, Call: s.call, Return: s.ret})
		}
		if got := h.check()[0]; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
