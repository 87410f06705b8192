package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"replicad/internal/figure"
)

// TestSiege: two daemons as they are shipped mirror a client's writes, while
// thousands of strangers connect to the link, the NBD socket and the control
// socket of both, and send nonsense, nothing, or a byte at a time. The session is
// the one of the beginning, the writes go on, memory, descriptors and log stay
// within bounds, and both disks are the same in the end.
func TestSiege(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	p := newSystem(t, nil)
	c := p.be1().dial()
	led := newLedger(t, c, ledgerBlocks)
	w := startWriter(c, led, ledgerBlocks, 1)
	sessions := p.count("link established")
	lines := p.count("\n")
	begin := time.Now()
	var places []place
	for i, n := range []*testNode{p.be1(), p.be2()} {
		places = append(places, place{"tcp", p.ports[i]}, place{"unix", n.file("nbd")}, place{"unix", n.file("ctl")})
	}
	crowd := p.gather(places, 4000)
	most := p.peak()
	for _, conn := range crowd {
		_ = conn.Close()
	}
	if err := w.stop(); err != nil {
		t.Fatalf("the writer: %v", err)
	}
	if got := p.count("link established"); got != sessions {
		t.Errorf("%d sessions, were %d:\n%s", got, sessions, p.be1().log())
	}
	took := int(time.Since(begin)/time.Second) + 2
	if got := p.count("\n") - lines; got > 2*8*took {
		t.Errorf("%d lines in the logs within %d s", got, took)
	}
	if most > 256<<10 {
		t.Errorf("a daemon held %d KiB", most)
	}
	for _, n := range []*testNode{p.be1(), p.be2()} {
		n.settleDescriptors()
		n.must("status", "r0")
	}
	f, err := led.Compare(c)
	if err != nil || f.Lost+f.Foreign+f.Disorder != 0 || f.Completed == 0 {
		t.Errorf("%+v, %v", f, err)
	}
	p.be1().hangUp()
	p.sameDisks(p.be1(), ledgerBlocks*4096)
	figure.Print("half-open-connections", len(crowd))
	figure.Print("siege-rss-mib-max", most>>10)
}

// place is an address of a daemon.
type place struct{ network, address string }

// gather opens n connections to the places in turn, as far as descriptors allow.
// Every one begins in another way and then says nothing, or too much.
func (p *pair) gather(places []place, n int) []net.Conn {
	p.t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		p.t.Fatal(err)
	}
	n = min(n, int(min(limit.Cur, 1<<20))-200)
	beginnings := []string{
		"", "r", "reHL\x01\x00\x01\x00", "GET / HTTP/1.1\r\n", "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff",
		strings.Repeat("\xff", 4096), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "repl" + strings.Repeat("\x00", 60),
	}
	var crowd []net.Conn
	for i := range n {
		at := places[i%len(places)]
		conn, err := net.DialTimeout(at.network, at.address, 5*time.Second)
		if err != nil {
			p.t.Fatalf("connection %d to %v: %v", i, at, err)
		}
		crowd = append(crowd, conn)
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(conn, beginnings[i%len(beginnings)]) // it may be sent away
	}
	p.drip(crowd)
	return crowd
}

// drip sends a byte on each connection now and then for two seconds.
func (p *pair) drip(crowd []net.Conn) {
	var all sync.WaitGroup
	defer all.Wait()
	for part := range 8 {
		all.Go(func() {
			for begin := time.Now(); time.Since(begin) < 2*time.Second; {
				for i := part; i < len(crowd); i += 8 {
					_ = crowd[i].SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
					_, _ = crowd[i].Write([]byte{0}) // most of them are dead
				}
			}
		})
	}
}

// count is how often text occurs in both logs.
func (p *pair) count(text string) (n int) {
	for _, node := range p.nodes {
		n += strings.Count(node.log(), text)
	}
	return n
}

// peak is the largest resident set a daemon has had, in KiB.
func (p *pair) peak() (most int) {
	p.t.Helper()
	for _, n := range p.nodes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
		if err != nil {
			p.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var kib int
			if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
				most = max(most, kib)
			}
		}
	}
	return most
}

// settleDescriptors waits until the daemon has let the strangers go.
func (n *testNode) settleDescriptors() {
	n.p.t.Helper()
	open := 0
	for deadline := time.Now().Add(daemonPatience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(n.cmd.Process.Pid), "fd"))
		if err != nil {
			n.p.t.Fatal(err)
		}
		if open = len(entries); open < 50 {
			return
		}
	}
	n.p.t.Errorf("%s holds %d descriptors", n.name, open)
}
