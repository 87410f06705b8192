package main

import (
	"errors"
	"fmt"
	"io"

	"replicad/internal/ctl"
)

// Exit codes of drbdadm, drbdsetup and drbdmeta (DRBD 8.4) that this program
// gives on its own; those of the state machine come from the daemon.
const (
	exitUsage      = 1  // usage, unknown verb or resource, no metadata, not confirmed
	exitTimeout    = 5  // a wait ended without success; outdate of an Inconsistent disk
	exitConfig     = 10 // the configuration has faults
	exitExecution  = 20 // no daemon, or the command could not be carried out
	exitFileSystem = 40 // metadata would destroy a file system
)

// exitError ends the program with a code after printing lines.
type exitError struct {
	code  int
	lines []string // for standard error, DRBD's words first
	hint  string   // last line: what to do next
}

// Error implements error.
func (e *exitError) Error() string {
	if len(e.lines) == 0 {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.lines[0]
}

func fail(code int, format string, args ...any) error {
	return &exitError{code: code, lines: []string{fmt.Sprintf(format, args...)}}
}

// asError turns the daemon's reply into an error, or nil.
func asError(r ctl.Reply) error {
	if r.Exit == 0 {
		return nil
	}
	return &exitError{code: r.Exit, lines: r.Err, hint: r.Hint}
}

// withHint adds the last line.
func withHint(err error, hint string) error {
	if e, ok := errors.AsType[*exitError](err); ok {
		e.hint = hint
	}
	return err
}

// report prints an error and returns its exit code. command is what drbdadm
// would say it ran.
func report(w io.Writer, err error, command string) int {
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*exitError](err)
	if !ok {
		e = &exitError{code: exitExecution, lines: []string{err.Error()}}
	}
	for _, line := range e.lines {
		fmt.Fprintln(w, line)
	}
	if command != "" && len(e.lines) > 0 {
		fmt.Fprintf(w, "Command '%s' terminated with exit code %d\n", command, e.code)
	}
	if e.hint != "" {
		fmt.Fprintln(w, e.hint)
	}
	return e.code
}
