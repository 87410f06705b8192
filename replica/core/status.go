package core

import "replicad/bitmap"

// Counters are a volume's /proc/drbd counters (DRBD 8.4 section 1.2); byte
// counts are in bytes here and printed in KiB.
type Counters struct {
	Sent     uint64 // ns: payload bytes sent
	Received uint64 // nr
	Written  uint64 // dw: bytes written to the local disk
	Read     uint64 // dr: bytes read from the local disk by the core's actions; the shell adds reads that bypass the core
	AL       uint64 // activity-log transactions written
	BM       uint64 // bitmap writes
	Local    int    // lo: references to the local disk
	Pending  int    // pe: requests sent, not yet acked
	Unacked  int    // ua: received from the peer, not yet answered
	App      int    // ap: client requests not completed
	Epochs   int    // ep: epoch objects
}

// VolumeStatus is a snapshot of one volume.
type VolumeStatus struct {
	Vol         uint16
	State       State
	Counters    Counters
	Size        uint64 // bytes served, 0 = none yet
	OutOfSync   uint64 // bytes
	Gen         Generation
	Flags       MetaFlags
	ALSuspended bool
	HotExtents  int
	SyncTotal   uint64 // bits to resync at the start; 0 = no resync running
	SyncLeft    uint64 // bits left
	SyncStart   Time
	SyncWant    uint64 // bytes per second the target aims at
}

// Status is a snapshot of the resource.
type Status struct {
	Role     Role
	Session  Session
	HasNet   bool
	Protocol byte
	Busy     bool // a handshake, a command or a drain is running
	Volumes  []VolumeStatus
}

// Status returns a snapshot for status texts and waiting commands.
func (n *Node) Status() Status {
	s := Status{
		Role: n.role, Session: n.link.session, HasNet: n.conn() != StandAlone, Protocol: n.cfg.Net.Protocol,
		Busy: n.cmd != nil || n.settling() || n.frozen > 0,
	}
	for _, v := range n.vols {
		s.Volumes = append(s.Volumes, v.status())
	}
	return s
}

func (v *volume) status() VolumeStatus {
	s := VolumeStatus{
		Vol: v.id, State: v.st, Counters: v.counters(), Size: v.size, OutOfSync: v.outOfSync() * 4096, Gen: v.gen,
		Flags: v.metaFlags(), ALSuspended: v.disk.alPaused,
		SyncTotal: v.sync.total, SyncStart: v.sync.start,
	}
	if v.st.Conn == SyncSource || v.st.Conn == SyncTarget {
		s.SyncLeft = v.outOfSync()
	}
	if v.st.Conn == SyncTarget {
		s.SyncWant = v.rate()
	}
	if v.disk.al != nil {
		for range v.disk.al.HotExtents() {
			s.HotExtents++
		}
	}
	return s
}

func (v *volume) counters() Counters {
	c := v.ctr
	c.Local, c.Epochs = v.disk.running, 1
	return c
}

// Counters returns volume vol's counters, as Status does.
func (n *Node) Counters(vol uint16) Counters { return n.volume(vol).counters() }

// OutOfSync returns volume vol's dirty bitmap, for checks by the simulator;
// nil without a disk. The caller does not change it.
func (n *Node) OutOfSync(vol uint16) *bitmap.Bitmap { return n.volume(vol).disk.bm }
