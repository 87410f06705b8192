package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"replicad/nbd"
)

// copyPatience is how long the peer's copy may lag behind after the last write.
const copyPatience = 10 * time.Second

var errFailed = errors.New("something was wrong: see the notes")

// session is one run of the program.
type session struct {
	opt    options
	lab    *lab
	screen io.Writer // progress
	began  time.Time
	facts  []fact
	notes  []string // what the reader of the table must know
	failed bool     // a note is about a fault
	ready  []*server
	rows   []row
}

// run starts the servers, measures, checks, and prints the tables.
func run(ctx context.Context, opt options, stdout, stderr io.Writer) (err error) {
	s := &session{opt: opt, screen: stderr, began: time.Now()}
	if s.lab, err = newLab(opt); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lab.close()) }()
	finish, err := s.profile()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish()) }()
	s.facts = s.collectFacts()
	s.start(ctx)
	s.facts = append(s.facts, s.versions()...)
	s.measure(ctx)
	s.check(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	s.facts = append(s.facts, fact{"load average at the end", loadText()})
	if err := s.print(stdout); err != nil {
		return err
	}
	if s.failed {
		return errFailed
	}
	return nil
}

func (s *session) profile() (func() error, error) {
	if s.opt.profile == "" {
		return startProfile("")
	}
	if err := os.MkdirAll(s.opt.profile, 0o755); err != nil {
		return nil, fmt.Errorf("make profile folder: %w", err)
	}
	return startProfile(filepath.Join(s.opt.profile, "client.pprof"))
}

// note records what the reader must know; fault notes something wrong.
func (s *session) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.notes = append(s.notes, text)
	progress(s.screen, "note: %s", text)
}

func (s *session) fault(label string, err error) {
	s.failed = true
	s.note("FAULT: %s: %v", label, err)
}

// start brings up every server that can be had and is worth measuring.
func (s *session) start(ctx context.Context) {
	for _, label := range s.opt.servers {
		if ctx.Err() != nil {
			return
		}
		progress(s.screen, "starting %s", label)
		srv, err := s.lab.start(ctx, label)
		if err == nil {
			err = srv.verify(ctx, s.opt.size)
		}
		switch {
		case errors.Is(err, errAbsent):
			s.note("%s was left out: %v", label, err)
		case err != nil:
			s.fault(label, err)
		default:
			s.ready = append(s.ready, srv)
		}
	}
}

// roundsFew is what a shared machine needs at least for its medians to settle.
const roundsFew = 5

// measure fills the rows: all servers in turn for each workload, in an order
// that rotates, so that nobody always follows the same neighbour.
func (s *session) measure(ctx context.Context) {
	if s.opt.rounds < roundsFew {
		s.note("a first impression of %d rounds: ratios below 1.5 may be chance", s.opt.rounds)
	}
	longest := time.Duration(0)
	for round := range s.opt.rounds {
		began := time.Now()
		if round > 0 && began.Add(longest).Sub(s.began) > s.opt.limit {
			s.note("the time limit of %v left room for %d of %d rounds", s.opt.limit, round, s.opt.rounds)
			return
		}
		progress(s.screen, "round %d of %d", round+1, s.opt.rounds)
		for turn, w := range s.opt.workloads {
			s.visit(ctx, w, round, turn)
		}
		longest = max(longest, time.Since(began))
	}
}

func (s *session) visit(ctx context.Context, w workload, round, turn int) {
	for i := range s.ready {
		srv := s.ready[(i+round+turn)%len(s.ready)]
		if ctx.Err() != nil {
			return
		}
		if w.kind == kindWriteFlush && !srv.flushes {
			continue
		}
		r := measure(ctx, srv, w, s.opt, round)
		if r.err != nil && ctx.Err() == nil {
			s.fault(srv.label, fmt.Errorf("%s, round %d: %w", w.name, round+1, errors.Join(r.err, srv.alive())))
		}
		s.rows = append(s.rows, r)
	}
}

// check looks for damage that the run has done.
func (s *session) check(ctx context.Context) {
	for _, srv := range s.ready {
		if ctx.Err() != nil {
			return
		}
		if err := srv.check(ctx, s.opt.size); err != nil {
			s.fault(srv.label, err)
		}
	}
}

// check verifies that every block of the server's images is in its place, and
// that the peer's copy becomes equal once there is no load.
func (s *server) check(ctx context.Context, size int64) error {
	if err := s.alive(); err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	if err := checkImage(s.image, size); err != nil {
		return fmt.Errorf("after the run: %w", err)
	}
	if s.twin == "" {
		return nil
	}
	if err := awaitCopy(ctx, s.image, s.twin, size, copyPatience); err != nil {
		return fmt.Errorf("after the run: %w", err)
	}
	return nil
}

// awaitCopy waits until both images are equal: under protocol A the last writes
// may still be on their way.
func awaitCopy(ctx context.Context, image, twin string, size int64, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := compareImages(image, twin, size)
		if !errors.Is(err, errDiffer) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *server) flush(ctx context.Context) error {
	if !s.flushes {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	c, err := nbd.Dial(ctx, s.uri)
	if err != nil {
		return fmt.Errorf("after the run: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Abort)()
	if err := c.Flush(); err != nil {
		return fmt.Errorf("flush after the run: %w", err)
	}
	return nil
}
