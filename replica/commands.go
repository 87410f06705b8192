package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"replicad/replica/core"
)

// commandAnswer is what the core said to a command.
type commandAnswer struct {
	err  core.StateErr
	info []string
}

// request brings a command's event to the core and waits for the answer. When
// ctx ends first, the command goes on without its caller.
func (r *Resource) request(ctx context.Context, prepare func(b *batch, id uint64)) ([]string, error) {
	b := batch{r: r}
	answer := make(chan commandAnswer, 1)
	err := b.stepAfter(func() error {
		if r.closed {
			return ErrClosed
		}
		r.lastCmd++
		r.answers[r.lastCmd] = answer
		prepare(&b, r.lastCmd)
		return nil
	})
	b.finish()
	if err != nil {
		return nil, err
	}
	select {
	case a, ok := <-answer:
		if !ok {
			return nil, ErrClosed
		}
		return a.info, a.asError()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the state machine: %w", context.Cause(ctx))
	}
}

func (a *commandAnswer) asError() error {
	if code := FailureCode(a.err); code >= failureFirst {
		return &Failure{Code: code, Info: a.info}
	}
	if a.err.Failed() {
		return &StateError{Err: a.err, Info: a.info}
	}
	return nil
}

// commandDone passes on the core's answer. Called with the lock held.
func (r *Resource) commandDone(a *core.Action) {
	answer := commandAnswer{err: a.Err}
	if a.Text != "" {
		answer.info = strings.Split(strings.TrimRight(a.Text, "\n"), "\n")
	}
	if waiting := r.answers[a.Cmd]; waiting != nil {
		waiting <- answer // has room for the one answer
		delete(r.answers, a.Cmd)
	}
}

// do runs a command and returns the core's verdict.
func (r *Resource) do(ctx context.Context, cmd core.Command) error {
	_, err := r.request(ctx, func(b *batch, id uint64) {
		cmd.ID = id
		b.add(core.Event{Kind: core.EvCommand, Cmd: &cmd})
	})
	return err
}

// doVolume is do for a command about one volume.
func (r *Resource) doVolume(ctx context.Context, vol uint16, cmd core.Command) error {
	if r.volume(vol) == nil {
		return &Failure{Code: FailMinorUnknown}
	}
	cmd.Vol = int32(vol)
	return r.do(ctx, cmd)
}

// allVolumes is Command.Vol for commands about the resource.
const allVolumes = -1

// The commands below return nil when the state machine agreed, a *StateError
// when it refused, ErrClosed after Close, and the context's error when it ended
// first; then the command goes on without its caller.

// Primary promotes this node. Force takes a disk that is not UpToDate for good.
func (r *Resource) Primary(ctx context.Context, force bool) error {
	return r.do(ctx, core.Command{Kind: core.CmdPrimary, Vol: allVolumes, Force: force})
}

// Secondary demotes this node: it drains the writes, makes them durable on
// both nodes and clears the primary indicator. It is refused while a client
// holds a volume open.
func (r *Resource) Secondary(ctx context.Context) error {
	return r.do(ctx, core.Command{Kind: core.CmdSecondary, Vol: allVolumes})
}

// Connect starts looking for the peer and returns without waiting for it. A
// resource that is connected, or trying, stays as it is.
func (r *Resource) Connect(ctx context.Context, opts ConnectOptions) error {
	return r.do(ctx, core.Command{
		Kind: core.CmdConnect, Vol: allVolumes, Discard: opts.DiscardMyData, Tentative: opts.Tentative,
	})
}

// Disconnect leaves the peer. Without force the peer is asked first. A
// resource that is StandAlone stays as it is.
func (r *Resource) Disconnect(ctx context.Context, force bool) error {
	return r.do(ctx, core.Command{Kind: core.CmdDisconnect, Vol: allVolumes, Force: force})
}

// Detach gives up the backing disk of vol. Without force it waits for the
// disk's operations and is refused if it would leave clients without data.
func (r *Resource) Detach(ctx context.Context, vol uint16, force bool) error {
	return r.doVolume(ctx, vol, core.Command{Kind: core.CmdDetach, Force: force})
}

// Invalidate makes this node the target of a full sync of vol.
func (r *Resource) Invalidate(ctx context.Context, vol uint16) error {
	return r.doVolume(ctx, vol, core.Command{Kind: core.CmdInvalidate})
}

// InvalidateRemote makes the peer the target of a full sync of vol.
func (r *Resource) InvalidateRemote(ctx context.Context, vol uint16) error {
	return r.doVolume(ctx, vol, core.Command{Kind: core.CmdInvalidateRemote})
}

// Outdate marks the local disk of vol as older than the peer's.
func (r *Resource) Outdate(ctx context.Context, vol uint16) error {
	return r.doVolume(ctx, vol, core.Command{Kind: core.CmdOutdate})
}

// Reconfigure puts a changed configuration to work (adjust): the core's
// settings and the handlers at once, Link at the next Connect after a
// Disconnect, a volume's Disk, MetaKind and Size at its next Attach. Resource,
// Limits and the set of volumes cannot change.
func (r *Resource) Reconfigure(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if err := r.takeConfig(&cfg); err != nil {
		return err
	}
	return r.do(ctx, core.Command{Kind: core.CmdConfig, Vol: allVolumes, Config: &cfg.Core})
}

func (r *Resource) takeConfig(cfg *Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cfg.Resource != r.cfg.Resource || len(cfg.Volumes) != len(r.vols) {
		return errors.New("the resource's name and number of volumes cannot change while it runs")
	}
	for i, v := range r.vols {
		if cfg.Volumes[i].Vol != v.number || cfg.Volumes[i].Minor != v.minor {
			return fmt.Errorf("volume %d cannot change its number or minor while the resource runs", v.number)
		}
	}
	for i, v := range r.vols {
		v.cfg = cfg.Volumes[i]
	}
	r.cfg.Link, r.cfg.Handlers, r.cfg.ConfigPath = cfg.Link, cfg.Handlers, cfg.ConfigPath
	r.cfg.Core = cfg.Core
	r.line.wantsSent.Store(cfg.Core.Net.Protocol == 'A')
	return nil
}

// Down demotes, disconnects and detaches: what is left is an unconfigured
// device. It is refused while a client holds a volume open.
func (r *Resource) Down(ctx context.Context) error {
	if err := r.Secondary(ctx); err != nil {
		return err
	}
	if err := r.leavePeer(ctx); err != nil {
		return err
	}
	return r.detachAll(ctx, false)
}

// leavePeer disconnects, by force if the peer does not agree in time.
func (r *Resource) leavePeer(ctx context.Context) error {
	if err := r.Disconnect(ctx, false); err == nil || ctx.Err() != nil {
		return err
	}
	return r.Disconnect(ctx, true)
}

func (r *Resource) detachAll(ctx context.Context, force bool) error {
	var errs []error
	for _, v := range r.vols {
		if v.attached() {
			errs = append(errs, r.Detach(ctx, v.number, force))
		}
	}
	return errors.Join(errs...)
}

func (v *Volume) attached() bool {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.back != nil
}
