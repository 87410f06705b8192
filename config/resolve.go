package config

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// discardNodePrefix begins the after-sb-0pri value discard-node-NAME, which is
// discard-local on node NAME and discard-remote on its peer.
const discardNodePrefix = "discard-node-"

// Self says which node a question is asked for.
type Self struct {
	Node string // matched exactly with the names of "on" sections (uname -n)
	// Addrs are the addresses of this machine: floating sections are matched
	// by them. When there are any, and disable-ip-verification is not set, a
	// local address that is none of them is an error.
	Addrs  []netip.Addr
	RunDir string // absolute; where default sockets live
}

// LocalResource is one resource as this node runs it: inheritance is applied
// and defaults are filled in.
type LocalResource struct {
	Name     string
	Pos      Pos
	Node     string // this node
	Local    Endpoint
	Peer     Endpoint
	Volumes  []*LocalVolume // sorted by number
	Net      NetOptions
	Startup  StartupOptions
	Options  ResourceOptions
	Handlers map[string]string // command by event
	Election *Election         // nil when not configured
	Explicit Sections          // settings in effect that the file gives, one per name; Disk as at resource level

	netPos Pos // where a net statement is missing
}

// Endpoint is one end of the link.
type Endpoint struct {
	Names   []string // node names; empty for floating
	Address Address
}

// LocalVolume is one volume on this node.
type LocalVolume struct {
	Number    int
	Pos       Pos    // of its disk statement
	Device    string // path of the block device to serve
	Minor     int
	Disk      string // backing device or file; "" for a node without a disk
	MetaDisk  MetaDisk
	NBDListen []Listen
	Options   DiskOptions
	Explicit  Section // disk settings in effect that the file gives
}

// StatusFile returns the path of the file kept equal to the status text.
func (c *Config) StatusFile(self Self) string {
	if c.Global.StatusFile == "" {
		return path.Join(self.RunDir, "proc/drbd")
	}
	return expandNode(c.Global.StatusFile, self.Node)
}

// Resolve returns the resources that run on this node, in file order. Faults
// come as Errors; no resource is returned then.
func (c *Config) Resolve(self Self) ([]*LocalResource, error) {
	var list []*LocalResource
	var r report
	for _, res := range c.Resources {
		local := r.local(res, self)
		if local == nil {
			continue
		}
		peer := r.peer(res, local)
		if peer == nil {
			continue
		}
		r.checkLocalAddress(c, self, res, local)
		list = append(list, c.resolve(res, local, peer, self, &r))
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return list, nil
}

// IgnoredOn reports whether the resource does not run on this node.
func (res *Resource) IgnoredOn(self Self) bool { return len(res.sectionsFor(self)) == 0 }

// sectionsFor returns the host sections of this node: one, unless the file is
// wrong or not about this node.
func (res *Resource) sectionsFor(self Self) []*Host {
	if slices.Contains(res.IgnoreOn, self.Node) {
		return nil
	}
	var found []*Host
	for _, h := range res.Hosts {
		isFloating := h.Kind == HostFloating && slices.Contains(self.Addrs, h.Address.AddrPort.Addr())
		if isFloating || h.hasName(self.Node) {
			found = append(found, h)
		}
	}
	return found
}

// local returns the host section of this node, nil when there is none.
func (r *report) local(res *Resource, self Self) *Host {
	found := res.sectionsFor(self)
	switch len(found) {
	case 0:
		return nil
	case 1:
		return found[0]
	default:
		r.errorf(found[1].Pos, "in resource %s, %s { ... } ... %s { ... }:\n\tThere are multiple host sections for this node.", res.Name, found[0], found[1])
		return nil
	}
}

// peer returns the other host section; DRBD 8.4 links exactly two.
func (r *report) peer(res *Resource, local *Host) *Host {
	switch {
	case len(res.Hosts) < 2:
		r.errorf(res.Pos, "in resource %s:\n\tMissing section 'on <PEER> { ... }'.", res.Name)
		return nil
	case len(res.Hosts) > 2:
		r.errorf(res.Pos, "in resource %s:\n\tThere are multiple host sections for the peer node.", res.Name)
		return nil
	case res.Hosts[0] == local:
		return res.Hosts[1]
	default:
		return res.Hosts[0]
	}
}

// checkLocalAddress repeats drbdadm's test. The loopback network is always
// here, although an interface lists only one address of it.
func (r *report) checkLocalAddress(c *Config, self Self, res *Resource, local *Host) {
	ip := local.Address.AddrPort.Addr()
	isHere := ip.IsLoopback() || slices.Contains(self.Addrs, ip) || slices.Contains(self.Addrs, ip.WithZone(""))
	if !isHere && !c.Global.DisableIPVerification && len(self.Addrs) > 0 {
		r.errorf(local.Pos, "in resource %s, %s:\n\tIP %s not found on this host.", res.Name, local, ip)
	}
}

func (c *Config) resolve(res *Resource, local, peer *Host, self Self, r *report) *LocalResource {
	net := newValues(&netSpec, self.Node, c.Common.Net, res.Net)
	startup := newValues(&startupSpec, self.Node, c.Common.Startup, res.Startup)
	options := newValues(&optionsSpec, self.Node, c.Common.Options, res.Options, local.Options)
	handler := newValues(&handlersSpec, self.Node, c.Common.Handlers, res.Handlers)
	disk := newValues(&diskSpec, self.Node, c.Common.Disk, res.Disk)
	out := &LocalResource{
		Name: res.Name, Pos: res.Pos, Node: self.Node,
		Local: local.endpoint(), Peer: peer.endpoint(),
		Net: netOptions(net), Startup: startupOptions(startup), Options: resourceOptions(options),
		Handlers: handlers(handler), Election: res.Election,
		Explicit: Sections{
			Net: net.section(), Startup: startup.section(), Options: options.section(),
			Handlers: handler.section(), Disk: disk.section(),
		},
	}
	if out.netPos = res.Net.Pos; out.netPos.Line == 0 {
		out.netPos = res.Pos
	}
	if name, ok := strings.CutPrefix(out.Net.AfterSB0Pri, discardNodePrefix); ok {
		out.Net.AfterSB0Pri = "discard-remote"
		if local.hasName(name) {
			out.Net.AfterSB0Pri = "discard-local"
		}
	}
	for _, v := range res.volumesOn(local) {
		out.Volumes = append(out.Volumes, c.resolveVolume(res, local, v, self, r))
	}
	return out
}

func (h *Host) endpoint() Endpoint {
	end := Endpoint{Address: h.Address}
	if h.Kind == HostOn {
		end.Names = slices.Clone(h.Names)
	}
	return end
}

func (c *Config) resolveVolume(res *Resource, local *Host, v Volume, self Self, r *report) *LocalVolume {
	options := newValues(&diskSpec, self.Node, c.diskSections(res, local, v.Number)...)
	out := &LocalVolume{
		Number: v.Number, Pos: v.Disk.Pos,
		Device: v.Device.DefaultedPath(), Minor: v.Device.Minor,
		Options: diskOptions(options), Explicit: options.section(),
	}
	if !v.diskUnused() {
		out.Disk = v.Disk.Value
		out.MetaDisk = *v.MetaDisk
	}
	listens := v.NBDListen
	if len(listens) == 0 {
		listens = []Path{{Value: "unix:" + defaultSocket(res, local, v.Number, self), Pos: res.Pos}}
	}
	for _, l := range listens {
		listen, err := parseListen(expandNode(l.Value, self.Node))
		if err != nil {
			r.errorf(l.Pos, "in resource %s: nbd-listen: %v.", res.Name, err)
		}
		out.NBDListen = append(out.NBDListen, listen)
	}
	return out
}

// defaultSocket is RUNDIR/RESOURCE.nbd for a single volume 0, otherwise
// RUNDIR/RESOURCE-VOLUME.nbd.
func defaultSocket(res *Resource, local *Host, number int, self Self) string {
	name := res.Name
	if numbers, _ := res.numbers(local); len(numbers) > 1 || number != 0 {
		name = fmt.Sprintf("%s-%d", res.Name, number)
	}
	return path.Join(self.RunDir, name+".nbd")
}
