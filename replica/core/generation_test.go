package core

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Recorded from two nodes running kernel DRBD 8.4.11: generation ids before
// they met, and the verdicts in their logs.
//
//go:embed testdata/compare.json
var recordedJSON []byte

type recording struct {
	Cases []struct {
		ID            string
		A, B          string
		Primaries     []string
		PromotedLater string `json:"promoted_later"` // after the ids were read, before they met
		Want          []string
	}
	Handshakes []struct {
		Self, Peer string
		SelfFlags  int `json:"self_flags"`
		PeerFlags  int `json:"peer_flags"`
		Want       string
	}
}

func readRecording(t *testing.T) (r recording) {
	t.Helper()
	if err := json.Unmarshal(recordedJSON, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Cases) < 100 || len(r.Handshakes) < 15 {
		t.Fatalf("only %d cases and %d handshakes", len(r.Cases), len(r.Handshakes))
	}
	return r
}

// parseGI reads what "drbdadm get-gi" prints: four ids, then perhaps flags.
func parseGI(t testing.TB, gi string) (g Generation, flags []string) {
	t.Helper()
	fields := strings.Split(gi, ":")
	for i, to := range []*uint64{&g.Current, &g.Bitmap, &g.H1, &g.H2} {
		id, err := strconv.ParseUint(fields[i], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		*to = id
	}
	return g, fields[4:]
}

func gen(t testing.TB, gi string) Generation { g, _ := parseGI(t, gi); return g }

// recordedFacts: in a recorded line the third flag is Primary, the seventh crashed Primary.
func recordedFacts(t *testing.T, gi string) Facts {
	g, flags := parseGI(t, gi)
	f := Facts{Gen: g, Disk: Inconsistent, Primary: flags[2] == "1", CrashedPrimary: flags[6] == "1"}
	if flags[0] == "1" {
		f.Disk = UpToDate
	}
	return f
}

func verdictText(v Verdict) string { return fmt.Sprintf("%d/%d", v.Result, v.Rule) }

func TestCompareRecordedCases(t *testing.T) {
	for _, c := range readRecording(t).Cases {
		a, b := recordedFacts(t, c.A), recordedFacts(t, c.B)
		if c.Primaries != nil {
			a.Primary, b.Primary = slices.Contains(c.Primaries, "A"), slices.Contains(c.Primaries, "B")
		}
		if c.PromotedLater == "A" {
			a.Gen, a.Primary = a.Gen.Rotate(0xABCDEF, true), true
		}
		for _, token := range []bool{false, true} {
			got := []string{verdictText(Compare(a, b, token)), verdictText(Compare(b, a, !token))}
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, c.Want) {
				t.Errorf("%s: %v, want %v", c.ID, got, c.Want)
			}
		}
	}
}

func TestCompareRecordedHandshakes(t *testing.T) {
	for _, h := range readRecording(t).Handshakes {
		self := Facts{Gen: gen(t, h.Self), CrashedPrimary: h.SelfFlags&2 != 0, Discard: h.SelfFlags&1 != 0}
		peer := Facts{Gen: gen(t, h.Peer), CrashedPrimary: h.PeerFlags&2 != 0, Discard: h.PeerFlags&1 != 0}
		if got := verdictText(Compare(self, peer, false)); got != h.Want {
			t.Errorf("self %s peer %s: %s, want %s", h.Self, h.Peer, got, h.Want)
		}
	}
}

func TestCompareRules(t *testing.T) {
	const x, y, z, off = 0x1000, 0x2000, 0x3000, UUIDNewBMOffset
	g := func(ids ...uint64) Facts { return Facts{Gen: Generation{ids[0], ids[1], ids[2], ids[3]}} }
	crashed := func(f Facts) Facts { f.CrashedPrimary = true; return f }
	primary := func(f Facts) Facts { f.Primary = true; return f }
	eq := g(x, 0, 0, 0)
	for _, c := range []struct {
		name       string
		self, peer Facts
		token      bool
		want       string
	}{
		{"both new", g(4, 0, 0, 0), g(4, 0, 0, 0), false, "0/10"},
		{"I am new", g(4, 0, 0, 0), g(x, 0, 0, 0), false, "-2/20"},
		{"I am empty", g(0, 0, 0, 0), g(x, 0, 0, 0), false, "-2/20"},
		{"peer new", g(x, 0, 0, 0), g(4, 0, 0, 0), false, "2/30"},
		{"peer empty", g(x, 0, 0, 0), g(0, 0, 0, 0), false, "2/30"},
		{"I am empty, peer new", g(0, 0, 0, 0), g(4, 0, 0, 0), false, "2/30"},
		{"I am new, peer empty", g(4, 0, 0, 0), g(0, 0, 0, 0), false, "-2/20"},
		{"both empty", g(0, 0, 0, 0), g(0, 0, 0, 0), false, "-1000/20"},
		{"I was source and missed the end", g(x, y+off, y, z), g(x, 0, y+off, y), false, "1/34"},
		{"peer was source and missed the end", g(x, 0, y+off, y), g(x, y+off, y, z), false, "-1/35"},
		{"I track something", g(x, y, 0, 0), g(x, 0, z, 0), false, "1/36"},
		{"peer tracks something", g(x, 0, z, 0), g(x, y, 0, 0), false, "-1/37"},
		{"same", eq, eq, false, "0/40"},
		{"same but for the role bit", g(x|1, 0, 0, 0), eq, false, "0/40"},
		{"same, both tracking", g(x, y, 0, 0), g(x, z, 0, 0), false, "0/40"},
		{"I crashed", crashed(eq), eq, false, "1/40"},
		{"peer crashed", eq, crashed(eq), false, "-1/40"},
		{"both crashed, token here", crashed(eq), crashed(eq), true, "-1/40"},
		{"both crashed, token there", crashed(eq), crashed(eq), false, "1/40"},
		{"crashed peer, both Primary", primary(eq), primary(crashed(eq)), false, "-100/41"},
		{"crashed peer, I am Primary", primary(eq), crashed(eq), false, "1/41"},
		{"I crashed, peer Primary", crashed(eq), primary(eq), false, "-1/41"},
		{"I crashed and am Primary again", primary(crashed(eq)), eq, false, "1/41"},
		{"Primary, nobody crashed", primary(eq), eq, false, "0/40"},
		{"peer moved on", g(x, 0, 0, 0), g(y, x|1, 0, 0), false, "-1/50"},
		{"sync UUID lost", g(x, 0, 0, 0), g(y, x+off, x, z), false, "-1/51"},
		{"sync UUID lost, bits differ", g(x|1, 0, 0, 0), g(y|1, x+off+1, x, z), false, "-1/51"},
		{"peer moved on twice", g(x, 0, 0, 0), g(y, z, x, 0), false, "-2/60"},
		{"peer moved on thrice", g(x, 0, 0, 0), g(y, z, 0, x), false, "-2/60"},
		{"I moved on", g(y, x|1, 0, 0), g(x, 0, 0, 0), false, "1/70"},
		{"my sync UUID was lost", g(y, x+off, x, z), g(x, 0, 0, 0), false, "1/71"},
		{"I moved on twice", g(y, z, x, 0), g(x, 0, 0, 0), false, "2/80"},
		{"I moved on thrice", g(y, z, 0, x), g(x, 0, 0, 0), false, "2/80"},
		{"both moved on", g(y, x|1, 0, 0), g(z, x, 0, 0), false, "100/90"},
		{"common history", g(x, 0x50, y, 0x60), g(z, 0x70, 0x80, y|1), false, "-100/100"},
		{"two empty slots", g(x, 0x50, y, 0), g(z, 0x70, 0x80, 0), false, "-100/100"},
		{"strangers", g(x, 0x50, 0x60, 0x70), g(y, 0x80, 0x90, 0xA0), false, "-1000/100"},
		{"each the other's child", g(x, y, 0, 0), g(y, x, 0, 0), false, "-100/100"},
	} {
		if got := verdictText(Compare(c.self, c.peer, c.token)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestCompareCorrections(t *testing.T) {
	const x, y, z, off = 0x1000, 0x2000, 0x3000, UUIDNewBMOffset
	ended := Generation{x | 1, 0, y + off + 1, y}
	missed := Generation{x | 1, y + off + 1, y, z}
	begun, undone := Generation{x | 1, y + off, y, z}, Generation{x | 1, y, z, z}
	for _, c := range []struct {
		name       string
		self, peer Generation
		rule       int
		fixSelf    *Generation
		fixPeer    *Generation
	}{
		{"34", missed, Generation{x, 0, y + off, y}, 34, &ended, nil},
		{"35", Generation{x, 0, y + off, y}, missed, 35, nil, &ended},
		{"71", begun, Generation{y, 0, 0, 0}, 71, &undone, nil},
		{"51", Generation{y, 0, 0, 0}, begun, 51, nil, &undone},
	} {
		v := Compare(Facts{Gen: c.self}, Facts{Gen: c.peer}, false)
		if v.Rule != c.rule || !sameFix(v.FixSelf, c.fixSelf) || !sameFix(v.FixPeer, c.fixPeer) {
			t.Errorf("%s: rule %d, self %v, peer %v", c.name, v.Rule, v.FixSelf, v.FixPeer)
		}
	}
}

func sameFix(a, b *Generation) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

var mirrorRule = map[int]int{20: 30, 30: 20, 34: 35, 35: 34, 36: 37, 37: 36, 50: 70, 70: 50, 51: 71, 71: 51, 60: 80, 80: 60}

// checkMirrored fails unless both ends see the same thing from opposite sides.
func checkMirrored(t testing.TB, self, peer Facts, token bool) {
	t.Helper()
	before := [2]Facts{self, peer}
	here, there := Compare(self, peer, token), Compare(peer, self, !token)
	want := -there.Result
	if there.Result <= ResultSplitNoBase || there.Result == ResultSplitBrain {
		want = there.Result
	}
	rule := there.Rule
	if r, ok := mirrorRule[rule]; ok && (rule != 20 || there.Result != ResultUnrelatedData) {
		rule = r
	}
	if here.Result != want || here.Rule != rule {
		t.Fatalf("self %+v\npeer %+v\nhere %s, there %s", self, peer, verdictText(here), verdictText(there))
	}
	if !sameFix(here.FixSelf, there.FixPeer) || !sameFix(here.FixPeer, there.FixSelf) {
		t.Fatalf("self %+v\npeer %+v\ncorrections here %v %v, there %v %v", self, peer, here.FixSelf, here.FixPeer, there.FixSelf, there.FixPeer)
	}
	if before != [2]Facts{self, peer} {
		t.Fatal("Compare changed its arguments")
	}
}

// Every pair of tuples over an alphabet so small that every rule fires, and
// impossible histories are frequent.
func TestCompareMirroredExhaustive(t *testing.T) {
	const x, y = 0x1000, 0x2001
	letters := [...]uint64{0, 4, x, x + UUIDNewBMOffset, y}
	tuple := func(n int) (g Generation) {
		for _, to := range []*uint64{&g.Current, &g.Bitmap, &g.H1, &g.H2} {
			*to, n = letters[n%len(letters)], n/len(letters)
		}
		return g
	}
	const tuples = 5 * 5 * 5 * 5
	rules := make(map[int]int)
	for i := range tuples {
		self := Facts{Gen: tuple(i)}
		for j := range tuples {
			peer := Facts{Gen: tuple(j)}
			checkMirrored(t, self, peer, (i+j)%2 == 0)
			rules[Compare(self, peer, true).Rule]++
		}
	}
	for _, rule := range []int{10, 20, 30, 34, 35, 36, 37, 40, 50, 51, 60, 70, 71, 80, 90, 100} {
		if rules[rule] == 0 {
			t.Errorf("rule %d never fired", rule)
		}
	}
}

func drawFacts(t *rapid.T, label string) Facts {
	const x, y = 0x7000_0000_0000_1000, 0xFFFF_2000_0000_0000 // y plus the offset wraps to 0x2000_0000_0000
	id := rapid.SampledFrom([]uint64{0, 1, 4, 5, x, x | 1, x + UUIDNewBMOffset, y, y | 1, 0x2000_0000_0000, 0x30})
	f := Facts{
		Gen:            Generation{id.Draw(t, label+" current"), id.Draw(t, label+" bitmap"), id.Draw(t, label+" h1"), id.Draw(t, label+" h2")},
		Bits:           rapid.Uint64Range(0, 3).Draw(t, label+" bits"),
		CrashedPrimary: rapid.Bool().Draw(t, label+" crashed"), Primary: rapid.Bool().Draw(t, label+" primary"),
		Discard: rapid.Bool().Draw(t, label+" discard"),
		Disk:    rapid.SampledFrom([]Disk{Negotiating, Inconsistent, Outdated, Consistent, UpToDate}).Draw(t, label+" disk"),
	}
	f.Inconsistent = f.Disk == Inconsistent || f.Disk == Negotiating && rapid.Bool().Draw(t, label+" inconsistent")
	return f
}

func TestCompareMirroredRandom(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		checkMirrored(t, drawFacts(r, "self"), drawFacts(r, "peer"), rapid.Bool().Draw(r, "token"))
	})
}

// No verdict that copies data is reached between two nodes that have nothing
// in common.
func TestCompareStrangersNeverSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.Uint64Range(8, 1<<40)
		a := Generation{id.Draw(t, "ac"), id.Draw(t, "ab"), id.Draw(t, "a1"), id.Draw(t, "a2")}
		far := uint64(1) << 41
		b := Generation{id.Draw(t, "bc") | far, id.Draw(t, "bb") | far, id.Draw(t, "b1") | far, id.Draw(t, "b2") | far}
		if v := Compare(Facts{Gen: a}, Facts{Gen: b}, true); v.Result != ResultUnrelatedData {
			t.Fatalf("%v and %v: %s", a, b, verdictText(v))
		}
	})
}

// The ids after each step were logged by DRBD 8.4.11 kernels.
func TestGenerationObservedSync(t *testing.T) {
	source := gen(t, "64A60534C51AA885:0000000000000004:0000000000000000:0000000000000000")
	target := gen(t, "0000000000000004:0000000000000000:0000000000000000:0000000000000000")
	handshake := source
	source, id := source.StartSource(0xE4AEFCE0CD0441C3)
	target = target.StartTarget(id)
	wantGI(t, "source", source, "64A60534C51AA885:E4AEFCE0CD0441C3:0000000000000004:0000000000000000")
	wantGI(t, "target", target, "E4AEFCE0CD0441C2:0000000000000000:0000000000000000:0000000000000000")
	const ended = "64A60534C51AA884:0000000000000000:E4AEFCE0CD0441C2:0000000000000004"
	wantGI(t, "target, by the handshake's tuple", target.FinishTarget(handshake), ended)
	wantGI(t, "target, by the source's tuple", target.FinishTarget(source), ended)
	wantGI(t, "source", source.FinishSource(), "64A60534C51AA885:0000000000000000:E4AEFCE0CD0441C3:0000000000000004")
}

func TestGenerationObservedCut(t *testing.T) {
	alone := gen(t, "061809D7A9A2C167:0000000000000000:B860A8B7ED36E2F7:B85FA8B7ED36E2F7").Rotate(0x532B38C087A90450, true)
	wantGI(t, "rotated", alone, "532B38C087A90451:061809D7A9A2C167:B860A8B7ED36E2F7:B85FA8B7ED36E2F7")
	target := gen(t, "061809D7A9A2C166:0000000000000000:B860A8B7ED36E2F6:B85FA8B7ED36E2F7")
	source, id := alone.StartSource(99)
	target = target.StartTarget(id)
	wantGI(t, "target", target, "061909D7A9A2C166:0000000000000000:B860A8B7ED36E2F6:B85FA8B7ED36E2F7")
	const ended = "532B38C087A90450:0000000000000000:061909D7A9A2C166:061809D7A9A2C167"
	wantGI(t, "target, by the handshake's tuple", target.FinishTarget(alone), ended)
	wantGI(t, "target, by the source's tuple", target.FinishTarget(source), ended)
}

func TestGenerationObservedInvalidate(t *testing.T) {
	const before = "CE01CE31A5F1F219:0000000000000000:8E2FA89CEC944E3B:8E2EA89CEC944E3B"
	source, id := gen(t, before).StartSource(0xFDEBDB001619C23B)
	wantGI(t, "source", source, "CE01CE31A5F1F219:FDEBDB001619C23B:8E2FA89CEC944E3B:8E2EA89CEC944E3B")
	wantGI(t, "source, ended", source.FinishSource(), "CE01CE31A5F1F219:0000000000000000:FDEBDB001619C23B:8E2FA89CEC944E3B")
	target := gen(t, "CE01CE31A5F1F218:0000000000000000:8E2FA89CEC944E3A:8E2EA89CEC944E3B").StartTarget(id)
	wantGI(t, "target", target, "FDEBDB001619C23A:0000000000000000:8E2FA89CEC944E3A:8E2EA89CEC944E3B")
	wantGI(t, "target, ended", target.FinishTarget(source), "CE01CE31A5F1F218:0000000000000000:FDEBDB001619C23A:8E2FA89CEC944E3B")
}

// A Primary that resyncs as target keeps its role bit.
func TestGenerationObservedPrimaryTarget(t *testing.T) {
	peer := gen(t, "B85FA8B7ED36E2F6:64A60534C51AA884:E4AEFCE0CD0441C2:0000000000000004")
	g := gen(t, "64A60534C51AA885:0000000000000000:E4AEFCE0CD0441C3:0000000000000004").StartTarget(peer.Bitmap + UUIDNewBMOffset)
	wantGI(t, "started", g, "64A70534C51AA885:0000000000000000:E4AEFCE0CD0441C3:0000000000000004")
	wantGI(t, "ended", g.FinishTarget(peer), "B85FA8B7ED36E2F7:0000000000000000:64A70534C51AA885:64A60534C51AA884")
}

func wantGI(t *testing.T, name string, g Generation, want string) {
	t.Helper()
	if g.String() != want {
		t.Errorf("%s: %v, want %s", name, g, want)
	}
}

func TestGenerationSpecialValues(t *testing.T) {
	g := Generation{Current: 0x10}
	for _, random := range []uint64{0, 1, 4, 5} {
		for _, primary := range []bool{false, true} {
			if r := g.Rotate(random, primary); r.empty() || r.mask().empty() || r.Current&1 == 1 != primary {
				t.Errorf("random %d rotates to %v", random, r)
			}
		}
		if _, id := g.StartSource(random); masked(id) == 0 || masked(id) == UUIDJustCreated {
			t.Errorf("random %d makes sync UUID %#x", random, id)
		}
	}
	if g.FinishSource() != g {
		t.Error("ending no resync moved the history")
	}
	if g.WithPrimary(true).Current != 0x11 || g.WithPrimary(true).WithPrimary(false) != g {
		t.Error("WithPrimary does more than bit 0")
	}
}

// A resync interrupted at any step is taken up again in the same direction,
// and one that ended leaves nothing to do.
func TestGenerationInterruptedSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// The low bits keep the drawn ids apart, as 64 random bits do.
		draw := func(name string, apart uint64) uint64 {
			return rapid.Uint64Range(1, 1<<60).Draw(t, name)<<4 | apart<<1
		}
		base := Generation{Current: draw("base", 1), H1: draw("h1", 2), H2: draw("h2", 3)}
		source := base.WithPrimary(true).Rotate(draw("new", 4), true)
		target := base.WithPrimary(false)
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			begun, syncUUID := source.StartSource(draw("random", 5))
			switch rapid.IntRange(0, 3).Draw(t, "interrupted") {
			case 0: // before the sync UUID arrived
				source = begun
			case 1: // while copying
				source, target = begun, target.StartTarget(syncUUID)
			case 2: // the source missed the end
				source, target = begun, target.StartTarget(syncUUID).FinishTarget(begun)
			case 3:
				source, target = begun.FinishSource(), target.StartTarget(syncUUID).FinishTarget(begun)
			}
			v := Compare(Facts{Gen: source}, Facts{Gen: target}, false)
			if source.Bitmap == 0 {
				if v.Result != ResultNone {
					t.Fatalf("ended: %v %v: %s", source, target, verdictText(v))
				}
				return
			}
			if v.Result != ResultBitmap {
				t.Fatalf("interrupted: %v %v: %s", source, target, verdictText(v))
			}
			if v.FixSelf != nil {
				source = *v.FixSelf
			}
		}
	})
}

// --- from a verdict to a course

func TestDecide(t *testing.T) {
	good, bad := Facts{Disk: UpToDate}, Facts{Disk: Inconsistent, Inconsistent: true}
	primary := func(f Facts) Facts { f.Primary = true; return f }
	old := Facts{Disk: Outdated, Outdated: true}
	discard := func(f Facts) Facts { f.Discard = true; return f }
	negotiating := func(inconsistent bool) Facts { return Facts{Disk: Negotiating, Inconsistent: inconsistent} }
	for _, c := range []struct {
		name       string
		result     int
		self, peer Facts
		in         DecideInput
		want       Decision
	}{
		{"same", 0, good, good, DecideInput{}, Decision{None: true}},
		{"both fresh", 0, bad, bad, DecideInput{}, Decision{None: true}},
		{"source", 1, good, good, DecideInput{}, Decision{SyncSource: true}},
		{"full source", 2, good, good, DecideInput{}, Decision{SyncSource: true, Full: true}},
		{"target", -1, good, good, DecideInput{}, Decision{SyncTarget: true}},
		{"full target", -2, good, good, DecideInput{}, Decision{SyncTarget: true, Full: true}},
		{"unrelated", -1000, good, good, DecideInput{}, Decision{Unrelated: true}},
		{"unrelated, although discarded", -1000, discard(good), good, DecideInput{}, Decision{Unrelated: true}},
		{"unrelated, although Inconsistent", -1000, good, bad, DecideInput{}, Decision{Unrelated: true}},
		{"peer Inconsistent", 0, good, bad, DecideInput{}, Decision{SyncSource: true, ByDiskState: true}},
		{"peer Inconsistent but newer", -1, good, bad, DecideInput{}, Decision{SyncSource: true, ByDiskState: true}},
		{"I am Inconsistent", 1, bad, good, DecideInput{}, Decision{SyncTarget: true, ByDiskState: true}},
		{"I am Inconsistent, full", 2, bad, good, DecideInput{}, Decision{SyncTarget: true, Full: true, ByDiskState: true}},
		{"split brain with an Inconsistent peer", 100, good, bad, DecideInput{}, Decision{SyncSource: true, ByDiskState: true}},
		{"the same without a base", -100, good, bad, DecideInput{}, Decision{SyncSource: true, Full: true, ByDiskState: true}},
		{"attaching, will be Inconsistent", 0, negotiating(true), good, DecideInput{}, Decision{SyncTarget: true, ByDiskState: true}},
		{"attaching, will be good", 0, negotiating(false), bad, DecideInput{}, Decision{SyncSource: true, ByDiskState: true}},
		{"attaching, both good", -1, negotiating(false), good, DecideInput{}, Decision{SyncTarget: true}},
		{"split brain", 100, good, good, DecideInput{}, Decision{SplitBrain: true, Detected: true}},
		{"split brain without a base", -100, good, good, DecideInput{}, Decision{SplitBrain: true, Detected: true}},
		{"I discard", 100, discard(good), good, DecideInput{}, Decision{SyncTarget: true, Detected: true, ManuallySolved: true}},
		{"peer discards", 100, good, discard(good), DecideInput{}, Decision{SyncSource: true, Detected: true, ManuallySolved: true}},
		{"both discard", 100, discard(good), discard(good), DecideInput{}, Decision{SplitBrain: true, Detected: true}},
		{"peer discards, no base", -100, good, discard(good), DecideInput{}, Decision{SyncSource: true, Full: true, Detected: true, ManuallySolved: true}},
		{"discarding without a split brain", 1, discard(good), good, DecideInput{}, Decision{SyncSource: true}},
		{"source but both Inconsistent", 1, bad, bad, DecideInput{}, Decision{Abort: true, Reason: "Both disks are inconsistent: no side can be the source of a resync!"}},
		{"target but both Inconsistent", -2, bad, bad, DecideInput{}, Decision{Abort: true, Reason: "Both disks are inconsistent: no side can be the source of a resync!"}},
		{"peer Inconsistent, I am outdated", 2, old, bad, DecideInput{}, Decision{Abort: true, Reason: "The only usable disk is outdated: no side can be the source of a resync!"}},
		{"I am Inconsistent, peer outdated", -2, bad, old, DecideInput{}, Decision{Abort: true, Reason: "The only usable disk is outdated: no side can be the source of a resync!"}},
		{"peer good, I am outdated", -1, old, good, DecideInput{}, Decision{SyncTarget: true}},
		{"both outdated", 1, old, old, DecideInput{}, Decision{SyncSource: true}},
		{"Primary target", -1, primary(good), good, DecideInput{}, Decision{Abort: true, Reason: "I shall become SyncTarget, but I am primary!"}},
		{"Primary target, Consistent", -1, primary(Facts{Disk: Consistent}), good, DecideInput{}, Decision{Abort: true, Reason: "I shall become SyncTarget, but I am primary!"}},
		{"Primary target, Outdated", -1, primary(Facts{Disk: Outdated}), good, DecideInput{}, Decision{SyncTarget: true}},
		{"Primary target, handler", -2, primary(good), good, DecideInput{RRConflict: RRCallPriLost}, Decision{Abort: true, PriLost: true, Reason: "I shall become SyncTarget, but I am primary!"}},
		{"Primary target, violently", -1, primary(good), good, DecideInput{RRConflict: RRViolently}, Decision{SyncTarget: true, Violent: true}},
		{"Primary target, Inconsistent already", -1, primary(bad), good, DecideInput{}, Decision{SyncTarget: true, ByDiskState: true}},
		{"Primary target, attaching", -1, primary(negotiating(false)), good, DecideInput{}, Decision{SyncTarget: true}},
		{"Primary source", 1, primary(good), good, DecideInput{}, Decision{SyncSource: true}},
		{"dry run", 1, good, good, DecideInput{Tentative: true}, Decision{SyncSource: true, Tentative: true}},
		{"dry run, same", 0, good, good, DecideInput{Tentative: true}, Decision{None: true, Tentative: true}},
		{"dry run, split brain", 100, good, good, DecideInput{Tentative: true}, Decision{SplitBrain: true, Detected: true}},
		{"no disk", -1, Facts{Disk: Diskless}, good, DecideInput{}, Decision{Abort: true, Reason: "no disk to compare"}},
	} {
		got := Decide(Verdict{Result: c.result}, c.self, c.peer, c.in)
		if got != c.want {
			t.Errorf("%s:\n%+v, want\n%+v", c.name, got, c.want)
		}
		if drops := !c.want.None && !c.want.SyncSource && !c.want.SyncTarget || c.want.Tentative; got.Drops() != drops {
			t.Errorf("%s: Drops %v", c.name, got.Drops())
		}
	}
}

func TestDecideAsksPolicies(t *testing.T) {
	good := Facts{Disk: UpToDate}
	giver := Facts{Disk: UpToDate, Discard: true}
	asked := 0
	answer := func(r Resolution) func(Facts, Facts, bool) Resolution {
		return func(Facts, Facts, bool) Resolution { asked++; return r }
	}
	win, undecided := Resolution{SyncSource: true, Policy: "discard-secondary"}, Resolution{}
	for _, c := range []struct {
		name   string
		result int
		self   Facts
		in     DecideInput
		asked  int
		want   Decision
	}{
		{"decided", 100, good, DecideInput{Resolve: answer(win)}, 1, Decision{SyncSource: true, Detected: true, Policy: "discard-secondary"}},
		{"a policy beats the administrator", 100, giver, DecideInput{Resolve: answer(win)}, 1, Decision{SyncSource: true, Detected: true, Policy: "discard-secondary"}},
		{"undecided", 100, good, DecideInput{Resolve: answer(undecided)}, 1, Decision{SplitBrain: true, Detected: true}},
		{"undecided, by hand", 100, giver, DecideInput{Resolve: answer(undecided)}, 1, Decision{SyncTarget: true, Detected: true, ManuallySolved: true}},
		{"contradictory", 100, good, DecideInput{Resolve: answer(Resolution{SyncSource: true, SyncTarget: true})}, 1, Decision{SplitBrain: true, Detected: true}},
		{"no base, not asked", -100, good, DecideInput{Resolve: answer(win)}, 0, Decision{SplitBrain: true, Detected: true}},
		{"no base, always-asbp", -100, good, DecideInput{Resolve: answer(win), AlwaysASBP: true}, 1, Decision{SyncSource: true, Full: true, Detected: true, Policy: "discard-secondary"}},
		{"no split brain", -1, good, DecideInput{Resolve: answer(win)}, 0, Decision{SyncTarget: true}},
	} {
		asked = 0
		if got := Decide(Verdict{Result: c.result}, c.self, good, c.in); got != c.want || asked != c.asked {
			t.Errorf("%s: asked %d times,\n%+v, want\n%+v", c.name, asked, got, c.want)
		}
	}
}

// Both ends take opposite courses, by the same amount of data, whatever they
// are told; where one end may not, it says so instead.
func TestDecideMirrored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self, peer := drawFacts(t, "self"), drawFacts(t, "peer")
		token := rapid.Bool().Draw(t, "token")
		in := DecideInput{
			Token: token, AlwaysASBP: rapid.Bool().Draw(t, "asbp"),
			RRConflict: rapid.SampledFrom([]string{"", RRDisconnect, RRCallPriLost, RRViolently}).Draw(t, "rr-conflict"),
		}
		if rapid.Bool().Draw(t, "policy") {
			in.Resolve = func(s, p Facts, _ bool) Resolution {
				return Resolution{SyncSource: s.Bits > p.Bits, SyncTarget: s.Bits < p.Bits}
			}
		}
		here := Decide(Compare(self, peer, token), self, peer, in)
		in.Token = !token
		there := Decide(Compare(peer, self, !token), peer, self, in)
		if !opposite(here, there) {
			t.Fatalf("self %+v\npeer %+v\nhere  %+v\nthere %+v", self, peer, here, there)
		}
	})
}

func opposite(a, b Decision) bool {
	if a.Detected != b.Detected || a.ByDiskState != b.ByDiskState || a.ManuallySolved != b.ManuallySolved {
		return false
	}
	switch {
	case a.Abort || b.Abort: // the other end sees the link end
		return (a.Abort || a.SyncSource || a.SyncTarget) && (b.Abort || b.SyncSource || b.SyncTarget)
	case a.SyncSource || a.SyncTarget:
		return a.SyncSource == b.SyncTarget && a.SyncTarget == b.SyncSource && a.Full == b.Full
	}
	return a.None == b.None && a.SplitBrain == b.SplitBrain && a.Unrelated == b.Unrelated
}

// A manual or automatic split-brain resolution without a common base copies
// everything: the bitmaps say nothing there.
func TestDecideNeverTrustsBitmapsWithoutBase(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		self, peer := drawFacts(t, "self"), drawFacts(t, "peer")
		in := DecideInput{AlwaysASBP: true, RRConflict: RRViolently, Resolve: func(s, p Facts, _ bool) Resolution {
			return Resolution{SyncSource: s.Bits > p.Bits, SyncTarget: s.Bits < p.Bits}
		}}
		v := Compare(self, peer, true)
		d := Decide(v, self, peer, in)
		if v.Result == ResultSplitNoBase && (d.SyncSource || d.SyncTarget) && !d.Full {
			t.Fatalf("self %+v\npeer %+v\n%+v", self, peer, d)
		}
	})
}

// A target whose link is cut in every attempt keeps its place in the source's
// history, however often that happens.
func TestInterruptedAttemptsKeepTheAncestor(t *testing.T) {
	target := Generation{Current: 0x5000}
	source := Generation{Current: 0x9000, H1: 0x5000, H2: 0x3000}
	for attempt := range 10 {
		v := Compare(Facts{Gen: source, Disk: UpToDate}, Facts{Gen: target, Disk: Inconsistent, Inconsistent: true}, true)
		if v.Result != ResultFull && v.Result != ResultBitmap {
			t.Fatalf("attempt %d: verdict %d by rule %d", attempt, v.Result, v.Rule)
		}
		old := source
		source, _ = source.StartSource(uint64(0x100000 + attempt*16))
		source = source.keepAncestor(old, target.Current)
	}
}
