// Package demo tells the story of a replicated pair on one machine: two real
// daemons, a link that is cut and heals, a Primary that is killed in the middle
// of writes, and the proof that nothing completed was lost.
//
// It drives the program from outside, the way a user does: by its command
// line, its NBD socket and its configuration. It knows nothing of replication
// but what a user would; what it claims it has checked.
//
// Run may be called from any goroutine; it ends every process it started.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options say how the demo runs.
type Options struct {
	Dir  string // where to work; "" for a new temporary folder
	Size int64  // of each node's disk, bytes
	Keep bool   // leave the folder
	Exe  string // the program to show
	Out  io.Writer
}

// SizeMin and SizeMax bound the size of a node's disk in bytes: there must be
// room for the files, and time to copy them.
const (
	SizeMin = 32 << 20
	SizeMax = 4 << 30
)

// NotAsToldError says that something did not happen as the story tells.
type NotAsToldError struct {
	Step string
	Err  error
}

// Error implements error.
func (e *NotAsToldError) Error() string { return "not as told, " + e.Step + ": " + e.Err.Error() }

// Unwrap returns what happened instead.
func (e *NotAsToldError) Unwrap() error { return e.Err }

// Run tells the story. It returns a *NotAsToldError if any step went
// otherwise, and keeps the folder then.
func Run(ctx context.Context, o Options) (err error) {
	if o.Size < SizeMin || o.Size > SizeMax {
		return fmt.Errorf("size must be between %d and %d MiB", SizeMin>>20, SizeMax>>20)
	}
	began := time.Now()
	dir, err := workFolder(o.Dir)
	if err != nil {
		return err
	}
	s, err := newStage(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() {
		s.close()
		if err != nil || o.Keep || o.Dir != "" {
			s.say("What was used is left in %s.", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	for i, step := range story {
		s.say("\n%d. %s", i+1, step.title)
		if err := step.play(s); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return &NotAsToldError{Step: fmt.Sprintf("step %d (%s)", i+1, step.title), Err: err}
		}
	}
	s.say("\nThat was all, in %.0f seconds, and everything was as told.", time.Since(began).Seconds())
	return nil
}

// workFolder makes the folder the demo works in.
func workFolder(dir string) (string, error) {
	if dir == "" {
		made, err := os.MkdirTemp("", "replicad-demo-")
		if err != nil {
			return "", fmt.Errorf("make a folder: %w", err)
		}
		return made, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder: %w", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("look into the folder: %w", err)
	}
	if len(left) > 0 {
		return "", fmt.Errorf("folder %s is not empty: the demo writes over nothing", dir)
	}
	return dir, nil
}
