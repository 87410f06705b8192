package replica

import (
	"replicad/replica/core"
	"replicad/replica/status"
)

// coreStatus returns the core's view.
func (r *Resource) coreStatus() core.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.Status()
}

// diskState is called with the lock held.
func (r *Resource) diskState(vol uint16) core.Disk {
	s := r.core.Status()
	for i := range s.Volumes {
		if s.Volumes[i].Vol == vol {
			return s.Volumes[i].State.Disk
		}
	}
	return core.Diskless
}

// Status returns the state of the resource now. Called about once a second it
// also keeps the marks that resync speeds are computed from.
func (r *Resource) Status() Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	s := Snapshot{
		Resource: r.cfg.Resource, Peer: r.cfg.Link.PeerName,
		Local: r.cfg.Link.Local, Remote: r.cfg.Link.Peer, Status: r.core.Status(),
	}
	s.TLS = r.line.active != nil && r.line.active.link.Cipher != ""
	for i := range s.Status.Volumes {
		vs := s.Status.Volumes[i]
		s.Volumes = append(s.Volumes, r.volume(vs.Vol).snapshot(now, vs))
	}
	return s
}

// snapshot adds the shell's knowledge to the core's. Called with the lock held.
func (v *Volume) snapshot(now core.Time, vs core.VolumeStatus) VolumeSnapshot {
	vs.Counters.Read += v.reads.Load()
	s := VolumeSnapshot{
		VolumeStatus: vs, Minor: v.minor, Device: v.cfg.Device, Disk: v.cfg.Disk, Openers: v.openers,
	}
	if v.back != nil {
		s.MetaSlots = v.back.slots
	}
	s.Sync = v.progressAt(now, &vs)
	return s
}

// progressAt follows the resync of a volume and reports it, nil if none runs.
// Called with the lock held.
func (v *Volume) progressAt(now core.Time, vs *core.VolumeStatus) *status.SyncProgress {
	if vs.SyncTotal == 0 {
		v.progress = nil
		return nil
	}
	at := status.Time(now)
	if v.progress == nil || v.syncStart != vs.SyncStart {
		v.progress, v.syncStart = status.NewProgress(status.Time(vs.SyncStart), vs.SyncTotal), vs.SyncStart
	}
	if vs.State.Conn == core.PausedSyncS || vs.State.Conn == core.PausedSyncT {
		v.progress.Pause(at)
	} else {
		v.progress.Resume(at)
	}
	v.progress.Mark(at, vs.SyncLeft)
	p := v.progress.At(at, vs.SyncLeft)
	p.Want = vs.SyncWant / 1024
	return &p
}
