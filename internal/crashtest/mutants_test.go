//go:build mutants

package crashtest

import (
	"os"
	"strconv"

	"replicad/replica/core"
)

// With the build tag, REPLICAD_MUTANT=n plants bug number n of replica/core in
// every node: a way to see that these tests would notice.
func init() {
	if n, err := strconv.Atoi(os.Getenv("REPLICAD_MUTANT")); err == nil {
		core.SetMutant(core.Mutant(n))
	}
}
