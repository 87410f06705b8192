package sim

import (
	"replicad/replica/core"
)

// ill is a way in which a disk may be in trouble.
type ill uint8

const (
	illReadOnce ill = iota
	illWriteOnce
	illFlushOnce // a flush fails after writes that succeeded
	illShortWrite
	illRead // from now on
	illWrite
	illFlush
	illRange  // reads and writes of some sectors
	illFull   // no space for writes
	illSlowOp // one operation takes long
	illHung   // nothing is answered
	illMetaRead
	illMetaWriteOnce
	illMetaWrite
	illMetaFlushOnce
	illMetaRange
	illMetaFull
	illMetaHung
	illHeal // all of it ends
	illEnd
)

var illNames = [illEnd]string{
	"read-once", "write-once", "flush-once", "short-write", "read", "write", "flush", "range", "full", "slow-op", "hung",
	"meta-read", "meta-write-once", "meta-write", "meta-flush-once", "meta-range", "meta-full", "meta-hung", "heal",
}

// transfer is a kind of operation that may fail.
type transfer uint8

const (
	reading transfer = iota
	writing
	flushing
	transfers
)

// ills is what is wrong with a device now.
type ills struct {
	once   [transfers]bool // the next one fails
	always [transfers]bool
	first  uint32 // a range of sectors that cannot be read or written
	count  uint32
	full   bool
	short  bool // the next write ends early
	next   bool // the next operation fails, whatever it is
	slow   bool // the next operation takes long
	hung   bool
	struck bool      // something failed since the device was opened
	parked []core.Op // what a hung device has not answered
}

// strike says how an operation ends.
func (i *ills) strike(t transfer, first, count uint32) core.IOResult {
	bad := i.next || i.always[t] || i.once[t] || t != flushing && first < i.first+i.count && i.first < first+count
	i.once[t], i.next = false, false
	if t == writing && i.short {
		i.short, bad = false, true
	}
	switch {
	case bad:
		i.struck = true
		return core.IOError
	case t == writing && i.full:
		i.struck = true
		return core.IONoSpace
	}
	return core.IOOK
}

// breakDisk makes one of the node's disks ill, or all of one's ills end.
func (w *World) breakDisk(n *node) {
	v := n.vols[w.rng.IntN(len(n.vols))]
	i := w.drawIll()
	w.count.Ills[i]++
	w.tracef("%s volume %d: disk %s", n.name(), v.id, illNames[i])
	n.afflict(v, i)
}

func (w *World) drawIll() ill {
	if w.chance(w.opt.Hang) {
		return pick(w.rng, illHung, illHung, illMetaHung)
	}
	for {
		if i := ill(w.rng.IntN(int(illEnd))); i == illHeal || w.opt.Ills[i] {
			return i
		}
	}
}

func (n *node) afflict(v *volume, i ill) {
	data, md := &v.disk.ills, &v.meta.dev.ills
	switch i {
	case illReadOnce, illWriteOnce, illFlushOnce:
		data.once[transfer(i-illReadOnce)] = true
	case illShortWrite:
		data.short = true
	case illRead, illWrite, illFlush:
		data.always[transfer(i-illRead)] = true
	case illRange:
		data.first, data.count = n.w.badRange(len(v.disk.cache))
	case illFull:
		data.full = true
	case illSlowOp:
		data.slow = true
	case illHung:
		data.hung = true
	case illMetaRead:
		md.always[reading] = true
	case illMetaWriteOnce:
		md.once[writing] = true
	case illMetaWrite:
		md.always[writing] = true
	case illMetaFlushOnce:
		md.once[flushing] = true
	case illMetaRange:
		md.first, md.count = n.w.badRange(len(v.meta.dev.cache))
	case illMetaFull:
		md.full = true
	case illMetaHung:
		md.hung = true
	case illHeal:
		n.heal(v)
	}
}

func (w *World) badRange(sectors int) (first, count uint32) {
	return uint32(w.rng.IntN(sectors)), uint32(1 + w.rng.IntN(16))
}

// heal ends every ill of a volume's disk; what hung goes on.
func (n *node) heal(v *volume) {
	for _, i := range []*ills{&v.disk.ills, &v.meta.dev.ills} {
		parked, struck := i.parked, i.struck
		*i = ills{struck: struck}
		for _, id := range parked {
			if o := n.ops[id]; o != nil {
				n.schedule(o, i)
			}
		}
	}
}

// schedule sets the time at which an action has its effect, unless the device
// answers nothing.
func (n *node) schedule(o *action, i *ills) {
	if i.hung {
		i.parked = append(i.parked, o.id)
		return
	}
	d := n.latency()
	if i.slow {
		i.slow = false
		d += n.w.between(millisecond, 3*second)
	}
	what := atDiskEffect
	if o.meta != nil {
		what, d = atMetaDone, d-settleDelay
	}
	n.after(d, what, uint64(o.id))
}
