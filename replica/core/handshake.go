package core

import (
	"slices"

	"replicad/internal/mutant"
	"replicad/wire"
)

// handshake is what has been said of the current session so far. Each end
// sends parameters, then sizes, generation ids and state of every volume;
// when all of the peer's have arrived, both decide by themselves, from the
// same facts, what happens to each volume.
type handshake struct {
	sent   bool // our side is out
	done   bool // decided: messages of the data path may flow
	params *wire.Params
	states map[uint16]wire.State
}

func (n *Node) beginHandshake() {
	n.hs = handshake{states: make(map[uint16]wire.State)}
	c := &n.cfg.Net
	p := &wire.Params{
		Protocol: c.Protocol, AfterSB0: c.AfterSB0, AfterSB1: c.AfterSB1, AfterSB2: c.AfterSB2,
		AllowTwoPrimaries: c.AllowTwoPrimaries, IntegrityAlg: c.IntegrityAlg,
		DiscardMyData: n.discard, Tentative: n.tentative,
	}
	for _, v := range n.vols {
		p.Volumes = append(p.Volumes, v.id)
	}
	n.send(wire.Msg{Kind: wire.KindParams, Body: p}, 0)
	n.hs.sent = true
	for _, v := range n.vols {
		v.peerGen, v.peerSizes, v.heardUUIDs = wire.UUIDs{}, wire.Sizes{}, false
		n.sendSizes(v)
		n.sendUUIDs(v)
		n.sendState(v)
	}
}

func (n *Node) receiveParams(p *wire.Params) {
	if n.hs.params != nil || n.hs.done {
		n.protocolError("parameters sent twice")
		return
	}
	if setting := n.incompatible(p); setting != "" {
		n.log(nil, LevelError, "incompatible %s settings", setting)
		n.refusePeer()
		return
	}
	n.hs.params = p
}

// incompatible names the first setting on which the two ends differ in a way
// that DRBD 8.4 refuses; "" if there is none.
func (n *Node) incompatible(p *wire.Params) string {
	c := &n.cfg.Net
	mine := make([]uint16, 0, len(n.vols))
	for _, v := range n.vols {
		mine = append(mine, v.id)
	}
	switch {
	case p.Protocol != c.Protocol:
		return "protocol"
	case p.AfterSB0 != mirroredPolicy(c.AfterSB0):
		return "after-sb-0pri"
	case p.AfterSB1 != mirroredPolicy(c.AfterSB1):
		return "after-sb-1pri"
	case p.AfterSB2 != mirroredPolicy(c.AfterSB2):
		return "after-sb-2pri"
	case p.DiscardMyData && n.discard:
		return "discard-my-data"
	case p.AllowTwoPrimaries != c.AllowTwoPrimaries:
		return "allow-two-primaries"
	case p.IntegrityAlg != c.IntegrityAlg:
		return "data-integrity-alg"
	case !slices.Equal(p.Volumes, mine):
		return "volume"
	}
	return ""
}

// mirroredPolicy is what the peer must have for a policy of ours to mean the same.
func mirroredPolicy(p string) string {
	switch p {
	case "discard-local":
		return "discard-remote"
	case "discard-remote":
		return "discard-local"
	}
	return p
}

func (n *Node) receiveSizes(v *volume, s *wire.Sizes) {
	v.peerSizes = *s
	if n.hs.done && s.Disk != 0 && v.size != 0 && s.Disk < v.size {
		n.tooSmall(v)
	}
}

func (n *Node) tooSmall(v *volume) {
	n.log(v, LevelError, "The peer's disk size is too small!")
	n.refusePeer()
}

func (n *Node) receiveUUIDs(v *volume, u *wire.UUIDs) {
	v.peerGen, v.heardUUIDs = *u, true
	if c := n.cmd; c.detaches(v) {
		c.heard = true
	}
	if n.hs.done && n.role == Primary && v.st.Disk <= Failed {
		n.log(v, LevelInfo, "receiver updated UUIDs to effective data uuid: %016X", u.Current)
		n.exposePeer(v)
	}
}

func (n *Node) receiveState(v *volume, s *wire.State) {
	p := State{Role: Role(s.Role), Peer: Role(s.Peer), Conn: Conn(s.Conn), Disk: Disk(s.Disk), PDisk: Disk(s.PDisk)}
	if !p.Valid() {
		n.protocolError("invalid state")
		return
	}
	if n.hs.done {
		n.peerStateChanged(v, p)
		return
	}
	if _, dup := n.hs.states[v.id]; dup || n.hs.params == nil || !v.heardUUIDs {
		n.protocolError("state of volume %d out of turn", v.id)
		return
	}
	n.hs.states[v.id] = *s
	if len(n.hs.states) == len(n.vols) {
		n.concludeHandshake()
	}
}

// concludeHandshake decides for every volume before anything is done to one:
// a single refusal ends the connection with all images untouched.
func (n *Node) concludeHandshake() {
	type plan struct {
		v    *volume
		peer State
		d    Decision
	}
	var plans []plan
	for _, v := range n.vols {
		s := n.hs.states[v.id]
		peer := State{Role: Role(s.Role), Conn: Conn(s.Conn), Disk: Disk(s.Disk)}
		if !n.agreeSize(v, peer) {
			return
		}
		d, ok := n.decide(v, peer)
		if !ok {
			return
		}
		plans = append(plans, plan{v, peer, d})
	}
	if n.tentative || n.hs.params.Tentative {
		n.log(nil, LevelInfo, "dry run: dropping the connection")
		n.discard, n.tentative = false, false
		n.refusePeer()
		return
	}
	n.hs.done = true
	n.discard, n.tentative = false, false
	for _, p := range plans {
		n.carryOut(p.v, p.peer, p.d)
	}
	for _, v := range n.vols {
		if n.role == Primary && v.st.Disk != UpToDate && !mutant.On(mutant.ReconnectFlushUnasked) {
			// The peer holds the only good copy, and what it acked in an
			// earlier session may not be stable: the next flush asks it.
			n.openEpoch.resync, n.openEpoch.since = true, n.now
		}
	}
}

// agreeSize settles the size of a volume: the smaller disk decides. A disk
// that holds usable data is never shrunk; both ends notice and refuse.
func (n *Node) agreeSize(v *volume, peer State) bool {
	mine, theirs := v.disk.bytes, v.peerSizes.Disk
	switch {
	case v.disk.bm == nil:
		v.size = v.peerSizes.Current
		return true
	case theirs == 0 || v.st.Disk < Negotiating:
		return true
	}
	size := min(mine, theirs)
	for _, user := range []uint64{v.disk.user, v.peerSizes.User} {
		if user != 0 {
			size = min(size, user)
		}
	}
	if serves := v.peerSizes.Current; serves != 0 && v.effectiveDisk() <= Inconsistent && v.peerDisk(peer.Disk) >= Outdated {
		size = min(serves, mine) // the peer's data decides
	}
	size &^= 4095
	if size >= v.size&^4095 && v.effectiveDisk() >= Outdated {
		v.peerAgreed(peer, v.size)
		return true // growing is the administrator's decision (resize)
	}
	if size < v.size&^4095 && v.effectiveDisk() >= Outdated {
		n.tooSmall(v)
		return false
	}
	if size == 0 || (size < v.peerSizes.Current&^4095 && v.peerDisk(peer.Disk) >= Outdated) {
		n.log(v, LevelError, "This node's disk is too small: the peer serves %d KB, the disk has %d KB", v.peerSizes.Current>>10, mine>>10)
		n.refusePeer()
		return false
	}
	n.resize(v, size)
	v.peerAgreed(peer, size)
	return true
}

// peerAgreed notes that a peer without usable data takes the agreed size, as
// we would: what it told at the start of the session is no longer what it serves
// when one side looks again later (renegotiate).
func (v *volume) peerAgreed(peer State, size uint64) {
	if v.peerDisk(peer.Disk) < Outdated {
		v.peerSizes.Current = size
	}
}

// resize gives an Inconsistent volume its agreed size.
func (n *Node) resize(v *volume, size uint64) {
	if size == v.size {
		return
	}
	v.disk.bm.Resize(size/4096, true)
	v.size = size
	n.log(v, LevelInfo, "size = %d MB (%d KB)", size>>20, size>>10)
	n.writeBitmap(v, nil, func(bool) { n.saveSuper(v, func(bool) {}) })
}

// decide runs the compare table on both ends' generation ids. It reports
// false when the connection is refused.
func (n *Node) decide(v *volume, peer State) (Decision, bool) {
	if n.role == Primary && v.st.Disk <= Inconsistent && peer.Disk >= Negotiating && !v.continues(&v.peerGen) {
		n.log(v, LevelError, "Can only connect to data with current UUID=%016X", v.exposed)
		n.refusePeer()
		return Decision{}, false
	}
	if v.st.Disk < Negotiating || peer.Disk < Negotiating {
		return Decision{}, true
	}
	self, other := n.facts(v), n.peerFacts(v, peer)
	n.log(v, LevelInfo, "drbd_sync_handshake:")
	n.log(v, LevelInfo, "self %s bits:%d flags:%X", self.Gen, self.Bits, uuidFlags(self))
	n.log(v, LevelInfo, "peer %s bits:%d flags:%X", other.Gen, other.Bits, uuidFlags(other))
	verdict := Compare(self, other, n.link.token)
	n.log(v, LevelInfo, "uuid_compare()=%d by rule %d", verdict.Result, verdict.Rule)
	if verdict.FixSelf != nil {
		v.gen = *verdict.FixSelf
	}
	if g := verdict.FixPeer; g != nil {
		v.peerGen.Current, v.peerGen.Bitmap, v.peerGen.H1, v.peerGen.H2 = g.Current, g.Bitmap, g.H1, g.H2
	}
	d := Decide(verdict, self, other, n.decideInput(v))
	if d.None && verdict.Rule == 40 && self.Bits+other.Bits > 0 && negotiated(self) != Inconsistent {
		d = d.sync(sourceOfStrayBits(self, other, n.link.token))
		d.None = false
	}
	return d, n.accept(v, d)
}

// sourceOfStrayBits picks the source where equal generations say that there is
// nothing to do, but bits are set: a crash came between the end of a resync
// and the bitmap that belongs to it, or a verify marked them. DRBD 8.4 leaves
// such blocks marked until the next resync that has another cause.
func sourceOfStrayBits(self, peer Facts, token bool) bool {
	switch {
	case self.Primary != peer.Primary:
		return self.Primary
	case (self.Bits > 0) != (peer.Bits > 0):
		return self.Bits > 0
	}
	return token
}

// continues reports whether the peer's data is what our clients saw last, or
// what followed from it while the peer served us alone: it may have started a
// new generation whose id did not reach us. One that it started after that, as
// a Primary of its own, has the one in which it served us in its history.
func (v *volume) continues(peer *wire.UUIDs) bool {
	shown := masked(v.exposed)
	switch {
	case v.tailLost:
		return false
	case shown == 0 || shown == masked(peer.Current):
		return true
	}
	return v.unsure && v.follows && shown == masked(peer.Bitmap) && v.heirH1 == masked(peer.H1)
}

func (n *Node) decideInput(*volume) DecideInput {
	return DecideInput{
		Token: n.link.token, AlwaysASBP: n.cfg.Net.AlwaysASBP, RRConflict: n.cfg.Net.RRConflict,
		Tentative: n.tentative || (n.hs.params != nil && n.hs.params.Tentative),
	}
}

// accept logs a decision in DRBD's words, and refuses the peer where it says so.
func (n *Node) accept(v *volume, d Decision) bool {
	if d.Detected {
		n.handler(v, "initial-split-brain")
	}
	switch {
	case d.Unrelated:
		n.log(v, LevelError, "Unrelated data, aborting!")
	case d.SplitBrain:
		n.log(v, LevelError, "Split-Brain detected but unresolved, dropping connection!")
		n.handler(v, "split-brain")
	case d.Abort:
		n.log(v, LevelError, "%s", d.Reason)
		if d.PriLost {
			n.handler(v, "pri-lost")
		}
	default:
		if d.ManuallySolved {
			from := "peer"
			if d.SyncSource {
				from = "this"
			}
			n.log(v, LevelWarn, "Split-Brain detected, manually solved. Sync from %s node", from)
		}
		return true
	}
	n.discard = false
	n.refusePeer()
	return false
}

func (n *Node) handler(v *volume, name string) {
	n.act(Action{Kind: ActHandler, Vol: int32(v.id), Name: name})
}

func (n *Node) facts(v *volume) Facts {
	return Facts{
		Gen: v.gen, Bits: v.disk.bm.Count(), CrashedPrimary: v.crashed, Primary: n.role == Primary,
		Discard: n.discard, Inconsistent: v.effectiveDisk() <= Inconsistent, Outdated: v.effectiveDisk() == Outdated, Disk: v.st.Disk,
	}
}

func (n *Node) peerFacts(v *volume, peer State) Facts {
	u := &v.peerGen
	return Facts{
		Gen: v.peerTuple(), Bits: u.Bits, CrashedPrimary: u.Flags&wire.UUIDFlagCrashedPrimary != 0, Primary: peer.Role == Primary,
		Discard: u.Flags&wire.UUIDFlagDiscardMyData != 0, Inconsistent: u.Flags&wire.UUIDFlagInconsistent != 0,
		Outdated: peer.Disk == Outdated, Disk: peer.Disk,
	}
}

// peerTuple is the peer's generation as it last told.
func (v *volume) peerTuple() Generation {
	u := &v.peerGen
	return Generation{Current: u.Current, Bitmap: u.Bitmap, H1: u.H1, H2: u.H2}
}

// peerDisk is the peer's disk state, or what it will be once the handshake is over.
func (v *volume) peerDisk(d Disk) Disk {
	if d != Negotiating {
		return d
	}
	if v.peerGen.Flags&wire.UUIDFlagInconsistent != 0 {
		return Inconsistent
	}
	return Consistent
}

func uuidFlags(f Facts) (flags uint32) {
	set := func(on bool, flag uint32) {
		if on {
			flags |= flag
		}
	}
	set(f.Discard, wire.UUIDFlagDiscardMyData)
	set(f.CrashedPrimary, wire.UUIDFlagCrashedPrimary)
	set(f.Inconsistent, wire.UUIDFlagInconsistent)
	return flags
}

// carryOut puts a volume into the state that the handshake decided.
func (n *Node) carryOut(v *volume, peer State, d Decision) {
	conn := Connected
	switch {
	case d.SyncSource:
		conn = WFBitMapS
	case d.SyncTarget:
		conn = WFBitMapT
	}
	edit := func(s *State) {
		s.Conn, s.Peer, s.PDisk = conn, peer.Role, v.peerDisk(peer.Disk)
		if s.Disk == Negotiating {
			s.Disk = v.attachDisk()
		}
	}
	want := v.st
	edit(&want)
	s, _ := Sanitize(v.st, want, n.rules(v))
	if err := validateAgainst(v.st, s, n.rules(v)); err.Failed() && !(d.SyncTarget && n.role == Primary) {
		n.log(v, LevelError, "State change failed: %s", err.Text())
		n.log(v, LevelError, "  state = %s", v.st)
		n.log(v, LevelError, " wanted = %s", s)
		n.hs.done = false
		n.refusePeer()
		return
	}
	v.served = false
	if v.st.Disk >= Negotiating && peer.Disk >= Negotiating {
		v.shared = false // both ends have compared; a peer without a disk has nothing to compare
	}
	n.change(v, edit)
	n.exposePeer(v)
	n.notePeerServed(v)
	switch conn {
	case WFBitMapS:
		n.becomeSource(v, d.Full)
	case WFBitMapT:
		n.becomeTarget(v, d.Full)
	default:
		if bits := v.outOfSync(); bits > 0 {
			n.log(v, LevelInfo, "No resync, but %d bits in bitmap!", bits)
		}
	}
}

// exposePeer: a Primary without good data of its own, diskless or the target
// of a resync, shows its clients the peer's.
func (n *Node) exposePeer(v *volume) {
	if n.role == Primary && v.st.Disk <= Inconsistent && v.st.PDisk == UpToDate && v.peerGen.Current != 0 {
		v.exposed, v.unsure = v.peerGen.Current, false
		n.releaseIDOps(v)
	}
}

// notePeerServed notes that a Primary's clients see this node's data. Should it
// write alone later, they must not find what it wrote under what they know:
// see promotedGeneration.
func (n *Node) notePeerServed(v *volume) {
	if n.connected() && v.st.Peer == Primary && v.st.PDisk <= Inconsistent && v.st.Disk == UpToDate {
		v.served = true
	}
}

func (v *volume) outOfSync() uint64 {
	if v.disk.bm == nil {
		return 0
	}
	return v.disk.bm.Count()
}

// peerStateChanged takes a state report outside the handshake: the peer's
// role or disk changed. An attach, or a forced promotion over an Inconsistent
// pair, makes both ends look at the generation ids again.
func (n *Node) peerStateChanged(v *volume, peer State) {
	attaching := peer.Disk == Negotiating
	forced := v.st.Disk == Inconsistent && peer.Disk == UpToDate && v.st.Conn == Connected
	if attaching && v.st.Disk != Negotiating {
		n.sendUUIDs(v)
		n.sendState(v)
	}
	if v.syncAgreed && peer.Disk == Inconsistent && peer.Conn == WFSyncUUID && v.st.Conn == Connected {
		n.startFullSource(v)
		return
	}
	if v.st.Conn == Connected && (attaching || v.st.Disk == Negotiating || forced) {
		n.renegotiate(v, peer)
		return
	}
	n.change(v, func(s *State) {
		s.Peer = peer.Role
		// A report sent during a resync that has ended for us meanwhile is out of
		// date; and a disk that failed or left comes back by an attach alone.
		late := s.Conn == Connected && peer.Conn > Connected
		revived := s.PDisk <= Failed && peer.Disk > Negotiating
		if !late && !revived {
			s.PDisk = v.peerDisk(peer.Disk)
		}
	})
}

func (n *Node) renegotiate(v *volume, peer State) {
	if !n.agreeSize(v, peer) || n.dropOld(v, peer) {
		return
	}
	if d, ok := n.decide(v, peer); ok {
		n.carryOut(v, peer, d)
	}
}

// dropOld gives up a Primary's Negotiating disk when the peer's, which served
// its clients meanwhile, goes before the two were compared: it is older than
// what they saw.
func (n *Node) dropOld(v *volume, peer State) bool {
	if n.role != Primary || v.st.Disk != Negotiating || peer.Disk >= Negotiating || masked(v.shownCurrent()) == masked(v.gen.Current) {
		return false
	}
	n.log(v, LevelError, "Can only attach to data with current UUID=%016X", v.exposed)
	n.change(v, func(s *State) { s.Peer, s.PDisk = peer.Role, peer.Disk })
	n.dropDisk(v)
	return true
}
