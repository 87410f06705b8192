//go:build mutants

package mutant

// Built reports whether bugs can be planted in this build.
const Built = true

var planted Mutant

// Plant plants one bug in this process, or removes it with None. It is called
// before anything that holds a mutant runs; nothing guards it.
func Plant(m Mutant) { planted = m }

// On reports whether m is planted. It may be called from any goroutine.
func On(m Mutant) bool { return planted == m }
