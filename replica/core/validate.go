package core

// verifyProtocol is the first DRBD protocol version that has online verify.
const verifyProtocol = 88

// Rules are the settings and surroundings that decide which states one volume
// may be in.
type Rules struct {
	TwoPrimaries     bool // net option allow-two-primaries
	Fencing          Fencing
	OnNoData         NoDataPolicy
	HasNet           bool   // a connection is configured
	VerifyAlg        bool   // a verify algorithm is configured
	Open             bool   // the device is held open
	OtherPeerPrimary bool   // another volume's peer is Primary
	ProtocolVersion  int    // agreed with the peer, in DRBD's numbers (8.4.11: 101)
	ExposedCurrent   uint64 // current UUID of the data last shown to clients
	MetaCurrent      uint64 // current UUID in the metadata of a Negotiating disk
	AttachDisk       Disk   // what a Negotiating disk becomes when the link is lost first
	PeerNewer        bool   // but at best Outdated: the peer's data follows from what is in that metadata
}

// refusal is one reason why a state may not be.
type refusal struct {
	err StateErr
	hit func(s State, r Rules) bool
}

// stateRefusals are DRBD 8.4's, in its order.
var stateRefusals = [...]refusal{
	{ErrTwoPrimaries, func(s State, r Rules) bool {
		return s.Role == Primary && s.Peer == Primary && !r.TwoPrimaries
	}},
	{ErrOtherVolPrimary, func(s State, r Rules) bool {
		return s.Role == Primary && r.OtherPeerPrimary && !r.TwoPrimaries
	}},
	{ErrDeviceInUse, func(s State, r Rules) bool { return s.Role == Secondary && r.Open }},
	{ErrNoUpToDateDisk, func(s State, _ Rules) bool {
		return s.Role == Primary && s.Conn < Connected && s.Disk < UpToDate
	}},
	{ErrPrimaryNotFenced, func(s State, r Rules) bool {
		return r.Fencing != FencingDontCare && s.Role == Primary && s.Conn < Connected && s.PDisk >= DUnknown
	}},
	{ErrNoUpToDateDisk, func(s State, _ Rules) bool {
		return s.Role == Primary && s.Disk <= Inconsistent && s.PDisk <= Inconsistent
	}},
	{ErrNoLocalDisk, func(s State, _ Rules) bool { return s.Conn > Connected && s.Disk < Inconsistent }},
	{ErrNoRemoteDisk, func(s State, _ Rules) bool { return s.Conn > Connected && s.PDisk < Inconsistent }},
	{ErrNoUpToDateDisk, func(s State, _ Rules) bool {
		return s.Conn > Connected && s.Disk < UpToDate && s.PDisk < UpToDate
	}},
	{ErrConnectedOutdates, func(s State, _ Rules) bool { return s.Disk == Outdated && sharesData(s) }},
	{ErrNoVerifyAlg, func(s State, r Rules) bool { return isVerify(s.Conn) && !r.VerifyAlg }},
	{ErrNotSupported, func(s State, r Rules) bool {
		return isVerify(s.Conn) && r.ProtocolVersion < verifyProtocol
	}},
	{ErrNoUpToDateDisk, func(s State, _ Rules) bool {
		return s.Role == Primary && s.Disk < UpToDate && s.PDisk < UpToDate
	}},
	{ErrNeedConnection, func(s State, _ Rules) bool { return isStarting(s.Conn) && s.PDisk == DUnknown }},
	{ErrConnectedOutdates, func(s State, _ Rules) bool { return s.Conn >= Connected && s.PDisk == DUnknown }},
}

func isVerify(c Conn) bool   { return c == VerifyS || c == VerifyT }
func isStarting(c Conn) bool { return c == StartingSyncS || c == StartingSyncT }

// sharesData: states in which this node's disk counts as current. Connected to
// a peer without usable data it does not, and keeps what it knows of its age
// (see Sanitize).
func sharesData(s State) bool {
	return s.Conn == Connected && usable(s.PDisk) ||
		s.Conn == WFBitMapS || s.Conn == SyncSource || s.Conn == PausedSyncS
}

// Validate reports whether a volume may be in s: Success, or DRBD 8.4's
// refusal, the first that applies.
func Validate(s State, r Rules) StateErr {
	for _, row := range stateRefusals {
		if row.hit(s, r) {
			return row.err
		}
	}
	return Success
}

// validateAgainst is Validate, but lets through what was already wrong with
// old: otherwise nothing could ever change there. Each reason counts by
// itself, so that one old fault does not excuse a new one with the same number.
func validateAgainst(old, next State, r Rules) StateErr {
	for _, row := range stateRefusals {
		if row.hit(next, r) && !row.hit(old, r) {
			return row.err
		}
	}
	return Success
}

// stepRefusal is one reason why an administrator may not go from old to next.
type stepRefusal struct {
	err StateErr
	hit func(old, next State, r Rules) bool
}

var stepRefusals = [...]stepRefusal{
	{ErrResyncRunning, func(old, next State, _ Rules) bool {
		return isStarting(next.Conn) && next.Conn != old.Conn && old.Conn > Connected
	}},
	{ErrAlreadyStandAlone, func(old, next State, _ Rules) bool {
		return next.Conn == Disconnecting && old.Conn == StandAlone
	}},
	{ErrLowerThanOutdated, func(old, next State, _ Rules) bool {
		return next.Disk == Outdated && old.Disk < Outdated && old.Disk != Attaching
	}},
	{ErrDiskless, func(old, next State, _ Rules) bool { return next.Disk > Attaching && old.Disk == Diskless }},
	{ErrConnectedOutdates, func(old, next State, _ Rules) bool {
		return next.Disk == Outdated && old.Disk > Outdated && old.Conn == Connected && next.Conn == Connected
	}},
	{ErrNoNetConfig, func(old, next State, r Rules) bool {
		return next.Conn == WFConnection && old.Conn != WFConnection && (old.Conn < Unconnected || !r.HasNet)
	}},
	{ErrTransient, changesInHandshake},
	{ErrTransient, promotesInHandshake},
	{ErrNeedConnection, func(old, next State, _ Rules) bool {
		return (isVerify(next.Conn) || isStarting(next.Conn)) && old.Conn < Connected
	}},
	{ErrResyncRunning, func(old, next State, _ Rules) bool {
		return isVerify(next.Conn) && next.Conn != old.Conn && old.Conn > Connected
	}},
	{ErrNeedConnection, func(old, next State, _ Rules) bool {
		return (next.Conn == SyncSource || next.Conn == SyncTarget) && old.Conn < WFReportParams
	}},
	{ErrOutdateNoConn, func(old, next State, _ Rules) bool {
		return next.Conn == Disconnecting && next.PDisk == Outdated && old.Conn < Connected && old.PDisk > Outdated
	}},
	{ErrNoUpToDateDisk, inventsGoodData},
}

// changesInHandshake: the peer was told role and disk, and decides by them.
func changesInHandshake(old, next State, _ Rules) bool {
	return old.Conn == WFReportParams && next.Conn == old.Conn && (next.Role != old.Role || next.Disk != old.Disk)
}

// promotesInHandshake: between the peer's forced promotion and the resync that
// it starts, this node does not yet know which of its blocks are old.
func promotesInHandshake(old, next State, _ Rules) bool {
	return old.Role != Primary && next.Role == Primary && next.PDisk == UpToDate &&
		next.Disk != UpToDate && next.Disk != Diskless && (next.Conn <= WFSyncUUID || next.Conn != old.Conn)
}

// inventsGoodData: Sanitize takes the source of a sync, and both ends of a
// verify, for UpToDate. DRBD 8.4 lets a request turn bad data into good that
// way; replicad lets only invalidate do so, and only where neither side has
// good data to lose.
func inventsGoodData(old, next State, _ Rules) bool {
	if next.Conn == old.Conn || old.Conn < Connected {
		return false
	}
	switch next.Conn {
	case VerifyS, VerifyT:
		return old.Disk < UpToDate || old.PDisk < UpToDate
	case StartingSyncS:
		return old.Disk < UpToDate && old.PDisk == UpToDate
	case StartingSyncT:
		return old.PDisk < UpToDate && old.Disk == UpToDate
	}
	return false
}

// ValidateStep reports whether an administrator may take a volume from old to
// next: Success, or DRBD 8.4's refusal. Both states are sanitized.
func ValidateStep(old, next State, r Rules) StateErr {
	for _, row := range stepRefusals {
		if row.hit(old, next, r) {
			return row.err
		}
	}
	return Success
}

// ValidateHard reports whether the environment may take a volume from old to
// next: Success, or the refusal of an edge that DRBD 8.4's connection state
// machine does not have. Nothing else stops an environmental change.
func ValidateHard(old, next State) StateErr {
	from, to := old.Conn, next.Conn
	switch {
	case next.Disk == Failed && old.Disk == Diskless:
		return ErrDiskless
	case from == to:
		return Success
	case from == StandAlone && to == Disconnecting:
		return ErrAlreadyStandAlone
	case from == StandAlone && to != Unconnected:
		return ErrNeedConnection
	case from < WFReportParams && to >= Connected:
		return ErrNeedConnection
	case from >= Timeout && from <= TearDown && to != Unconnected && to != Disconnecting:
		return ErrTransient
	case from == Disconnecting && to != StandAlone:
		return ErrTransient
	}
	return Success
}

// Check is what a request goes through. It returns wanted as Sanitize makes
// it, and whether that may be: Success, NothingToDo when it is what old already
// is, or the refusal. The state is to be used only with Success.
func Check(old, wanted State, r Rules) (State, StateErr) {
	next, _ := Sanitize(old, wanted, r)
	if err := missingDisk(old, wanted); err.Failed() {
		return next, err
	}
	if next == old {
		return next, NothingToDo
	}
	if err := validateAgainst(old, next, r); err.Failed() {
		return next, err
	}
	if err := ValidateStep(old, next, r); err.Failed() {
		return next, err
	}
	return next, ValidateHard(old, next)
}

// missingDisk refuses what Sanitize would quietly turn into something else: a
// sync or verify for which there is no disk, and outdating a disk that is
// worse than that already.
func missingDisk(old, wanted State) StateErr {
	switch {
	case wanted.Disk == Outdated && old.Disk < Outdated:
		return ErrLowerThanOutdated // while connected, Sanitize would raise it
	case wanted.Conn <= Connected || wanted.Conn == old.Conn:
		return Success
	case wanted.Disk <= Failed:
		return ErrNoLocalDisk
	case wanted.PDisk <= Failed:
		return ErrNoRemoteDisk
	}
	return Success
}
