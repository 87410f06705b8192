package config

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Bytes is a size or position in bytes.
type Bytes int64

// ByteRate is bytes per second.
type ByteRate int64

// Protocol is when a write completes: 'A', 'B' or 'C'.
type Protocol byte

// NetOptions are the net section's options in effect.
type NetOptions struct {
	Protocol             Protocol
	Timeout              time.Duration
	ConnectInt           time.Duration
	PingInt              time.Duration
	PingTimeout          time.Duration
	KoCount              int   // 0 = off
	MaxBuffers           int   // pages of 4 KiB
	MaxEpochSize         int   // writes
	SndbufSize           Bytes // 0 = left to the system
	RcvbufSize           Bytes
	SocketCheckTimeout   time.Duration // PingTimeout unless given
	AllowTwoPrimaries    bool
	CramHMACAlg          string // "" when not given
	SharedSecret         string // "" when not given
	AfterSB0Pri          string
	AfterSB1Pri          string
	AfterSB2Pri          string
	AlwaysASBP           bool
	RRConflict           string
	DataIntegrityAlg     string
	VerifyAlg            string
	CsumsAlg             string
	CsumsAfterCrashOnly  bool
	UseRLE               bool
	OnCongestion         string
	CongestionFill       Bytes // 0 = off
	CongestionExtents    int
	AllowUnauthenticated bool
	FenceVia             string
	TLS                  bool
	TLSCert              string
	TLSKey               string
	TLSCA                string
}

// DiskOptions are the disk section's options in effect for one volume.
type DiskOptions struct {
	Size                   Bytes // 0 = as large as possible
	OnIOError              string
	Fencing                string
	DiskFlushes            bool
	DiskDrain              bool
	MDFlushes              bool
	ResyncRate             ByteRate
	ResyncAfter            string // resource name, "" for none
	ALExtents              int
	ALUpdates              bool
	CPlanAhead             time.Duration // 0 = fixed ResyncRate
	CDelayTarget           time.Duration
	CFillTarget            Bytes
	CMaxRate               ByteRate
	CMinRate               ByteRate
	DiskTimeout            time.Duration // 0 = off
	ReadBalancing          string
	DiscardZeroesIfAligned bool
	RsDiscardGranularity   Bytes // 0 = off
	RescueDir              string
}

// StartupOptions are the startup section's options in effect; a timeout of 0
// means for ever.
type StartupOptions struct {
	WfcTimeout         time.Duration
	DegrWfcTimeout     time.Duration
	OutdatedWfcTimeout time.Duration
	WaitAfterSB        bool
	BecomePrimaryOn    []string // node names, or "both"
}

// ResourceOptions are the options section's options in effect.
type ResourceOptions struct {
	OnNoDataAccessible string // io-error or suspend-io
}

// values looks options up in the settings of several levels.
type values struct {
	spec *sectionSpec
	set  map[string]Setting
	node string // replaces %n in our paths
}

// newValues merges levels, outermost first; later settings override.
func newValues(spec *sectionSpec, node string, levels ...Section) values {
	v := values{spec: spec, set: map[string]Setting{}, node: node}
	for _, level := range levels {
		for _, s := range level.Settings {
			v.set[s.Name] = s
		}
	}
	return v
}

// section returns the settings in effect, by name.
func (v values) section() Section {
	var s Section
	for _, name := range slices.Sorted(maps.Keys(v.set)) {
		s.Settings = append(s.Settings, v.set[name])
	}
	return s
}

// option returns the description of name, which is one of our own literals.
func (v values) option(name string) *option {
	o := v.spec.find(name)
	if o == nil {
		panic("config: section " + v.spec.name + " has no option " + name)
	}
	return o
}

func (v values) number(name string) uint64 {
	o := v.option(name)
	if s, ok := v.set[name]; ok {
		n, _ := parseNumber(s.Value(), o.unit)
		return n
	}
	return o.def
}

func (v values) count(name string) int { return int(v.number(name)) }

func (v values) bytes(name string) Bytes {
	return Bytes(v.number(name) << unitShift(v.option(name).unit))
}

func (v values) rate(name string) ByteRate { return ByteRate(v.bytes(name)) }

func (v values) deciseconds(name string) time.Duration {
	return time.Duration(v.number(name)) * time.Second / 10
}

func (v values) seconds(name string) time.Duration {
	return time.Duration(v.number(name)) * time.Second
}

func (v values) flag(name string) bool {
	if s, ok := v.set[name]; ok {
		return s.Value() == "yes"
	}
	return v.option(name).yes
}

// word returns an enum, text or digest; an enum not given is its default.
func (v values) word(name string) string {
	if s, ok := v.set[name]; ok {
		return s.Value()
	}
	if words := v.option(name).words; len(words) > 0 {
		return words[0]
	}
	return ""
}

func (v values) path(name string) string { return expandNode(v.word(name), v.node) }

func (v values) names(name string) []string { return slices.Clone(v.set[v.option(name).name].Values) }

func netOptions(v values) NetOptions {
	n := NetOptions{
		Protocol:             Protocol(v.word("protocol")[0]),
		Timeout:              v.deciseconds("timeout"),
		ConnectInt:           v.seconds("connect-int"),
		PingInt:              v.seconds("ping-int"),
		PingTimeout:          v.deciseconds("ping-timeout"),
		KoCount:              v.count("ko-count"),
		MaxBuffers:           v.count("max-buffers"),
		MaxEpochSize:         v.count("max-epoch-size"),
		SndbufSize:           v.bytes("sndbuf-size"),
		RcvbufSize:           v.bytes("rcvbuf-size"),
		SocketCheckTimeout:   v.deciseconds("socket-check-timeout"),
		AllowTwoPrimaries:    v.flag("allow-two-primaries"),
		CramHMACAlg:          v.word("cram-hmac-alg"),
		SharedSecret:         v.word("shared-secret"),
		AfterSB0Pri:          v.word("after-sb-0pri"),
		AfterSB1Pri:          v.word("after-sb-1pri"),
		AfterSB2Pri:          v.word("after-sb-2pri"),
		AlwaysASBP:           v.flag("always-asbp"),
		RRConflict:           v.word("rr-conflict"),
		DataIntegrityAlg:     v.word("data-integrity-alg"),
		VerifyAlg:            v.word("verify-alg"),
		CsumsAlg:             v.word("csums-alg"),
		CsumsAfterCrashOnly:  v.flag("csums-after-crash-only"),
		UseRLE:               v.flag("use-rle"),
		OnCongestion:         v.word("on-congestion"),
		CongestionFill:       v.bytes("congestion-fill"),
		CongestionExtents:    v.count("congestion-extents"),
		AllowUnauthenticated: v.flag("allow-unauthenticated"),
		FenceVia:             v.word("fence-via"),
		TLS:                  v.flag("tls"),
		TLSCert:              v.path("tls-cert"),
		TLSKey:               v.path("tls-key"),
		TLSCA:                v.path("tls-ca"),
	}
	if n.SocketCheckTimeout == 0 {
		n.SocketCheckTimeout = n.PingTimeout
	}
	return n
}

func diskOptions(v values) DiskOptions {
	return DiskOptions{
		Size:                   v.bytes("size"),
		OnIOError:              v.word("on-io-error"),
		Fencing:                v.word("fencing"),
		DiskFlushes:            v.flag("disk-flushes"),
		DiskDrain:              v.flag("disk-drain"),
		MDFlushes:              v.flag("md-flushes"),
		ResyncRate:             v.rate("resync-rate"),
		ResyncAfter:            v.word("resync-after"),
		ALExtents:              v.count("al-extents"),
		ALUpdates:              v.flag("al-updates"),
		CPlanAhead:             v.deciseconds("c-plan-ahead"),
		CDelayTarget:           v.deciseconds("c-delay-target"),
		CFillTarget:            v.bytes("c-fill-target"),
		CMaxRate:               v.rate("c-max-rate"),
		CMinRate:               v.rate("c-min-rate"),
		DiskTimeout:            v.deciseconds("disk-timeout"),
		ReadBalancing:          v.word("read-balancing"),
		DiscardZeroesIfAligned: v.flag("discard-zeroes-if-aligned"),
		RsDiscardGranularity:   v.bytes("rs-discard-granularity"),
		RescueDir:              v.path("rescue-dir"),
	}
}

func startupOptions(v values) StartupOptions {
	return StartupOptions{
		WfcTimeout:         v.seconds("wfc-timeout"),
		DegrWfcTimeout:     v.seconds("degr-wfc-timeout"),
		OutdatedWfcTimeout: v.seconds("outdated-wfc-timeout"),
		WaitAfterSB:        v.flag("wait-after-sb"),
		BecomePrimaryOn:    v.names("become-primary-on"),
	}
}

func resourceOptions(v values) ResourceOptions {
	return ResourceOptions{OnNoDataAccessible: v.word("on-no-data-accessible")}
}

// handlers returns the command of each configured handler by its event.
func handlers(v values) map[string]string {
	commands := map[string]string{}
	for name, s := range v.set {
		if strings.TrimSpace(s.Value()) != "" {
			commands[name] = s.Value()
		}
	}
	return commands
}
