//go:build mutants

// Package plant plants the bug that the environment names. The tests of a
// package with mutants import it, so that they can be run against each.
package plant

import (
	"fmt"
	"os"

	"replicad/internal/mutant"
)

// Env is the environment variable that names the bug to plant.
const Env = "REPLICAD_MUTANT"

func init() {
	name := os.Getenv(Env)
	if name == "" {
		return
	}
	m, ok := mutant.Named(name)
	if !ok {
		panic(fmt.Sprintf("plant: %s=%q names no mutant", Env, name))
	}
	mutant.Plant(m.ID)
}
