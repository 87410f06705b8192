// Package mutant lists deliberate bugs, planted at exact places of the
// packages that decide about data, of which tests must catch every one. A
// place looks like this:
//
//	if mutant.On(mutant.SkipBit) { … }
//
// Without the build tag "mutants" On is the constant false, and the compiler
// removes bug and switch. How to add a mutant, and what a survivor means, is
// in docs/TESTING.md.
package mutant

import "slices"

// Mutant names one bug.
type Mutant uint8

// Rooms that mutants are planted in.
const (
	Core   = "core"
	Bitmap = "bitmap"
	Meta   = "meta"
	Wire   = "wire"
)

// Info describes a mutant.
type Info struct {
	ID     Mutant
	Name   string // of its subtest
	Room   string // the package it is planted in
	Breaks string // what the code does wrong, and why that loses data or breaks a promise
}

// All returns every mutant, HeldOut last.
func All() []Info { return slices.Concat(all, heldOut) }

// HeldOut returns the mutants that were chosen after the simulator was frozen.
func HeldOut() []Info { return heldOut }

// Named finds a mutant by its name.
func Named(name string) (Info, bool) {
	for _, m := range All() {
		if m.Name == name {
			return m, true
		}
	}
	return Info{}, false
}
