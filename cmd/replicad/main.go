// Command replicad makes a replicated, highly available block device out of
// two Linux machines: `replicad run` is the daemon of a node, every other verb
// talks to it, to the backing disk or to the configuration. Called under the
// name drbdadm it takes the same verbs with drbdadm's flags.
//
// The exit codes are those of drbdadm and drbdsetup of DRBD 8.4; see exit.go.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"replicad/internal/failpoint"
)

// version is set by the linker.
var version = "unknown"

func main() { os.Exit(mainCode()) }

// mainCode is main with an exit code, for the test binary that poses as us.
func mainCode() int {
	if err := failpoint.Arm(os.Getenv(failpoint.Env)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", failpoint.Env, err)
		return exitUsage
	}
	if rules := failpoint.Armed(); rules != "" {
		fmt.Fprintf(os.Stderr, "WARNING: %s is set: this process will fail on purpose: %s\n", failpoint.Env, rules)
	}
	// The daemon and the demo have their own ways with signals.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	a := &app{
		ctx: ctx, release: stop, name: filepath.Base(os.Args[0]),
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
	}
	return a.main(os.Args[1:])
}

// app is one run of the program.
type app struct {
	ctx     context.Context // ends with SIGINT and SIGTERM
	release func()          // gives the signals back to their default
	name    string          // what the program was called as
	in      *os.File
	out     io.Writer
	err     io.Writer
	global  globals
}

// asDrbdadm reports whether the program poses as drbdadm.
func (a *app) asDrbdadm() bool { return a.name == "drbdadm" }
