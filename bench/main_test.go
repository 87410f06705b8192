package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asBench makes the test binary be the program itself.
const asBench = "REPLICAD_BENCH_TEST_MAIN"

// TestMain lets the test binary be the servers, and the program.
func TestMain(m *testing.M) {
	if os.Getenv(asBench) != "" || len(os.Args) > 1 && os.Args[1] == serveVerb {
		os.Exit(command(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// startProgram runs the program with two servers, in the middle of a long cell,
// and returns it with the processes of the servers.
func startProgram(t *testing.T, dir string) (*exec.Cmd, []int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-dir", dir, "-size", "4", "-seconds", "60", "-servers", "go-nbd,nbd-file", "-workloads", "r4q1")
	cmd.Env = append(os.Environ(), asBench+"=1", "TMPDIR="+dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var children []int
	await(t, "both servers are measured", func() bool {
		children = withChildren(cmd.Process.Pid)[1:]
		return len(children) == 2 && cpuOf(children) > 20*time.Millisecond
	})
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, pid := range children { // what the program should have done
			if !isGone(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return cmd, children
}

func cpuOf(pids []int) (total time.Duration) {
	for _, pid := range pids {
		total += processCPUTime(pid)
	}
	return total
}

// isGone reports whether the process has ended, reaped or not.
func isGone(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, state, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(state, "Z")
}

func TestSignalEndsProgramAndServers(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		dir := t.TempDir()
		cmd, children := startProgram(t, dir)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := cmd.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%v: it took %v", sig, took)
		}
		for _, pid := range children {
			await(t, "the servers have ended too", func() bool { return isGone(pid) })
		}
		if sig == syscall.SIGKILL { // nobody is left to tidy up
			continue
		}
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 130 {
			t.Errorf("%v: %v, want exit code 130", sig, err)
		}
		mustBeEmpty(t, dir)
	}
}
