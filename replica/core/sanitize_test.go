package core

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var (
	pairUp      = State{Role: Secondary, Peer: Secondary, Conn: Connected, Disk: UpToDate, PDisk: UpToDate}
	inHandshake = State{Role: Secondary, Conn: WFReportParams, Disk: UpToDate, PDisk: DUnknown}
)

func edited(s State, f func(*State)) State { f(&s); return s }

type sanitizeCase struct {
	name      string
	old, want State // want is the requested state edited into by next
	next      State
	rules     Rules
	log       []string
}

func (c sanitizeCase) run(t *testing.T) {
	t.Helper()
	got, log := Sanitize(c.old, c.next, c.rules)
	if got != c.want || !slices.Equal(log, c.log) {
		t.Errorf("%s: %v %q\nwant %v %q", c.name, got, log, c.want, c.log)
	}
}

func TestSanitizeForgetsPeer(t *testing.T) {
	for pdisk, want := range map[Disk]Disk{
		Diskless: DUnknown, Attaching: DUnknown, Failed: DUnknown, Negotiating: DUnknown, Inconsistent: Inconsistent,
		Outdated: Outdated, DUnknown: DUnknown, Consistent: DUnknown, UpToDate: DUnknown,
	} {
		for conn := range Connected {
			next := edited(pairUp, func(s *State) { s.Conn, s.PDisk, s.PeerIsp, s.UserIsp = conn, pdisk, true, true })
			sanitizeCase{
				name: conn.String() + "/" + pdisk.String(), old: pairUp, next: next,
				want: edited(next, func(s *State) { s.Peer, s.PDisk, s.PeerIsp = RoleUnknown, want, false }),
			}.run(t)
		}
	}
}

func TestSanitizeUnconfigured(t *testing.T) {
	unconf := State{Role: Secondary, Conn: StandAlone, Disk: Diskless, PDisk: DUnknown}
	waiting := edited(unconf, func(s *State) { s.AftrIsp = true })
	sanitizeCase{name: "unconfigured", old: waiting, next: waiting, want: unconf}.run(t)
	for _, keep := range []State{
		edited(waiting, func(s *State) { s.Conn = WFConnection }),
		edited(waiting, func(s *State) { s.Disk = UpToDate }),
		edited(waiting, func(s *State) { s.Role = Primary }),
	} {
		sanitizeCase{name: "configured", old: keep, next: keep, want: keep}.run(t)
	}
}

func TestSanitizeAbortsWithoutDisk(t *testing.T) {
	for conn := Connected + 1; conn < connEnd; conn++ {
		line := "Resync aborted."
		if conn == VerifyS || conn == VerifyT {
			line = "Online-verify aborted."
		}
		old, _ := Sanitize(pairUp, edited(pairUp, func(s *State) { s.Conn = conn }), Rules{})
		for disk := Diskless; disk <= Failed; disk++ {
			got, log := Sanitize(old, edited(old, func(s *State) { s.Disk = disk }), Rules{})
			if got.Conn != Connected || got.Disk != disk || !slices.Equal(log, []string{line}) {
				t.Errorf("%v, own disk %v: %v %q", conn, disk, got, log)
			}
			got, log = Sanitize(old, edited(old, func(s *State) { s.PDisk = disk }), Rules{})
			if got.Conn != Connected || got.PDisk != disk || !slices.Equal(log, []string{line}) {
				t.Errorf("%v, peer disk %v: %v %q", conn, disk, got, log)
			}
		}
	}
}

// Whoever was about to be overwritten holds old data: losing the other disk
// does not make it good, on either node.
func TestSanitizeAbortKeepsTargetOld(t *testing.T) {
	for _, conn := range []Conn{StartingSyncT, WFBitMapT, WFSyncUUID, SyncTarget, PausedSyncT, Behind} {
		target, _ := Sanitize(pairUp, edited(pairUp, func(s *State) { s.Conn = conn }), Rules{})
		got, _ := Sanitize(target, edited(target, func(s *State) { s.PDisk = Failed }), Rules{})
		if got.Disk > Outdated {
			t.Errorf("%v: the target ends as %v", conn, got)
		}
		again, _ := Sanitize(got, edited(got, func(s *State) { s.PDisk = Negotiating }), Rules{})
		if again.Disk > Outdated {
			t.Errorf("%v: attaching the peer's disk makes the target %v", conn, again)
		}
	}
	for _, conn := range []Conn{StartingSyncS, WFBitMapS, SyncSource, PausedSyncS, Ahead} {
		source, _ := Sanitize(pairUp, edited(pairUp, func(s *State) { s.Conn = conn }), Rules{})
		got, _ := Sanitize(source, edited(source, func(s *State) { s.Disk = Failed }), Rules{})
		if got.PDisk > Outdated {
			t.Errorf("%v: the source sees the target as %v", conn, got)
		}
	}
	asked := edited(pairUp, func(s *State) { s.Conn, s.PDisk = StartingSyncT, Diskless })
	diskless := edited(pairUp, func(s *State) { s.PDisk = Diskless })
	sanitizeCase{
		name: "a full sync that cannot start", old: diskless, next: asked, want: diskless, log: []string{"Resync aborted."},
	}.run(t)
}

func TestSanitizeLostWhileNegotiating(t *testing.T) {
	old := edited(pairUp, func(s *State) { s.Disk = Negotiating })
	cut := edited(old, func(s *State) { s.Conn = NetworkFailure })
	r := Rules{ExposedCurrent: 0x10, MetaCurrent: 0x11, AttachDisk: Outdated}
	lost := edited(cut, func(s *State) { s.Peer, s.Disk, s.PDisk = RoleUnknown, Outdated, DUnknown })
	sanitizeCase{name: "same data", old: old, next: cut, rules: r, want: lost}.run(t)
	r.MetaCurrent = 0x20
	lost.Disk = Diskless
	sanitizeCase{
		name: "other data", old: old, next: cut, rules: r, want: lost,
		log: []string{"Connection lost while negotiating, no data!"},
	}.run(t)
	known := edited(cut, func(s *State) { s.PDisk = Inconsistent })
	sanitizeCase{
		name: "what was known of the peer goes too", old: old, next: known, rules: r, want: lost,
		log: []string{"Connection lost while negotiating, no data!"},
	}.run(t)
	kept := edited(old, func(s *State) { s.PDisk = UpToDate })
	sanitizeCase{name: "still connected", old: old, next: kept, rules: r, want: kept}.run(t)
}

func TestSanitizeConnectedSettles(t *testing.T) {
	for _, c := range []struct{ disk, pdisk, wantDisk, wantPDisk Disk }{
		{Consistent, UpToDate, UpToDate, UpToDate},
		{Outdated, UpToDate, UpToDate, UpToDate},
		{UpToDate, Consistent, UpToDate, UpToDate},
		{UpToDate, Outdated, UpToDate, UpToDate},
		{Outdated, Outdated, UpToDate, UpToDate},
		{Outdated, Consistent, UpToDate, UpToDate},
		{Consistent, Diskless, UpToDate, Diskless},
		{Inconsistent, UpToDate, Inconsistent, UpToDate},
		// Nothing to compare with: deliberately not as DRBD 8.4.
		{Outdated, Diskless, Outdated, Diskless},
		{Outdated, Failed, Outdated, Failed},
		{Outdated, Negotiating, Outdated, Negotiating},
		{Outdated, Inconsistent, Outdated, Inconsistent},
		{Diskless, Outdated, Diskless, Outdated},
	} {
		next := edited(pairUp, func(s *State) { s.Disk, s.PDisk = c.disk, c.pdisk })
		want := edited(pairUp, func(s *State) { s.Disk, s.PDisk = c.wantDisk, c.wantPDisk })
		sanitizeCase{name: c.disk.String() + "/" + c.pdisk.String(), old: inHandshake, next: next, want: want}.run(t)
	}
}

func TestSanitizeClamps(t *testing.T) {
	type span [2]Disk
	good, bad := span{UpToDate, UpToDate}, span{Inconsistent, Inconsistent}
	target, sourcesPeer := span{Inconsistent, Outdated}, span{Inconsistent, Consistent}
	for conn, c := range map[Conn][2]span{
		WFBitMapT: {target, good}, StartingSyncT: {target, good}, WFSyncUUID: {target, good},
		Behind: {target, good}, SyncTarget: {bad, good}, SyncSource: {good, bad}, WFBitMapS: {good, sourcesPeer},
		StartingSyncS: {good, sourcesPeer}, Ahead: {good, sourcesPeer}, VerifyS: {good, good}, VerifyT: {good, good},
	} {
		for disk := Negotiating; disk < diskEnd; disk++ {
			for pdisk := Negotiating; pdisk < diskEnd; pdisk++ {
				next := edited(pairUp, func(s *State) { s.Conn, s.Disk, s.PDisk = conn, disk, pdisk })
				got, _ := Sanitize(pairUp, next, Rules{})
				if got.Conn != conn || got.Disk < c[0][0] || got.Disk > c[0][1] || got.PDisk < c[1][0] || got.PDisk > c[1][1] {
					t.Errorf("%v becomes %v", next, got)
				}
			}
		}
	}
}

// The states were seen in a DRBD 8.4.11 kernel log.
func TestSanitizeObserved(t *testing.T) {
	fresh := edited(pairUp, func(s *State) { s.Disk, s.PDisk = Inconsistent, Inconsistent })
	for _, c := range []sanitizeCase{
		{
			name: "handshake, target", old: inHandshake,
			next: edited(pairUp, func(s *State) { s.Peer, s.Conn = Primary, WFBitMapT }),
			want: edited(pairUp, func(s *State) { s.Peer, s.Conn, s.Disk = Primary, WFBitMapT, Outdated }),
		},
		{
			name: "handshake, source", old: inHandshake,
			next: edited(pairUp, func(s *State) { s.Conn = WFBitMapS }),
			want: edited(pairUp, func(s *State) { s.Conn, s.PDisk = WFBitMapS, Consistent }),
		},
		{
			name: "resync begins", old: edited(pairUp, func(s *State) { s.Conn, s.Disk = WFSyncUUID, Outdated }),
			next: edited(pairUp, func(s *State) { s.Conn, s.Disk = SyncTarget, Outdated }),
			want: edited(pairUp, func(s *State) { s.Conn, s.Disk = SyncTarget, Inconsistent }),
		},
		{
			name: "invalidate", old: pairUp, next: edited(pairUp, func(s *State) { s.Conn = StartingSyncT }),
			want: edited(pairUp, func(s *State) { s.Conn, s.Disk = StartingSyncT, Outdated }),
		},
		{
			name: "invalidate-remote", old: pairUp, next: edited(pairUp, func(s *State) { s.Conn = StartingSyncS }),
			want: edited(pairUp, func(s *State) { s.Conn, s.PDisk = StartingSyncS, Consistent }),
		},
		{
			name: "attach while connected", old: edited(pairUp, func(s *State) { s.Disk = Negotiating }),
			next: edited(pairUp, func(s *State) { s.Conn, s.Disk = WFBitMapT, Negotiating }),
			want: edited(pairUp, func(s *State) { s.Conn, s.Disk = WFBitMapT, Inconsistent }),
			log:  []string{"Implicitly upgraded disk"},
		},
		{
			name: "forced promotion of a fresh pair", old: fresh,
			next: edited(fresh, func(s *State) { s.Role, s.Disk = Primary, UpToDate }),
			want: edited(fresh, func(s *State) { s.Role, s.Disk = Primary, UpToDate }),
		},
		{
			name: "disconnect", old: pairUp, next: edited(pairUp, func(s *State) { s.Conn = TearDown }),
			want: edited(pairUp, func(s *State) { s.Peer, s.Conn, s.PDisk = RoleUnknown, TearDown, DUnknown }),
		},
		{
			name: "outdate while connected", old: pairUp, next: edited(pairUp, func(s *State) { s.Disk = Outdated }),
			want: pairUp,
		},
	} {
		c.run(t)
	}
}

func TestSanitizeSuspends(t *testing.T) {
	pri := edited(pairUp, func(s *State) { s.Role = Primary })
	alone := edited(pri, func(s *State) { s.Peer, s.Conn, s.PDisk = RoleUnknown, NetworkFailure, DUnknown })
	fence, noData := Rules{Fencing: FencingResourceAndStonith}, Rules{OnNoData: NoDataSuspendIO}
	fenced := edited(alone, func(s *State) { s.SuspFen = true })
	blind := edited(pri, func(s *State) { s.Disk, s.PDisk = Failed, Inconsistent })
	secondary := edited(alone, func(s *State) { s.Role = Secondary })
	for _, c := range []sanitizeCase{
		{name: "link lost", old: pri, next: alone, rules: fence, want: fenced},
		{name: "not without the policy", old: pri, next: alone, rules: Rules{Fencing: FencingResourceOnly}, want: alone},
		{name: "thawed stays thawed", old: fenced, next: alone, rules: fence, want: alone},
		{name: "Secondary", old: pairUp, next: secondary, rules: fence, want: secondary},
		{
			name: "peer known outdated", old: pri, next: edited(alone, func(s *State) { s.PDisk = Outdated }), rules: fence,
			want: edited(alone, func(s *State) { s.PDisk = Outdated }),
		},
		{name: "no data", old: pri, next: blind, rules: noData, want: edited(blind, func(s *State) { s.SuspNod = true })},
		{name: "no data, I/O errors", old: pri, next: blind, want: blind},
		{name: "resumed by hand", old: edited(blind, func(s *State) { s.SuspNod = true }), next: blind, rules: noData, want: blind},
		{name: "the peer has data", old: pri, next: edited(pri, func(s *State) { s.Disk = Failed }), rules: noData, want: edited(pri, func(s *State) { s.Disk = Failed })},
	} {
		c.run(t)
	}
}

func TestSanitizePauses(t *testing.T) {
	source := edited(pairUp, func(s *State) { s.Conn, s.PDisk = SyncSource, Inconsistent })
	target := edited(pairUp, func(s *State) { s.Conn, s.Disk = SyncTarget, Inconsistent })
	for _, flag := range []int{2, 4, 8, 14} {
		for run, paused := range map[State]Conn{source: PausedSyncS, target: PausedSyncT} {
			stopped := edited(withFlags(run, flag), func(s *State) { s.Conn = paused })
			sanitizeCase{name: "pause", old: run, next: withFlags(run, flag), want: stopped}.run(t)
			sanitizeCase{name: "resume", old: stopped, next: edited(run, func(s *State) { s.Conn = paused }), want: run}.run(t)
		}
	}
	old := edited(target, func(s *State) { s.Conn, s.Disk, s.UserIsp = PausedSyncT, Outdated, true })
	sanitizeCase{
		name: "resumed over an Outdated disk", old: old, next: edited(old, func(s *State) { s.UserIsp = false }), want: target,
	}.run(t)
}

// sanitizeRules are corners of the rules that Sanitize looks at.
var sanitizeRules = []Rules{
	{},
	{Fencing: FencingResourceAndStonith, OnNoData: NoDataSuspendIO, MetaCurrent: 8},
	{OnNoData: NoDataSuspendIO, AttachDisk: UpToDate},
	{Fencing: FencingResourceAndStonith, AttachDisk: Inconsistent},
}

// Every state, allowed or not, becomes one that a second pass leaves alone,
// and that nothing downstream stumbles over.
func TestSanitizeFixpoint(t *testing.T) {
	olds := []State{{Role: Secondary}, pairUp, edited(pairUp, func(s *State) { s.Role, s.Conn, s.Disk = Primary, PausedSyncT, Inconsistent })}
	allStates(func(s State) {
		for f := 0; f < 64; f += 7 {
			for i, r := range sanitizeRules {
				old := olds[(f+i)%len(olds)]
				next := withFlags(s, f)
				once, _ := Sanitize(old, next, r)
				twice, log := Sanitize(old, once, r)
				if once != twice || len(log) != 0 {
					t.Fatalf("%v\nbecomes %v\nthen %v %q", next, once, twice, log)
				}
				checkSanitized(t, next, once)
				Validate(once, r)
				ValidateStep(old, once, r)
				Check(old, next, r)
			}
		}
	})
}

func checkSanitized(t *testing.T, next, s State) {
	t.Helper()
	switch {
	case !s.Valid():
		t.Fatalf("%v becomes invalid %v", next, s)
	case s.Conn > Connected && (s.Disk < Inconsistent || s.PDisk < Inconsistent):
		t.Fatalf("%v: %v resyncs without a disk", next, s)
	case s.Conn > Connected && s.Disk < UpToDate && s.PDisk < UpToDate:
		t.Fatalf("%v: %v resyncs without good data", next, s)
	case s.Conn == Connected && next.Disk == Outdated && s.Disk == UpToDate && s.PDisk < Outdated:
		t.Fatalf("%v: %v turned old data good", next, s)
	case s.Conn < Connected && (s.Peer != RoleUnknown || s.PDisk > DUnknown || s.PDisk < Inconsistent):
		t.Fatalf("%v: %v knows the peer without a connection", next, s)
	case s.Role != next.Role:
		t.Fatalf("%v: %v changed the role", next, s)
	}
}

func drawState(t *rapid.T, label string) State {
	s := State{
		Role:  Role(rapid.IntRange(1, 2).Draw(t, label+" role")),
		Peer:  Role(rapid.IntRange(0, 2).Draw(t, label+" peer")),
		Conn:  Conn(rapid.IntRange(0, int(connEnd)-1).Draw(t, label+" conn")),
		Disk:  Disk(rapid.IntRange(0, int(diskEnd)-1).Draw(t, label+" disk")),
		PDisk: Disk(rapid.IntRange(0, int(diskEnd)-1).Draw(t, label+" pdisk")),
	}
	return withFlags(s, rapid.IntRange(0, 63).Draw(t, label+" flags"))
}

// A step's state is the start of the next: with any history, a request for
// what is already there changes nothing.
func TestSanitizeSettledStateIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rapid.SampledFrom(sanitizeRules).Draw(t, "rules")
		s, _ := Sanitize(drawState(t, "old"), drawState(t, "next"), r)
		if again, _ := Sanitize(s, s, r); again != s {
			t.Fatalf("%v at rest becomes %v", s, again)
		}
		if _, err := Check(s, s, r); err != NothingToDo {
			t.Fatalf("Check(%v, itself) = %v", s, err)
		}
	})
}
