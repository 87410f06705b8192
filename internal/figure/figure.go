// Package figure is how a test says what it counted, so that a run of all tests
// can add it up: seeds, faults, rounds, attacks refused.
package figure

import (
	"fmt"
	"os"
)

// file names the variable of the file that every figure is appended to: a
// passing test's output is not shown, and a sum needs it all the same.
const file = "REPLICAD_FIGURES"

// Print writes "figure: NAME N" to standard output and, if REPLICAD_FIGURES
// names a file, appends it there. The same name printed again adds up; of a
// name that ends in -max the largest counts, in -min the smallest. It panics if the file
// cannot be written, as a summary that lacks something is worse than none. Any
// goroutine of any process may call it.
func Print[N ~int | ~int64 | ~uint64 | ~int32 | ~uint32](name string, n N) {
	line := fmt.Sprintf("figure: %s %d\n", name, n)
	fmt.Print(line)
	path := os.Getenv(file)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		panic(err)
	}
}
