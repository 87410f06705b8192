package daemon

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"replicad/internal/ctl"
	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/status"
)

// options are the parameters of a command.
type options struct {
	volume int // -1: all
	values url.Values
}

func (o options) has(name string) bool {
	switch o.values.Get(name) {
	case "", "no", "false", "0":
		return false
	}
	return true
}

// seconds reads a number of seconds; ok is false when it was not given.
func (o options) seconds(name string) (d time.Duration, ok bool, err error) {
	text := o.values.Get(name)
	if text == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n < 0 || n > 1e9 {
		return 0, false, errors.New(name + " takes a number of seconds, not " + strconv.Quote(text))
	}
	return time.Duration(n * float64(time.Second)), true, nil
}

// command carries out a verb on a resource that is up.
type command func(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply

// commands are the verbs that need a resource that is up.
var commands = map[string]command{
	"detach":            detach,
	"disconnect":        disconnect,
	"primary":           primary,
	"secondary":         secondary,
	"invalidate":        invalidate,
	"invalidate-remote": invalidateRemote,
	"outdate":           outdate,
	"disk-options":      diskOptions,
	"wait-connect":      waitConnect,
	"wait-sync":         waitSync,
}

// lifecycle are the verbs that read the configuration again.
var lifecycle = map[string]bool{"up": true, "attach": true, "connect": true, "adjust": true}

// run carries out a verb.
func (d *Daemon) run(ctx context.Context, name, verb string, o options) (ctl.Reply, bool) {
	if d.isStopping() {
		return stoppingReply(), true
	}
	if lifecycle[verb] {
		return d.runLifecycle(ctx, name, verb, o), true
	}
	u := d.unit(name)
	do, known := commands[verb]
	switch {
	case !known && verb != "down":
		return ctl.Reply{}, false
	case u == nil:
		return failure(name, errUnknownResource), true
	case verb == "down":
		return u.down(ctx), true
	}
	res := u.res.Load()
	if res == nil {
		return u.unconfigured(o.volume), true
	}
	return do(ctx, u, res, o), true
}

func (d *Daemon) runLifecycle(ctx context.Context, name, verb string, o options) ctl.Reply {
	u, lr, err := d.current(name)
	if err != nil {
		return failure(name, err)
	}
	if verb == "adjust" {
		return u.adjustTo(ctx, lr)
	}
	u.life.Lock()
	defer u.life.Unlock()
	if err := u.refresh(ctx, lr); err != nil {
		return u.refusal(u.name, verb, err)
	}
	res := u.res.Load()
	switch {
	case verb == "up":
		return u.bringUp(ctx, false)
	case res == nil:
		return u.unconfigured(o.volume)
	case verb == "attach":
		return u.attachVolumes(ctx, res, o.volume, false, attachAttached)
	}
	return connect(ctx, u, res, o)
}

func connect(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	err := res.Connect(ctx, replica.ConnectOptions{DiscardMyData: o.has("discard-my-data"), Tentative: o.has("tentative")})
	if err != nil {
		return u.refusal(u.name, "connect", err)
	}
	return ctl.Reply{}
}

// disconnect refuses a resource without a connection, as DRBD's kernel does.
func disconnect(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	if connection(res.Status()) == core.StandAlone {
		return addInfo(ctl.Reply{
			Exit: exitFailure, Err: []string{"??: Failure: (162) Invalid configuration request"},
			Hint: u.name + " is StandAlone: it is disconnected already",
		}, "unknown connection")
	}
	if err := res.Disconnect(ctx, o.has("force")); err != nil {
		return u.refusal(u.name, "disconnect", err)
	}
	return ctl.Reply{}
}

func primary(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	force := o.has("force") || o.has("overwrite-data-of-peer")
	if err := res.Primary(ctx, force); err != nil {
		return u.refusal(u.firstObject(), "primary", err)
	}
	return ctl.Reply{}
}

func secondary(ctx context.Context, u *unit, res *replica.Resource, _ options) ctl.Reply {
	if err := res.Secondary(ctx); err != nil {
		return u.refusal(u.firstObject(), "secondary", err)
	}
	return ctl.Reply{}
}

// eachVolume runs a command for one volume or all, up to the first refusal.
func eachVolume(u *unit, verb string, o options, do func(vol uint16) error) ctl.Reply {
	for _, n := range u.volumes(o.volume) {
		if err := do(uint16(n)); err != nil {
			return u.refusal(u.object(n), verb, err)
		}
	}
	return ctl.Reply{}
}

func detach(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	return eachVolume(u, "detach", o, func(vol uint16) error { return res.Detach(ctx, vol, o.has("force")) })
}

func invalidate(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	return eachVolume(u, "invalidate", o, func(vol uint16) error { return res.Invalidate(ctx, vol) })
}

func invalidateRemote(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	return eachVolume(u, "invalidate-remote", o, func(vol uint16) error { return res.InvalidateRemote(ctx, vol) })
}

func outdate(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	return eachVolume(u, "outdate", o, func(vol uint16) error { return res.Outdate(ctx, vol) })
}

// question answers a question about a running resource.
func (d *Daemon) question(name, question string, o options) (ctl.Reply, bool) {
	u := d.unit(name)
	if u == nil {
		return failure(name, errUnknownResource), true
	}
	res := u.res.Load()
	if res == nil && question == "status" {
		return ctl.Reply{Exit: exitFailure, Err: []string{name + ": No such resource"}, Hint: u.failureHint(replica.FailMinorUnknown)}, true
	}
	if res == nil && question == "sh-status" {
		return ctl.Reply{Out: string(u.shUnconfigured(o.volume))}, true
	}
	if res == nil {
		return u.unconfigured(o.volume), true
	}
	s := res.Status()
	if question == "status" {
		r := statusResource(s)
		tree := status.TreeOptions{Verbose: o.has("verbose"), Statistics: o.has("statistics")}
		return ctl.Reply{Out: string(status.AppendTree(nil, &r, tree))}, true
	}
	answer, known := answers[question]
	if !known {
		return ctl.Reply{}, false
	}
	var out []byte
	for i := range s.Volumes {
		if v := &s.Volumes[i]; o.volume < 0 || int(v.Vol) == o.volume {
			out = answer(out, &s, v)
		}
	}
	return ctl.Reply{Out: string(out)}, true
}

// shUnconfigured is what sh-status prints about a resource that is down.
func (u *unit) shUnconfigured(vol int) []byte {
	var out []byte
	for _, n := range u.volumes(vol) {
		d := status.Device{
			Minor: u.minor(n), Volume: n, Conn: status.StandAlone, Role: status.Secondary,
			PeerRole: status.Unknown, Disk: status.Diskless, PeerDisk: status.DUnknown,
		}
		out = status.AppendShStatus(out, u.name, &d)
	}
	return out
}

// answers render one volume for each question about volumes.
var answers = map[string]func(dst []byte, s *replica.Snapshot, v *replica.VolumeSnapshot) []byte{
	"role": func(dst []byte, s *replica.Snapshot, v *replica.VolumeSnapshot) []byte {
		d := statusDevice(s, v)
		return append(append(dst, d.QueryRole()...), '\n')
	},
	"cstate": func(dst []byte, s *replica.Snapshot, v *replica.VolumeSnapshot) []byte {
		d := statusDevice(s, v)
		return append(append(dst, d.QueryCState()...), '\n')
	},
	"dstate": func(dst []byte, s *replica.Snapshot, v *replica.VolumeSnapshot) []byte {
		d := statusDevice(s, v)
		return append(append(dst, d.QueryDState()...), '\n')
	},
	"sh-status": func(dst []byte, s *replica.Snapshot, v *replica.VolumeSnapshot) []byte {
		d := statusDevice(s, v)
		return status.AppendShStatus(dst, s.Resource, &d)
	},
	"get-gi": func(dst []byte, _ *replica.Snapshot, v *replica.VolumeSnapshot) []byte {
		get, _ := giOf(v)
		return append(append(dst, get...), '\n')
	},
	"show-gi": func(dst []byte, _ *replica.Snapshot, v *replica.VolumeSnapshot) []byte {
		_, show := giOf(v)
		return append(dst, show...)
	},
}

// beforeSize cuts the lines of show-gi that only a detached disk can tell.
func beforeSize(text string) string {
	const last = "meta-data: "
	at := strings.LastIndex(text, last)
	if at < 0 {
		return text
	}
	end := strings.IndexByte(text[at:], '\n')
	return text[:at+end+1]
}
