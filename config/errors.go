package config

import (
	"fmt"
	"slices"
	"strings"
)

// errorsMax bounds how many errors one load reports.
const errorsMax = 50

// Error is one fault of a configuration file.
type Error struct {
	Pos Pos
	Msg string // DRBD's words first; may span lines
}

// Error returns "file:line: message".
func (e *Error) Error() string { return e.Pos.String() + ": " + e.Msg }

// Errors is every fault found in one configuration, in the order found.
type Errors []*Error

// Error returns one "file:line: message" after the other.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single *Error.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// Warning is a remark on a file that is accepted.
type Warning struct {
	Pos Pos
	Msg string
}

// String returns "file:line: message".
func (w Warning) String() string { return w.Pos.String() + ": " + w.Msg }

// report collects what a load or a resolve finds.
type report struct {
	errs     Errors
	dropped  bool // more than errorsMax
	warnings []Warning
}

func (r *report) errorf(pos Pos, format string, args ...any) {
	if len(r.errs) >= errorsMax {
		r.dropped = true
		return
	}
	r.errs = append(r.errs, &Error{Pos: pos, Msg: fmt.Sprintf(format, args...)})
}

func (r *report) warnf(pos Pos, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{Pos: pos, Msg: fmt.Sprintf(format, args...)})
}

// err returns what was found as one error, or nil.
func (r *report) err() error {
	if len(r.errs) == 0 {
		return nil
	}
	if r.dropped {
		last := r.errs[len(r.errs)-1].Pos
		r.errs = append(r.errs, &Error{Pos: last, Msg: "too many errors, the rest is not shown."})
		r.dropped = false
	}
	return r.errs
}

// expected reports a parse error in drbdadm's words. known are the words that
// would have been right there, for a suggestion.
func (r *report) expected(pos Pos, what, got string, known []string) {
	hint := ""
	if word := nearest(got, known); word != "" {
		hint = fmt.Sprintf(" (did you mean '%s'?)", word)
	}
	r.errorf(pos, "Parse error: '%s' expected,\n\tbut got '%s'%s", what, shorten(got), hint)
}

// shorten keeps a token from flooding the message, as drbdadm does at 20 bytes.
func shorten(token string) string {
	const runesMax = 20
	runes := []rune(token)
	if len(runes) <= runesMax {
		return token
	}
	return string(runes[:runesMax]) + "..."
}

// nearest returns the known word closest to word, or "" when none is close
// enough to be what was meant: at most a third of its letters may differ.
func nearest(word string, known []string) string {
	const wordBytesMax = 64 // longer input is no misspelt keyword, and distance is quadratic
	if len(word) > wordBytesMax {
		return ""
	}
	best, bestDistance := "", max(1, len(word)/3)+1
	for _, candidate := range known {
		if d := distance(word, candidate); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	if best == word {
		return ""
	}
	return best
}

// distance counts the edits between a and b: insert, delete, replace, and swap
// of neighbours each count one (optimal string alignment).
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+differ(a[i-1], b[j-1]))
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}

func differ(a, b byte) int {
	if a == b {
		return 0
	}
	return 1
}

// sortByPlace orders warnings of one file by line and keeps the order in which
// files were read.
func sortByPlace(warnings []Warning) {
	order := map[string]int{}
	for _, w := range warnings {
		if _, seen := order[w.Pos.File]; !seen {
			order[w.Pos.File] = len(order)
		}
	}
	slices.SortStableFunc(warnings, func(a, b Warning) int {
		if a.Pos.File != b.Pos.File {
			return order[a.Pos.File] - order[b.Pos.File]
		}
		return a.Pos.Line - b.Pos.Line
	})
}
