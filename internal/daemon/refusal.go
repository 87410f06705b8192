package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"replicad/config"
	"replicad/internal/ctl"
	"replicad/nbd"
	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/meta"
)

// Exit codes of drbdadm and drbdsetup (DRBD 8.4) that are not a state's.
const (
	exitUsage     = 1
	exitTimeout   = 5
	exitFailure   = 10
	exitExecution = 20
)

// fromKernel introduces what DRBD's kernel adds to a refusal.
const fromKernel = "additional info from kernel:"

func isFailure(err error, code replica.FailureCode) bool {
	f, ok := errors.AsType[*replica.Failure](err)
	return ok && f.Code == code
}

// object is what DRBD 8.4 calls a volume in its messages: its minor.
func (u *unit) object(vol int) string { return strconv.Itoa(u.minor(vol)) }

// firstObject is the object of a command about the whole resource: DRBD runs
// it for each minor and stops at the first that refuses.
func (u *unit) firstObject() string { return u.object(u.local.Load().Volumes[0].Number) }

// unconfigured is the answer about a resource that is down.
func (u *unit) unconfigured(vol int) ctl.Reply {
	if vol < 0 {
		vol = u.local.Load().Volumes[0].Number
	}
	err := &replica.Failure{Code: replica.FailMinorUnknown, Info: []string{"unknown minor"}}
	return u.refusal(u.object(vol), "", err)
}

// failure is the answer when a command could not be carried out for reasons
// DRBD has no words for.
func failure(name string, err error) ctl.Reply {
	if faults, ok := errors.AsType[config.Errors](err); ok {
		return ctl.Reply{Exit: exitFailure, Err: strings.Split(faults.Error(), "\n"), Hint: "the daemon goes on as before: mend the configuration, then try again"}
	}
	if errors.Is(err, errUnknownResource) {
		return ctl.Reply{
			Exit: exitUsage, Err: []string{fmt.Sprintf("'%s' not defined in your config (for this host).", name)},
			Hint: "the daemon does not know it: does it use another configuration file, or one of before the last change? then: replicad adjust " + name,
		}
	}
	if _, ok := errors.AsType[*config.UnauthenticatedError](err); ok {
		return ctl.Reply{Exit: exitFailure, Err: strings.Split(err.Error(), "\n")}
	}
	return ctl.Reply{Exit: exitExecution, Err: []string{name + ": " + err.Error()}}
}

func stoppingReply() ctl.Reply {
	return ctl.Reply{Exit: exitExecution, Err: []string{"the daemon is shutting down"}}
}

// refusal turns the error of a command into DRBD's words, and says what to do.
func (u *unit) refusal(object, verb string, err error) ctl.Reply {
	if refused, ok := errors.AsType[*replica.StateError](err); ok {
		r := ctl.Reply{Exit: refused.ExitCode(), Err: []string{object + ": " + refused.Error()}, Hint: u.stateHint(refused.Err, verb)}
		return addInfo(r, refused.Info...)
	}
	if failed, ok := errors.AsType[*replica.Failure](err); ok {
		r := ctl.Reply{Exit: failed.ExitCode(), Err: []string{object + ": " + failed.Error()}, Hint: u.failureHint(failed.Code)}
		return addInfo(r, failed.Info...)
	}
	if errors.Is(err, replica.ErrClosed) {
		return stoppingReply()
	}
	if errors.Is(err, context.Canceled) {
		return ctl.Reply{Exit: exitExecution, Err: []string{object + ": interrupted; the command may still take effect"}}
	}
	return failure(u.name, err)
}

// addInfo appends lines the way drbdsetup prints the kernel's.
func addInfo(r ctl.Reply, lines ...string) ctl.Reply {
	lines = slices.DeleteFunc(slices.Clone(lines), func(s string) bool { return s == "" })
	if len(lines) == 0 {
		return r
	}
	if !slices.Contains(r.Err, fromKernel) {
		r.Err = append(r.Err, fromKernel)
	}
	r.Err = append(r.Err, lines...)
	return r
}

// attachRefusal answers a failed attach. drbdadm runs apply-al first, and that
// is what speaks when there is no metadata.
func (u *unit) attachRefusal(vol int, err error) ctl.Reply {
	if isFailure(err, replica.FailMetaInvalid) {
		return ctl.Reply{
			Exit: exitUsage, Err: []string{meta.ErrNoMetadata.Error()},
			Hint: fmt.Sprintf("make some with: replicad create-md %s; then: replicad up %s; "+
				"but if the disk was resized, give it its former size back: create-md would make it an empty one", u.name, u.name),
		}
	}
	return u.refusal(u.object(vol), "attach", err)
}

func markedLine(kib uint64) string {
	return fmt.Sprintf("Marked additional %s as out-of-sync based on AL.", meta.FormatKiB(kib))
}

// stateHint says what to do about a state change that was refused.
func (u *unit) stateHint(code core.StateErr, verb string) string {
	peer := peerName(u.local.Load())
	switch code {
	case core.ErrTwoPrimaries:
		return fmt.Sprintf("%s is Primary on %s: run there: replicad secondary %s; then here: replicad primary %s", u.name, peer, u.name, u.name)
	case core.ErrNoUpToDateDisk:
		return u.noDataHint(verb, peer)
	case core.ErrDeviceInUse:
		return u.clientsHint()
	case core.ErrNeedConnection, core.ErrNoNetConfig, core.ErrOutdateNoConn:
		return fmt.Sprintf("connect to %s first: replicad connect %s && replicad wait-connect %s", peer, u.name, u.name)
	case core.ErrResyncRunning:
		return fmt.Sprintf("wait for the resync that runs: replicad wait-sync %s", u.name)
	case core.ErrNoLocalDisk, core.ErrDiskless:
		return fmt.Sprintf("attach the disk first: replicad attach %s", u.name)
	case core.ErrNoRemoteDisk:
		return fmt.Sprintf("%s has no disk: run there: replicad attach %s", peer, u.name)
	case core.ErrRefusedByPeer:
		return fmt.Sprintf("the log of %s says why; with --force the peer is not asked, where the verb has it", peer)
	case core.ErrTransient, core.ErrConcurrent:
		return "a state change is under way: try again in a moment"
	case core.ErrLowerThanOutdated:
		return fmt.Sprintf("the data here is Inconsistent, which is worse than outdated: it becomes good by a resync from %s", peer)
	case core.ErrPrimaryNotFenced:
		return fmt.Sprintf("the fencing policy wants %s outdated first: connect to it, or have its fence-peer handler succeed", peer)
	}
	return ""
}

// noDataHint tells how to get at good data.
func (u *unit) noDataHint(verb, peer string) string {
	if verb != "primary" {
		return fmt.Sprintf("this would take the last good copy away from the clients of %s: demote it first, or wait until %s is UpToDate: replicad wait-sync %s", u.name, peer, u.name)
	}
	var states []string
	if res := u.res.Load(); res != nil {
		for _, v := range res.Status().Volumes {
			states = append(states, v.State.Disk.String())
		}
	}
	return fmt.Sprintf("the data here is %s: wait for %s (replicad wait-connect %s), or, if this copy is to be the good one whatever it holds: replicad primary --force %s",
		strings.Join(states, ", "), peer, u.name, u.name)
}

// clientsHint names who holds the device open.
func (u *unit) clientsHint() string {
	clients := u.clients()
	if len(clients) == 0 {
		return fmt.Sprintf("a client held %s open: try again", u.name)
	}
	var who []string
	for _, c := range clients {
		who = append(who, describe(&c))
	}
	noun := "clients hold"
	if len(clients) == 1 {
		noun = "client holds"
	}
	return fmt.Sprintf("%d NBD %s %s open (%s): disconnect first", len(clients), noun, u.name, strings.Join(who, ", "))
}

func describe(c *nbd.ClientInfo) string {
	switch {
	case c.PID != 0:
		return fmt.Sprintf("process %d", c.PID)
	case c.Address != "":
		return c.Address
	}
	return c.Network
}

// failureHint says what to do about a failure of DRBD's numbers.
func (u *unit) failureHint(code replica.FailureCode) string {
	switch code {
	case replica.FailMinorUnknown:
		return fmt.Sprintf("%s is down: replicad up %s", u.name, u.name)
	case replica.FailMetaInvalid:
		return fmt.Sprintf("make metadata with: replicad create-md %s", u.name)
	case replica.FailAttached:
		return fmt.Sprintf("nothing to do, or first: replicad detach %s", u.name)
	case replica.FailDiskClaimed, replica.FailMetaClaimed:
		return "stop who uses the disk, or name another in the configuration"
	case replica.FailOpenDisk, replica.FailOpenMeta:
		return "check the disk and meta-disk statements of the configuration, and the permissions"
	case replica.FailMetaUnclean:
		return fmt.Sprintf("run: replicad apply-al %s", u.name)
	case replica.FailDiskTooSmall, replica.FailShrinkRefused:
		return "the disk was larger when it was last used: give it its size back, or make new metadata (a full sync follows)"
	case replica.FailDiscardPrim:
		return fmt.Sprintf("demote first: replicad secondary %s", u.name)
	}
	return ""
}

// nbdURI is how clients such as qemu and libnbd name an export.
func nbdURI(address, name string) string {
	escaped := url.PathEscape(name)
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		return "nbd+unix:///" + escaped + "?socket=" + path
	}
	return "nbd://" + address + "/" + escaped
}
