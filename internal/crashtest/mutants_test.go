//go:build mutants

package crashtest

import _ "replicad/internal/mutant/plant"
