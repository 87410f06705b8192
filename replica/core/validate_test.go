package core

import (
	"testing"

	"pgregory.net/rapid"
)

var (
	priUp    = edited(pairUp, func(s *State) { s.Role = Primary })
	priAlone = State{Role: Primary, Conn: WFConnection, Disk: UpToDate, PDisk: DUnknown}
	secAlone = State{Role: Secondary, Conn: WFConnection, Disk: UpToDate, PDisk: DUnknown}
	verifier = Rules{VerifyAlg: true, ProtocolVersion: 101}
)

func TestValidateRows(t *testing.T) {
	both := edited(priUp, func(s *State) { s.Peer = Primary })
	verify := edited(pairUp, func(s *State) { s.Conn = VerifyS })
	in := func(c Conn, disk, pdisk Disk) State {
		return State{Role: Secondary, Peer: Secondary, Conn: c, Disk: disk, PDisk: pdisk}
	}
	for _, c := range []struct {
		name string
		s    State
		r    Rules
		want StateErr
	}{
		{"pair", pairUp, Rules{}, Success},
		{"primary", priUp, Rules{Open: true}, Success},
		{"two primaries", both, Rules{}, ErrTwoPrimaries},
		{"two primaries allowed", both, Rules{TwoPrimaries: true}, Success},
		{"primary, other volume's peer primary", priUp, Rules{OtherPeerPrimary: true}, ErrOtherVolPrimary},
		{"the same, allowed", priUp, Rules{OtherPeerPrimary: true, TwoPrimaries: true}, Success},
		{"secondary, other volume's peer primary", pairUp, Rules{OtherPeerPrimary: true}, Success},
		{"first hit wins", both, Rules{OtherPeerPrimary: true}, ErrTwoPrimaries},
		{"secondary held open", pairUp, Rules{Open: true}, ErrDeviceInUse},
		{"primary alone", priAlone, Rules{}, Success},
		{"primary alone, Outdated", edited(priAlone, func(s *State) { s.Disk = Outdated }), Rules{}, ErrNoUpToDateDisk},
		{"primary alone, Consistent", edited(priAlone, func(s *State) { s.Disk = Consistent }), Rules{}, ErrNoUpToDateDisk},
		{"primary alone, diskless", edited(priAlone, func(s *State) { s.Disk = Diskless }), Rules{}, ErrNoUpToDateDisk},
		{"secondary alone, Inconsistent", edited(secAlone, func(s *State) { s.Disk = Inconsistent }), Rules{}, Success},
		{"unfenced", priAlone, Rules{Fencing: FencingResourceOnly}, ErrPrimaryNotFenced},
		{"unfenced, stonith", priAlone, Rules{Fencing: FencingResourceAndStonith}, ErrPrimaryNotFenced},
		{"fenced", edited(priAlone, func(s *State) { s.PDisk = Outdated }), Rules{Fencing: FencingResourceOnly}, Success},
		{"connected primary needs no fence", priUp, Rules{Fencing: FencingResourceOnly}, Success},
		{"primary of a fresh pair", edited(priUp, func(s *State) { s.Disk, s.PDisk = Inconsistent, Inconsistent }), Rules{}, ErrNoUpToDateDisk},
		{"primary without any disk, syncing", edited(priUp, func(s *State) { s.Conn, s.Disk, s.PDisk = SyncTarget, Inconsistent, Diskless }), Rules{}, ErrNoUpToDateDisk},
		{"sync without local disk", in(SyncTarget, Negotiating, UpToDate), Rules{}, ErrNoLocalDisk},
		{"sync without remote disk", in(SyncSource, UpToDate, Diskless), Rules{}, ErrNoRemoteDisk},
		{"sync without good data", in(WFBitMapT, Outdated, Consistent), Rules{}, ErrNoUpToDateDisk},
		{"Connected and Outdated", in(Connected, Outdated, UpToDate), Rules{}, ErrConnectedOutdates},
		{"WFBitMapS and Outdated", in(WFBitMapS, Outdated, UpToDate), Rules{}, ErrConnectedOutdates},
		{"SyncSource and Outdated", in(SyncSource, Outdated, UpToDate), Rules{}, ErrConnectedOutdates},
		{"PausedSyncS and Outdated", in(PausedSyncS, Outdated, UpToDate), Rules{}, ErrConnectedOutdates},
		{"WFBitMapT and Outdated", in(WFBitMapT, Outdated, UpToDate), Rules{}, Success},
		{"Outdated beside a diskless peer", in(Connected, Outdated, Diskless), Rules{}, Success},
		{"verify without algorithm", verify, Rules{ProtocolVersion: 101}, ErrNoVerifyAlg},
		{"verify with an old peer", verify, Rules{VerifyAlg: true, ProtocolVersion: 87}, ErrNotSupported},
		{"verify", verify, Rules{VerifyAlg: true, ProtocolVersion: 88}, Success},
		{"VerifyT without algorithm", edited(verify, func(s *State) { s.Conn = VerifyT }), Rules{ProtocolVersion: 101}, ErrNoVerifyAlg},
		{"primary over an Outdated disk", edited(priUp, func(s *State) { s.Disk, s.PDisk = Outdated, Inconsistent }), Rules{}, ErrNoUpToDateDisk},
		{"diskless primary", edited(priUp, func(s *State) { s.Disk = Diskless }), Rules{}, Success},
		{"diskless primary beside old data", edited(priUp, func(s *State) { s.Disk, s.PDisk = Diskless, Outdated }), Rules{}, ErrNoUpToDateDisk},
		{"StartingSyncS to nobody", in(StartingSyncS, UpToDate, DUnknown), Rules{}, ErrNeedConnection},
		{"StartingSyncT from nobody", in(StartingSyncT, UpToDate, DUnknown), Rules{}, ErrNeedConnection},
		{"Connected to nobody", in(Connected, UpToDate, DUnknown), Rules{}, ErrConnectedOutdates},
	} {
		if got := Validate(c.s, c.r); got != c.want {
			t.Errorf("%s: %v %+v: %v, want %v", c.name, c.s, c.r, got, c.want)
		}
	}
}

func drawRules(t *rapid.T) Rules {
	return Rules{
		TwoPrimaries: rapid.Bool().Draw(t, "two primaries"), Fencing: Fencing(rapid.IntRange(0, 2).Draw(t, "fencing")),
		OnNoData: NoDataPolicy(rapid.IntRange(0, 1).Draw(t, "no data")), HasNet: rapid.Bool().Draw(t, "net"),
		VerifyAlg: rapid.Bool().Draw(t, "alg"), Open: rapid.Bool().Draw(t, "open"),
		OtherPeerPrimary: rapid.Bool().Draw(t, "other"), ProtocolVersion: rapid.SampledFrom([]int{0, 87, 101}).Draw(t, "protocol"),
		MetaCurrent: rapid.SampledFrom([]uint64{0, 8}).Draw(t, "meta"), AttachDisk: Disk(rapid.IntRange(0, 8).Draw(t, "attach")),
	}
}

// "down" always works, unless somebody holds the device open.
func TestValidateNeverRefusesUnconfigured(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRules(t)
		s := drawState(t, "s")
		s.Role, s.Conn, s.Disk = Secondary, StandAlone, Diskless
		s, _ = Sanitize(drawState(t, "old"), s, r)
		want := Success
		if r.Open {
			want = ErrDeviceInUse
		}
		if got := Validate(s, r); got != want {
			t.Fatalf("%v %+v: %v, want %v", s, r, got, want)
		}
	})
}

// The promise: an Inconsistent or Outdated node is never promoted, except
// while connected to a peer with good data.
func TestCheckNeverPromotesBadData(t *testing.T) {
	for _, r := range []Rules{{}, {HasNet: true, TwoPrimaries: true}, {Fencing: FencingResourceOnly}} {
		allStates(func(s State) {
			old, _ := Sanitize(s, s, r)
			if old.Role != Secondary {
				return
			}
			next, err := Check(old, edited(old, func(s *State) { s.Role = Primary }), r)
			if err.Failed() {
				return
			}
			if good := next.Disk == UpToDate || next.Conn >= Connected && next.PDisk == UpToDate; !good || next.Disk > old.Disk {
				t.Fatalf("%v was promoted to %v", old, next)
			}
		})
	}
}

type stepCase struct {
	name      string
	old, next State
	r         Rules
	want      StateErr
}

func stepCases() []stepCase {
	to := func(s State, c Conn) State { return edited(s, func(s *State) { s.Conn = c }) }
	standAlone := to(secAlone, StandAlone)
	diskless := edited(secAlone, func(s *State) { s.Disk = Diskless })
	params := edited(pairUp, func(s *State) { s.Conn = WFReportParams })
	forced := edited(pairUp, func(s *State) { s.Peer, s.Disk = Primary, Inconsistent })
	busy := edited(pairUp, func(s *State) { s.Conn, s.Disk = SyncTarget, Inconsistent })
	attaching := edited(secAlone, func(s *State) { s.Disk = Attaching })
	set := func(s State, d Disk) State { return edited(s, func(s *State) { s.Disk = d }) }
	primary := func(s State) State { return edited(s, func(s *State) { s.Role = Primary }) }
	leave := edited(to(priAlone, Disconnecting), func(s *State) { s.PDisk = Outdated })
	net := Rules{HasNet: true}
	return []stepCase{
		{"invalidate", pairUp, to(pairUp, StartingSyncT), net, Success},
		{"invalidate while syncing", busy, to(busy, StartingSyncT), net, ErrResyncRunning},
		{"invalidate-remote while verifying", to(pairUp, VerifyT), to(pairUp, StartingSyncS), net, ErrResyncRunning},
		{"invalidate alone", secAlone, to(pairUp, StartingSyncT), net, ErrNeedConnection},
		{"disconnect", pairUp, to(pairUp, Disconnecting), net, Success},
		{"disconnect twice", standAlone, to(standAlone, Disconnecting), net, ErrAlreadyStandAlone},
		{"attach", diskless, attaching, net, Success},
		{"raise from nothing", diskless, secAlone, net, ErrDiskless},
		{"attached", attaching, secAlone, net, Success},
		{"attached, Outdated", attaching, set(secAlone, Outdated), net, Success},
		{"outdate", secAlone, set(secAlone, Outdated), net, Success},
		{"outdate an Inconsistent disk", set(secAlone, Inconsistent), set(secAlone, Outdated), net, ErrLowerThanOutdated},
		{"outdate no disk", diskless, set(secAlone, Outdated), net, ErrLowerThanOutdated},
		{
			"outdate beside a diskless peer", edited(pairUp, func(s *State) { s.PDisk = Diskless }),
			edited(pairUp, func(s *State) { s.Disk, s.PDisk = Outdated, Diskless }), net, ErrConnectedOutdates,
		},
		{"connect", to(secAlone, Unconnected), secAlone, net, Success},
		{"connect at once", standAlone, secAlone, net, ErrNoNetConfig},
		{"connect without configuration", to(secAlone, Unconnected), secAlone, Rules{}, ErrNoNetConfig},
		{"waiting is no step", secAlone, primary(secAlone), Rules{}, Success},
		{"promote in the handshake", params, primary(params), net, ErrTransient},
		{"detach in the handshake", params, set(params, Failed), net, ErrTransient},
		{"end the handshake", params, pairUp, net, Success},
		{"promote before the forced resync", forced, primary(forced), net, ErrTransient},
		{"promote in the bitmap exchange", to(forced, WFBitMapT), primary(to(forced, WFBitMapT)), net, ErrTransient},
		{"promote waiting for the sync UUID", to(forced, WFSyncUUID), primary(to(forced, WFSyncUUID)), net, ErrTransient},
		{"promote while SyncTarget", busy, primary(busy), net, Success},
		{"promote a diskless node", set(pairUp, Diskless), primary(set(pairUp, Diskless)), net, Success},
		{"promote", pairUp, priUp, net, Success},
		{"verify", pairUp, to(pairUp, VerifyS), net, Success},
		{"verify alone", secAlone, to(pairUp, VerifyS), net, ErrNeedConnection},
		{"verify while syncing", busy, to(pairUp, VerifyS), net, ErrResyncRunning},
		{"verify over bad data", set(pairUp, Inconsistent), to(pairUp, VerifyS), net, ErrNoUpToDateDisk},
		{"sync without a socket", secAlone, to(pairUp, SyncSource), net, ErrNeedConnection},
		{"target without a socket", standAlone, to(busy, SyncTarget), net, ErrNeedConnection},
		{"sync", to(pairUp, WFBitMapS), to(pairUp, SyncSource), net, Success},
		{"leave and outdate the peer, alone", priAlone, leave, net, ErrOutdateNoConn},
		{"leave and outdate the peer", priUp, leave, net, Success},
		{"overwrite good data", set(pairUp, Inconsistent), to(pairUp, StartingSyncS), net, ErrNoUpToDateDisk},
		{
			"be overwritten by bad data", edited(pairUp, func(s *State) { s.PDisk = Inconsistent }),
			to(pairUp, StartingSyncT), net, ErrNoUpToDateDisk,
		},
		{
			"choose between two fresh disks", edited(set(pairUp, Inconsistent), func(s *State) { s.PDisk = Inconsistent }),
			to(pairUp, StartingSyncS), net, Success,
		},
	}
}

func TestValidateStep(t *testing.T) {
	for _, c := range stepCases() {
		if got := ValidateStep(c.old, c.next, c.r); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// hardEdges lists, for every connection state, those it may not be left for
// (the rest it may), with the reason.
func hardEdge(from, to Conn) StateErr {
	if from == to {
		return Success
	}
	switch from {
	case StandAlone:
		if to == Disconnecting {
			return ErrAlreadyStandAlone
		}
		if to != Unconnected {
			return ErrNeedConnection
		}
	case Disconnecting:
		if to >= Connected {
			return ErrNeedConnection
		}
		if to != StandAlone {
			return ErrTransient
		}
	case Timeout, BrokenPipe, NetworkFailure, ProtocolError, TearDown:
		if to >= Connected {
			return ErrNeedConnection
		}
		if to != Unconnected && to != Disconnecting {
			return ErrTransient
		}
	case Unconnected, WFConnection:
		if to >= Connected {
			return ErrNeedConnection
		}
	}
	return Success
}

func TestValidateHard(t *testing.T) {
	for from := range connEnd {
		for to := range connEnd {
			if got, want := ValidateHard(State{Conn: from}, State{Conn: to}), hardEdge(from, to); got != want {
				t.Errorf("%v to %v: %v, want %v", from, to, got, want)
			}
		}
	}
	if got := ValidateHard(State{Disk: Diskless}, State{Disk: Failed}); got != ErrDiskless {
		t.Errorf("a missing disk fails: %v", got)
	}
	if got := ValidateHard(State{Disk: UpToDate}, State{Disk: Failed}); got != Success {
		t.Errorf("a disk fails: %v", got)
	}
}

// Edges that a DRBD 8.4.11 kernel log shows.
func TestValidateHardObserved(t *testing.T) {
	for _, path := range [][]Conn{
		{StandAlone, Unconnected, WFConnection, WFReportParams, Connected, NetworkFailure, Unconnected},
		{Connected, TearDown, Unconnected, WFConnection, WFReportParams, WFBitMapT, WFSyncUUID, SyncTarget, Connected},
		{Connected, Disconnecting, StandAlone},
		{WFReportParams, Disconnecting, StandAlone},
		{WFReportParams, NetworkFailure, Disconnecting, StandAlone},
		{WFReportParams, WFBitMapS, SyncSource, Connected, StartingSyncS, SyncSource},
	} {
		for i, to := range path[1:] {
			if got := ValidateHard(State{Conn: path[i]}, State{Conn: to}); got != Success {
				t.Errorf("%v to %v: %v", path[i], to, got)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	to := func(s State, c Conn) State { return edited(s, func(s *State) { s.Conn = c }) }
	fresh := edited(pairUp, func(s *State) { s.Disk, s.PDisk = Inconsistent, Inconsistent })
	oldAlone := edited(secAlone, func(s *State) { s.Conn, s.Disk = StandAlone, Outdated })
	noPeerDisk := edited(pairUp, func(s *State) { s.PDisk = Diskless })
	primary := func(s State) State { return edited(s, func(s *State) { s.Role = Primary }) }
	net := Rules{HasNet: true}
	for _, c := range []struct {
		name        string
		old, wanted State
		r           Rules
		next        State
		err         StateErr
	}{
		{"promote", pairUp, priUp, net, priUp, Success},
		{"promote a fresh pair", fresh, primary(fresh), net, primary(fresh), ErrNoUpToDateDisk},
		{"promote, Outdated", oldAlone, primary(oldAlone), Rules{}, primary(oldAlone), ErrNoUpToDateDisk},
		{"promote beside a Primary", edited(pairUp, func(s *State) { s.Peer = Primary }), edited(priUp, func(s *State) { s.Peer = Primary }), net, edited(priUp, func(s *State) { s.Peer = Primary }), ErrTwoPrimaries},
		{"demote while mounted", priUp, pairUp, Rules{HasNet: true, Open: true}, pairUp, ErrDeviceInUse},
		{"demote", priUp, pairUp, net, pairUp, Success},
		{"outdate while connected", pairUp, edited(pairUp, func(s *State) { s.Disk = Outdated }), net, pairUp, NothingToDo},
		{"disconnect twice", oldAlone, to(oldAlone, Disconnecting), Rules{}, to(oldAlone, Disconnecting), ErrAlreadyStandAlone},
		{"the state machine has the last word", to(secAlone, TearDown), to(secAlone, WFReportParams), net, to(secAlone, WFReportParams), ErrTransient},
		{"invalidate", pairUp, to(pairUp, StartingSyncT), net, edited(pairUp, func(s *State) { s.Conn, s.Disk = StartingSyncT, Outdated }), Success},
		{"invalidate from a missing disk", noPeerDisk, to(noPeerDisk, StartingSyncT), net, noPeerDisk, ErrNoRemoteDisk},
		{"invalidate a missing disk", edited(pairUp, func(s *State) { s.Disk = Diskless }), edited(pairUp, func(s *State) { s.Conn, s.Disk = StartingSyncT, Diskless }), net, edited(pairUp, func(s *State) { s.Disk = Diskless }), ErrNoLocalDisk},
		{"verify a fresh pair", fresh, to(fresh, VerifyS), verifier, to(pairUp, VerifyS), ErrNoUpToDateDisk},
	} {
		next, err := Check(c.old, c.wanted, c.r)
		if next != c.next || err != c.err {
			t.Errorf("%s: %v, %v\nwant %v, %v", c.name, next, err, c.next, c.err)
		}
	}
}

// What was wrong before does not forbid the next step; what is newly wrong
// does, even with the same number.
func TestCheckLetsOldFaultsPass(t *testing.T) {
	both := edited(priUp, func(s *State) { s.Peer = Primary })
	paused := edited(both, func(s *State) { s.UserIsp = true })
	if next, err := Check(both, paused, Rules{HasNet: true}); err != Success || next != paused {
		t.Errorf("a step between two-primaries states: %v, %v", next, err)
	}
	open := Rules{HasNet: true, Open: true, OtherPeerPrimary: true}
	if _, err := Check(pairUp, priUp, open); err != ErrOtherVolPrimary {
		t.Errorf("promotion with an old fault: %v, want %v", err, ErrOtherVolPrimary)
	}
	// Old: Primary without good data (one reason for -2). New: also alone.
	blind := edited(priUp, func(s *State) { s.Disk, s.PDisk = Outdated, Inconsistent })
	alone := edited(blind, func(s *State) { s.Conn = Disconnecting })
	if _, err := Check(blind, alone, Rules{HasNet: true}); err != ErrNoUpToDateDisk {
		t.Errorf("an old -2 excuses a new one: %v", err)
	}
}
