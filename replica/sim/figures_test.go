package sim

import "replicad/internal/figure"

// properties are the invariants that a run checks, after every event or at the
// event concerned. P5 and P6 are parts of P1's check (a flush covers the writes
// of all clients; a later flush does not mend a failed one), P9 and P12 of P8's. The words are the contract between core and shell.
var properties = []string{
	"P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12", "P13", "P14", "P15", "P16", "P17", "P19", "P20", "P25", "P26", "P28",
	"contract", "requests", "buffers", "wire", "liveness", "panic",
}

// diskFigures prints what was done to disks and metadata, and what was checked.
func diskFigures(c *Counts) {
	figure.Print("invariants-checked-max", len(properties))
	for i, n := range c.Ills {
		figure.Print("sim-disk-"+illNames[i], n)
	}
	for i, n := range c.Lies {
		figure.Print("sim-metadata-"+lieNames[i], n)
	}
	figure.Print("sim-lies-noticed", c.Noticed)
	figure.Print("sim-lies-unnoticeable", c.Unnoticed)
}
