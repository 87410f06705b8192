package replica

import (
	"sync"
	"sync/atomic"

	"replicad/replica/core"
	"replicad/replica/status"
)

// Volume is one volume of a running resource.
type Volume struct {
	r        *Resource
	number   uint16
	minor    int
	gate     gate
	inflight inflight
	failed   atomic.Bool   // a local operation failed: no read bypasses the core until the next attach
	full     atomic.Bool   // a local write found no space, and no room has been seen since
	direct   atomic.Bool   // a block device: reads that bypass the core go to the workers
	limit    atomic.Uint64 // bytes that reads past the core may touch
	reads    atomic.Uint64 // bytes read past the core
	work     workQueue     // of its own: a disk that hangs holds up no other volume

	// back is set by attach and cleared when the disk was closed, both under
	// the resource's lock. An operation that counts in running, or that is
	// inside the gate, may use it without.
	back *backing

	// Guarded by the resource's lock.
	cfg       VolumeConfig
	running   int  // disk and metadata operations the core waits for
	detaching bool // close back when running is 0
	attaching bool // an attach has begun and the core has not answered
	openers   int
	// readersGone says, once the core has stopped, that no read bypasses it any more.
	readersGone bool
	progress    *status.Progress
	syncStart   core.Time // the resync that progress follows

	metaMu    sync.Mutex
	metaReady sync.Cond
	metaQueue []core.Action
	metaEnd   bool
}

func newVolume(r *Resource, cfg VolumeConfig) *Volume {
	v := &Volume{r: r, number: cfg.Vol, minor: cfg.Minor, cfg: cfg}
	v.gate.init()
	v.work.init()
	v.metaReady.L = &v.metaMu
	return v
}

// Size returns the bytes the volume serves, 0 while it has none. It may grow.
func (v *Volume) Size() uint64 {
	s := v.r.coreStatus()
	for i := range s.Volumes {
		if s.Volumes[i].Vol == v.number {
			return s.Volumes[i].Size
		}
	}
	return 0
}

// Number returns the volume's number within the resource.
func (v *Volume) Number() uint16 { return v.number }

// Minor returns the minor number of the volume's device.
func (v *Volume) Minor() int { return v.minor }

// Openers returns how many Handles are open.
func (v *Volume) Openers() int {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return v.openers
}

// Open opens the volume for a client. It is refused with a *NotPrimaryError on
// a node that is not Primary, and with ErrClosed during shutdown. A volume that
// is open cannot be demoted, except by force.
func (v *Volume) Open() (*Handle, error) {
	if err := v.changeOpeners(+1); err != nil {
		return nil, err
	}
	h := &Handle{v: v}
	h.b = batch{r: v.r, inline: true}
	return h, nil
}

// changeOpeners tells the core how many clients there are, under the same lock
// as the check of the role: a demotion sees every opener, or the opener it.
func (v *Volume) changeOpeners(delta int) error {
	r := v.r
	b := batch{r: r}
	err := b.stepAfter(func() error {
		if delta > 0 {
			if err := r.mayOpen(); err != nil {
				return err
			}
		}
		v.openers += delta
		b.add(core.Event{Kind: core.EvOpen, Vol: v.number, Arg: uint64(v.openers)})
		r.feed.notify()
		return nil
	})
	b.finish()
	return err
}

// mayOpen is called with the lock held.
func (r *Resource) mayOpen() error {
	if r.closed || r.closing {
		return ErrClosed
	}
	if role := r.core.Status().Role; role != core.Primary {
		return &NotPrimaryError{Resource: r.cfg.Resource, Role: role}
	}
	return nil
}
