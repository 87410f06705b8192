package daemon

import (
	"net/netip"
	"slices"
	"time"

	"replicad/config"
	"replicad/internal/ctl"
	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/meta"
	"replicad/replica/status"
)

// procText is what `replicad status` prints for the named resources, or all.
func (d *Daemon) procText(names []string) []byte {
	var devices []status.Device
	for _, r := range d.statusResources(names) {
		devices = append(devices, r.Devices...)
	}
	return status.AppendProc(nil, d.opts.Version, devices)
}

// statusResources are the running resources of these names, or all.
func (d *Daemon) statusResources(names []string) []status.Resource {
	var all []status.Resource
	for _, u := range d.allUnits() {
		res := u.res.Load()
		if res == nil || len(names) > 0 && !slices.Contains(names, u.name) {
			continue
		}
		all = append(all, statusResource(res.Status()))
	}
	return all
}

func statusResource(s replica.Snapshot) status.Resource {
	r := status.Resource{Name: s.Resource, PeerNodeID: 0, PeerName: s.Peer, TLS: s.TLS}
	for i := range s.Volumes {
		r.Devices = append(r.Devices, statusDevice(&s, &s.Volumes[i]))
	}
	if s.Local.IsValid() && s.Remote.IsValid() {
		r.Path = &status.Path{
			This: statusAddress(s.Local), Remote: statusAddress(s.Remote),
			Established: connection(s) >= core.WFReportParams,
		}
	}
	return r
}

func statusAddress(a netip.AddrPort) status.Address {
	family := "ipv4"
	if a.Addr().Is6() && !a.Addr().Is4In6() {
		family = "ipv6"
	}
	return status.Address{Address: a.Addr().Unmap().String(), Port: int(a.Port()), Family: family}
}

func statusDevice(s *replica.Snapshot, v *replica.VolumeSnapshot) status.Device {
	st := &v.State
	dev := status.Device{
		Minor: v.Minor, Volume: int(v.Vol),
		Conn: status.Conn(st.Conn.String()), Role: status.Role(st.Role.String()), PeerRole: status.Role(st.Peer.String()),
		Disk: status.Disk(st.Disk.String()), PeerDisk: status.Disk(st.PDisk.String()),
		Flags: status.Flags{
			SuspendedUser: st.Susp, SuspendedNoData: st.SuspNod, SuspendedFencing: st.SuspFen,
			AfterPaused: st.AftrIsp, PeerPaused: st.PeerIsp, UserPaused: st.UserIsp, ALSuspended: v.ALSuspended,
		},
		Counters: counters(v),
		Open:     v.Openers > 0,
		Size:     v.Size / 1024,
		Sync:     v.Sync,
	}
	if s.HasNet {
		dev.Protocol = s.Protocol
	}
	return dev
}

func counters(v *replica.VolumeSnapshot) status.Counters {
	c := &v.Counters
	out := status.Counters{
		NS: c.Sent / 1024, NR: c.Received / 1024, DW: c.Written / 1024, DR: c.Read / 1024,
		AL: c.AL, LO: c.Local, PE: c.Pending, UA: c.Unacked, AP: c.App, EP: c.Epochs, WO: 'f',
	}
	// With neither a disk nor a bitmap there is nothing to count.
	if v.State.Disk > core.Diskless {
		out.OOS = v.OutOfSync / 1024
	}
	return out
}

// connection is the state of the volume that is furthest from being connected.
func connection(s replica.Snapshot) core.Conn {
	if len(s.Volumes) == 0 {
		return core.StandAlone
	}
	conn := s.Volumes[0].State.Conn
	for i := range s.Volumes {
		conn = min(conn, s.Volumes[i].State.Conn)
	}
	return conn
}

// view is what the control interface tells about a resource.
func (u *unit) view() ctl.Resource {
	lr := u.local.Load()
	r := ctl.Resource{Name: u.name, Peer: peerName(lr), Role: "Unconfigured", PeerRole: "Unknown", Connection: "Unconfigured"}
	res := u.res.Load()
	if res == nil {
		for _, v := range lr.Volumes {
			r.Volumes = append(r.Volumes, downVolume(v))
		}
		return r
	}
	s := res.Status()
	r.Configured, r.Role, r.Connection = true, s.Role.String(), connection(s).String()
	for i := range s.Volumes {
		v := &s.Volumes[i]
		r.PeerRole = v.State.Peer.String()
		r.Volumes = append(r.Volumes, u.volumeView(v))
	}
	return r
}

func downVolume(v *config.LocalVolume) ctl.Volume {
	return ctl.Volume{Number: v.Number, Minor: v.Minor, Connection: "Unconfigured", Disk: "Diskless", PeerDisk: "DUnknown"}
}

func (u *unit) volumeView(v *replica.VolumeSnapshot) ctl.Volume {
	out := ctl.Volume{
		Number: int(v.Vol), Minor: v.Minor, Connection: v.State.Conn.String(),
		Disk: v.State.Disk.String(), PeerDisk: v.State.PDisk.String(), Attached: v.State.Disk != core.Diskless,
		SizeKiB: v.Size / 1024, OutOfSyncKiB: v.OutOfSync / 1024, Openers: v.Openers,
	}
	for _, e := range u.exportsOf(int(v.Vol)) {
		for _, address := range e.addresses {
			out.NBD = append(out.NBD, nbdURI(address, e.name))
		}
	}
	if p := v.Sync; p != nil {
		out.Sync = &ctl.Sync{TotalKiB: p.Total * 4, LeftKiB: p.Left * 4, RateKiB: rate(p)}
	}
	return out
}

// rate is the speed of a resync in KiB per second, of late.
func rate(p *status.SyncProgress) uint64 {
	seconds := uint64(max(p.Far.Age/time.Second, 1))
	if p.Far.Left < p.Left {
		return 0
	}
	return (p.Far.Left - p.Left) * 4 / seconds
}

// giOf renders the generation ids of a running volume, and their explanation,
// as the offline tool does. It ends before what only the disk knows.
func giOf(v *replica.VolumeSnapshot) (get, show string) {
	super := meta.Super{
		Current: meta.UUID(v.Gen.Current), Bitmap: meta.UUID(v.Gen.Bitmap),
		History: [2]meta.UUID{meta.UUID(v.Gen.H1), meta.UUID(v.Gen.H2)},
		Flags:   meta.Flags(v.Flags) &^ meta.FlagALClean,
	}
	return super.GI(), beforeSize(super.ShowGI())
}
