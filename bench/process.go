package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stopPatience = 10 * time.Second // for a server that was asked to end
	logTailBytes = 600
)

// process is a server's process. It ends with us, however we end.
type process struct {
	cmd  *exec.Cmd
	log  string        // file of what it printed
	done chan struct{} // closed when it has ended
	err  error         // how, valid when done is closed

	patience time.Duration // between asking it to end and making it
}

// startProcess starts a program whose output goes to the file log. It must be
// called from the main goroutine; see the package comment.
func startProcess(log, program string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	defer out.Close()
	p := &process{cmd: exec.Command(program, args...), log: log, done: make(chan struct{}), patience: stopPatience}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// A group of its own keeps the terminal's Ctrl-C for us alone.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(program), err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// ended reports an error if the process is gone.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s: %s", filepath.Base(p.cmd.Path), exitText(p.err), p.tail())
	default:
		return nil
	}
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// tail is the last of what the process printed.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return strings.TrimSpace(string(text[max(0, len(text)-logTailBytes):]))
}

// stop asks the process to end and makes it, if it takes too long.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(p.patience):
	}
	_ = p.cmd.Process.Kill() // fails only when it is gone
	<-p.done
	return fmt.Errorf("%s did not end within %v of SIGTERM and was killed", filepath.Base(p.cmd.Path), p.patience)
}

// cpuTime is the CPU time, in user and kernel mode, of the process and of those
// it started.
func (p *process) cpuTime() time.Duration {
	total := time.Duration(0)
	for _, pid := range withChildren(p.pid()) {
		total += processCPUTime(pid)
	}
	return total
}

// processCPUTime reads the process's CPU-time clock: the sum of utime and stime
// of all its threads, also of those that have ended, in nanoseconds where
// /proc/PID/stat has hundredths of a second. A process that is gone has used 0.
func processCPUTime(pid int) time.Duration {
	const perProcess = 2 // CPUCLOCK_SCHED, as clock_getcpuclockid(3) makes it
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|perProcess), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func ownCPUTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// withChildren lists pid and its descendants, as far as the kernel lists them.
func withChildren(pid int) []int {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		for _, list := range lists {
			text, _ := os.ReadFile(list) // a thread that just ended has none
			for field := range strings.FieldsSeq(string(text)) {
				if child, err := strconv.Atoi(field); err == nil {
					pids = append(pids, child)
				}
			}
		}
	}
	return pids
}
