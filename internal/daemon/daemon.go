// Package daemon is what `replicad run` runs: every resource of this node with
// its disks, its link and its NBD clients, the control socket, and the status
// file. It is the place where packages nbd and replica, which do not know each
// other, are joined.
//
// It parses no command line and prints nothing: what it has to say goes to a
// logger or into the answers of the control socket (package ctl).
//
// Goroutines: one per NBD address that accepts, one per running resource that
// watches it for the status file, one that writes the status file, one that warns
// of certificates that end, one that keeps the control socket, one that watches
// descriptors, and those of the HTTP server. All end before Run returns.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"replicad/config"
	"replicad/internal/ctl"
)

// DefaultStopTimeout bounds an orderly shutdown.
const DefaultStopTimeout = 60 * time.Second

// Options say how a daemon runs.
type Options struct {
	ConfigPath  string // absolute
	Self        config.Self
	Socket      string // of the control interface
	Version     string
	StopTimeout time.Duration // 0 means DefaultStopTimeout
	// MakeRunDir creates Self.RunDir. It is called only if a path that is in
	// use lies there.
	MakeRunDir func() error
	Log        *slog.Logger
}

// Daemon is the running program. Its methods may be called from any goroutine.
type Daemon struct {
	opts      Options
	log       *slog.Logger
	endpoints *endpoints
	ctx       context.Context // ends when everything is closed
	end       context.CancelFunc
	wg        sync.WaitGroup
	dirty     chan struct{} // room for one: the status text may have changed
	ready     chan struct{} // closed when every resource has been brought up, or tried

	mu         sync.Mutex
	units      []*unit // in the order of the configuration
	statusFile string
	stopping   bool
}

// Run runs the daemon until ctx ends, then shuts down in order. It returns nil
// after an orderly shutdown. Errors: config.Errors and
// *config.UnauthenticatedError, *HeldError when another daemon has the socket,
// others when the daemon cannot start or not shut down in time. reload is
// listened on for SIGHUP.
func Run(ctx context.Context, opts Options, reload <-chan struct{}) error {
	d := newDaemon(opts)
	defer d.end()
	locals, err := d.configure(true)
	if err != nil {
		return err
	}
	if err := d.makeRunDir(locals); err != nil {
		return err
	}
	socket, err := takeSocket(d.opts.Socket)
	if err != nil {
		return err
	}
	defer socket.release()
	defer d.wg.Wait()
	defer d.end()
	d.shareDescriptors(locals)
	for _, lr := range locals {
		d.addUnit(lr)
	}
	d.wg.Go(func() { d.serveControl(socket) })
	d.bringUp(ctx)
	close(d.ready)
	d.wg.Go(d.keepStatusFile)
	d.wg.Go(d.watchCertificates)
	d.wg.Go(d.watchDescriptors)
	d.wg.Go(func() { d.endpoints.keepSockets(d.ctx, d.makeDir) })
	d.announce("READY=1")
	d.log.Info("ready", "socket", d.opts.Socket, "node", d.opts.Self.Node, "resources", len(locals), "version", d.opts.Version)
	d.waitForEnd(ctx, reload)
	return d.shutDown()
}

func newDaemon(opts Options) *Daemon {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.StopTimeout <= 0 {
		opts.StopTimeout = DefaultStopTimeout
	}
	d := &Daemon{opts: opts, log: opts.Log, dirty: make(chan struct{}, 1), ready: make(chan struct{})}
	d.endpoints = newEndpoints(opts.Log)
	d.ctx, d.end = context.WithCancel(context.Background())
	return d
}

// configure reads the configuration and checks what must not run. Its warnings
// are logged when it is read for all.
func (d *Daemon) configure(forAll bool) ([]wanted, error) {
	cfg, err := config.Load(d.opts.ConfigPath)
	if err != nil {
		return nil, err
	}
	if forAll {
		for _, w := range cfg.Warnings {
			d.log.Warn(w.Msg, "at", w.Pos.String())
		}
	}
	locals, err := cfg.Resolve(d.opts.Self)
	if err != nil {
		return nil, err
	}
	all := make([]wanted, len(locals))
	for i, lr := range locals {
		if all[i], err = prepare(lr); err != nil {
			return nil, err
		}
	}
	if forAll {
		for _, w := range all {
			d.logNotes(w.Name, w.tls, time.Now())
		}
	}
	d.mu.Lock()
	d.statusFile = cfg.StatusFile(d.opts.Self)
	d.mu.Unlock()
	return all, nil
}

// makeRunDir creates the run folder if anything is to be put there.
func (d *Daemon) makeRunDir(locals []wanted) error {
	paths := []string{d.opts.Socket, d.statusPath()}
	for _, lr := range locals {
		for _, v := range lr.Volumes {
			for _, l := range v.NBDListen {
				paths = append(paths, l.Address)
			}
		}
	}
	inside := func(path string) bool { return strings.HasPrefix(path, d.opts.Self.RunDir+"/") }
	if d.opts.MakeRunDir == nil || !slices.ContainsFunc(paths, inside) {
		return nil
	}
	return d.opts.MakeRunDir()
}

func (d *Daemon) addUnit(w wanted) *unit {
	u := &unit{d: d, name: w.Name}
	u.take(w)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.units = append(d.units, u)
	return u
}

// unit returns the resource of that name, nil if there is none.
func (d *Daemon) unit(name string) *unit {
	for _, u := range d.allUnits() {
		if u.name == name {
			return u
		}
	}
	return nil
}

func (d *Daemon) allUnits() []*unit {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.units[:len(d.units):len(d.units)]
}

// bringUp starts every resource, each on its own: a slow disk must not keep
// the others waiting. A failure is logged and leaves the disk free.
func (d *Daemon) bringUp(ctx context.Context) {
	var all sync.WaitGroup
	for _, u := range d.allUnits() {
		all.Go(func() {
			reply := u.up(ctx, false)
			d.logReply("bringing up the resource", u.name, reply)
		})
	}
	all.Wait()
}

// logReply writes what a command that nobody called for has to say.
func (d *Daemon) logReply(doing, resource string, r ctl.Reply) {
	level := slog.LevelInfo
	if r.Exit != 0 {
		level = slog.LevelError
	}
	lines := r.Err
	if r.Hint != "" {
		lines = append(lines, r.Hint)
	}
	for _, line := range lines {
		if line != "" {
			d.log.Log(d.ctx, level, line, "resource", resource, "while", doing)
		}
	}
}

func (d *Daemon) waitForEnd(ctx context.Context, reload <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-reload:
			d.reload(ctx)
		}
	}
}

// reload reads the configuration again and adjusts every resource to it, as
// the verb adjust does. A configuration with faults changes nothing.
func (d *Daemon) reload(ctx context.Context) {
	d.announce("RELOADING=1")
	defer d.announce("READY=1")
	locals, err := d.configure(true)
	if err != nil {
		d.log.Error("the configuration stays as it was", "err", err)
		return
	}
	present := map[string]wanted{}
	for _, lr := range locals {
		present[lr.Name] = lr
		if d.unit(lr.Name) == nil {
			d.addUnit(lr)
		}
	}
	for _, u := range d.allUnits() {
		if present[u.name].LocalResource == nil {
			d.log.Warn("resource is no longer configured and goes on until it is taken down", "resource", u.name)
			continue
		}
		d.logReply("adjusting the resource", u.name, u.adjustTo(ctx, present[u.name]))
	}
	d.log.Info("configuration reloaded", "config", d.opts.ConfigPath)
}

// shutDown ends everything: each resource lets its clients go, flushes,
// demotes, disconnects and detaches.
func (d *Daemon) shutDown() error {
	d.announce("STOPPING=1")
	d.log.Info("shutting down")
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(context.Background(), d.opts.StopTimeout,
		fmt.Errorf("not done within the stop timeout of %s", d.opts.StopTimeout))
	defer cancel()
	units := d.allUnits()
	errs := make([]error, len(units)+1)
	var all sync.WaitGroup
	for i, u := range units {
		all.Go(func() {
			u.life.Lock()
			defer u.life.Unlock()
			errs[i] = u.close(ctx)
		})
	}
	all.Wait()
	errs[len(units)] = d.endpoints.close(ctx)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("shut down: %w", err)
	}
	d.log.Info("stopped")
	return nil
}

// isStopping reports that no resource may be brought up any more.
func (d *Daemon) isStopping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopping
}

// changed says that the status text may be another.
func (d *Daemon) changed() {
	select {
	case d.dirty <- struct{}{}:
	default:
	}
}
