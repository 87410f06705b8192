package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"replicad/replica/core"
)

const (
	// handlerTimeout is how long a handler may run.
	handlerTimeout = 5 * time.Minute
	// handlerLinger is how long its output is read after it was killed.
	handlerLinger = 2 * time.Second
	// handlerOutputMax bounds what is kept of its output, in bytes.
	handlerOutputMax = 64 << 10
	// handlersMax bounds the queue; DRBD's handlers come one or two per event.
	handlersMax = 64
)

// handlerCall is one call of a configured handler.
type handlerCall struct {
	action  core.Action
	command string
	env     []string
}

// startHandler queues a handler. Handlers run one after the other, in the order
// the core asked for them. Called with the lock held.
func (b *batch) startHandler(a *core.Action) {
	r := b.r
	command := r.cfg.Handlers[a.Name]
	if command == "" {
		b.handlerDone(a, 0)
		return
	}
	r.feed.publish(Change{At: r.wallTime(r.now()), Vol: a.Vol, Helper: a.Name})
	call := handlerCall{action: *a, command: command, env: r.handlerEnv(a.Vol)}
	select {
	case r.handlers <- call:
	default:
		r.log.Error("too many handlers are waiting, one is dropped", "handler", a.Name)
		b.handlerDone(a, handlerBroken)
	}
}

// handlerBroken is the exit code of a handler that could not be run: none of
// those that mean something to DRBD.
const handlerBroken = 127

func (b *batch) handlerDone(a *core.Action, code int) {
	if a.Wait {
		b.add(core.Event{Kind: core.EvHandlerDone, Op: a.Op, Code: int32(code)})
	}
}

// runHandlers is the body of the goroutine that runs handlers.
func (r *Resource) runHandlers() {
	b := batch{r: r}
	for {
		select {
		case call := <-r.handlers:
			code := r.runHandler(&call)
			_ = b.stepAfter(func() error {
				r.feed.publish(Change{
					At: r.wallTime(r.now()), Vol: call.action.Vol, Helper: call.action.Name, Answered: true, Code: code,
				})
				b.handlerDone(&call.action, code)
				return nil
			})
			b.finish()
		case <-r.done.Done():
			return
		}
	}
}

// runHandler runs a command through /bin/sh as drbdadm does, and returns its
// exit code.
func (r *Resource) runHandler(call *handlerCall) int {
	ctx, cancel := context.WithTimeout(r.done, handlerTimeout)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", call.command)
	cmd.Env = call.env
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = handlerLinger
	err := cmd.Start()
	if err == nil {
		ordinaryVictim(cmd.Process.Pid)
		err = cmd.Wait()
	}
	code := exitCode(err)
	r.log.Info("handler ended", "handler", call.action.Name, "exit", code, "err", err, "output", out.String())
	return code
}

// ordinaryVictim takes from a handler what it inherited of the daemon's
// protection from the out-of-memory killer. It matters little if that fails.
func ordinaryVictim(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0)
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return exit.ExitCode()
	}
	return handlerBroken
}

// handlerEnv is the environment that DRBD 8.4's kernel and drbdadm give a
// handler. Called with the lock held.
func (r *Resource) handlerEnv(vol int32) []string {
	var minors, volumes, disks []string
	for _, v := range r.vols {
		if vol >= 0 && v.number != uint16(vol) {
			continue
		}
		minors = append(minors, fmt.Sprint(v.minor))
		volumes = append(volumes, fmt.Sprint(v.number))
		disks = append(disks, v.cfg.Disk)
	}
	peer := r.cfg.Link.Peer.Addr()
	family := "ipv4"
	if peer.Is6() && !peer.Is4In6() {
		family = "ipv6"
	}
	return []string{
		"HOME=/", "TERM=linux", "PATH=" + handlerPath(),
		"DRBD_PEER_AF=" + family,
		"DRBD_PEER_ADDRESS=" + peer.Unmap().String(),
		"DRBD_RESOURCE=" + r.cfg.Resource,
		"DRBD_CONF=" + r.cfg.ConfigPath,
		"DRBD_PEER=" + r.cfg.Link.PeerName,
		"DRBD_PEERS=" + r.cfg.Link.PeerName,
		"DRBD_MINOR=" + strings.Join(minors, " "),
		"DRBD_VOLUME=" + strings.Join(volumes, " "),
		"DRBD_LL_DISK=" + strings.Join(disks, " "),
	}
}

// handlerPath is our own search path, or the kernel's for its helpers.
func handlerPath() string {
	if p := os.Getenv("PATH"); p != "" {
		return p
	}
	return "/sbin:/usr/sbin:/bin:/usr/bin"
}

// tail keeps the last handlerOutputMax bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if extra := t.buf.Len() - handlerOutputMax; extra > 0 {
		t.buf.Next(extra)
	}
	return len(p), nil
}

// String returns what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
