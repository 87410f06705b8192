//go:build !mutants

package mutant

// Built reports whether bugs can be planted in this build.
const Built = false

// On reports whether m is planted, which it never is: the compiler removes
// what hangs on it.
func On(Mutant) bool { return false }
