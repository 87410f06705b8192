//go:build mutants

package sim

import (
	"testing"

	"replicad/replica/core"
)

// mutantSeeds is how many seeds a planted bug may survive.
const mutantSeeds = 3000

// TestMutants plants each bug of the core in turn and demands that a seed
// breaks a promise.
func TestMutants(t *testing.T) {
	defer core.SetMutant(core.MutNone)
	for m := core.MutNone + 1; m < core.MutEnd; m++ {
		core.SetMutant(m)
		seeds, f := hunt(mutantSeeds)
		if f == nil {
			t.Errorf("mutant %d survived %d seeds", m, seeds)
			continue
		}
		t.Logf("mutant %2d caught after %4d seeds by %s: %.100s", m, seeds, f.Property, f.Text)
	}
}

// hunt simulates seeds until one breaks a promise.
func hunt(limit int) (seeds int, failure *Failure) {
	for seeds < limit {
		_, _, failed := runSeeds(uint64(1+seeds), 50, 1)
		seeds += 50
		if len(failed) > 0 {
			return int(failed[0].Seed), failed[0]
		}
	}
	return seeds, nil
}
