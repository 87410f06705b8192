package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"strconv"
	"strings"

	"replicad/internal/ctl"
)

// The verbs that a running daemon carries out.

type verbCmd struct{ names }

type forceCmd struct {
	names
	Force bool `help:"Do not ask the peer, and do not mind what is lost."`
}

type primaryCmd struct {
	names
	Force                bool `help:"Take the data here for good, whatever it is."`
	OverwriteDataOfPeer  bool `name:"overwrite-data-of-peer" help:"The same, by its older name."`
	OverwriteDataOfPeer2 bool `name:"do-what-I-say" short:"o" hidden:""`
}

type connectCmd struct {
	names
	DiscardMyData bool `name:"discard-my-data" help:"After a split brain: give up the changes made here."`
	Tentative     bool `help:"Find out what would be synchronised, then stay StandAlone."`
}

type diskOptionsCmd struct {
	names
	ResyncRate string `name:"resync-rate" placeholder:"RATE" help:"Fixed speed of resyncs in KiB/s; K, M and G work."`
	CMaxRate   string `name:"c-max-rate" placeholder:"RATE" help:"Fastest resync of the controller in KiB/s."`
	CPlanAhead string `name:"c-plan-ahead" placeholder:"TENTHS" help:"Planning horizon of the controller in 0.1 s; 0 means the fixed speed."`
	CMinRate   string `name:"c-min-rate" hidden:""`
	CFillTgt   string `name:"c-fill-target" hidden:""`
	CDelayTgt  string `name:"c-delay-target" hidden:""`
}

// Run is called by kong.
func (c *verbCmd) Run(a *app, verb verbName) error { return a.command(verb, c.names, nil) }

// Run is called by kong.
func (c *forceCmd) Run(a *app, verb verbName) error {
	return a.command(verb, c.names, flags("force", c.Force))
}

// Run is called by kong.
func (c *primaryCmd) Run(a *app, verb verbName) error {
	return a.command(verb, c.names, flags("force", c.Force || c.OverwriteDataOfPeer || c.OverwriteDataOfPeer2))
}

// Run is called by kong.
func (c *connectCmd) Run(a *app, verb verbName) error {
	o := flags("discard-my-data", c.DiscardMyData)
	if c.Tentative {
		o.Set("tentative", "yes")
	}
	return a.command(verb, c.names, o)
}

// Run is called by kong.
func (c *diskOptionsCmd) Run(a *app, verb verbName) error {
	o := url.Values{}
	for name, value := range map[string]string{
		"resync-rate": c.ResyncRate, "c-max-rate": c.CMaxRate, "c-plan-ahead": c.CPlanAhead,
		"c-min-rate": c.CMinRate, "c-fill-target": c.CFillTgt, "c-delay-target": c.CDelayTgt,
	} {
		if value != "" {
			o.Set(name, value)
		}
	}
	return a.command(verb, c.names, o)
}

func flags(name string, on bool) url.Values {
	o := url.Values{}
	if on {
		o.Set(name, "yes")
	}
	return o
}

// command has the daemon carry out a verb on each target. As drbdadm, it goes
// on after a failure and ends with the worst exit code.
func (a *app) command(verb verbName, n names, o url.Values) error {
	targets, err := a.targets(string(verb), n.Resources, false)
	if err != nil {
		return err
	}
	return a.eachTarget(string(verb), targets, func(t target) error {
		return a.commandOne(string(verb), t, o)
	})
}

func (a *app) commandOne(verb string, t target, o url.Values) error {
	words := optionWords(o)
	if a.global.DryRun || a.global.Verbose {
		fmt.Fprintln(a.out, a.commandLine(verb, append([]string{t.String()}, words...)...))
	}
	if a.global.DryRun {
		return nil
	}
	reply, err := a.client().Command(a.ctx, t.local.Name, verb, withVolume(o, t))
	return a.deliver(reply, err)
}

// deliver prints what a successful reply has to say and makes an error of any other.
func (a *app) deliver(reply ctl.Reply, err error) error {
	if err != nil {
		return a.daemonError(err)
	}
	if _, err := io.WriteString(a.out, reply.Out); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if reply.Exit != 0 {
		return asError(reply)
	}
	for _, line := range reply.Err {
		fmt.Fprintln(a.err, line)
	}
	return nil
}

// daemonError says how to start a daemon when there is none.
func (a *app) daemonError(err error) error {
	if errors.Is(err, ctl.ErrNoDaemon) {
		return fail(exitExecution, "no daemon on %s: start it with: %s run", a.client().Socket(), a.ownName())
	}
	if a.ctx.Err() != nil {
		return &exitError{code: exitExecution, lines: []string{"interrupted"}}
	}
	return err
}

// ownName is what to call the daemon: there is no `drbdadm run`.
func (a *app) ownName() string {
	if a.asDrbdadm() {
		return "replicad"
	}
	return a.name
}

// eachTarget runs do for every target, reports each failure, and returns an
// error that carries the worst exit code.
func (a *app) eachTarget(verb string, targets []target, do func(target) error) error {
	worst := 0
	for _, t := range targets {
		err := do(t)
		if err == nil {
			continue
		}
		worst = max(worst, report(a.err, err, a.blame(verb, t, err)))
		if a.ctx.Err() != nil || isNoDaemon(err) {
			break
		}
	}
	if worst != 0 {
		return &exitError{code: worst}
	}
	return nil
}

// blame is the command that drbdadm would name for a failure; nothing was run
// when there is no daemon.
func (a *app) blame(verb string, t target, err error) string {
	if isNoDaemon(err) {
		return ""
	}
	return a.commandLine(verb, t.String())
}

func isNoDaemon(err error) bool {
	return strings.HasPrefix(err.Error(), "no daemon on ")
}

func withVolume(o url.Values, t target) url.Values {
	out := url.Values{}
	maps.Copy(out, o)
	if t.volume >= 0 {
		out.Set("volume", strconv.Itoa(t.volume))
	}
	return out
}

// optionWords renders options as they would be typed.
func optionWords(o url.Values) []string {
	var words []string
	for name := range o {
		if value := o.Get(name); value == "yes" {
			words = append(words, "--"+name)
		} else {
			words = append(words, "--"+name+"="+value)
		}
	}
	return words
}
