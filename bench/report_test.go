package main

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fixed is a session whose figures are known.
func fixed() *session {
	s := &session{opt: options{rounds: 2}}
	for _, name := range []string{"r4q1", "w4q32", "sr1m", "wflush"} {
		w, _ := findWorkload(name)
		s.opt.workloads = append(s.opt.workloads, w)
	}
	s.facts = []fact{{"date", "2026-11-23T08:00:00Z"}, {"processor", "abacus, 2 cores"}}
	s.notes = []string{"qemu-nbd was left out: not here: qemu-nbd is not installed", "FAULT: C: w4q32, round 2: write: EIO\nbroken | pipe"}
	for _, label := range []string{labelGoNBD, labelNBDKit, labelStandalone, "C"} {
		s.ready = append(s.ready, &server{label: label})
	}
	ops := map[string][]int{
		labelGoNBD: {20_000, 30_000}, labelNBDKit: {9_000, 27_000}, labelStandalone: {22_000, 24_000}, "C": {11_000, 12_000},
	}
	for _, w := range s.opt.workloads {
		for _, srv := range s.ready {
			if w.kind == kindWriteFlush && srv.label == labelGoNBD {
				continue
			}
			for round := range 2 {
				r := sample(round, w.name, srv.label, ops[srv.label][round])
				if w.sequential {
					r.ops /= 10
				}
				s.rows = append(s.rows, r)
			}
		}
	}
	spoil := &s.rows[len(s.rows)-1]
	spoil.err, spoil.ops, spoil.elapsed = errors.New(`write: "EIO", twice`), 0, 0
	spoil.serverCPU, spoil.clientCPU = math.NaN(), math.NaN()
	s.rows[0].p50 = 12345 * time.Nanosecond
	return s
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; got:\n%s", name, got)
	}
}

func TestMarkdown(t *testing.T) { golden(t, "report.md", []byte(fixed().markdown())) }

func TestCSV(t *testing.T) {
	var b bytes.Buffer
	if err := fixed().writeCSV(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "rows.csv", b.Bytes())
}

func TestReportThatCannotBeWritten(t *testing.T) {
	for _, opt := range []options{{md: "/nonexistent/x"}, {csv: "/nonexistent/x"}} {
		s := fixed()
		s.opt.md, s.opt.csv = opt.md, opt.csv
		if err := s.print(&bytes.Buffer{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%+v: %v", opt, err)
		}
	}
}
