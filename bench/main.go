// Command bench compares NBD servers in one interleaved run: replicad alone and
// as a pair under protocols A, B and C, this project's NBD server over a plain
// file, and go-nbd, nbdkit and qemu-nbd where they are installed.
//
// Every workload visits all servers in turn, round after round, in an order
// that rotates; figures are medians over the rounds, and ratios are medians of
// the ratios within each round, so that a neighbour who makes the machine slow
// for a while slows everybody. Rates come with the CPU time that the server's
// processes spent per operation, which is the steadiest figure of all.
//
// A benchmark of a broken server is worthless: before the run each server must
// give back what was written, through a second connection and in its file;
// every read is checked to hold the blocks asked for; after the run every block
// of every image must be in its place, and both images of a pair must be equal.
//
// It uses nothing of replicad but the program and package nbd. Servers are
// processes of their own, also those made of this program ("bench serve"), and
// the main goroutine starts them: it is bound to the process's first thread,
// because the kernel kills the children when the thread that started them ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func init() { runtime.LockOSThread() }

func main() { os.Exit(command(os.Args[1:])) }

// command is what the program does; it returns the exit code: 1 for wrong
// arguments, 2 for a run that failed, 130 when it was interrupted.
func command(args []string) int {
	if len(args) > 0 && args[0] == serveVerb {
		return report(serve(args[1:]))
	}
	opt, err := parseOptions(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends us at once, and the children with us
	err = run(ctx, opt, os.Stdout, os.Stderr)
	if err != nil && ctx.Err() != nil {
		report(err)
		return 130
	}
	return report(err)
}

func report(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 2
}

// progress tells a person what is going on; it never reaches the results.
func progress(w io.Writer, format string, args ...any) {
	fmt.Fprintf(w, format+"\n", args...)
}
