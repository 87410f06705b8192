package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"replicad/internal/ctl"
	"replicad/internal/failpoint"
	"replicad/nbd"
)

const (
	patience      = 30 * time.Second // for anything that has to happen
	startPatience = 20 * time.Second
	pollPause     = 20 * time.Millisecond
)

// node is one daemon, its files and its configuration.
type node struct {
	binary string
	dir    string
	name   string
	letter string // of its files
	config string
	ctl    *ctl.Client
	cmd    *exec.Cmd     // nil while the daemon does not run
	exited chan struct{} // closed when it ended
}

func newNode(binary, dir, name, letter string) *node {
	n := &node{binary: binary, dir: dir, name: name, letter: letter, config: filepath.Join(dir, letter+".conf")}
	n.ctl = ctl.NewClient(n.file("ctl"))
	return n
}

// file is one of the node's files by its ending: img, ctl, nbd, log.
func (n *node) file(ending string) string { return filepath.Join(n.dir, n.letter+"."+ending) }

func (n *node) args(words ...string) []string {
	return append([]string{"-c", n.config, "--node", n.name, "-s", n.file("ctl")}, words...)
}

// launch runs the daemon, with failpoints if any are given, and does not wait.
func (n *node) launch(rules string) error {
	log, err := os.OpenFile(n.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(n.binary, n.args("run", "--stop-timeout", "15")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if rules != "" {
		cmd.Env = append(os.Environ(), failpoint.Env+"="+rules)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(n.exited)
	return nil
}

// start runs the daemon until it answers.
func (n *node) start() error {
	if err := n.launch(""); err != nil {
		return err
	}
	return n.awaitAnswer()
}

var errEnded = errors.New("the daemon ended")

// awaitAnswer waits until the daemon answers; the error matches errEnded if it
// ends before.
func (n *node) awaitAnswer() error {
	deadline := time.Now().Add(startPatience)
	for time.Now().Before(deadline) {
		if _, err := n.state(); err == nil {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("%s: %w", n.name, errEnded)
		case <-time.After(pollPause):
		}
		if n.frozen() {
			return fmt.Errorf("%s: %w", n.name, errFrozen)
		}
	}
	return fmt.Errorf("%s: the daemon does not answer", n.name)
}

var errFrozen = errors.New("the daemon is frozen")

// frozen reports that the daemon was stopped by a signal.
func (n *node) frozen() bool {
	if n.cmd == nil {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(text), ") ")
	return ok && strings.HasPrefix(rest, "T")
}

// alive reports that the daemon runs, perhaps frozen.
func (n *node) alive() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// signal sends the daemon a signal, if it runs.
func (n *node) signal(s syscall.Signal) {
	if n.alive() {
		_ = n.cmd.Process.Signal(s)
	}
}

// kill ends the daemon with SIGKILL, if it runs.
func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	<-n.exited
	n.cmd = nil
}

// stop ends the daemon with SIGTERM; anything but exit code 0 is an error.
func (n *node) stop() error {
	if !n.alive() {
		return fmt.Errorf("%s: %w", n.name, errEnded)
	}
	n.signal(syscall.SIGTERM)
	select {
	case <-n.exited:
	case <-time.After(patience):
		return fmt.Errorf("%s does not stop", n.name)
	}
	code := n.cmd.ProcessState.ExitCode()
	n.cmd = nil
	if code != 0 {
		return fmt.Errorf("%s stops with exit code %d", n.name, code)
	}
	return nil
}

// state asks the daemon for the state of the resource.
func (n *node) state() (ctl.Resource, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return n.ctl.Resource(ctx, "r0")
}

// run calls a verb and returns its standard output.
func (n *node) run(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, n.binary, n.args(words...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: replicad %s: %w: %s", n.name, strings.Join(words, " "), err, errs.String())
	}
	return out.String(), nil
}

// retry calls a verb until it succeeds.
func (n *node) retry(words ...string) error {
	deadline := time.Now().Add(patience)
	for {
		_, err := n.run(words...)
		if err == nil || time.Now().After(deadline) || !n.alive() {
			return err
		}
		time.Sleep(5 * pollPause)
	}
}

// open connects an NBD client.
func (n *node) open() (*nbd.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return nbd.Dial(ctx, "nbd+unix:///r0?socket="+n.file("nbd"))
}

// logText is what the daemons of this node have written so far.
func (n *node) logText() string {
	text, err := os.ReadFile(n.file("log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
