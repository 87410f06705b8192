package config

import (
	"slices"
	"strings"
)

// check looks at a parsed file as a whole: what is missing, what excludes each
// other, and what is used twice.
func check(c *Config, r *report) {
	for _, res := range c.Resources {
		r.checkHosts(res)
		r.checkNames(c, res)
		r.checkProtocol(c, res)
	}
	r.checkConflicts(c)
	r.checkResyncAfter(c)
}

// checkHosts looks at the host sections of one resource.
func (r *report) checkHosts(res *Resource) {
	for _, h := range res.Hosts {
		for _, name := range res.IgnoreOn {
			if h.hasName(name) {
				r.errorf(h.Pos, "in resource %s, ignore-on %s { ... }:\n\tYou cannot ignore and define at the same time.", res.Name, name)
			}
		}
		if h.Address.Pos.Line == 0 {
			r.missing(res, h, "address")
		} else if ip := h.Address.AddrPort.Addr(); ip.IsUnspecified() || ip.IsMulticast() {
			r.errorf(h.Address.Pos, "address %s cannot be the end of a link.", ip)
		}
		r.checkVolumes(res, h)
	}
	r.checkSameVolumes(res)
}

// missing reports an absent statement in drbdadm's words.
func (r *report) missing(res *Resource, h *Host, keyword string) {
	r.errorf(h.Pos, "in resource %s, %s { ... }: '%s' keyword missing.", res.Name, h, keyword)
}

func (r *report) checkVolumes(res *Resource, h *Host) {
	_, implicit := res.numbers(h)
	if !implicit && (res.direct.isVolumeZero() || h.direct.isVolumeZero()) {
		r.errorf(h.Pos, "in resource %s: you must not mix implicit and explicit volumes", res.Name)
		return
	}
	for _, v := range res.volumesOn(h) {
		if v.Device == nil {
			r.missing(res, h, "device")
		}
		if h.Kind == HostStacked {
			continue
		}
		if v.Disk == nil {
			r.missing(res, h, "disk")
		}
		if v.MetaDisk == nil && !v.diskUnused() {
			r.missing(res, h, "meta-disk")
		}
		if v.Device != nil && v.Disk != nil && v.Disk.Value == v.Device.DefaultedPath() {
			r.errorf(v.Disk.Pos, "in resource %s, %s { ... }: %s cannot be both device and disk.", res.Name, h, v.Disk.Value)
		}
	}
}

// checkSameVolumes demands the same volume numbers on every host.
func (r *report) checkSameVolumes(res *Resource) {
	for _, h := range res.Hosts {
		numbers, _ := res.numbers(h)
		for _, other := range res.Hosts {
			there, _ := res.numbers(other)
			for _, number := range numbers {
				if !slices.Contains(there, number) {
					r.errorf(h.Pos, "in resource %s, %s { ... }: volume %d not defined on %s", res.Name, h, number, strings.TrimPrefix(other.String(), "on "))
				}
			}
		}
	}
}

// hasHost reports whether an "on" section of the resource is for node.
func (res *Resource) hasHost(node string) bool {
	return slices.ContainsFunc(res.Hosts, func(h *Host) bool { return h.hasName(node) })
}

// checkNames looks at options whose value names a host.
func (r *report) checkNames(c *Config, res *Resource) {
	net := newValues(&netSpec, "", c.Common.Net, res.Net)
	startup := newValues(&startupSpec, "", res.Startup) // one in common may name hosts of other resources
	primary := startup.set["become-primary-on"]
	for _, name := range primary.Values {
		switch {
		case name == "both" && !net.flag("allow-two-primaries"):
			r.errorf(primary.Pos, "in resource %s:\nbecome-primary-on is set to both, but allow-two-primaries is not set.", res.Name)
		case name != "both" && !res.hasHost(name):
			r.errorf(primary.Pos, "in resource %s:\n\tbecome-primary-on contains '%s', which is not named with the 'on' sections.", res.Name, name)
		}
	}
	if name, ok := strings.CutPrefix(net.word("after-sb-0pri"), discardNodePrefix); ok && !res.hasHost(name) {
		r.errorf(net.set["after-sb-0pri"].Pos, "in resource %s:\n\tafter-sb-0pri names node '%s', which has no 'on' section.", res.Name, name)
	}
}

// checkProtocol refuses the combinations kernel DRBD refuses when connecting
// (its errors 139, 154 and 155).
func (r *report) checkProtocol(c *Config, res *Resource) {
	net := newValues(&netSpec, "", c.Common.Net, res.Net)
	disk := newValues(&diskSpec, "", c.Common.Disk, res.Disk)
	protocol := net.word("protocol")
	if net.flag("allow-two-primaries") && protocol != "C" {
		r.errorf(net.set["allow-two-primaries"].Pos, "in resource %s: allow-two-primaries needs protocol C, not %s.", res.Name, protocol)
	}
	if net.word("on-congestion") != "block" && protocol != "A" {
		r.errorf(net.set["on-congestion"].Pos, "in resource %s: on-congestion %s needs protocol A, not %s.", res.Name, net.word("on-congestion"), protocol)
	}
	if disk.word("fencing") == "resource-and-stonith" && protocol == "A" {
		r.errorf(disk.set["fencing"].Pos, "in resource %s: fencing resource-and-stonith needs protocol B or C, not A.", res.Name)
	}
}

// checkResyncAfter warns of unknown resources and refuses circles, in which
// every resync would wait for ever.
func (r *report) checkResyncAfter(c *Config) {
	after := map[string]Setting{}
	known := map[string]bool{}
	for _, res := range c.Resources {
		known[res.Name] = true
		if s, ok := newValues(&diskSpec, "", c.Common.Disk, res.Disk).set["resync-after"]; ok {
			after[res.Name] = s
		}
	}
	for _, res := range c.Resources {
		s, ok := after[res.Name]
		if target := afterResource(s); ok && !known[target] {
			r.warnf(s.Pos, "in resource %s:\n\tresource '%s' mentioned in 'resync-after' option is not known.", res.Name, target)
		}
		if inCircle(res.Name, after) {
			r.errorf(s.Pos, "in resource %s: 'resync-after' leads back to the resource itself.", res.Name)
		}
	}
}

// afterResource returns the resource of "RESOURCE" or "RESOURCE/VOLUME".
func afterResource(s Setting) string {
	name, _, _ := strings.Cut(s.Value(), "/")
	return name
}

func inCircle(name string, after map[string]Setting) bool {
	at := name
	for range len(after) {
		s, ok := after[at]
		if !ok {
			return false
		}
		if at = afterResource(s); at == name {
			return true
		}
	}
	return false
}
