package replica

import (
	"context"
	"errors"
	"time"

	"replicad/replica/core"
	"replicad/replica/disk"
)

const (
	// inspectEvery is how soon a change around an attached disk is noticed.
	inspectEvery = time.Second
	// giveUpTimeout bounds the detach of a file that was cut.
	giveUpTimeout = 30 * time.Second
)

// inspector is a device that can look at what surrounds it (disk.File).
type inspector interface {
	Inspect() (disk.Condition, error)
}

// surroundings is what was last said about an attached disk, so that each
// change is said once. It belongs to the goroutine of watchDisks.
type surroundings struct {
	back         *backing
	moved, blind map[string]bool // by what is meant: "disk" or "meta-disk"
	shrunk       bool
}

// watchDisks is the body of the goroutine that looks after the files below
// the volumes: what becomes of a file's name, size and file system shows in no
// read or write, or too late.
func (r *Resource) watchDisks() {
	tick := time.NewTicker(inspectEvery)
	defer tick.Stop()
	known := make([]surroundings, len(r.vols))
	for {
		select {
		case <-tick.C:
		case <-r.done.Done():
			return
		}
		for i, v := range r.vols {
			v.inspect(&known[i])
		}
	}
}

// inspect looks at one volume's disk. The disk may be closed meanwhile; then
// there is nothing to say.
func (v *Volume) inspect(s *surroundings) {
	v.r.mu.Lock()
	k := v.back
	v.r.mu.Unlock()
	if k == nil {
		*s = surroundings{}
		return
	}
	if s.back != k {
		*s = surroundings{back: k, moved: map[string]bool{}, blind: map[string]bool{}}
	}
	full := v.inspectDevice(s, "disk", k.path, k.data)
	if !k.internal {
		v.inspectDevice(s, "meta-disk", k.metaPath, k.md)
	}
	if !full && v.full.Swap(false) {
		v.r.log.Info("the file system below the disk has room again", "volume", v.number)
	}
}

// inspectDevice says what has changed around one device, and returns whether its
// file system is full.
func (v *Volume) inspectDevice(s *surroundings, what, path string, d disk.Device) (full bool) {
	i, ok := d.(inspector)
	if !ok {
		return false
	}
	log := v.r.log.With("volume", v.number, what, path)
	c, err := i.Inspect()
	if errors.Is(err, disk.ErrClosed) {
		return true
	}
	if blind := err != nil; blind != s.blind[what] {
		s.blind[what] = blind
		if blind {
			log.Warn("what surrounds the file cannot be looked at", "err", err)
		}
	}
	if c.Moved != s.moved[what] {
		s.moved[what] = c.Moved
		if c.Moved {
			log.Error("the file was removed, renamed or replaced while it is in use: it is still served, and nobody finds it after the daemon; " +
				"rename it back, or copy it from /proc/PID/fd before the daemon ends")
		} else {
			log.Info("the file is back at its place")
		}
	}
	if c.Shrunk != nil && !s.shrunk {
		s.shrunk = true
		v.giveUp(c.Shrunk)
	}
	return c.Full || err != nil
}

// giveUp detaches a disk that must not be used any more, without waiting for
// the next request to notice.
func (v *Volume) giveUp(why *disk.ShrunkError) {
	v.failed.Store(true)
	v.r.log.Error(why.Error(), "volume", v.number)
	ctx, cancel := context.WithTimeout(v.r.done, giveUpTimeout)
	defer cancel()
	if err := v.r.Detach(ctx, v.number, true); err != nil && ctx.Err() == nil {
		v.r.log.Warn("the cut file is not detached yet", "volume", v.number, "err", err)
	}
}

// noSpace notes that an operation found the file system full. It is said once;
// watchDisks says when there is room again.
func (v *Volume) noSpace(op *diskOp, err error) {
	if v.full.Swap(true) {
		return
	}
	v.r.log.Error("the file system below the disk is full: writes that need new space fail; "+
		"make room there, or allocate the file in full (fallocate)",
		"volume", v.number, "disk", op.path(), "op", opNames[op.kind], "offset", op.off, "bytes", op.len, "err", err)
}

// note logs a failed operation, with its cause, which the core does not see.
func (v *Volume) note(op *diskOp, result core.IOResult, err error) {
	switch result {
	case core.IOError:
		v.diskFailed(op, err)
	case core.IONoSpace:
		v.noSpace(op, err)
	}
}
