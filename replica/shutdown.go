package replica

import (
	"context"
	"errors"
	"fmt"

	"replicad/replica/core"
)

// Close ends the resource in order: it lets no client in any more, sends the
// clients away, flushes, demotes, disconnects, detaches and stops every
// goroutine. When ctx ends, what is left is cut short; nothing that has not
// been made durable is acknowledged. The errors say which steps failed. A
// second Close returns ErrClosed.
func (r *Resource) Close(ctx context.Context) error {
	if err := r.beginClose(); err != nil {
		return err
	}
	errs := []error{r.sendClientsAway(ctx)}
	for _, step := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"flush", r.flushAll},
		{"demote", func(ctx context.Context) error {
			return r.do(ctx, core.Command{Kind: core.CmdSecondary, Vol: allVolumes, Force: true})
		}},
		{"disconnect", r.leavePeer},
		{"detach", func(ctx context.Context) error { return r.detachAll(ctx, true) }},
	} {
		if err := step.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.what, err))
		}
	}
	errs = append(errs, r.halt(ctx))
	return errors.Join(errs...)
}

func (r *Resource) beginClose() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return ErrClosed
	}
	r.closing = true
	return nil
}

// sendClientsAway has the owner disconnect the clients and waits until no
// volume is open. Without a Revoke function clients stay, and their requests
// fail once the node is demoted.
func (r *Resource) sendClientsAway(ctx context.Context) error {
	if r.cfg.Revoke == nil {
		return nil
	}
	for _, v := range r.vols {
		if v.Openers() > 0 {
			r.cfg.Revoke(ctx, v.number)
		}
	}
	err := r.waitFor(ctx, func(*core.Status) (bool, error) {
		for _, v := range r.vols {
			if v.Openers() > 0 {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("wait for clients to let go: %w", err)
	}
	return nil
}

// flushAll makes everything written so far durable, as a client's flush does.
func (r *Resource) flushAll(ctx context.Context) error {
	if r.coreStatus().Role != core.Primary {
		return nil
	}
	var errs []error
	for _, v := range r.vols {
		if v.Size() > 0 {
			errs = append(errs, v.flush(ctx))
		}
	}
	return errors.Join(errs...)
}

// answerChan is a Completer for requests of our own.
type answerChan chan core.IOResult

// Complete implements Completer.
func (c answerChan) Complete(result core.IOResult) { c <- result }

func (v *Volume) flush(ctx context.Context) error {
	done := make(answerChan, 1)
	h := Handle{v: v, b: batch{r: v.r}}
	h.Submit(IO{Op: OpFlush, Done: done})
	h.Drain()
	select {
	case result := <-done:
		if result != core.IOOK {
			return fmt.Errorf("volume %d: flush failed (%d)", v.number, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume %d: %w", v.number, context.Cause(ctx))
	}
}

// halt stops the core and every goroutine, and answers what is left.
func (r *Resource) halt(ctx context.Context) error {
	for _, buf := range r.stopCore() {
		r.finishPiece(buf, core.IOShutdown)
	}
	r.stop()
	if err := r.waitIdle(ctx); err != nil {
		// A disk that does not answer holds a worker; nothing can stop that.
		return fmt.Errorf("wait for disk operations: %w", err)
	}
	select {
	case <-r.watched:
	case <-ctx.Done():
		return fmt.Errorf("wait for the look at the disks: %w", context.Cause(ctx))
	}
	for _, v := range r.vols {
		v.work.end()
		v.endMeta()
	}
	r.wg.Wait()
	return r.closeLeftDisks()
}

// waitIdle waits until neither an operation nor a reader uses a backing disk.
func (r *Resource) waitIdle(ctx context.Context) error {
	for {
		busy := false
		r.mu.Lock()
		changed := r.feed.changed
		for _, v := range r.vols {
			busy = busy || v.running > 0 || !v.readersGone
		}
		r.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// haltOp stands for an operation of the core that waits for the last reader
// when there is no core any more.
const haltOp = ^core.Op(0)

// stopCore makes the core step no more, and returns the pieces of client
// requests that it has not answered.
func (r *Resource) stopCore() (left []core.Buf) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, answer := range r.answers {
		close(answer)
	}
	clear(r.answers)
	for _, v := range r.vols {
		v.readersGone = v.gate.shut(haltOp)
	}
	r.feed.notify()
	for n := core.Buf(1); uint32(n) <= r.bufs.clients; n++ {
		if s := r.bufs.slot(n); s.inCore {
			s.inCore = false
			left = append(left, n)
		}
	}
	return left
}

// closeLeftDisks closes what could not be detached.
func (r *Resource) closeLeftDisks() error {
	var errs []error
	for _, v := range r.vols {
		r.mu.Lock()
		k := v.back
		v.back = nil
		r.mu.Unlock()
		if k != nil {
			errs = append(errs, k.close())
		}
	}
	return errors.Join(errs...)
}
