package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"replicad/config"
	"replicad/internal/ctl"
	"replicad/replica"
	"replicad/replica/core"
)

// current returns the resource as the configuration file describes it now, a
// new one included. The running resource has not been told yet.
func (d *Daemon) current(name string) (*unit, wanted, error) {
	locals, err := d.configure(false)
	if err != nil {
		return nil, wanted{}, err
	}
	at := slices.IndexFunc(locals, func(lr wanted) bool { return lr.Name == name })
	u := d.unit(name)
	switch {
	case at < 0:
		return nil, wanted{}, errUnknownResource
	case u == nil:
		u = d.addUnit(locals[at])
	}
	return u, locals[at], nil
}

// errUnknownResource says that the configuration has no such resource here.
var errUnknownResource = errors.New("resource is not configured on this node")

// up brings a resource up: it attaches the disks and looks for the peer. With
// again, volumes that are attached already are no error.
func (u *unit) up(ctx context.Context, again bool) ctl.Reply {
	u.life.Lock()
	defer u.life.Unlock()
	return u.bringUp(ctx, again)
}

// bringUp is up with life held.
func (u *unit) bringUp(ctx context.Context, again bool) ctl.Reply {
	if u.d.isStopping() {
		return stoppingReply()
	}
	res, problem, err := u.ensure()
	if err != nil {
		return failure(u.name, err)
	}
	reply := u.attachVolumes(ctx, res, -1, again, upAttached)
	if reply.Exit != 0 {
		return reply
	}
	if err := res.Connect(ctx, replica.ConnectOptions{}); err != nil {
		return u.join(reply, u.refusal(u.name, "connect", err))
	}
	if problem != nil {
		reply = u.join(reply, ctl.Reply{
			Exit: exitExecution, Err: []string{u.name + ": " + problem.Error()},
			Hint: "the resource is up and replicates; its clients have no way in until that is mended: then replicad down and up it",
		})
	}
	return reply
}

// join puts the lines of two replies together; the later exit code counts.
func (u *unit) join(a, b ctl.Reply) ctl.Reply {
	b.Err = append(a.Err, b.Err...)
	b.Out = a.Out + b.Out
	return b
}

// attachVolumes attaches one volume or all, up to the first failure. With
// again, attached ones are left as they are, otherwise refuse answers.
func (u *unit) attachVolumes(ctx context.Context, res *replica.Resource, vol int, again bool, refuse func(*unit, int) ctl.Reply) ctl.Reply {
	var reply ctl.Reply
	for _, n := range u.volumes(vol) {
		if u.diskless(n) {
			continue
		}
		result, err := res.Attach(ctx, uint16(n))
		switch {
		case isFailure(err, replica.FailAttached) && again:
			continue
		case isFailure(err, replica.FailAttached):
			return u.join(reply, refuse(u, n))
		case err != nil:
			return u.join(reply, u.attachRefusal(n, err))
		}
		if result.MarkedKiB > 0 {
			reply.Err = append(reply.Err, markedLine(result.MarkedKiB))
		}
		reply.Err = append(reply.Err, result.Info...)
	}
	return reply
}

// upAttached is drbdadm's answer to up when there is a disk already.
func upAttached(u *unit, vol int) ctl.Reply {
	return ctl.Reply{
		Exit: exitUsage,
		Err:  []string{fmt.Sprintf("Device '%d' is configured!", u.minor(vol))},
		Hint: fmt.Sprintf("%s is up already; to bring it in line with its configuration: replicad adjust %s", u.name, u.name),
	}
}

// attachAttached is drbdsetup's answer to attach.
func attachAttached(u *unit, vol int) ctl.Reply {
	return u.refusal(u.object(vol), "attach", &replica.Failure{Code: replica.FailAttached})
}

// adjustTo brings the running resource in line with its configuration.
func (u *unit) adjustTo(ctx context.Context, lr wanted) ctl.Reply {
	u.life.Lock()
	defer u.life.Unlock()
	res := u.res.Load()
	if res == nil {
		u.take(lr)
		return u.bringUp(ctx, true)
	}
	if !sameVolumes(u.local.Load(), lr.LocalResource) {
		return ctl.Reply{
			Exit: exitFailure,
			Err:  []string{u.name + ": volumes, minors or NBD addresses changed: they cannot while the resource is up"},
			Hint: fmt.Sprintf("run: replicad down %s && replicad up %s", u.name, u.name),
		}
	}
	if reply := u.leaveOldPeer(ctx, res, lr.LocalResource); reply.Exit != 0 {
		return reply
	}
	u.take(lr)
	if err := res.Reconfigure(ctx, u.resourceConfig(lr.LocalResource)); err != nil {
		return u.refusal(u.name, "adjust", err)
	}
	return u.bringUp(ctx, true)
}

// leaveOldPeer disconnects when the way to the peer has changed. New key files
// alone do not change it.
func (u *unit) leaveOldPeer(ctx context.Context, res *replica.Resource, lr *config.LocalResource) ctl.Reply {
	old := u.local.Load()
	same := linkSettings(old) == linkSettings(lr) && old.Net.TLS == lr.Net.TLS
	if same || connection(res.Status()) == core.StandAlone {
		return ctl.Reply{}
	}
	if err := res.Disconnect(ctx, false); err != nil {
		return u.refusal(u.name, "disconnect", err)
	}
	return ctl.Reply{}
}

// refresh takes the configuration into use for the next attach or connect. A
// change that has to wait for down and up is left for that.
func (u *unit) refresh(ctx context.Context, lr wanted) error {
	res := u.res.Load()
	if res == nil {
		u.take(lr)
		return nil
	}
	if !sameVolumes(u.local.Load(), lr.LocalResource) {
		return nil
	}
	u.take(lr)
	return res.Reconfigure(ctx, u.resourceConfig(lr.LocalResource))
}

// sameVolumes reports whether a running resource can go from one configuration
// to the other.
func sameVolumes(a, b *config.LocalResource) bool {
	return slices.EqualFunc(a.Volumes, b.Volumes, func(v, w *config.LocalVolume) bool {
		return v.Number == w.Number && v.Minor == w.Minor && slices.Equal(v.NBDListen, w.NBDListen)
	})
}

// down demotes, disconnects and detaches, and forgets the resource. A resource
// that is down stays so.
func (u *unit) down(ctx context.Context) ctl.Reply {
	u.life.Lock()
	defer u.life.Unlock()
	res := u.res.Load()
	if res == nil {
		return ctl.Reply{}
	}
	if err := res.Down(ctx); err != nil {
		reply := u.refusal(u.name, "down", err)
		return addInfo(reply, downStep(err))
	}
	if err := u.close(ctx); err != nil {
		return failure(u.name, err)
	}
	return ctl.Reply{}
}

// downStep is the kernel's hint at the step of down that was refused.
func downStep(err error) string {
	refused, ok := errors.AsType[*replica.StateError](err)
	switch {
	case !ok:
		return ""
	case refused.Err == core.ErrDeviceInUse:
		return "failed to demote"
	}
	return "failed to disconnect or detach"
}
