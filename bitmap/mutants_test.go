//go:build mutants

package bitmap

import _ "replicad/internal/mutant/plant"
