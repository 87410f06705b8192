package sim

import (
	"fmt"
	"strings"

	"replicad/replica/core"
	"replicad/replica/sim/oracle"
	"replicad/wire"
)

// P19: in every handshake the verdict is that of DRBD's table, as the oracle
// spells it, on the ids that the two nodes exchanged; a verdict of split brain is
// followed by no connection unless something says how to resolve it; and nobody
// speaks of a split brain without that verdict. What a node compares, and what
// it finds, is in its log, in DRBD's words.

// comparison is a node's comparison of a volume's generations, line by line.
type comparison struct {
	self, peer oracle.Super
	flags      [2]uint32 // wire.UUIDFlag…, of self and peer
	result     int
	heard      wire.UUIDs // what the peer sent last in this session
}

// The results that mean split brain, with a common base and without.
const (
	resultSplit  = 100
	resultNoBase = -100
)

func (c *comparison) split() bool { return c.result == resultSplit || c.result == resultNoBase }

// compares follows the log lines of a handshake.
func (n *node) compares(a *core.Action) {
	if a.Vol < 0 || n.vols[a.Vol].st.Conn != core.WFReportParams {
		return
	}
	c := &n.vols[a.Vol].compared
	word, _, _ := strings.Cut(a.Text, " ")
	switch {
	case word == "self":
		c.self, c.flags[0] = n.idsIn(a.Text)
	case word == "peer" && strings.Contains(a.Text, "bits:"):
		c.peer, c.flags[1] = n.idsIn(a.Text)
	case strings.HasPrefix(word, "uuid_compare()="):
		n.judgeComparison(int(a.Vol), c, a.Text)
	case word == "Split-Brain" && !c.split():
		n.w.fail("P19", "node %s volume %d sees a split brain, and compared %v with %v: %d", n.name(), a.Vol, c.self, c.peer, c.result)
	}
}

// idsIn reads a line like "self 1234:0:0:0 bits:0 flags:0".
func (n *node) idsIn(line string) (s oracle.Super, flags uint32) {
	var word string
	var bits uint64
	if _, err := fmt.Sscanf(line, "%s %X:%X:%X:%X bits:%d flags:%X", &word, &s.Current, &s.Bitmap, &s.H1, &s.H2, &bits, &flags); err != nil {
		n.w.fail("P19", "node %s logs %q: %v", n.name(), line, err)
	}
	if flags&wire.UUIDFlagCrashedPrimary != 0 {
		s.Flags |= oracle.FlagCrashedPrimary
	}
	return s, flags
}

func (n *node) judgeComparison(vol int, c *comparison, line string) {
	w := n.w
	w.count.Checks++
	var rule int
	if _, err := fmt.Sscanf(line, "uuid_compare()=%d by rule %d", &c.result, &rule); err != nil {
		w.fail("P19", "node %s logs %q: %v", n.name(), line, err)
		return
	}
	h, p := &c.heard, &c.peer
	if h.Current != p.Current || h.Bitmap != p.Bitmap || h.H1 != p.H1 || h.H2 != p.H2 || h.Flags&wire.UUIDFlagCrashedPrimary != c.flags[1]&wire.UUIDFlagCrashedPrimary {
		w.fail("P19", "node %s volume %d compares with %v, its peer sent %+v", n.name(), vol, *p, *h)
		return
	}
	want, number := oracle.Compare(&c.self, p)
	if number == 40 && want != 0 && c.result != 0 {
		return // who crashed: roles, and with two of them the token, say more than the table
	}
	if c.result != want {
		w.fail("P19", "node %s volume %d compares %v with %v: %d by rule %d, the table says %d by rule %d", n.name(), vol, c.self, *p, c.result, rule, want, number)
	}
}

// joins checks a volume that a handshake has connected.
func (n *node) joins(v *volume) {
	const decides = wire.UUIDFlagDiscardMyData | wire.UUIDFlagInconsistent
	c := &v.compared
	policies := n.w.opt.Weights[faultConfig] > 0 // it may set one
	if c.split() && (c.flags[0]|c.flags[1])&decides == 0 && !policies {
		n.w.fail("P19", "node %s volume %d connects after a split brain that nobody resolved: %v with %v", n.name(), v.id, c.self, c.peer)
	}
	c.result = 0
}
