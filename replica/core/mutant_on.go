//go:build mutants

package core

var planted Mutant

// SetMutant plants one bug in every node of this process; MutNone removes it.
// It exists only in builds with the tag "mutants", and is called while no
// node runs.
func SetMutant(m Mutant) { planted = m }

func mutant(m Mutant) bool { return planted == m }
