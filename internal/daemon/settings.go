package daemon

import (
	"context"
	"log/slog"
	"time"

	"replicad/config"
	"replicad/replica"
	"replicad/replica/core"
)

// settings turns the configuration of a resource into what package replica
// takes. Revoke and the logger are the caller's.
func settings(lr *config.LocalResource, configPath string) replica.Config {
	c := replica.Config{
		Resource:   lr.Name,
		Node:       lr.Node,
		Link:       linkSettings(lr),
		Handlers:   lr.Handlers,
		ConfigPath: configPath,
	}
	c.Core.Net = netSettings(&lr.Net)
	for _, v := range lr.Volumes {
		c.Volumes = append(c.Volumes, volumeSettings(v))
		c.Core.Volumes = append(c.Core.Volumes, diskSettings(v, lr.Options.OnNoDataAccessible))
	}
	return c
}

func netSettings(o *config.NetOptions) core.NetConfig {
	n := core.Defaults()
	n.Protocol = byte(o.Protocol)
	n.AllowTwoPrimaries = o.AllowTwoPrimaries
	n.AfterSB0, n.AfterSB1, n.AfterSB2 = o.AfterSB0Pri, o.AfterSB1Pri, o.AfterSB2Pri
	n.AlwaysASBP = o.AlwaysASBP
	n.RRConflict = o.RRConflict
	n.IntegrityAlg = o.DataIntegrityAlg
	n.PingInt = core.Duration(o.PingInt)
	n.PingTimeout = core.Duration(o.PingTimeout)
	n.Timeout = core.Duration(o.Timeout)
	n.KoCount = o.KoCount
	return n
}

func diskSettings(v *config.LocalVolume, onNoData string) core.VolumeConfig {
	c := core.DefaultVolume(uint16(v.Number))
	c.Fencing = fencingPolicy(v.Options.Fencing)
	if onNoData == "suspend-io" {
		c.OnNoData = core.NoDataSuspendIO
	}
	c.ResyncRate = uint64(v.Options.ResyncRate)
	c.CMaxRate = uint64(v.Options.CMaxRate)
	c.CPlanAhead = core.Duration(v.Options.CPlanAhead)
	c.ALUpdates = v.Options.ALUpdates
	c.DiskTimeout = core.Duration(v.Options.DiskTimeout)
	return c
}

func fencingPolicy(word string) core.Fencing {
	switch word {
	case "resource-only":
		return core.FencingResourceOnly
	case "resource-and-stonith":
		return core.FencingResourceAndStonith
	}
	return core.FencingDontCare
}

func volumeSettings(v *config.LocalVolume) replica.VolumeConfig {
	c := replica.VolumeConfig{
		Vol: uint16(v.Number), Minor: v.Minor, Device: v.Device, Disk: v.Disk,
		MetaPath: v.MetaDisk.Path, MetaSlot: v.MetaDisk.Index, Size: uint64(v.Options.Size), ALExtents: v.Options.ALExtents,
	}
	switch v.MetaDisk.Kind {
	case config.MetaFlexibleExternal:
		c.MetaKind = replica.MetaFlexible
	case config.MetaIndexed:
		c.MetaKind = replica.MetaIndexed
	case config.MetaInternal:
		c.MetaKind = replica.MetaInternal
	}
	return c
}

func linkSettings(lr *config.LocalResource) replica.LinkConfig {
	o := &lr.Net
	c := replica.LinkConfig{
		Local: lr.Local.Address.AddrPort, Peer: lr.Peer.Address.AddrPort,
		PeerName: peerName(lr), Secret: o.SharedSecret, AllowUnauthenticated: o.AllowUnauthenticated,
		ConnectInterval: o.ConnectInt, PingTimeout: o.PingTimeout,
		SendBuffer: int(o.SndbufSize), ReceiveBuffer: int(o.RcvbufSize),
	}
	if o.KoCount > 0 {
		c.WriteTimeout = o.Timeout * time.Duration(o.KoCount)
	}
	return c
}

// peerName is how messages call the other node.
func peerName(lr *config.LocalResource) string {
	if len(lr.Peer.Names) > 0 {
		return lr.Peer.Names[0]
	}
	return lr.Peer.Address.AddrPort.String()
}

// resourceConfig completes the settings of u's resource. Called with life held.
func (u *unit) resourceConfig(lr *config.LocalResource) replica.Config {
	c := settings(lr, u.d.opts.ConfigPath)
	c.Log = u.d.log
	c.Link.TLS = u.tlsSettings(lr)
	c.Revoke = func(ctx context.Context, vol uint16) {
		if err := u.sendAway(ctx, vol); err != nil {
			u.d.log.Warn("clients did not let go", slog.String("resource", u.name), slog.Int("volume", int(vol)), slog.Any("err", err))
		}
	}
	return c
}
