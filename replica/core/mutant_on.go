//go:build mutants

package core

import "sync/atomic"

var planted atomic.Int32

// SetMutant plants one bug in every node of this process; MutNone removes it.
// It exists only in builds with the tag "mutants".
func SetMutant(m Mutant) { planted.Store(int32(m)) }

func mutant(m Mutant) bool { return Mutant(planted.Load()) == m }
