//go:build mutants

package wire

import _ "replicad/internal/mutant/plant"
