package core

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// allStates calls visit with every combination of roles, connection and disks.
func allStates(visit func(State)) {
	for role := range roleEnd {
		for peer := range roleEnd {
			for conn := range connEnd {
				for disk := range diskEnd {
					for pdisk := range diskEnd {
						visit(State{Role: role, Peer: peer, Conn: conn, Disk: disk, PDisk: pdisk})
					}
				}
			}
		}
	}
}

// withFlags returns s with its six flags taken from the low bits of f.
func withFlags(s State, f int) State {
	s.Susp, s.AftrIsp, s.PeerIsp = f&1 != 0, f&2 != 0, f&4 != 0
	s.UserIsp, s.SuspNod, s.SuspFen = f&8 != 0, f&16 != 0, f&32 != 0
	return s
}

func TestNamesAndNumbers(t *testing.T) {
	for i, name := range strings.Fields("Unknown Primary Secondary Role(3)") {
		if got := Role(i).String(); got != name {
			t.Errorf("Role %d is %q, want %q", i, got, name)
		}
	}
	conns := "StandAlone Disconnecting Unconnected Timeout BrokenPipe NetworkFailure ProtocolError TearDown " +
		"WFConnection WFReportParams Connected StartingSyncS StartingSyncT WFBitMapS WFBitMapT WFSyncUUID " +
		"SyncSource SyncTarget VerifyS VerifyT PausedSyncS PausedSyncT Ahead Behind Conn(24)"
	for i, name := range strings.Fields(conns) {
		if got := Conn(i).String(); got != name {
			t.Errorf("Conn %d is %q, want %q", i, got, name)
		}
	}
	disks := "Diskless Attaching Failed Negotiating Inconsistent Outdated DUnknown Consistent UpToDate Disk(9)"
	for i, name := range strings.Fields(disks) {
		if got := Disk(i).String(); got != name {
			t.Errorf("Disk %d is %q, want %q", i, got, name)
		}
	}
	// The numbers that other software knows by heart.
	if Behind != 23 || Connected != 10 || SyncTarget != 17 || UpToDate != 8 || DUnknown != 6 || Secondary != 2 {
		t.Error("a state number moved")
	}
}

func TestPackedLayout(t *testing.T) {
	for _, c := range []struct {
		s    State
		want uint32
	}{
		{State{Role: Secondary}, 2},
		{State{Peer: Primary}, 1 << 2},
		{State{Conn: Behind}, 23 << 4},
		{State{Disk: UpToDate}, 8 << 9},
		{State{PDisk: UpToDate}, 8 << 13},
		{State{Susp: true}, 1 << 17},
		{State{AftrIsp: true}, 1 << 18},
		{State{PeerIsp: true}, 1 << 19},
		{State{UserIsp: true}, 1 << 20},
		{State{SuspNod: true}, 1 << 21},
		{State{SuspFen: true}, 1 << 22},
	} {
		if got := c.s.Packed(); got != c.want {
			t.Errorf("%v packs to %#x, want %#x", c.s, got, c.want)
		}
	}
}

func TestUnpackInvertsPacked(t *testing.T) {
	f := 0
	allStates(func(s State) {
		f++
		s = withFlags(s, f)
		if got, err := Unpack(s.Packed()); err != nil || got != s {
			t.Fatalf("Unpack(Packed(%v)) = %v, %v", s, got, err)
		}
	})
}

func TestUnpackRefusesNonsense(t *testing.T) {
	for name, word := range map[string]uint32{
		"role": 3, "peer": 3 << 2, "conn": 24 << 4, "disk": 9 << 9, "pdsk": 15 << 13, "bit 23": 1 << 23, "all": math.MaxUint32,
	} {
		if s, err := Unpack(word); !errors.Is(err, ErrStateWord) || s != (State{}) {
			t.Errorf("%s: Unpack(%#x) = %v, %v", name, word, s, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(uint32(0x1a2b3c))
	f.Fuzz(func(t *testing.T, word uint32) {
		if s, err := Unpack(word); err == nil && (s.Packed() != word || !s.Valid()) {
			t.Fatalf("Unpack(%#x) = %v, which packs to %#x", word, s, s.Packed())
		}
	})
}

func TestStateString(t *testing.T) {
	const observed = "{ cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate r----- }"
	s := State{Role: Primary, Peer: Secondary, Conn: Connected, Disk: UpToDate, PDisk: UpToDate}
	if got := s.String(); got != observed {
		t.Errorf("got %s, want %s", got, observed)
	}
	for f, flags := range map[int]string{
		0: "r-----", 1: "s-----", 2: "ra----", 4: "r-p---", 8: "r--u--", 16: "s----N", 32: "s---F-", 63: "sapuFN",
	} {
		if got := withFlags(s, f).String(); !strings.Contains(got, " "+flags+" }") {
			t.Errorf("flags %d: %s, want %s", f, got, flags)
		}
	}
}

// The wanted texts are lines of a DRBD 8.4.11 kernel log.
func TestDiff(t *testing.T) {
	up := State{Role: Secondary, Peer: Secondary, Conn: Connected, Disk: UpToDate, PDisk: UpToDate}
	params := State{Role: Secondary, Conn: WFReportParams, Disk: UpToDate, PDisk: DUnknown}
	edit := func(s State, f func(*State)) State { f(&s); return s }
	for want, c := range map[string][2]State{
		"": {up, up},
		"peer( Unknown -> Secondary ) conn( WFReportParams -> Connected ) pdsk( DUnknown -> Inconsistent ) ": {
			params, edit(up, func(s *State) { s.PDisk = Inconsistent }),
		},
		"peer( Unknown -> Primary ) conn( WFReportParams -> WFBitMapT ) disk( UpToDate -> Outdated ) pdsk( DUnknown -> UpToDate ) ": {
			params, edit(up, func(s *State) { s.Peer, s.Conn, s.Disk = Primary, WFBitMapT, Outdated }),
		},
		"role( Secondary -> Primary ) disk( Inconsistent -> UpToDate ) ": {
			edit(up, func(s *State) { s.Disk = Inconsistent }), edit(up, func(s *State) { s.Role = Primary }),
		},
		"susp( 0 -> 1 ) ": {up, edit(up, func(s *State) { s.Susp = true })},
		"susp( 1 -> 0 ) ": {edit(up, func(s *State) { s.SuspFen, s.SuspNod = true, true }), up},
		"aftr_isp( 0 -> 1 ) peer_isp( 0 -> 1 ) user_isp( 0 -> 1 ) ": {
			up, edit(up, func(s *State) { s.AftrIsp, s.PeerIsp, s.UserIsp = true, true, true }),
		},
	} {
		if got := c[0].Diff(c[1]); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	suspended := edit(up, func(s *State) { s.SuspNod = true })
	if got := suspended.Diff(edit(suspended, func(s *State) { s.Susp = true })); got != "" {
		t.Errorf("a second reason to suspend is printed: %q", got)
	}
}

func TestStateErrTable(t *testing.T) {
	for _, c := range []struct {
		err  StateErr
		n    int
		exit int
		text string
	}{
		{Success, 1, 0, "Success"},
		{NothingToDo, 2, 0, "Nothing to do"},
		{3, 3, 0, "Success"},
		{4, 4, 0, "Success"},
		{ErrTwoPrimaries, -1, 11, "Multiple primaries not allowed by config"},
		{ErrNoUpToDateDisk, -2, 17, "Need access to UpToDate data"},
		{ErrNoLocalDisk, -4, 16, "Can not resync without local disk"},
		{ErrNoRemoteDisk, -5, 11, "Can not resync without remote disk"},
		{ErrConnectedOutdates, -6, 11, "Refusing to be Outdated while Connected"},
		{ErrPrimaryNotFenced, -7, 11, "Refusing to be Primary while peer is not outdated"},
		{ErrResyncRunning, -8, 11, "Can not start OV/resync since it is already active"},
		{ErrAlreadyStandAlone, -9, 11, "Can not disconnect a StandAlone device"},
		{ErrRefusedByPeer, -10, 11, "State change was refused by peer node"},
		{ErrDiskless, -11, 11, "Device is diskless, the requested operation requires a disk"},
		{ErrDeviceInUse, -12, 11, "Device is held open by someone"},
		{ErrNoNetConfig, -13, 11, "Have no net/connection configuration"},
		{ErrNoVerifyAlg, -14, 11, "Need a verify algorithm to start online verify"},
		{ErrNeedConnection, -15, 11, "Need a connection to start verify or resync"},
		{ErrLowerThanOutdated, -16, 5, "Disk state is lower than outdated"},
		{ErrNotSupported, -17, 11, "Peer does not support protocol"},
		{ErrTransient, -18, 11, "In transient state, retry after next state change"},
		{ErrConcurrent, -19, 11, "Concurrent state changes detected and aborted"},
		{ErrOtherVolPrimary, -20, 11, "Other vol primary on peer not allowed by config"},
		{ErrOutdateNoConn, -21, 11, "Need a connection for a graceful disconnect/outdate peer"},
		{0, 0, 20, "Unknown state error"},
		{-3, -3, 20, "Unknown state error"},
		{-22, -22, 20, "Unknown state error"},
		{math.MinInt, math.MinInt, 20, "Unknown state error"},
	} {
		if int(c.err) != c.n || c.err.ExitCode() != c.exit || c.err.Text() != c.text {
			t.Errorf("%d: exit %d, text %q; want %d, exit %d, %q", int(c.err), c.err.ExitCode(), c.err.Text(), c.n, c.exit, c.text)
		}
		if c.err.Failed() != (c.exit != 0) || (c.err.Err() == nil) != (c.exit == 0) {
			t.Errorf("%d: Failed %v, Err %v", int(c.err), c.err.Failed(), c.err.Err())
		}
	}
	if got := ErrNoUpToDateDisk.Err().Error(); got != "(-2) Need access to UpToDate data" {
		t.Error(got)
	}
}

func TestAttachDisk(t *testing.T) {
	for _, c := range []struct {
		flags   MetaFlags
		fencing Fencing
		want    Disk
	}{
		{0, FencingDontCare, Inconsistent},
		{FlagWasUpToDate | FlagPeerOutdated, FencingDontCare, Inconsistent},
		{FlagConsistent, FencingDontCare, Outdated},
		{FlagConsistent | FlagPeerOutdated, FencingResourceOnly, Outdated},
		{FlagConsistent | FlagWasUpToDate, FencingDontCare, UpToDate},
		{FlagConsistent | FlagWasUpToDate, FencingResourceOnly, Consistent},
		{FlagConsistent | FlagWasUpToDate, FencingResourceAndStonith, Consistent},
		{FlagConsistent | FlagWasUpToDate | FlagPeerOutdated, FencingResourceOnly, UpToDate},
		{FlagConsistent | FlagWasUpToDate | FlagPeerOutdated, FencingResourceAndStonith, UpToDate},
	} {
		if got := AttachDisk(c.flags, c.fencing); got != c.want {
			t.Errorf("flags %#x, fencing %v: %v, want %v", c.flags, c.fencing, got, c.want)
		}
	}
	if AttachPDisk(FlagPeerOutdated) != Outdated || AttachPDisk(^FlagPeerOutdated) != DUnknown {
		t.Error("AttachPDisk does not follow the peer-outdated flag")
	}
}

// giFlags prints the seven flags of "drbdadm show-gi" in its order.
func giFlags(f MetaFlags) string {
	var out []string
	for _, bit := range []MetaFlags{
		FlagConsistent, FlagWasUpToDate, FlagPrimaryInd, FlagConnectedInd, FlagFullSync, FlagPeerOutdated, FlagCrashedPrimary,
	} {
		out = append(out, digit(f&bit != 0))
	}
	return strings.Join(out, ":")
}

// The wanted flags were printed by show-gi on a DRBD 8.4.11 node.
func TestFlagsForObserved(t *testing.T) {
	for _, c := range []struct {
		name string
		s    State
		want string
	}{
		{"both fresh", State{Secondary, Secondary, Connected, Inconsistent, Inconsistent, false, false, false, false, false, false}, "0:0:0:1:0:1:0"},
		{"source", State{Role: Primary, Peer: Secondary, Conn: SyncSource, Disk: UpToDate, PDisk: Inconsistent}, "1:1:1:1:0:1:0"},
		{"target", State{Role: Secondary, Peer: Primary, Conn: SyncTarget, Disk: Inconsistent, PDisk: UpToDate}, "0:0:0:1:0:0:0"},
		{"primary", State{Role: Primary, Peer: Secondary, Conn: Connected, Disk: UpToDate, PDisk: UpToDate}, "1:1:1:1:0:0:0"},
		{"secondary", State{Role: Secondary, Peer: Primary, Conn: Connected, Disk: UpToDate, PDisk: UpToDate}, "1:1:0:1:0:0:0"},
		{"primary alone", State{Role: Primary, Conn: WFConnection, Disk: UpToDate, PDisk: DUnknown}, "1:1:1:0:0:0:0"},
		{"secondary alone", State{Role: Secondary, Conn: WFConnection, Disk: UpToDate, PDisk: DUnknown}, "1:1:0:0:0:0:0"},
	} {
		if got := giFlags(FlagsFor(c.s, FlagPrimaryInd|FlagPeerOutdated|FlagALClean, false, false)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestFlagsFor(t *testing.T) {
	alone := State{Role: Secondary, Conn: WFConnection, Disk: UpToDate, PDisk: DUnknown}
	edit := func(f func(*State)) State { s := alone; f(&s); return s }
	for _, c := range []struct {
		name        string
		s           State
		was         MetaFlags
		crash, noAL bool
		want        MetaFlags
	}{
		{"the activity log is in use", alone, FlagALClean, false, false, FlagConsistent | FlagWasUpToDate},
		{"full sync stays", alone, FlagFullSync, false, false, FlagConsistent | FlagWasUpToDate | FlagFullSync},
		{"no activity log", alone, 0, false, true, FlagConsistent | FlagWasUpToDate | FlagALDisabled},
		{"crashed", alone, 0, true, false, FlagConsistent | FlagWasUpToDate | FlagCrashedPrimary},
		{"crash settled", edit(func(s *State) { s.Conn, s.PDisk = Connected, UpToDate }), FlagCrashedPrimary, true, false, FlagConsistent | FlagWasUpToDate | FlagConnectedInd},
		{
			"crashed, still resyncing", edit(func(s *State) { s.Conn, s.PDisk = SyncSource, Inconsistent }), 0, true, false,
			FlagConsistent | FlagWasUpToDate | FlagConnectedInd | FlagPeerOutdated | FlagCrashedPrimary,
		},
		{"outdated", edit(func(s *State) { s.Disk = Outdated }), 0, false, false, FlagConsistent},
		{"peer outdated", edit(func(s *State) { s.PDisk = Outdated }), 0, false, false, FlagConsistent | FlagWasUpToDate | FlagPeerOutdated},
		{
			"serving a diskless Primary", edit(func(s *State) { s.Conn, s.Peer, s.PDisk = Connected, Primary, Diskless }), 0, false, false,
			FlagConsistent | FlagWasUpToDate | FlagConnectedInd | FlagPrimaryInd,
		},
		{"the handshake is not a connection", edit(func(s *State) { s.Conn = WFReportParams }), 0, false, false, FlagConsistent | FlagWasUpToDate},
	} {
		if got := FlagsFor(c.s, c.was, c.crash, c.noAL); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

// A disk that is being attached, negotiated or dropped must not be marked
// Inconsistent on stable storage for that.
func TestFlagsForKeepsFlagsOfUnnegotiatedDisk(t *testing.T) {
	const was = FlagConsistent | FlagWasUpToDate | FlagPrimaryInd | FlagFullSync | FlagALClean
	allStates(func(s State) {
		got := FlagsFor(s, was, true, true)
		if s.Disk < Inconsistent && got != was {
			t.Fatalf("%v: %#x, want %#x", s, got, was)
		}
		if s.Disk >= Inconsistent && (got&FlagConsistent != 0) != (s.Disk > Inconsistent) {
			t.Fatalf("%v: %#x", s, got)
		}
	})
}

// What the flags say is what an attach makes of them: a crash at any moment
// never makes a disk better than it was.
func TestFlagsForThenAttach(t *testing.T) {
	allStates(func(s State) {
		if s.Disk < Inconsistent || s.Disk == DUnknown {
			return
		}
		got := AttachDisk(FlagsFor(s, 0, false, false), FencingDontCare)
		if want := s.Disk; got != want && !(want == Consistent && got == UpToDate) {
			t.Fatalf("%v attaches as %v", s, got)
		}
	})
}
