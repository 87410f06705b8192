package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"replicad/internal/ctl"
)

// waitCmd is wait-connect or wait-sync.
type waitCmd struct {
	names
	Timeout string `aliases:"wfc-timeout" placeholder:"SECONDS" help:"How long to wait for the link (default: the startup section's; 0 = for ever)."`
}

const (
	progressEvery = 250 * time.Millisecond // on a terminal
	plainEvery    = 2 * time.Second        // when piped, and only what is new
)

// Run is called by kong.
func (c *waitCmd) Run(a *app, verb verbName) error {
	targets, err := a.targets(string(verb), c.Resources, false)
	if err != nil {
		return err
	}
	o := url.Values{}
	if c.Timeout != "" {
		o.Set("timeout", c.Timeout)
	}
	if a.global.DryRun {
		return a.eachTarget(string(verb), targets, func(t target) error { return a.commandOne(string(verb), t, o) })
	}
	return a.eachTarget(string(verb), targets, func(t target) error { return a.wait(string(verb), t, o) })
}

// wait has the daemon wait, and shows meanwhile how it goes.
func (a *app) wait(verb string, t target, o url.Values) error {
	type outcome struct {
		reply ctl.Reply
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		reply, err := a.client().Command(a.ctx, t.local.Name, verb, o)
		done <- outcome{reply, err}
	}()
	p := newProgressLine(a.err)
	tick := time.NewTicker(p.every())
	defer tick.Stop()
	for {
		select {
		case end := <-done:
			p.finish()
			return a.deliver(end.reply, end.err)
		case <-tick.C:
			ctx, cancel := a.within(time.Second)
			if r, err := a.client().Resource(ctx, t.local.Name); err == nil {
				p.show(r)
			}
			cancel()
		}
	}
}

// progressLine shows how a resource gets on: one line that is drawn over on a
// terminal, a line for each news when piped.
type progressLine struct {
	w        io.Writer
	terminal bool
	last     string
}

func newProgressLine(w io.Writer) *progressLine {
	return &progressLine{w: w, terminal: isTerminal(w)}
}

func (p *progressLine) every() time.Duration {
	if p.terminal {
		return progressEvery
	}
	return plainEvery
}

func (p *progressLine) show(r ctl.Resource) {
	text := progressText(r)
	switch {
	case text == p.last:
	case p.terminal:
		fmt.Fprint(p.w, "\r\x1b[K", text)
	default:
		fmt.Fprintln(p.w, text)
	}
	p.last = text
}

func (p *progressLine) finish() {
	if p.terminal && p.last != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func progressText(r ctl.Resource) string {
	parts := []string{r.Name + ": " + r.Connection}
	for _, v := range r.Volumes {
		if v.Sync != nil {
			parts = append(parts, syncText(v))
		}
	}
	return strings.Join(parts, ", ")
}

// syncText is the bar of one volume.
func syncText(v ctl.Volume) string {
	const width = 20
	done := v.Sync.TotalKiB - min(v.Sync.LeftKiB, v.Sync.TotalKiB)
	permille := uint64(1000)
	if v.Sync.TotalKiB > 0 {
		permille = done * 1000 / v.Sync.TotalKiB
	}
	filled := int(permille * width / 1000)
	bar := strings.Repeat("=", filled) + strings.Repeat(".", width-filled)
	text := fmt.Sprintf("volume %d [%s] %d.%d%%, %d of %d MiB to go, %d KiB/s",
		v.Number, bar, permille/10, permille%10, v.Sync.LeftKiB>>10, v.Sync.TotalKiB>>10, v.Sync.RateKiB)
	if v.Sync.RateKiB > 0 {
		left := time.Duration(v.Sync.LeftKiB/v.Sync.RateKiB) * time.Second
		text += ", " + left.String() + " left"
	}
	return text
}

// isTerminal reports whether somebody looks at w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
