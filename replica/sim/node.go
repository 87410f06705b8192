package sim

import (
	"math/rand/v2"
	"slices"

	"replicad/replica/core"
	"replicad/wire"
)

// node is the shell around one core: it carries out actions and reports what
// came of them. Its disks and metadata outlive its process.
type node struct {
	w           *World
	id          int
	core        *core.Node
	up          bool
	life        uint32 // counts processes
	frozenUntil core.Time
	clock       nodeClock
	tickAt      core.Time // 0: no tick is set
	ticks       int       // ticks at the present instant
	tickedAt    core.Time

	vols     []*volume
	bufs     buffers
	ops      map[core.Op]*action
	live     []*action // the same, in order
	dial     core.Session
	commands map[uint64]core.Command
	clients  []client
	received []peerRange // mirrored ranges without payload that the core holds
	epochs   incomingEpochs
	acts     []core.Action
	plans    []core.Command // commands to give later
	heldBack bool           // a reader waits for room
	stopping bool           // the clients are being sent away for a demotion
	discards bool           // it was told to give up its data at the next connect
	pausedAt core.Time      // until then it could not do what it is watched for
	jumpedAt core.Time      // when its clock last jumped: how long a disk hangs is counted anew
	resets   int            // connects and attaches by command, which reset counters
	syncDied bool           // its last process died in a resync
	lastErr  core.StateErr  // of the last answered command
	lastText string
}

// volume is one volume of a node.
type volume struct {
	id       int
	disk     *disk
	meta     *metaStore
	st       core.State
	size     uint64 // bytes of the disk
	attached bool
	leaving  bool // ActDetach waits for running actions
	gate     bool // fast reads allowed
	gateOp   core.Op
	readers  int // fast reads running
	opens    int
	virgin   bool          // a new disk: not good before a resync, or force
	syncLife uint32        // the source's process when this node became a target
	forced   bool          // its disk was just declared good
	tainted  bool          // crashed since it was last known whole
	counters core.Counters // when last looked at
	resets   int
	// strandedAt is when it last lost the only disk it had left to serve from.
	strandedAt core.Time
	compared   comparison
}

// action is a disk or metadata action in flight.
type action struct {
	id      core.Op
	kind    core.ActionKind
	vol     int
	buf     core.Buf
	first   uint32
	data    []content // what a write puts there
	count   uint32
	fua     bool
	effect  bool
	mark    uint64        // flush: what was in the cache when it began
	result  core.IOResult // how it will end
	short   bool          // a write that fails ends early
	resync  bool
	meta    []metaOp // what a metadata action writes
	payload core.Buf // read into a new buffer
	mirror  *mirrored
	client  bool // of a client's request
	begun   core.Time
}

func (o *action) fails() bool { return o.result != core.IOOK }

// peerRange is a mirrored trim or zero that arrived and has not begun.
type peerRange struct {
	vol          int
	first, count uint32
}

func newNode(w *World, id int) *node {
	n := &node{w: w, id: id}
	for v := range w.opt.Volumes {
		blocks := w.opt.Blocks + w.opt.Spare[id]
		size := blocks * blockSectors * sectorSize
		m := w.spare.volume()
		m.disk.reset(int(blocks*blockSectors), w.oracle.Garbage())
		m.meta.reset(size, &w.opt, rand.New(rand.NewPCG(w.opt.Seed, uint64(2*v+id))))
		n.vols = append(n.vols, &volume{id: v, size: size, disk: m.disk, meta: m.meta})
	}
	return n
}

func (n *node) name() string { return [2]string{"a", "b"}[n.id] }

func (n *node) peer() *node { return n.w.nodes[1-n.id] }

// after sets a timer that dies with the process.
func (n *node) after(d core.Duration, what what, arg uint64) {
	n.w.clock.add(timer{at: n.w.now + d, what: what, node: int8(n.id), life: n.life, arg: arg})
}

// --- life and death

// boot starts the process: the core, then an attach of every volume and the
// first connect.
func (n *node) boot() {
	w := n.w
	n.life++
	n.up = true
	n.frozenUntil, n.tickAt = 0, 0
	n.clock = w.drawClock(n.id)
	n.ops, n.live = make(map[core.Op]*action), nil
	n.bufs, n.received = buffers{}, nil
	n.plans, n.stopping = nil, false
	n.commands = make(map[uint64]core.Command)
	n.epochs.clear()
	n.syncDied, n.pausedAt = false, w.now
	n.core = core.New(w.opt.config(), w.rng.Uint64)
	for i, s := range n.core.Status().Volumes {
		v := n.vols[i]
		id, d, m, size := v.id, v.disk, v.meta, v.size
		*v = volume{id: id, disk: d, meta: m, size: size, st: s.State, virgin: v.virgin, tainted: v.tainted}
	}
	w.tracef("%s boots", n.name())
	if w.chance(0.5) {
		w.net.bury(w, n)
	}
}

// up and running: attach all, connect.
func (n *node) start() {
	n.boot()
	for _, v := range n.vols {
		n.after(n.w.between(microsecond, millisecond), atAttach, uint64(v.id))
	}
	n.later(core.Command{Kind: core.CmdConnect, Vol: -1})
	n.startClients()
}

// crash ends the process; with power it ends the machine too.
func (n *node) crash(power bool) {
	w := n.w
	w.tracef("%s dies (power %v)", n.name(), power)
	w.markCrash(n)
	n.up = false
	n.life++
	whole := n.whole(power)
	w.net.crash(w, n, power)
	for _, v := range n.vols {
		v.disk.parked, v.meta.dev.parked = nil, nil // they happen now, or never
		if power {
			v.disk.cut(w.rng)
		} else {
			v.disk.kill(w.rng)
		}
		v.meta.crash(power)
		v.disk.parked, v.meta.dev.parked = nil, nil // a disk that heals now owes nobody an answer
		v.attached, v.tainted = false, true
		v.st = core.State{Role: core.Secondary}
		if !w.script {
			w.toldLies(n, v)
		}
	}
	w.recompare()
	w.oracle.Crashed(w.stamp(), n.id, whole, n.images())
	for _, v := range n.peer().vols {
		// Under A and B the peer may have died with writes that the Primary had
		// on its own disk, and gave up since.
		if (power || w.opt.Protocol != 'C') && v.st.Role == core.Primary && v.st.Disk != core.UpToDate {
			w.oracle.Reverted(w.stamp(), 1-n.id, v.id, n.vols[v.id].disk.cache)
		}
	}
	w.diverged()
}

func (n *node) images() [][]content {
	images := make([][]content, len(n.vols))
	for i, v := range n.vols {
		images[i] = v.disk.cache
	}
	return images
}

// attach opens a volume's disk, applies its activity log, and hands it to the
// core. A crash may hit while the metadata is read and written.
func (n *node) attach(vol int) {
	w, v := n.w, n.vols[vol]
	if !n.up || v.attached || v.st.Disk != core.Diskless || v.meta.dev.hung {
		return
	}
	dev := v.meta.dev
	dev.open()
	v.disk.struck = false
	n.reopen(v)
	dev.change = func(first, count uint32) { w.metaChanged(v, first, count) }
	if !w.script && !w.calm && w.chance(w.opt.RecoveryCrash) {
		dev.budget = w.rng.IntN(12)
	}
	a, err := v.meta.attach()
	dev.budget = -1
	if dev.stopped {
		w.reached.hit(markCrashRecovery)
		n.crash(w.coin())
		return
	}
	if err != nil {
		w.attachRefused(n, v, err)
		return
	}
	v.attached, v.leaving = true, false
	if a.Super.Flags&core.FlagConsistent != 0 {
		w.oracle.Given(vol, n.id, false)
	}
	a.User = w.opt.Blocks * blockSectors * sectorSize
	a.Cmd = n.newCommand(core.Command{Kind: attachCommand, Vol: int32(vol)})
	n.event(core.Event{Kind: core.EvAttach, Vol: uint16(vol), Attach: a})
}

// reopen takes a disk into use again. What a failed flush left of it is not
// promised to anybody: the client was told, and so was the operator.
func (n *node) reopen(v *volume) {
	w := n.w
	if !v.disk.reopened(w.rng) {
		return
	}
	w.reached.hit(markFlushFailed)
	v.tainted = true
	w.recompare()
	w.oracle.SettleFor(w.stamp(), n.id, v.id, v.disk.cache)
	if v.st.Role == core.Primary && v.st.PDisk != core.UpToDate {
		w.oracle.Reverted(w.stamp(), n.id, v.id, v.disk.cache)
	}
	w.diverged()
}

// attachRefused judges the refusal of a disk: the metadata device must have failed.
func (w *World) attachRefused(n *node, v *volume, err error) {
	w.tracef("%s volume %d: attach refused: %v", n.name(), v.id, err)
	if !v.meta.dev.struck {
		w.fail("P10", "node %s volume %d cannot be attached: %v", n.name(), v.id, err)
	}
}

// attachCommand stands for the attach verb, which is an event of its own.
const attachCommand core.CommandKind = 0

func (n *node) newCommand(c core.Command) uint64 {
	n.w.nextCmd++
	c.ID = n.w.nextCmd
	if c.Kind == attachCommand {
		n.resets++
	}
	n.commands[c.ID] = c
	return c.ID
}

// command hands an administrator's command to the core.
func (n *node) command(c core.Command) uint64 {
	c.ID = n.newCommand(c)
	n.w.ordered(n, &c, true)
	n.event(core.Event{Kind: core.EvCommand, Cmd: &c})
	return c.ID
}

// --- events

// event steps the core and carries out what it wants.
func (n *node) event(e core.Event) {
	if !n.up || n.w.failure != nil {
		return
	}
	w := n.w
	w.count.Steps++
	n.acts = n.core.Step(n.clock.at(w.now), e, n.acts[:0])
	if w.trace != nil {
		w.traceEvent(n, &e)
	}
	for i := range n.acts {
		n.perform(&n.acts[i])
	}
	if !w.script {
		w.watchCounters(n)
	}
	n.setTick()
	if n.heldBack {
		w.net.resume(w, n)
	}
}

func (n *node) tick(at core.Time) {
	if at != n.tickAt {
		return
	}
	n.tickAt = 0
	if n.tickedAt != n.w.now {
		n.tickedAt, n.ticks = n.w.now, 0
	}
	if n.ticks++; n.ticks > 1000 {
		n.w.fail("liveness", "node %s asks for a tick at once, again and again", n.name())
		return
	}
	n.event(core.Event{Kind: core.EvTick})
}

func (n *node) setTick() {
	at, ok := n.core.Deadline()
	if !ok {
		return
	}
	at = max(n.clock.world(at), n.w.now) + n.clock.late
	if n.tickAt == 0 || at < n.tickAt {
		n.tickAt = at
		n.w.clock.add(timer{at: at, what: atTick, node: int8(n.id), life: n.life, arg: uint64(at)})
	}
}

// perform carries out one action.
func (n *node) perform(a *core.Action) {
	w := n.w
	switch a.Kind {
	case core.ActSend:
		n.sends(a)
		w.net.send(w, n, a)
	case core.ActComplete:
		n.complete(a)
	case core.ActRelease:
		n.release(a.Buf)
	case core.ActDiskRead, core.ActDiskWrite, core.ActDiskTrim, core.ActDiskZero, core.ActDiskFlush:
		n.startDisk(a)
	case core.ActMetaSuper, core.ActMetaAL, core.ActMetaBitmap:
		n.startMeta(a)
	case core.ActCloseGate:
		n.closeGate(a)
	case core.ActOpenGate:
		n.vols[a.Vol].gate = true
	case core.ActDetach:
		n.vols[a.Vol].leaving = true
		n.maybeDetached(n.vols[a.Vol])
	case core.ActDial:
		n.dial = a.Session
		w.net.dialled(w)
	case core.ActStopDial:
		w.net.stopDial(w, n)
	case core.ActDrop:
		w.net.drop(w, n, a.Session, a.Reason)
	case core.ActCommandDone:
		n.commandDone(a)
	case core.ActHandler:
		w.handlers = append(w.handlers, n.name()+" "+a.Name)
		if a.Wait {
			n.after(w.between(millisecond, 20*millisecond), atHandler, uint64(a.Op))
		}
	case core.ActLog:
		w.logLine(n, a)
		n.compares(a)
	case core.ActState:
		n.stateChanged(a)
	default:
		w.fail("contract", "node %s: action of unknown kind %d", n.name(), a.Kind)
	}
}

func (n *node) commandDone(a *core.Action) {
	c, ok := n.commands[a.Cmd]
	if !ok {
		n.w.fail("contract", "node %s answers command %d, which nobody gave or which was answered", n.name(), a.Cmd)
		return
	}
	delete(n.commands, a.Cmd)
	if c.Kind == core.CmdConnect {
		n.resets++
	}
	n.w.tracef("%s command %d kind %d: %d %s", n.name(), a.Cmd, c.Kind, a.Err, a.Text)
	if c.Kind == attachCommand && refusedBy(a.Err) {
		n.vols[c.Vol].attached = false
	}
	n.w.commandAnswered(n, &c, a)
}

// refusedBy reports that a command did not do what it says: a refused state
// change is negative, a failure is a number from 100.
func refusedBy(e core.StateErr) bool { return e < core.Success || e >= 100 }

func (n *node) stateChanged(a *core.Action) {
	v := n.vols[a.Vol]
	if a.Old != v.st {
		n.w.fail("contract", "node %s volume %d: state change from %v, but it was %v", n.name(), a.Vol, a.Old, v.st)
		return
	}
	v.st = a.New
	n.w.stateChanged(n, v, a.Old, a.New)
}

// --- payload buffers

func (n *node) takePayload(m *wire.Msg, data []content) core.Buf {
	id := n.bufs.take(n.w.rng.IntN)
	b := &n.bufs.all[id-1]
	b.data, b.kind = data, uint8(m.Kind)
	b.vol, b.first = int(m.Vol), uint32(m.Off/sectorSize)
	return id
}

func (n *node) release(id core.Buf) {
	b := n.bufs.get(id)
	if b == nil || b.request != nil || b.writers > 0 {
		n.w.fail("buffers", "node %s releases buffer %d, which is not a payload of its own or is in use", n.name(), id)
		return
	}
	n.bufs.release(id)
}

// arrived notes a mirrored range without payload, until the core begins it.
func (n *node) arrived(m *wire.Msg) {
	switch m.Kind {
	case wire.KindTrim, wire.KindZero:
		n.received = append(n.received, peerRange{int(m.Vol), uint32(m.Off / sectorSize), m.Len / sectorSize})
		fallthrough
	case wire.KindData:
		n.epochs.mirrored(m)
	case wire.KindBarrier:
		n.epochs.barrier(m.Seq)
	}
}

func (n *node) begins(vol int, first, count uint32) {
	want := peerRange{vol, first, count}
	if i := slices.Index(n.received, want); i >= 0 {
		n.received = slices.Delete(n.received, i, i+1)
	}
}
