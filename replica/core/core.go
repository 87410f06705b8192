// Package core decides everything about one replicated resource on one node:
// roles, connection and disk states, generation ids, when a write is
// complete, what is out of sync, and who copies what to whom.
//
// It is a deterministic state machine. Events go in, actions come out; it
// performs no I/O, starts no goroutine, reads no clock and holds no lock, so
// that the simulator can run two of them through any fault it likes. Its
// owner (the package replica, or the simulator) calls one method at a time.
//
// The contract between the core and its owner:
//
//  1. Actions to the peer (ActSend) go out in the order emitted, per channel.
//     All other actions may run in parallel and finish in any order.
//  2. If B must not happen before A is durable, the core emits B only after
//     A's completion event. The owner knows no ordering rules.
//  3. Every disk, metadata, gate, detach and drop action is answered by
//     exactly one completion event, also on error and at shutdown.
//  4. Every client request is answered by exactly one ActComplete.
//  5. Link events carry a session number; events of an older session are ignored.
//  6. Payload never enters the core: a buffer number does.
//
// The state of a volume is one value (State), changed in one place
// (Node.change), after Sanitize and Validate. Facts about DRBD 8.4's
// behaviour are marked with the section of its documentation or source they
// come from where they surprise.
package core

import (
	"fmt"

	"replicad/wire"
)

// Node is the replication state machine of one resource on one node.
type Node struct {
	cfg    Config
	random func() uint64
	now    Time
	out    []Action

	role  Role
	vols  []*volume
	ops   opTable
	ready []*op // operations whose turn has come, started at the end of the step

	demoting   bool   // a demotion has made everything durable and changes the role
	frozen     int    // > 0: no client write is submitted, none completed because the peer was lost
	frozenOps  []*op  // writes that wait for the thaw
	lostOps    []*op  // writes done but for the thaw
	clientOps  int    // client requests not completed
	submitted  uint64 // client writes ever given to the disks
	openEpoch  epoch
	flushWait  []*op // flushes and FUA writes that wait for a barrier ack
	closeWait  []*op // those that wait for their barrier to be sent
	unacked    opList
	nextSeq    uint64
	link       link
	hs         handshake
	incoming   incoming
	cmd        *command   // the command being carried out
	cmdQueue   []*Command // commands behind it
	tornDown   bool       // the peer's administrator is disconnecting
	discard    bool       // discard-my-data was asked for the next connect
	tentative  bool
	stateReqID uint64
	syncRuns   uint64
}

// volume is one volume of the resource.
type volume struct {
	id   uint16
	cfg  VolumeConfig
	st   State
	disk localDisk
	gen  Generation

	peerGen       wire.UUIDs // as last received
	peerSizes     wire.Sizes
	size          uint64 // bytes served
	crashed       bool   // this node crashed as Primary and has not been in sync since
	fullSync      bool   // every bit is being set
	keepIndicator bool   // the primary indicator outlives the role for a moment
	syncAgreed    bool   // a full sync with the peer as target was agreed; it is getting ready
	served        bool   // a Primary without good data was served from this disk, in this generation
	shared        bool   // the peer may have reached our generation without our knowing: leave it before writing alone
	lateAlone     bool   // the session ended while the peer had no disk: what it sent and still waits here is marked
	heardUUIDs    bool   // in this session
	indicatorOut  bool   // the writes that let the primary indicator go are under way
	exposed       uint64 // current id of the data that clients were shown (0 = none)
	idOps         []*op  // writes and flushes done but for the peer's new generation id
	unsure        bool   // exposed may be out of date, or the disk that had it not hold all of it any more
	follows       bool   // unsure: the peer, serving us alone, starts a new generation
	heirH1        uint64 // follows: what that generation has as its first history id
	tail          uint64 // the last epoch with completed writes of which, since our disk went, only a peer that did not confirm them can have a copy; 0 = none
	tailLost      bool   // it never will: its data is not what our clients saw
	opens         int
	index         rangeIndex
	sent          [2]genSet // blocks sent but not covered by an acknowledged barrier: open, awaiting
	sync          resync
	peerWrote     bool // mirrored or resync writes since the last local flush on a barrier
	gateOpen      bool
	gateHeld      bool // an admin command keeps the gate shut
	gateClosing   bool
	gateThen      []func()
	ctr           Counters
}

// New returns the node of a resource whose volumes are all Diskless and whose
// link is StandAlone. random supplies the bits of new generation ids and ping
// nonces.
func New(cfg Config, random func() uint64) *Node {
	n := &Node{cfg: cfg, random: random, role: Secondary}
	n.openEpoch.number = 1
	for _, vc := range cfg.Volumes {
		v := &volume{id: vc.Vol, cfg: vc}
		v.st = State{Role: Secondary, Peer: RoleUnknown, Conn: StandAlone, Disk: Diskless, PDisk: DUnknown}
		n.vols = append(n.vols, v)
	}
	return n
}

// Step consumes one event at time now and appends to out what must happen.
func (n *Node) Step(now Time, e Event, out []Action) []Action {
	n.now, n.out = now, out
	n.dispatch(&e)
	n.settle()
	out, n.out = n.out, nil
	return out
}

func (n *Node) dispatch(e *Event) {
	switch e.Kind {
	case EvTick:
		n.tick()
	case EvRead, EvWrite, EvTrim, EvZero, EvFlush:
		n.clientRequest(e)
	case EvDiskDone, EvMetaDone, EvGateClosed, EvHandlerDone:
		n.opDone(e)
	case EvDetached:
		n.detached(n.volume(e.Vol))
	case EvLinkUp:
		n.linkUp(e.Session, e.Token)
	case EvLinkDown:
		n.linkDown(e.Session, e.Reason)
	case EvLinkRefused:
		n.linkRefused(e.Session, e.Text)
	case EvSent:
		n.framesSent(e.Session, e.Seq)
	case EvPeer:
		n.peerMessage(e)
	case EvAttach:
		n.attach(n.volume(e.Vol), e.Attach)
	case EvOpen:
		n.volume(e.Vol).opens = int(e.Arg)
	case EvCommand:
		n.cmdQueue = append(n.cmdQueue, e.Cmd)
	default:
		panic(fmt.Sprintf("core: event of unknown kind %d", e.Kind))
	}
}

// settle runs whatever the event made possible, until nothing is left to do.
func (n *Node) settle() {
	for {
		switch {
		case len(n.ready) > 0:
			o := n.ready[0]
			n.ready = popFront(n.ready)
			n.start(o)
		case n.runCommand(), n.maybeDial():
		case len(n.incoming.queue) > 0 && !n.incoming.blocked():
			n.drainIncoming()
		default:
			for _, v := range n.vols {
				n.kickAL(v)
				n.releaseIndicator(v)
				n.pumpResync(v)
				n.finishAttach(v)
				n.finishDetach(v)
			}
			if len(n.ready) == 0 {
				return
			}
		}
	}
}

// popFront removes the first element and keeps the backing array, so that a
// queue in steady state allocates nothing.
func popFront[T any](q []T) []T {
	copy(q, q[1:])
	var zero T
	q[len(q)-1] = zero
	return q[:len(q)-1]
}

func (n *Node) volume(id uint16) *volume {
	if v := n.findVolume(id); v != nil {
		return v
	}
	panic(fmt.Sprintf("core: the owner names volume %d, which is not configured", id))
}

// findVolume returns the volume, or nil: what a peer sends is never trusted.
func (n *Node) findVolume(id uint16) *volume {
	for _, v := range n.vols {
		if v.id == id {
			return v
		}
	}
	return nil
}

func (n *Node) act(a Action) { n.out = append(n.out, a) }

// log emits a line about one volume, in DRBD's words where DRBD has them.
func (n *Node) log(v *volume, level Level, format string, args ...any) {
	vol := int32(-1)
	if v != nil {
		vol = int32(v.id)
	}
	n.act(Action{Kind: ActLog, Vol: vol, Level: level, Text: fmt.Sprintf(format, args...)})
}

// Deadline reports when Step must next be called with EvTick. It may change
// after every Step; early or repeated ticks are harmless.
func (n *Node) Deadline() (Time, bool) {
	var d deadline
	n.linkDeadline(&d)
	n.commandDeadline(&d)
	for _, v := range n.vols {
		if n.pulls(v) {
			v.sync.deadline(&d)
		}
		if v.disk.watch != 0 {
			d.add(v.disk.watch)
		}
	}
	return d.at, d.set
}

// deadline is the earliest of several times.
type deadline struct {
	at  Time
	set bool
}

func (d *deadline) add(at Time) {
	if !d.set || at < d.at {
		d.at, d.set = at, true
	}
}

func (n *Node) tick() {
	n.linkTick()
	for _, v := range n.vols {
		n.diskTick(v)
	}
}

// conn is the link's state: below Connected all volumes agree on it.
func (n *Node) conn() Conn {
	if len(n.vols) == 0 {
		return StandAlone
	}
	c := n.vols[0].st.Conn
	for _, v := range n.vols {
		c = min(c, v.st.Conn)
	}
	return c
}

// connected reports that the handshake of the current session is done.
func (n *Node) connected() bool { return n.link.up && n.hs.done }
