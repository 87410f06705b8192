//go:build mutants

package core

import _ "replicad/internal/mutant/plant"
