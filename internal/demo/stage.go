package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"replicad/internal/cable"
	"replicad/internal/ledger"
	"replicad/nbd"
)

// stage is where the story plays: the two nodes, the cable between them, and
// what the clients know. It belongs to the goroutine of Run.
type stage struct {
	ctx     context.Context
	out     io.Writer
	dir     string
	size    int64
	exe     string
	cable   *cable.Cable
	nursery *nursery
	a, b    *node
	addr    [4]string // a's own, b's own, the way to b, the way to a
	plan    plan
	ledger  *ledger.Ledger
	fs      *growingFS
	files   []byte // the image in the first half of the device
	load    *load
	loads   uint64 // made so far; each writes something else
	client  *nbd.Client
}

func newStage(ctx context.Context, o Options, dir string) (*stage, error) {
	s := &stage{
		ctx: ctx, out: o.Out, dir: dir, size: o.Size, exe: o.Exe,
		cable: cable.New(), nursery: newNursery(), ledger: ledger.New(),
	}
	if s.out == nil {
		s.out = io.Discard
	}
	if err := s.wire(); err != nil {
		s.close()
		return nil, err
	}
	s.a, s.b = s.newNode("be1", "a"), s.newNode("be2", "b")
	return s, nil
}

// wire lays the cable: each node has an address of its own and reaches the
// other through one of the cable's ends.
func (s *stage) wire() error {
	for i := range 2 {
		own, err := freeAddress()
		if err != nil {
			return err
		}
		s.addr[i] = own
	}
	var err error
	if s.addr[2], err = s.cable.Plug(s.addr[1]); err != nil {
		return err
	}
	s.addr[3], err = s.cable.Plug(s.addr[0])
	return err
}

// freeAddress finds a port that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

func (s *stage) newNode(name, letter string) *node {
	return &node{
		name: name, exe: s.exe, nursery: s.nursery,
		config: filepath.Join(s.dir, letter+".conf"), socket: filepath.Join(s.dir, letter+".ctl"),
		nbd: filepath.Join(s.dir, letter+".nbd"), disk: filepath.Join(s.dir, letter+".img"),
		logFile: filepath.Join(s.dir, letter+".log"),
	}
}

// configText is the configuration of a node. The two differ only in the
// addresses: each sees the other at its end of the cable.
func (s *stage) configText(protocol, status, addrA, addrB string) string {
	return fmt.Sprintf(`global { status-file "%s"; disable-ip-verification; }
resource r0 {
    protocol  %s;
    device    /dev/nbd0;
    meta-disk internal;
    net {
        shared-secret "the story of a pair";
        timeout 9; connect-int 1; ping-int 1; ping-timeout 5;
        after-sb-0pri discard-younger-primary; after-sb-1pri discard-secondary;
    }
    disk { c-plan-ahead 0; resync-rate %dM; }
    on be1 { disk "%s"; address %s; nbd-listen "unix:%s"; }
    on be2 { disk "%s"; address %s; nbd-listen "unix:%s"; }
}
`, status, protocol, max(30, s.size>>21), s.a.disk, addrA, s.a.nbd, s.b.disk, addrB, s.b.nbd)
}

func (s *stage) writeConfigs(protocol string) error {
	a := s.configText(protocol, filepath.Join(s.dir, "a.proc"), s.addr[0], s.addr[2])
	b := s.configText(protocol, filepath.Join(s.dir, "b.proc"), s.addr[3], s.addr[1])
	return errors.Join(os.WriteFile(s.a.config, []byte(a), 0o600), os.WriteFile(s.b.config, []byte(b), 0o600))
}

// close ends every process and leaves the files.
func (s *stage) close() {
	if s.load != nil {
		s.load.cancel()
	}
	if s.client != nil {
		s.client.Abort()
	}
	if s.a != nil {
		s.a.kill()
		s.b.kill()
	}
	s.nursery.close()
	if err := s.cable.Close(); err != nil {
		s.say("The cable did not come off cleanly: %s", err)
	}
}

// say tells a piece of the story.
func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.out, format+"\n", args...)
}

// do runs a verb on a node and shows that it did.
func (s *stage) do(n *node, words ...string) error {
	s.say("   %s# replicad %s", n.name, strings.Join(words, " "))
	text, err := n.run(s.ctx, words...)
	s.show(text)
	return err
}

// show prints what a program printed, indented.
func (s *stage) show(text string) {
	for line := range strings.Lines(text) {
		s.say("      %s", strings.TrimRight(line, "\n"))
	}
}

// status shows the /proc/drbd text of both nodes.
func (s *stage) status() error {
	for _, n := range []*node{s.a, s.b} {
		if n.daemon == nil {
			continue
		}
		text, err := n.run(s.ctx, "status")
		if err != nil {
			return err
		}
		s.say("   %s# replicad status", n.name)
		lines := strings.SplitAfter(text, "\n")
		s.show(strings.Join(lines[min(2, len(lines)):], ""))
	}
	return nil
}

// expect makes sure of a one-line answer.
func (s *stage) expect(n *node, verb, want string) error {
	text, err := n.run(s.ctx, verb, "r0")
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(text); got != want {
		return fmt.Errorf("%s of %s is %s, not %s", verb, n.name, got, want)
	}
	return nil
}

// await waits for a one-line answer.
func (s *stage) await(n *node, verb, want string, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		err := s.expect(n, verb, want)
		if err == nil || time.Now().After(deadline) || s.ctx.Err() != nil {
			return err
		}
		pause(s.ctx, 50*time.Millisecond)
	}
}

var (
	oosField = regexp.MustCompile(`oos:(\d+)`)
	barField = regexp.MustCompile(`\[[=>.]+\] sync'ed: *[0-9.]+%`)
)

// outOfSync is the oos field of a node, KiB.
func (s *stage) outOfSync(n *node) (kib int, err error) {
	text, err := n.proc(s.ctx)
	if err != nil {
		return 0, err
	}
	found := oosField.FindStringSubmatch(text)
	if found == nil {
		return 0, fmt.Errorf("no oos: in the status of %s", n.name)
	}
	_, err = fmt.Sscan(found[1], &kib)
	return kib, err
}

// watchResync shows the progress bars of both nodes until both are UpToDate.
// It makes sure that a bar was seen on both, unless little was to do.
func (s *stage) watchResync(patience time.Duration, wantBars bool) error {
	deadline := time.Now().Add(patience)
	seen := map[string]bool{}
	last := ""
	for {
		line, synced := s.resyncLine(seen)
		if line != last && line != "" {
			s.say("      %s", line)
		}
		last = line
		switch {
		case s.ctx.Err() != nil:
			return s.ctx.Err()
		case synced && wantBars && len(seen) < 2:
			return fmt.Errorf("the resync ended with a progress bar seen on %d nodes, not both", len(seen))
		case synced:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the resync is not done after %s", patience)
		}
		pause(s.ctx, 100*time.Millisecond)
	}
}

func (s *stage) resyncLine(seen map[string]bool) (line string, synced bool) {
	synced = true
	var parts []string
	for _, n := range []*node{s.a, s.b} {
		text, err := n.proc(s.ctx)
		if bar := barField.FindString(text); bar != "" {
			seen[n.name] = true
			parts = append(parts, n.name+" "+bar)
		}
		synced = synced && err == nil && strings.Contains(text, "cs:Connected ") && strings.Contains(text, "ds:UpToDate/UpToDate")
	}
	return strings.Join(parts, "   "), synced
}

// dial makes the client's connection to a node's device.
func (s *stage) dial(n *node) error {
	ctx, cancel := context.WithTimeout(s.ctx, replyTimeout)
	defer cancel()
	c, err := nbd.Dial(ctx, n.export())
	if err != nil {
		return fmt.Errorf("open the device on %s: %w", n.name, err)
	}
	s.client = c
	return nil
}

// hangUp closes the client's connection.
func (s *stage) hangUp() error {
	c := s.client
	s.client = nil
	if c == nil {
		return nil
	}
	return c.Close()
}

// newLoad makes the load for the client's connection.
func (s *stage) newLoad(next int) {
	s.loads++
	s.load = &load{client: s.client, plan: s.plan, ledger: s.ledger, fs: s.fs, seed: s.loads, next: next}
}
