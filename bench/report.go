package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// nothing stands where there is no figure.
const nothing = "–"

// print writes the tables to stdout and to the files the user named.
func (s *session) print(stdout io.Writer) error {
	text := s.markdown()
	if _, err := io.WriteString(stdout, text); err != nil {
		return fmt.Errorf("print tables: %w", err)
	}
	if s.opt.md != "" {
		if err := os.WriteFile(s.opt.md, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write tables: %w", err)
		}
	}
	if s.opt.csv == "" {
		return nil
	}
	f, err := os.Create(s.opt.csv)
	if err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	return errors.Join(s.writeCSV(f), f.Close())
}

func (s *session) markdown() string {
	t := newTable(s.rows)
	var b strings.Builder
	b.WriteString("# NBD servers compared\n\n| | |\n|---|---|\n")
	for _, f := range s.facts {
		fmt.Fprintf(&b, "| %s | %s |\n", f.name, f.value)
	}
	b.WriteString("\n")
	for _, n := range s.notes {
		fmt.Fprintf(&b, "- %s\n", escape(n))
	}
	s.writeRates(&b, t)
	s.writeGoals(&b, t)
	s.writeFigures(&b, t)
	return b.String()
}

func escape(s string) string { return strings.NewReplacer("\n", "; ", "|", `\|`).Replace(s) }

// writeRates is the overview: workloads by servers.
func (s *session) writeRates(b *strings.Builder, t *table) {
	b.WriteString("\n## Rates\n\nMedian rate, and its ratio to nbdkit in the same round.\n\n| workload |")
	for _, srv := range s.ready {
		fmt.Fprintf(b, " %s |", srv.label)
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(s.ready)) + "\n")
	for _, w := range s.opt.workloads {
		fmt.Fprintf(b, "| %s |", w.name)
		for _, srv := range s.ready {
			fmt.Fprintf(b, " %s |", t.overview(w, srv.label))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, w := range s.opt.workloads {
		fmt.Fprintf(b, "- %s: %s\n", w.name, w.describe())
	}
}

func (t *table) overview(w workload, label string) string {
	sum, ok := t.summary(w.name, label)
	switch {
	case !ok:
		return "n/a"
	case sum.rounds == 0:
		return "error"
	}
	text := rateText(w, sum.rate.median)
	if r := t.ratio(w.name, label, labelNBDKit); label != labelNBDKit && !math.IsNaN(r) {
		text += " ×" + number(r, 2)
	}
	if sum.failed > 0 {
		text += fmt.Sprintf(" (%d failed)", sum.failed)
	}
	return text
}

// rateText writes operations per second as such, or for streams in bytes.
func rateText(w workload, rate float64) string {
	switch {
	case w.sequential:
		return number(rate*float64(w.block)/mebibyte, 0) + " MiB/s"
	case rate < 10_000:
		return number(rate, 0)
	}
	return number(rate/1000, 1) + "k"
}

// writeGoals compares with what the project has promised itself.
func (s *session) writeGoals(b *strings.Builder, t *table) {
	var lines []string
	for _, g := range goals {
		if r := t.ratio(g.workload, g.server, g.base); !math.IsNaN(r) {
			verdict := "met"
			if r < g.least {
				verdict = "**missed**"
			}
			lines = append(lines, fmt.Sprintf("| %s | %s | %s × %s | %s | %s |\n",
				g.workload, g.server, number(g.least, 2), g.base, number(r, 2), verdict))
		}
	}
	if len(lines) > 0 {
		b.WriteString("\n## Goals\n\n| workload | server | at least | measured | |\n|---|---|---:|---:|---|\n" + strings.Join(lines, ""))
	}
}

// goal is a ratio between two servers that this project wants to reach.
type goal struct {
	workload, server, base string
	least                  float64
}

var goals = []goal{
	{"r4q1", labelNBDFile, labelGoNBD, 0.9},
	{"w4q1", labelNBDFile, labelGoNBD, 0.9},
	{"r4q32", labelNBDFile, labelNBDKit, 1},
	{"w4q32", labelNBDFile, labelNBDKit, 1},
	{"r4q1", labelStandalone, labelGoNBD, 0.9},
	{"w4q1", labelStandalone, labelGoNBD, 0.9},
	{"r4q32", labelStandalone, labelNBDKit, 1},
	{"w4q32", labelStandalone, labelNBDKit, 1},
	{"r4q1", "A", labelGoNBD, 0.9},
	{"r4q1", "B", labelGoNBD, 0.9},
	{"r4q1", "C", labelGoNBD, 0.9},
	{"w4q32", "C", labelStandalone, 0.65},
}

// writeFigures is everything, one line per cell.
func (s *session) writeFigures(b *strings.Builder, t *table) {
	b.WriteString("\n## All figures\n\nMedians over the rounds; CPU is microseconds per operation, of all processes of the server and of the load generator.\n\n")
	b.WriteString("| workload | server | rate | least | greatest | p50 µs | p99 µs | server CPU | client CPU | × go-nbd | × nbdkit |\n")
	b.WriteString("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, w := range s.opt.workloads {
		for _, srv := range s.ready {
			fmt.Fprintf(b, "| %s | %s | %s |\n", w.name, srv.label, strings.Join(t.figures(w, srv.label), " | "))
		}
	}
}

func (t *table) figures(w workload, label string) []string {
	sum, ok := t.summary(w.name, label)
	if !ok || sum.rounds == 0 {
		return []string{t.overview(w, label), nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing}
	}
	return []string{
		rateText(w, sum.rate.median), rateText(w, sum.rate.least), rateText(w, sum.rate.greatest),
		number(sum.p50, 0), number(sum.p99, 0), number(sum.serverCPU, 1), number(sum.clientCPU, 1),
		number(t.ratio(w.name, label, labelGoNBD), 2), number(t.ratio(w.name, label, labelNBDKit), 2),
	}
}

func number(v float64, decimals int) string {
	if math.IsNaN(v) {
		return nothing
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

var csvHeader = []string{
	"round", "workload", "server", "operations", "seconds", "ops_per_s", "mib_per_s", "p50_us", "p99_us",
	"server_cpu_us_per_op", "client_cpu_us_per_op", "load1", "error",
}

// writeCSV writes every cell, behind the facts as comment lines.
func (s *session) writeCSV(w io.Writer) error {
	for _, f := range s.facts {
		if _, err := fmt.Fprintf(w, "# %s: %s\n", f.name, f.value); err != nil {
			return fmt.Errorf("write rows: %w", err)
		}
	}
	out := csv.NewWriter(w)
	records := [][]string{csvHeader}
	for _, r := range s.rows {
		records = append(records, r.record())
	}
	if err := out.WriteAll(records); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	return nil
}

func (r row) record() []string {
	fault := ""
	if r.err != nil {
		fault = r.err.Error()
	}
	return []string{
		strconv.Itoa(r.round + 1), r.workload, r.server, strconv.Itoa(r.ops),
		number(r.elapsed.Seconds(), 6), number(r.rate(), 1), number(r.throughput()/mebibyte, 2),
		number(microseconds(r.p50), 1), number(microseconds(r.p99), 1),
		csvNumber(r.serverCPU), csvNumber(r.clientCPU), number(r.load, 2), fault,
	}
}

// csvNumber leaves the field empty where there is no figure.
func csvNumber(v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return number(v, 3)
}
