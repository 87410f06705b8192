package config

// This file lists the options of every section with their ranges and defaults:
// DRBD 8.4.12's (its drbdsetup's xml-help and drbdadm's range checks), plus
// ours. It is data; value.go reads values by it, effective.go turns them into
// typed settings.

// kind says what an option's value looks like.
type kind uint8

const (
	kindNumber kind = iota // unsigned, with a K, M or G suffix
	kindFlag               // NAME; NAME yes|no; no-NAME;
	kindEnum               // one of words
	kindText               // any word or string
	kindPath               // ours: an absolute path, %n is the node name
	kindDigest             // name of a kernel digest, "" for none
	kindNames              // one or more host names
	kindMark               // NAME; only (stacked-timeouts)
)

// unit is what a bare number counts, and what ranges are given in.
type unit byte

const (
	unitOne    unit = '1'
	unitKiB    unit = 'k'
	unitSector unit = 's' // 512 bytes
)

// option describes one option of a section.
type option struct {
	name     string
	kind     kind
	unit     unit
	min, max uint64
	def      uint64   // default of a number
	yes      bool     // default of a flag
	words    []string // values of an enum, the default first
	inert    bool     // DRBD's, without meaning here: one warning each
}

// sectionSpec describes one option section.
type sectionSpec struct {
	name    string
	options []option
	aliases map[string]string // older name -> today's
}

// find returns the option name names, or nil.
func (s *sectionSpec) find(name string) *option {
	if today, ok := s.aliases[name]; ok {
		name = today
	}
	for i := range s.options {
		if s.options[i].name == name {
			return &s.options[i]
		}
	}
	return nil
}

// keywords returns every word a statement of the section may begin with.
func (s *sectionSpec) keywords() []string {
	var words []string
	for _, o := range s.options {
		words = append(words, o.name)
		if o.kind == kindFlag {
			words = append(words, "no-"+o.name)
		}
	}
	for old := range s.aliases {
		words = append(words, old)
	}
	return words
}

func number(name string, def, minimum, maximum uint64, u unit) option {
	return option{name: name, kind: kindNumber, def: def, min: minimum, max: maximum, unit: u}
}

func flag(name string, yes bool) option { return option{name: name, kind: kindFlag, yes: yes} }

// enum takes the words of an enumerated option, the default first.
func enum(name string, words ...string) option {
	return option{name: name, kind: kindEnum, words: words}
}

func free(name string) option    { return option{name: name, kind: kindText} }
func ourPath(name string) option { return option{name: name, kind: kindPath} }
func digest(name string) option  { return option{name: name, kind: kindDigest} }

func inert(o option) option {
	o.inert = true
	return o
}

const (
	sectorsPerGiB = 1 << 21
	rateKiBMax    = 4 << 20
	timeoutSecMax = 300000
)

var netSpec = sectionSpec{name: "net", options: []option{
	enum("protocol", "C", "A", "B"),
	number("timeout", 60, 1, 600, unitOne),           // 0.1 s
	number("connect-int", 10, 1, 120, unitOne),       // s
	number("ping-int", 10, 1, 120, unitOne),          // s
	number("ping-timeout", 5, 1, 300, unitOne),       // 0.1 s
	number("ko-count", 7, 0, 200, unitOne),           // 0 = off
	number("max-buffers", 2048, 32, 131072, unitOne), // 4 KiB pages
	number("max-epoch-size", 2048, 1, 20000, unitOne),
	inert(number("unplug-watermark", 128, 1, 131072, unitOne)),
	number("sndbuf-size", 0, 0, 10<<20, unitOne), // bytes, 0 = auto
	number("rcvbuf-size", 0, 0, 10<<20, unitOne),
	number("socket-check-timeout", 0, 0, 300, unitOne), // 0.1 s, 0 = ping-timeout
	flag("allow-two-primaries", false),
	digest("cram-hmac-alg"),
	free("shared-secret"),
	enum("after-sb-0pri", "disconnect", "discard-younger-primary", "discard-older-primary",
		"discard-zero-changes", "discard-least-changes", "discard-local", "discard-remote"),
	enum("after-sb-1pri", "disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"),
	enum("after-sb-2pri", "disconnect", "call-pri-lost-after-sb", "violently-as0p"),
	flag("always-asbp", false),
	enum("rr-conflict", "disconnect", "call-pri-lost", "violently"),
	digest("data-integrity-alg"),
	digest("verify-alg"),
	digest("csums-alg"),
	flag("csums-after-crash-only", false),
	inert(flag("tcp-cork", true)),
	flag("use-rle", true),
	enum("on-congestion", "block", "pull-ahead", "disconnect"),
	number("congestion-fill", 0, 0, 10*sectorsPerGiB, unitSector),
	number("congestion-extents", 1237, 67, 65534, unitOne),

	flag("allow-unauthenticated", false),
	free("fence-via"),
	flag("tls", false),
	ourPath("tls-cert"),
	ourPath("tls-key"),
	ourPath("tls-ca"),
}}

var diskSpec = sectionSpec{
	name: "disk",
	options: []option{
		number("size", 0, 0, 1<<20*sectorsPerGiB, unitSector), // at most 1 PiB
		enum("on-io-error", "detach", "pass_on", "call-local-io-error"),
		enum("fencing", "dont-care", "resource-only", "resource-and-stonith"),
		inert(flag("disk-barrier", false)),
		flag("disk-flushes", true),
		flag("disk-drain", true),
		flag("md-flushes", true),
		number("resync-rate", 250, 1, rateKiBMax, unitKiB),
		free("resync-after"),
		number("al-extents", 1237, 67, 65534, unitOne),
		flag("al-updates", true),
		number("c-plan-ahead", 20, 0, 300, unitOne),   // 0.1 s
		number("c-delay-target", 10, 1, 100, unitOne), // 0.1 s
		number("c-fill-target", 100, 0, 1<<20, unitSector),
		number("c-max-rate", 102400, 250, rateKiBMax, unitKiB),
		number("c-min-rate", 250, 0, rateKiBMax, unitKiB),
		number("disk-timeout", 0, 0, 6000, unitOne), // 0.1 s
		enum("read-balancing", "prefer-local", "prefer-remote", "round-robin", "least-pending",
			"when-congested-remote", "32K-striping", "64K-striping", "128K-striping",
			"256K-striping", "512K-striping", "1M-striping"),
		flag("discard-zeroes-if-aligned", true),
		inert(flag("disable-write-same", false)),
		number("rs-discard-granularity", 0, 0, 1<<20, unitOne), // bytes
		inert(number("max-bio-bvecs", 0, 0, 128, unitOne)),
		inert(flag("use-bmbv", false)),

		ourPath("rescue-dir"),
	},
	aliases: map[string]string{"rate": "resync-rate", "after": "resync-after"},
}

var startupSpec = sectionSpec{name: "startup", options: []option{
	number("wfc-timeout", 0, 0, timeoutSecMax, unitOne), // s, 0 = for ever
	number("degr-wfc-timeout", 0, 0, timeoutSecMax, unitOne),
	number("outdated-wfc-timeout", 0, 0, timeoutSecMax, unitOne),
	flag("wait-after-sb", false),
	{name: "become-primary-on", kind: kindNames},
	inert(option{name: "stacked-timeouts", kind: kindMark}),
}}

var optionsSpec = sectionSpec{name: "options", options: []option{
	inert(free("cpu-mask")),
	enum("on-no-data-accessible", "io-error", "suspend-io"),
}}

var handlersSpec = sectionSpec{
	name: "handlers",
	options: []option{
		free("pri-on-incon-degr"), free("pri-lost-after-sb"), free("pri-lost"), free("fence-peer"),
		free("unfence-peer"), free("local-io-error"), free("initial-split-brain"), free("split-brain"),
		free("before-resync-target"), free("before-resync-source"), free("after-resync-target"), free("out-of-sync"),
	},
	aliases: map[string]string{"outdate-peer": "fence-peer"},
}

// syncerNames lists what DRBD 8.3's syncer section held; each goes to the
// section where 8.4 looks for it.
var syncerNames = []struct {
	spec  *sectionSpec
	names []string
}{
	{&diskSpec, []string{
		"rate", "after", "resync-rate", "resync-after", "al-extents",
		"c-plan-ahead", "c-delay-target", "c-fill-target", "c-max-rate", "c-min-rate",
	}},
	{&netSpec, []string{"verify-alg", "csums-alg", "use-rle"}},
	{&optionsSpec, []string{"cpu-mask", "on-no-data-accessible"}},
}

// digests are the names of the kernel's hash drivers a DRBD node can have.
var digests = []string{
	"sha1", "sha224", "sha256", "sha384", "sha512", "md4", "md5",
	"sha3-224", "sha3-256", "sha3-384", "sha3-512", "crc32", "crc32c", "crct10dif", "xxhash64",
	"rmd128", "rmd160", "rmd256", "rmd320", "wp256", "wp384", "wp512", "tgr128", "tgr160", "tgr192",
	"blake2b-160", "blake2b-256", "blake2b-384", "blake2b-512",
	"blake2s-128", "blake2s-160", "blake2s-224", "blake2s-256",
	"sm3", "streebog256", "streebog512", "ghash", "poly1305", "michael_mic",
}
