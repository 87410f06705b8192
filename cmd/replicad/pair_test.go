package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"replicad/nbd"
)

// pair is two nodes on this machine, each with a daemon of its own, for the
// scripts and the tests of whole systems.
type pair struct {
	t     testing.TB
	dir   string
	nodes map[string]*testNode
	ports [2]string // addresses of the nodes' links
	vars  map[string]string
}

// testNode is one of them.
type testNode struct {
	p      *pair
	name   string
	letter string // of its files
	config string
	cmd    *exec.Cmd // the daemon; nil while it does not run
	exited chan struct{}
	client *nbd.Client
	under  []string // what the daemon is started by, such as prlimit and its arguments

	runFlags []string // further flags of run
}

const (
	daemonPatience = 20 * time.Second
	verbPatience   = 40 * time.Second
)

// newPair makes the nodes be1 and be2 in a folder. Their daemons are killed
// when the test ends.
func newPair(t testing.TB, dir string) *pair {
	p := &pair{t: t, dir: dir, nodes: map[string]*testNode{}, vars: map[string]string{}}
	for i, name := range []string{"be1", "be2"} {
		p.ports[i] = freeAddress(t)
		p.nodes[name] = &testNode{p: p, name: name, letter: string(rune('a' + i)), config: filepath.Join(dir, "r.conf")}
	}
	t.Cleanup(p.close)
	return p
}

func (p *pair) be1() *testNode { return p.nodes["be1"] }
func (p *pair) be2() *testNode { return p.nodes["be2"] }

func (p *pair) close() {
	for _, n := range p.nodes {
		if n.client != nil {
			n.client.Abort()
		}
		n.kill()
	}
}

// freeAddress finds an address of this machine's own that nobody has: of the
// many of 127/8, and a port that is never given to a client. It stays free while
// its daemon is dead.
func freeAddress(t testing.TB) string {
	for {
		address := fmt.Sprintf("127.%d.%d.%d:7788", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
		l, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		return address
	}
}

// pairConfig is the configuration of the two nodes, with places to vary.
const pairConfig = `global { status-file "DIR/%n.proc"; disable-ip-verification; }
resource r0 {
    protocol PROTOCOL; device /dev/nbd0; meta-disk internal;
    net { shared-secret "s"; timeout 9; connect-int 1; ping-int 1; ping-timeout 5; NET }
    disk { c-plan-ahead 0; resync-rate RATE; }
    on be1 { disk "DIR/a.img"; address ADDR1; nbd-listen "unix:DIR/a.nbd"; }
    on be2 { disk "DIR/b.img"; address ADDR2; nbd-listen "unix:DIR/b.nbd"; }
}
`

// write makes the configuration and the disks. vars replaces the words in
// capitals; SIZE is that of the disks.
func (p *pair) write(vars map[string]string) error {
	maps.Copy(p.vars, map[string]string{"PROTOCOL": "C", "NET": "", "RATE": "200M", "SIZE": "32", "ADDR1": p.ports[0], "ADDR2": p.ports[1]})
	maps.Copy(p.vars, vars)
	var size int64
	if _, err := fmt.Sscan(p.vars["SIZE"], &size); err != nil {
		return err
	}
	for _, n := range p.nodes {
		if err := truncate(n.file("img"), size<<20); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(p.dir, "r.conf"), []byte(p.configText(nil)), 0o600)
}

// configText is the configuration with some words other than written.
func (p *pair) configText(other map[string]string) string {
	text := strings.ReplaceAll(pairConfig, "DIR", p.dir)
	for name, value := range p.vars {
		if v, ok := other[name]; ok {
			value = v
		}
		text = strings.ReplaceAll(text, name, value)
	}
	return text
}

func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// file is one of the node's files by its ending: img, ctl, nbd, log.
func (n *testNode) file(ending string) string { return filepath.Join(n.p.dir, n.letter+"."+ending) }

func (n *testNode) args(words ...string) []string {
	return append([]string{"-c", n.config, "--node", n.name, "-s", n.file("ctl")}, words...)
}

func (n *testNode) uri() string { return "nbd+unix:///r0?socket=" + n.file("nbd") }

// start runs the daemon until it answers.
func (n *testNode) start() error {
	log, err := os.OpenFile(n.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	line := append(n.under[:len(n.under):len(n.under)], "replicad")
	line = append(line, n.args("run", "--stop-timeout", "15")...)
	line = append(line, n.runFlags...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(n.exited)
	deadline := time.Now().Add(daemonPatience)
	for {
		if _, _, code := n.run("sh-status"); code == 0 || code == 10 {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("daemon %s ended: %s", n.name, n.log())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("daemon %s does not answer: %s", n.name, n.log())
		}
	}
}

func (n *testNode) log() string {
	text, err := os.ReadFile(n.file("log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// kill ends the daemon with SIGKILL.
func (n *testNode) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		<-n.exited
		n.cmd = nil
	}
}

// stop ends the daemon with SIGTERM and returns its exit code.
func (n *testNode) stop() (int, error) {
	if n.cmd == nil {
		return 0, errors.New("the daemon does not run")
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	select {
	case <-n.exited:
	case <-time.After(daemonPatience):
		n.kill()
		return 0, fmt.Errorf("daemon %s does not stop: %s", n.name, n.log())
	}
	code := n.cmd.ProcessState.ExitCode()
	n.cmd = nil
	return code, nil
}

// run calls a verb and returns what it printed and its exit code.
func (n *testNode) run(words ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), verbPatience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "replicad", n.args(words...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = n.p.dir, &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		return out.String(), err.Error(), -1
	}
	return out.String(), errs.String(), 0
}

// must runs a verb that has to succeed.
func (n *testNode) must(words ...string) string {
	n.p.t.Helper()
	out, stderr, code := n.run(words...)
	if code != 0 {
		n.p.t.Fatalf("%s: replicad %s: exit code %d\n%s%s\nlog:\n%s", n.name, strings.Join(words, " "), code, out, stderr, n.log())
	}
	return out
}

// await polls a verb until its output matches.
func (n *testNode) await(pattern *regexp.Regexp, words ...string) error {
	deadline := time.Now().Add(daemonPatience)
	for {
		out, stderr, _ := n.run(words...)
		if pattern.MatchString(out) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %s does not become %s, but is:\n%s%s\nlog:\n%s", n.name, strings.Join(words, " "), pattern, out, stderr, n.log())
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// open connects an NBD client.
func (n *testNode) open() (*nbd.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return nbd.Dial(ctx, n.uri())
}
