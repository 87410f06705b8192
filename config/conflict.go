package config

import (
	"path"
	"strconv"
)

// claims remembers where each address, minor and disk is first used.
type claims struct {
	report *report
	first  map[string]Pos
	slots  map[string]Pos // devices divided into indexed metadata slots
}

// claim reports a second use of what, shown as drbdadm names it.
func (c *claims) claim(pos Pos, what, shown string) {
	key := what + " " + shown
	if first, used := c.first[key]; used {
		c.report.conflict(pos, first, what, shown)
		return
	}
	c.first[key] = pos
}

// checkConflicts reports what two volumes or links would share: an address and
// port anywhere, and on one node a minor, a backing disk or a metadata area.
// A device used twice would be overwritten, so this is stricter than drbdadm,
// which does not compare disks with metadata devices.
func (r *report) checkConflicts(c *Config) {
	all := &claims{report: r, first: map[string]Pos{}, slots: map[string]Pos{}}
	for _, res := range c.Resources {
		for _, h := range res.Hosts {
			if h.Address.AddrPort.IsValid() {
				all.claim(h.Address.Pos, "IP", h.Address.AddrPort.String())
			}
			for _, node := range h.nodes() {
				for _, v := range res.volumesOn(h) {
					all.claimVolume(node, h, &v)
				}
			}
		}
	}
}

// nodes returns the machines a host section stands for.
func (h *Host) nodes() []string {
	switch h.Kind {
	case HostOn:
		return h.Names
	case HostFloating:
		return []string{h.Address.AddrPort.Addr().String()}
	default:
		return nil // runs nowhere here
	}
}

func (c *claims) claimVolume(node string, h *Host, v *Volume) {
	if v.Device != nil {
		c.claim(v.Device.Pos, "device-minor", "device-minor:"+node+":"+strconv.Itoa(v.Device.Minor))
	}
	if v.Disk != nil && !v.diskUnused() {
		c.claimDevice(v.Disk.Pos, node, v.Disk.Value)
	}
	if v.MetaDisk != nil {
		c.claimMeta(node, v.MetaDisk)
	}
}

// claimDevice claims a whole device as backing disk or flexible metadata area.
func (c *claims) claimDevice(pos Pos, node, device string) {
	shown := "disk:" + node + ":" + path.Clean(device)
	if first, used := c.slots[shown]; used {
		c.report.conflict(pos, first, "disk", shown)
		return
	}
	c.claim(pos, "disk", shown)
}

// claimMeta claims a metadata area. The slots of one device are claimed one by
// one.
func (c *claims) claimMeta(node string, md *MetaDisk) {
	switch md.Kind {
	case MetaInternal:
	case MetaFlexibleExternal:
		c.claimDevice(md.Pos, node, md.Path)
	case MetaIndexed:
		device := path.Clean(md.Path)
		shown := "disk:" + node + ":" + device
		if first, used := c.first["disk "+shown]; used {
			c.report.conflict(md.Pos, first, "disk", shown)
			return
		}
		c.slots[shown] = md.Pos
		c.claim(md.Pos, "meta-disk", node+":"+device+"["+strconv.Itoa(md.Index)+"]")
	}
}
