// Package config reads drbd.conf: it turns the text of a configuration file
// and the files it includes into checked, typed settings, and prints them back
// in the layout of "drbdadm dump".
//
// The grammar is that of DRBD 8.4 (with the "syncer" section of 8.3) plus the
// statements replicad adds: status-file, nbd-listen, allow-unauthenticated,
// fence-via, tls and its three paths, rescue-dir, and the election section.
// The package does three things in order: Load parses and validates a whole
// file for every node it mentions; Resolve answers what the file means for one
// node, with inheritance applied and defaults filled in; Dump prints it.
//
// It does not open disks, sockets or the network, does not know whether an
// address exists, and keeps the election section as a tree whose words are
// checked but whose values are not.
//
// A Config is not changed after Load returns, so any goroutine may read it.
package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Limits of names and numbers, as DRBD 8.4 has them.
const (
	// MinorMax is the highest device minor number (20 bits).
	MinorMax = 1<<20 - 1
	// VolumeMax is the highest volume number of a resource.
	VolumeMax = 65535
	// ResourceNameBytesMax bounds a resource name, which also travels in the
	// link's handshake.
	ResourceNameBytesMax = 128
	// SecretBytesMax bounds shared-secret (DRBD's SHARED_SECRET_MAX).
	SecretBytesMax = 64
	// unixPathBytesMax is what sockaddr_un holds besides the final zero.
	unixPathBytesMax = 107
)

// Pos is a place in a configuration file, printed as file:line.
type Pos struct {
	File string // as the user or the include statement named it
	Line int    // counted from 1
}

// String returns "file:line".
func (p Pos) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// Config is one configuration file with everything it includes, as written:
// inheritance and defaults are applied by Resolve.
type Config struct {
	File      string // the name given to Load
	Path      string // File made absolute
	Global    Global
	Common    Sections // options every resource inherits
	Resources []*Resource
	Warnings  []Warning // in file order

	dir string // what a relative Pos.File is relative to
}

// Global is the global section.
type Global struct {
	Pos                   Pos // zero Line when the file has no global section
	UsageCount            string
	MinorCount            string
	DialogRefresh         string
	DisableIPVerification bool
	StatusFile            string // with %n not yet replaced; "" when not set
}

// Sections holds the option sections that common and resource share.
type Sections struct {
	Options  Section
	Net      Section
	Disk     Section
	Startup  Section
	Handlers Section
	Proxy    []Statement // accepted and kept for Dump, otherwise without meaning
}

// Section is one option section as written, in file order.
type Section struct {
	Pos      Pos // of the section's keyword; zero Line when absent
	Settings []Setting
}

// Setting is one option statement. Names are DRBD 8.4's, whatever alias or
// "no-" form was written; flags have the value "yes" or "no".
type Setting struct {
	Name   string
	Values []string // one; none for stacked-timeouts, several for become-primary-on
	Pos    Pos
}

// Value returns the setting's value, or "" when it has none.
func (s Setting) Value() string {
	if len(s.Values) == 0 {
		return ""
	}
	return s.Values[0]
}

// Resource is one resource section as written.
type Resource struct {
	Name string
	Pos  Pos
	Sections
	IgnoreOn []string
	Hosts    []*Host
	Election *Election // nil when the resource has no election section

	volumeSet // statements at resource level
}

// HostKind says how a host section is matched to a machine.
type HostKind uint8

// Host kinds.
const (
	HostOn       HostKind = iota // by node name
	HostFloating                 // by address
	HostStacked                  // lives on top of another resource; never runs here
)

// Host is one "on", "floating" or "stacked-on-top-of" section.
type Host struct {
	Kind    HostKind
	Names   []string // node names; for HostStacked the lower resource
	Pos     Pos
	Address Address
	Options Section     // per-host resource options
	Proxy   []Statement // "proxy on" blocks

	volumeSet // statements directly in the section, and its volumes
}

// hasName reports whether the section is for node.
func (h *Host) hasName(node string) bool {
	return h.Kind == HostOn && slices.Contains(h.Names, node)
}

// String names the section as drbdadm's messages do.
func (h *Host) String() string {
	switch h.Kind {
	case HostFloating:
		return "floating " + h.Address.AddrPort.String()
	case HostStacked:
		return "stacked-on-top-of " + strings.Join(h.Names, " ")
	default:
		return "on " + strings.Join(h.Names, " ")
	}
}

// Address is the end of a replication link.
type Address struct {
	Family   string // ipv4, ipv6, ssocks or sdp
	AddrPort netip.AddrPort
	Pos      Pos // zero Line when the section has no address
}

// String returns the form drbdadm prints and passes on: "ipv4 10.0.0.1:7788".
func (a Address) String() string { return a.Family + " " + a.AddrPort.String() }

// volumeSet collects the volume statements of one level.
type volumeSet struct {
	direct  Volume    // statements outside any volume block
	volumes []*Volume // volume blocks in file order
}

// Volume is what one level says about one volume. Nil fields were not given.
type Volume struct {
	Number     int
	Pos        Pos
	Device     *Device
	Disk       *Path
	MetaDisk   *MetaDisk
	NBDListen  []Path // unparsed: %n is not yet replaced
	DiskTuning Section
}

// isVolumeZero reports whether statements outside any volume block describe a
// volume of their own, DRBD's implicit volume 0.
func (v *Volume) isVolumeZero() bool { return v.Device != nil || v.Disk != nil }

// Path is a value with its place in the file.
type Path struct {
	Value string
	Pos   Pos
}

// Device is a device statement. Path is empty when only a minor was given.
type Device struct {
	Path  string
	Minor int
	Pos   Pos
}

// DefaultedPath returns the path, or /dev/drbdN when only a minor was given.
func (d Device) DefaultedPath() string {
	if d.Path != "" {
		return d.Path
	}
	return fmt.Sprintf("/dev/drbd%d", d.Minor)
}

// MetaKind says where a volume's metadata lives.
type MetaKind uint8

// Metadata placements (DRBD 8.4 metadata v08).
const (
	MetaInternal         MetaKind = iota // at the end of the backing disk
	MetaFlexibleExternal                 // a device of its own, sized as needed
	MetaIndexed                          // a 128 MiB slot of a shared device
)

// MetaDisk is a meta-disk or flexible-meta-disk statement.
type MetaDisk struct {
	Kind  MetaKind
	Path  string // empty when internal
	Index int    // slot number when indexed
	Pos   Pos
}

// Election is the election section of a resource: its words are checked, its
// values are left to the election.
type Election struct {
	Pos        Pos
	Statements []Statement
}

// Statement is one statement of a section that is kept as a tree.
type Statement struct {
	Words    []Word // the keyword first
	Pos      Pos
	HasBlock bool
	Block    []Statement
}

// Word is one word of a Statement.
type Word struct {
	Text   string
	Quoted bool
	Pos    Pos
}

// Keyword returns the statement's first word.
func (s Statement) Keyword() string {
	if len(s.Words) == 0 {
		return ""
	}
	return s.Words[0].Text
}
