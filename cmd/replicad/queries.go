package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"time"

	"replicad/internal/ctl"
	"replicad/replica/meta"
)

// The verbs that ask.

type questionCmd struct{ names }

type dstateCmd struct{ names }

type giCmd struct{ names }

type statusCmd struct {
	names
	JSON       bool   `name:"json" help:"Print what DRBD 9's drbdsetup status --json prints."`
	Watch      string `placeholder:"SECONDS" help:"Print again every so many seconds (2 when left out)."`
	Statistics bool   `help:"With counters (status tree only)."`
	Tree       bool   `help:"Print drbdadm's status tree."`
}

// Run is called by kong.
func (c *questionCmd) Run(a *app, verb verbName) error {
	targets, err := a.targets(string(verb), c.Resources, false)
	if err != nil {
		return err
	}
	return a.eachTarget(string(verb), targets, func(t target) error { return a.ask(string(verb), t, nil) })
}

func (a *app) ask(question string, t target, o url.Values) error {
	reply, err := a.client().Ask(a.ctx, t.local.Name, question, withVolume(o, t))
	return a.deliver(reply, err)
}

// Run is called by kong. A volume that is not attached answers by its metadata.
func (c *dstateCmd) Run(a *app, verb verbName) error {
	return a.askOrLook(string(verb), c.names, func(s *meta.Store) string { return s.Super().DiskState() + "\n" })
}

// Run is called by kong.
func (c *giCmd) Run(a *app, verb verbName) error {
	return a.askOrLook(string(verb), c.names, func(s *meta.Store) string {
		if verb == "get-gi" {
			return s.Super().GI() + "\n"
		}
		return s.Super().ShowGI()
	})
}

// askOrLook asks the daemon about a resource that has a disk attached, and
// otherwise reads the metadata.
func (a *app) askOrLook(verb string, n names, look func(*meta.Store) string) error {
	targets, err := a.targets(verb, n.Resources, false)
	if err != nil {
		return err
	}
	return a.eachTarget(verb, targets, func(t target) error {
		if a.running(t) {
			return a.ask(verb, t, nil)
		}
		return a.eachStore(t, readOnly, func(s *meta.Store) error {
			_, err := io.WriteString(a.out, look(s))
			return err
		})
	})
}

// attached reports whether a daemon uses a disk of the target. Without a daemon
// that knows the resource nobody does, as far as one can ask; the disk's lock has
// the last word.
func (a *app) attached(t target) bool {
	r, err := a.client().Resource(a.ctx, t.local.Name)
	return err == nil && slices.ContainsFunc(r.Volumes, func(v ctl.Volume) bool {
		return v.Attached && (t.volume < 0 || v.Number == t.volume)
	})
}

// running reports whether a daemon has anything to say about the target that
// its metadata does not: it has a disk, or a connection without one.
func (a *app) running(t target) bool {
	r, err := a.client().Resource(a.ctx, t.local.Name)
	return err == nil && slices.ContainsFunc(r.Volumes, func(v ctl.Volume) bool {
		down := v.Connection == "StandAlone" || v.Connection == "Unconfigured"
		return (v.Attached || !down) && (t.volume < 0 || v.Number == t.volume)
	})
}

// Run is called by kong.
func (c *statusCmd) Run(a *app, _ verbName) error {
	targets, err := a.targets("status", c.Resources, true)
	if err != nil {
		return err
	}
	if c.Watch == "" {
		return a.status(c, targets)
	}
	seconds, err := strconv.ParseFloat(c.Watch, 64)
	if err != nil || seconds <= 0 {
		return fail(exitUsage, "--watch takes a number of seconds, not %q", c.Watch)
	}
	return a.watchStatus(c, targets, time.Duration(seconds*float64(time.Second)))
}

// watchStatus redraws until it is interrupted. On a terminal it draws over
// the last picture.
func (a *app) watchStatus(c *statusCmd, targets []target, every time.Duration) error {
	tick := time.NewTicker(max(every, 50*time.Millisecond))
	defer tick.Stop()
	for {
		if isTerminal(a.out) {
			fmt.Fprint(a.out, "\x1b[H\x1b[2J")
		}
		if err := a.status(c, targets); err != nil && a.ctx.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-a.ctx.Done():
			return nil
		}
	}
}

func (a *app) status(c *statusCmd, targets []target) error {
	if c.Tree || a.asDrbdadm() && !c.JSON {
		return a.statusTree(c, targets)
	}
	if err := a.known(c, targets); err != nil {
		return err
	}
	var resources []string
	if len(c.Resources) > 0 {
		for _, t := range targets {
			resources = append(resources, t.local.Name)
		}
	}
	path := "/proc/drbd"
	if c.JSON {
		path = "/v1/status"
	}
	text, err := a.client().Text(a.ctx, path, resources)
	if err != nil {
		return a.daemonError(err)
	}
	_, err = io.WriteString(a.out, text)
	return err
}

// known refuses the name of a resource that is down, as drbdsetup does.
func (a *app) known(c *statusCmd, targets []target) error {
	if len(c.Resources) == 0 {
		return nil
	}
	return a.eachTarget("status", targets, func(t target) error {
		reply, err := a.client().Ask(a.ctx, t.local.Name, "status", nil)
		if err != nil {
			return a.daemonError(err)
		}
		return asError(reply)
	})
}

func (a *app) statusTree(c *statusCmd, targets []target) error {
	o := flags("statistics", c.Statistics)
	if a.global.Verbose {
		o.Set("verbose", "yes")
	}
	return a.eachTarget("status", targets, func(t target) error { return a.ask("status", t, o) })
}

// within is the context of questions that must not hang.
func (a *app) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.ctx, d)
}
