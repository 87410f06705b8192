package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replicad/internal/ctl"
	"replicad/replica"
	"replicad/replica/core"
)

// errWaitedEnough ends a wait by its timeout.
var errWaitedEnough = errors.New("timeout")

// waitTimeout is how long a wait may take, 0 for ever: what the caller says, or
// what the startup section says for the state the resource is in.
func waitTimeout(u *unit, s replica.Snapshot, o options) (time.Duration, error) {
	d, given, err := o.seconds("timeout")
	if given || err != nil {
		return d, err
	}
	startup := u.local.Load().Startup
	for i := range s.Volumes {
		switch st := s.Volumes[i].State; {
		case st.Disk == core.Outdated:
			return startup.OutdatedWfcTimeout, nil
		case st.PDisk == core.Outdated || s.Volumes[i].Flags&core.FlagPeerOutdated != 0:
			return startup.DegrWfcTimeout, nil
		}
	}
	return startup.WfcTimeout, nil
}

func waitConnect(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	timeout, err := waitTimeout(u, res.Status(), o)
	if err != nil {
		return ctl.Reply{Exit: exitUsage, Err: []string{err.Error()}}
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errWaitedEnough)
		defer cancel()
	}
	return u.waitReply(res.WaitConnect(ctx), timeout)
}

func waitSync(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	timeout, err := waitTimeout(u, res.Status(), o)
	if err != nil {
		return ctl.Reply{Exit: exitUsage, Err: []string{err.Error()}}
	}
	return u.waitReply(res.WaitSync(ctx, timeout), timeout)
}

// waitReply words the end of a wait.
func (u *unit) waitReply(err error, timeout time.Duration) ctl.Reply {
	peer := peerName(u.local.Load())
	switch {
	case err == nil:
		return ctl.Reply{}
	case errors.Is(err, replica.ErrStandAlone):
		return ctl.Reply{
			Exit: exitTimeout, Err: []string{u.name + ": StandAlone: nobody is trying to connect"},
			Hint: fmt.Sprintf("the log says why the connection was given up; to try again: replicad connect %s", u.name),
		}
	case errors.Is(err, errWaitedEnough), errors.Is(err, replica.ErrLinkDown):
		return ctl.Reply{
			Exit: exitTimeout, Err: []string{fmt.Sprintf("%s: no connection to %s for %s", u.name, peer, timeout)},
			Hint: fmt.Sprintf("check that the daemon runs on %s and that its address answers", peer),
		}
	}
	return u.refusal(u.name, "wait", err)
}
