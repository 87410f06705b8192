package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"replicad/internal/ctl"
)

// node is one of the two machines: a daemon of its own with its disk.
type node struct {
	name    string
	exe     string
	config  string
	socket  string // control
	nbd     string // socket of the export
	disk    string
	logFile string
	nursery *nursery

	daemon *exec.Cmd     // nil while it does not run
	exited chan struct{} // closed when it has
}

// replyTimeout bounds every verb but those that wait by nature.
const replyTimeout = 20 * time.Second

// args are the words that make a command line mean this node.
func (n *node) args(words ...string) []string {
	return append([]string{"-c", n.config, "--node", n.name, "-s", n.socket}, words...)
}

// start runs the daemon and waits until it answers.
func (n *node) start(ctx context.Context) error {
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", n.name, err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(n.exe, n.args("run", "--stop-timeout", "20")...)
	cmd.Stderr, cmd.Stdout = log, log
	if err := n.nursery.start(cmd); err != nil {
		return fmt.Errorf("start the daemon of %s: %w", n.name, err)
	}
	n.daemon, n.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait() // how it ended is for those who ended it
		close(exited)
	}(n.exited)
	return n.awaitAnswer(ctx)
}

func (n *node) awaitAnswer(ctx context.Context) error {
	deadline := time.Now().Add(replyTimeout)
	for {
		if _, err := n.proc(ctx); err == nil {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("the daemon of %s ended: see %s", n.name, n.logFile)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon of %s does not answer: see %s", n.name, n.logFile)
		}
	}
}

// kill ends the daemon as a power cut ends a machine's.
func (n *node) kill() {
	if n.daemon == nil {
		return
	}
	_ = n.daemon.Process.Kill() // it may be gone already
	<-n.exited
	n.daemon = nil
}

// stop ends the daemon in order and returns its exit code.
func (n *node) stop() (int, error) {
	if n.daemon == nil {
		return 0, nil
	}
	if err := n.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, fmt.Errorf("stop %s: %w", n.name, err)
	}
	select {
	case <-n.exited:
	case <-time.After(replyTimeout + 10*time.Second):
		n.kill()
		return 0, fmt.Errorf("%s does not stop", n.name)
	}
	code := n.daemon.ProcessState.ExitCode()
	n.daemon = nil
	return code, nil
}

// verbError is a verb that was refused.
type verbError struct {
	words  []string
	code   int
	stderr string
}

// Error implements error.
func (e *verbError) Error() string {
	return fmt.Sprintf("replicad %s: exit code %d: %s", strings.Join(e.words, " "), e.code, strings.TrimSpace(e.stderr))
}

// run calls the program with a verb and returns what it printed.
func (n *node) run(ctx context.Context, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	return n.runFor(ctx, words...)
}

// runFor is run for as long as ctx allows.
func (n *node) runFor(ctx context.Context, words ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, n.exe, n.args(words...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), &verbError{words: words, code: exit.ExitCode(), stderr: errs.String()}
	}
	if err != nil {
		return "", fmt.Errorf("run %s: %w", strings.Join(words, " "), err)
	}
	return out.String(), nil
}

// proc is what `replicad status` prints, asked for in a way that is quick
// enough to watch a resync.
func (n *node) proc(ctx context.Context) (string, error) {
	return ctl.NewClient(n.socket).Text(ctx, "/proc/drbd", nil)
}

// export is the address of the node's device for NBD clients.
func (n *node) export() string { return "nbd+unix:///r0?socket=" + n.nbd }

// nursery starts processes that end with us, whatever ends us: the kernel ties
// that to the thread that started them, so one thread does.
type nursery struct {
	jobs chan func()
	wg   sync.WaitGroup
}

func newNursery() *nursery {
	s := &nursery{jobs: make(chan func())}
	s.wg.Go(func() {
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	})
	return s
}

func (s *nursery) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	result := make(chan error, 1)
	s.jobs <- func() { result <- cmd.Start() }
	return <-result
}

func (s *nursery) close() {
	close(s.jobs)
	s.wg.Wait()
}

// toolFolders are where Debian puts programs that are not in a user's PATH.
var toolFolders = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}

// tool finds a program of e2fsprogs, "" if it is not installed.
func tool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range toolFolders {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}
