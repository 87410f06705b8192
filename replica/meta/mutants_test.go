//go:build mutants

package meta

import _ "replicad/internal/mutant/plant"
