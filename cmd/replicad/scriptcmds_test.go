package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The commands that scripts have beside testscript's own.

type pairKey struct{}

func setUpScript(env *testscript.Env) error {
	t, ok := env.T().(testing.TB)
	if !ok {
		return fmt.Errorf("script runs without a test")
	}
	p := newPair(t, env.WorkDir)
	env.Values[pairKey{}] = p
	env.Setenv("ADDR1", p.ports[0])
	env.Setenv("ADDR2", p.ports[1])
	env.Setenv("DIR", env.WorkDir)
	env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
	return nil
}

func pairOf(ts *testscript.TestScript) *pair { return ts.Value(pairKey{}).(*pair) }

func nodeOf(ts *testscript.TestScript, name string) *testNode {
	n := pairOf(ts).nodes[name]
	if n == nil {
		ts.Fatalf("no node %q", name)
	}
	return n
}

// pair [NAME=VALUE...] writes r.conf and the disks a.img and b.img.
func scriptPair(ts *testscript.TestScript, _ bool, args []string) {
	vars := map[string]string{}
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		vars[name] = value
	}
	ts.Check(pairOf(ts).write(vars))
}

// be1 VERB... and be2 VERB... run the program as that node; with a leading
// number it has to end with that exit code.
func onNode(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("name the exit code instead of !: %s 11 VERB", name)
		}
		want := 0
		if len(args) > 0 {
			if n, err := strconv.Atoi(args[0]); err == nil {
				want, args = n, args[1:]
			}
		}
		runWith(ts, want, "replicad", nodeOf(ts, name).args(args...))
	}
}

// exits CODE PROGRAM ARGS... runs a program that has to end with that exit code.
func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	runWith(ts, want, args[1], args[2:])
}

func runWith(ts *testscript.TestScript, want int, program string, args []string) {
	err := ts.Exec(program, args...)
	got := 0
	if err != nil {
		exit, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%s: %v", program, err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s %s: exit code %d, want %d", program, strings.Join(args, " "), got, want)
	}
}

// start NODE... runs daemons.
func scriptStart(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ts.Check(nodeOf(ts, name).start())
	}
}

// halt NODE... ends daemons with SIGTERM; they have to exit with 0.
func scriptStop(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		code, err := nodeOf(ts, name).stop()
		ts.Check(err)
		if code != 0 {
			ts.Fatalf("%s ended with exit code %d: %s", name, code, nodeOf(ts, name).log())
		}
	}
}

// kill9 NODE... ends daemons with SIGKILL.
func scriptKill(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		nodeOf(ts, name).kill()
	}
}

// hangup NODE sends SIGHUP to a daemon.
func scriptHangUp(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(nodeOf(ts, args[0]).cmd.Process.Signal(syscall.SIGHUP))
}

// await NODE REGEXP VERB... repeats a verb until what it prints matches.
// await NODE REGEXP log waits for the daemon's log.
func scriptAwait(ts *testscript.TestScript, _ bool, args []string) {
	n, pattern := nodeOf(ts, args[0]), regexp.MustCompile("(?m)"+args[1])
	if len(args) > 2 && args[2] != "log" {
		ts.Check(n.await(pattern, args[2:]...))
		return
	}
	deadline := time.Now().Add(daemonPatience)
	for !pattern.MatchString(n.log()) {
		if time.Now().After(deadline) {
			ts.Fatalf("the log of %s does not say %s:\n%s", n.name, pattern, n.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// hold NODE opens the device and keeps it open; release NODE closes it.
func scriptHold(ts *testscript.TestScript, _ bool, args []string) {
	n := nodeOf(ts, args[0])
	c, err := n.open()
	ts.Check(err)
	n.client = c
}

func scriptRelease(ts *testscript.TestScript, _ bool, args []string) {
	n := nodeOf(ts, args[0])
	ts.Check(n.client.Close())
	n.client = nil
}

// shut NODE REGEXP tries to open the device: it has to be refused in such words.
func scriptShut(ts *testscript.TestScript, _ bool, args []string) {
	n := nodeOf(ts, args[0])
	c, err := n.open()
	if err == nil {
		c.Abort()
		ts.Fatalf("%s lets a client in", n.name)
	}
	if !regexp.MustCompile(args[1]).MatchString(err.Error()) {
		ts.Fatalf("%s refuses with %q, not %q", n.name, err, args[1])
	}
}

// sameas FILE makes sure that FILE is what the last program printed.
func scriptSameAs(ts *testscript.TestScript, _ bool, args []string) {
	if got, want := ts.ReadFile(args[0]), ts.ReadFile("stdout"); got != want {
		ts.Fatalf("%s holds\n%s\nnot\n%s", args[0], got, want)
	}
}

// append FILE TEXT... appends a line.
func scriptAppend(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	ts.Check(err)
	_, err = fmt.Fprintln(f, strings.Join(args[1:], " "))
	ts.Check(err)
	ts.Check(f.Close())
}

// subst FILE OLD NEW replaces a text in a file, which has to be there. DIR,
// ADDR1 and ADDR2 can be had by OLD=NEW of the environment: subst FILE env.
func scriptSubst(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	text := ts.ReadFile(args[0])
	if len(args) == 2 && args[1] == "env" {
		for _, name := range []string{"ADDR1", "ADDR2", "DIR"} {
			text = strings.ReplaceAll(text, "$"+name, ts.Getenv(name))
		}
	} else {
		if !strings.Contains(text, args[1]) {
			ts.Fatalf("%s does not contain %q", args[0], args[1])
		}
		text = strings.ReplaceAll(text, args[1], args[2])
	}
	ts.Check(os.WriteFile(path, []byte(text), 0o600))
}

// ext4 FILE SIZE makes an ext4 file system as large as the file.
func scriptExt4(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec(scriptTool(ts, "mkfs.ext4"), "-q", "-F", filepath.Clean(ts.MkAbs(args[0]))))
}

// put NODE OFFSET TEXT writes a block that begins with a text through the
// node's device, and flushes.
func scriptPut(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	c, err := nodeOf(ts, args[0]).open()
	ts.Check(err)
	block := make([]byte, 4096)
	copy(block, args[2])
	_, err = c.WriteAt(block, off)
	ts.Check(err)
	ts.Check(c.Flush())
	ts.Check(c.Close())
	awaitNoClient(pairOf(ts).t, nodeOf(ts, args[0]))
}

// has NODE OFFSET TEXT makes sure that the block of the node's disk at the
// offset begins with a text.
func scriptHas(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.Open(nodeOf(ts, args[0]).file("img"))
	ts.Check(err)
	defer func() { _ = f.Close() }()
	got := make([]byte, len(args[2]))
	_, err = f.ReadAt(got, off)
	ts.Check(err)
	if string(got) != args[2] {
		ts.Fatalf("%s has %q at %d, not %q", args[0], got, off, args[2])
	}
}
