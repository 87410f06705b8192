package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"replicad/replica/core"
)

// Script drives one pair by hand, one command a line, for scenarios that an
// administrator can read. Nodes are called a and b. Nothing happens by
// chance: delays are short and equal, and there are no clients but the script.
//
//	pair [key=value ...]   two nodes that were in sync, both down (fresh=yes: after create-md; protocol=A, blocks=64, rate=KiB/s, slots=n)
//	start [node]           boots, attaches, connects; a second passes
//	crash node             kill -9
//	power-cut node         loses what was not flushed
//	cut | heal | reset     the network; "cut a" loses only what a sends
//	disk-error node        the next disk action fails
//	node primary|secondary|connect|disconnect|detach|attach|invalidate|invalidate-remote|outdate [force] [discard-my-data]
//	node write|read|trim|zero first count [fua]     in sectors; node flush
//	node open | node close a client holds the volume open
//	run duration           lets time pass (2s, 100ms)
//	settle                 lets time pass until nothing moves
//	expect node status     fails when the status line differs
//	show                   status of both nodes, and whether their disks are equal
//	log                    log lines since the last time
type Script struct {
	w *World
}

// NewScript returns a script without nodes: its first command is pair.
func NewScript() *Script { return &Script{} }

// Do runs one command and returns what there is to see. The error says that
// the command is not understood, that an expectation or a promise is broken.
func (s *Script) Do(line string) (string, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return "", nil
	}
	if words[0] == "pair" {
		return "", s.pair(words[1:])
	}
	if s.w == nil {
		return "", fmt.Errorf("%q: the first command is pair", line)
	}
	out, err := s.command(words)
	if err == nil && s.w.failure != nil {
		err = s.w.failure
	}
	return out, err
}

func (s *Script) command(words []string) (string, error) {
	w := s.w
	switch words[0] {
	case "a":
		return s.node(w.nodes[0], words[1:])
	case "b":
		return s.node(w.nodes[1], words[1:])
	case "start", "crash", "power-cut", "disk-error", "cut":
		return "", s.fault(words)
	case "heal":
		w.healAll()
	case "reset":
		w.net.reset(w)
	case "run":
		d, err := time.ParseDuration(strings.Join(words[1:], ""))
		if err != nil {
			return "", fmt.Errorf("run: %w", err)
		}
		w.run(w.now+core.Time(d), nil)
	case "settle":
		w.settle()
	case "expect":
		return "", s.expect(words[1:])
	case "show":
		return s.show(), nil
	case "log":
		return s.log(), nil
	default:
		return "", fmt.Errorf("unknown command %q", words[0])
	}
	return "", nil
}

// pair makes the two nodes.
func (s *Script) pair(words []string) error {
	opt := Options{
		Seed: 1, Protocol: 'C', Volumes: 1, Blocks: 64, Slots: 16, Depth: 1, Hot: 1,
		LinkDelay: 50 * microsecond, DiskDelay: 50 * microsecond, Window: 256, Rate: 200 << 20, ResyncMax: 1 << 20,
	}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if err := opt.set(key, value); err != nil {
			return err
		}
	}
	opt.Net = core.Defaults()
	opt.Net.Protocol = opt.Protocol
	s.w = newWorld(&spare{}, opt, nil)
	s.w.script, s.w.calm = true, true
	return nil
}

func (o *Options) set(key, value string) error {
	n, err := strconv.ParseUint(value, 10, 32)
	switch key {
	case "fresh":
		o.Fresh, err = value == "yes", nil
	case "protocol":
		o.Protocol, err = value[0], nil
	case "blocks":
		o.Blocks = n
	case "slots":
		o.Slots = int(n)
	case "rate":
		o.Rate, o.ResyncMax = n<<10, 64<<10
	default:
		return fmt.Errorf("pair: unknown key %q", key)
	}
	return err
}

func (s *Script) fault(words []string) error {
	w := s.w
	nodes := w.nodes[:]
	if len(words) > 1 {
		i := strings.Index("ab", words[1])
		if i < 0 {
			return fmt.Errorf("%s: no node %q", words[0], words[1])
		}
		nodes = w.nodes[i : i+1]
	}
	for _, n := range nodes {
		switch words[0] {
		case "start":
			n.start()
		case "cut":
			w.net.cut[n.id] = true
		case "disk-error":
			n.vols[0].disk.next = true
		default:
			n.crash(words[0] == "power-cut")
		}
	}
	if words[0] == "start" {
		w.run(w.now+second, nil)
	}
	return nil
}

// node carries out what is done at one node.
func (s *Script) node(n *node, words []string) (string, error) {
	if len(words) == 0 || !n.up {
		return "", fmt.Errorf("node %s: nothing to do, or it is down", n.name())
	}
	switch words[0] {
	case "write", "read", "trim", "zero", "flush":
		return s.request(n, words)
	case "open":
		n.open(n.vols[0])
		return "", nil
	case "close":
		n.closeAll()
		return "", nil
	}
	return s.order(n, words)
}

var commandKinds = map[string]core.CommandKind{
	"primary": core.CmdPrimary, "secondary": core.CmdSecondary, "connect": core.CmdConnect, "disconnect": core.CmdDisconnect,
	"detach": core.CmdDetach, "invalidate": core.CmdInvalidate, "invalidate-remote": core.CmdInvalidateRemote, "outdate": core.CmdOutdate,
	"attach": attachCommand,
}

// order gives a command and waits for its answer.
func (s *Script) order(n *node, words []string) (string, error) {
	kind, ok := commandKinds[words[0]]
	if !ok {
		return "", fmt.Errorf("unknown command %q", words[0])
	}
	c := core.Command{Kind: kind, Vol: -1}
	for _, word := range words[1:] {
		switch word {
		case "force":
			c.Force = true
		case "discard-my-data":
			c.Discard = true
		default:
			return "", fmt.Errorf("%s: unknown option %q", words[0], word)
		}
	}
	n.lastErr, n.lastText = 0, ""
	if kind == attachCommand {
		n.attach(0)
	} else {
		if kind == core.CmdDetach || kind == core.CmdInvalidate || kind == core.CmdInvalidateRemote || kind == core.CmdOutdate {
			c.Vol = 0
		}
		n.command(c)
	}
	s.w.run(s.w.now+60*second, func() bool { return len(n.commands) == 0 })
	return s.answer(n), nil
}

func (s *Script) answer(n *node) string {
	switch {
	case len(n.commands) > 0:
		return "no answer\n"
	case refusedBy(n.lastErr):
		text := fmt.Sprintf("refused (%d) %s\n", n.lastErr, n.lastErr.Text())
		if n.lastText != "" {
			text += "  " + n.lastText + "\n"
		}
		return text
	}
	return ""
}

// request sends one client request and waits up to a second for its answer.
func (s *Script) request(n *node, words []string) (string, error) {
	kinds := map[string]core.EventKind{"write": core.EvWrite, "read": core.EvRead, "trim": core.EvTrim, "zero": core.EvZero, "flush": core.EvFlush}
	r := &request{kind: kinds[words[0]], client: -1}
	if r.kind != core.EvFlush {
		if len(words) < 3 {
			return "", fmt.Errorf("%s: first and count are wanted", words[0])
		}
		first, err1 := strconv.Atoi(words[1])
		count, err2 := strconv.Atoi(words[2])
		if err1 != nil || err2 != nil || count < 1 {
			return "", fmt.Errorf("%s: first and count are numbers", words[0])
		}
		r.first, r.count, r.fua = uint32(first), uint32(count), len(words) > 3 && words[3] == "fua"
	}
	out := words[0] + " is not answered yet\n"
	done := false
	r.answer = func(result core.IOResult, data []content) {
		out, done = describeResult(words[0], result), true
		if r.kind == core.EvRead && result == core.IOOK {
			out = s.w.brief(data)
		}
	}
	n.issue(r)
	s.w.run(s.w.now+second/5, func() bool { return done })
	return out, nil
}

var resultNames = [...]string{"ok", "I/O error", "no space", "not Primary", "no good data", "outside the volume", "shutting down"}

func describeResult(verb string, r core.IOResult) string {
	if r == core.IOOK {
		return ""
	}
	return verb + ": " + resultNames[r] + "\n"
}

// brief names what was read, in runs: garbage, zeroes, or the number of the
// script's write, counted from 1.
func (w *World) brief(data []content) string {
	var runs []string
	for _, c := range data {
		name := "zeroes"
		switch {
		case c == 0:
		case !w.oracle.Made(c):
			name = "old data"
		default:
			name = fmt.Sprintf("write %d", c.Write()-w.oracle.FirstWrite()+1)
		}
		if len(runs) == 0 || runs[len(runs)-1] != name {
			runs = append(runs, name)
		}
	}
	return "read: " + strings.Join(runs, ", ") + "\n"
}

// settle runs until nothing moves, at most ten minutes.
func (w *World) settle() {
	limit := w.now + 600*second
	for w.now < limit && w.failure == nil {
		before := w.progress()
		w.run(w.now+2*second, nil)
		if w.quiet() && before == w.progress() {
			return
		}
	}
}

// progress is a text that changes as long as something moves.
func (w *World) progress() string {
	return w.nodes[0].status() + w.nodes[1].status() + w.summary()
}

// status is a node's line as a script shows it.
func (n *node) status() string {
	if !n.up {
		return "down"
	}
	v := n.core.Status().Volumes[0]
	s := v.State
	return fmt.Sprintf("cs:%v ro:%v/%v ds:%v/%v oos:%d", s.Conn, s.Role, s.Peer, s.Disk, s.PDisk, v.OutOfSync>>10)
}

// expect compares the words given with the beginning of a node's status.
func (s *Script) expect(words []string) error {
	if len(words) < 2 || len(words[0]) != 1 || !strings.Contains("ab", words[0]) {
		return fmt.Errorf("expect: a node and its status are wanted")
	}
	n := s.w.nodes[strings.Index("ab", words[0])]
	want, got := strings.Join(words[1:], " "), n.status()
	if !strings.HasPrefix(got, want) {
		return fmt.Errorf("node %s is %s, expected %s", n.name(), got, want)
	}
	return nil
}

func (s *Script) show() string {
	var b strings.Builder
	for _, n := range s.w.nodes {
		fmt.Fprintf(&b, "%s %s\n", n.name(), n.status())
	}
	x, y := s.w.nodes[0].vols[0].disk.cache, s.w.nodes[1].vols[0].disk.cache
	differ := 0
	for i := range s.w.opt.Blocks {
		for j := range uint64(blockSectors) {
			if x[i*blockSectors+j] != y[i*blockSectors+j] {
				differ++
				break
			}
		}
	}
	fmt.Fprintf(&b, "disks: %d blocks differ\n", differ)
	return b.String()
}

// log returns the log lines since the last call, and the handlers that ran.
// Generation ids are random: they are left out.
func (s *Script) log() string {
	var b strings.Builder
	for _, line := range s.w.lines {
		if !strings.Contains(line, "UUID") && !strings.Contains(line, "uuid ") && !strings.Contains(line, ": self ") && !strings.Contains(line, ": peer ") {
			b.WriteString(line + "\n")
		}
	}
	for _, h := range s.w.handlers {
		b.WriteString("handler " + h + "\n")
	}
	s.w.lines, s.w.handlers = nil, nil
	return b.String()
}
