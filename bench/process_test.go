package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script string) *process {
	t.Helper()
	p, err := startProcess(filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestCPUTimeCountsTheProcessAndItsChildren(t *testing.T) {
	idle := shell(t, "sleep 100")
	busy := shell(t, "while :; do :; done")
	parent := shell(t, "(while :; do :; done) & wait")
	await(t, "the loops have used 50 ms", func() bool {
		return busy.cpuTime() > 50*time.Millisecond && parent.cpuTime() > 50*time.Millisecond
	})
	if got := idle.cpuTime(); got > 20*time.Millisecond {
		t.Errorf("a sleeping process used %v", got)
	}
	kids := withChildren(parent.pid())
	if len(kids) != 2 {
		t.Fatalf("parent and child are %v", kids)
	}
	if own := processCPUTime(parent.pid()); own > 20*time.Millisecond {
		t.Errorf("the waiting parent itself used %v", own)
	}
	if err := syscall.Kill(kids[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = busy.cmd.Process.Kill()
	<-busy.done
	if got := busy.cpuTime(); got != 0 {
		t.Errorf("a process that is gone used %v", got)
	}
}

func TestOwnCPUTimeAdvances(t *testing.T) {
	began := ownCPUTime()
	await(t, "we have used 10 ms", func() bool {
		noise(make([]byte, mebibyte), 1)
		return ownCPUTime() >= began+10*time.Millisecond
	})
}

func TestStopAsksThenKills(t *testing.T) {
	polite := shell(t, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done")
	await(t, "the trap is set", func() bool { return polite.tail() == "ready" })
	if err := polite.stop(); err != nil || polite.err != nil {
		t.Errorf("stop: %v, exit: %v", err, polite.err)
	}
	if err := polite.stop(); err != nil {
		t.Errorf("a second stop: %v", err)
	}
	stubborn := shell(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	stubborn.patience = 50 * time.Millisecond
	await(t, "the trap is set", func() bool { return stubborn.tail() == "ready" })
	if err := stubborn.stop(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("stop of a stubborn process: %v", err)
	}
	if stubborn.ended() == nil {
		t.Error("it is still there")
	}
}

func TestEndedQuotesTheProcess(t *testing.T) {
	p := shell(t, "echo disk on fire >&2; exit 3")
	<-p.done
	if err := p.ended(); err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("ended: %v", err)
	}
	if _, err := startProcess(filepath.Join(t.TempDir(), "log"), "/nonexistent"); err == nil {
		t.Error("a program that does not exist was started")
	}
	if _, err := startProcess(filepath.Join(t.TempDir(), "no", "log"), "/bin/true"); !os.IsNotExist(errCause(err)) {
		t.Errorf("a log that cannot be made: %v", err)
	}
}
