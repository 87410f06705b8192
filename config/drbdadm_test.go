package config

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"replicad/internal/reqtool"
)

// oracle is the real drbdadm, made to behave as for a kernel with DRBD 8.4.
type oracle struct {
	tool, file, node string
}

func newOracle(t *testing.T) *oracle {
	tool := reqtool.Path(t, "drbdadm")
	node, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return &oracle{tool: tool, file: filepath.Join(t.TempDir(), "t.conf"), node: node}
}

// run writes text and lets drbdadm dump it. In text, be1 stands for this host.
func (o *oracle) run(t *testing.T, verb, text string) (out string, ok bool) {
	t.Helper()
	if err := os.WriteFile(o.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), o.tool, "-c", o.file, verb)
	cmd.Env = append(os.Environ(), "DRBD_DRIVER_VERSION_OVERRIDE=8.4.11", "DRBD_DONT_WARN_ON_VERSION_MISMATCH=1")
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err := cmd.Run()
	return stdout.String(), err == nil
}

const noVerify = "global { disable-ip-verification; usage-count no; }\n"

func (o *oracle) localise(text string) string { return strings.ReplaceAll(text, "be1", o.node) }

// TestAgreesWithDrbdadm: what drbdadm accepts we accept and dump alike, and
// what it refuses we refuse.
func TestAgreesWithDrbdadm(t *testing.T) {
	o := newOracle(t)
	for _, body := range drbdCorpus() {
		text := o.localise(noVerify + body)
		want, accepts := o.run(t, "dump", text)
		c, err := Load(o.file)
		if accepts != (err == nil) {
			t.Errorf("drbdadm accepts: %v, we: %v\n%s", accepts, err, text)
			continue
		}
		if err != nil {
			continue
		}
		want = dropLines(want, "cmd-timeout-") // drbdadm states its own defaults
		if got := dumpText(t, c, Self{Node: o.node}); got != want {
			t.Errorf("dump of\n%s\ngot\n%s\nwant\n%s", text, got, want)
		}
		o.compareXML(t, c, text)
	}
}

func (o *oracle) compareXML(t *testing.T, c *Config, text string) {
	t.Helper()
	want, ok := o.run(t, "dump-xml", text)
	var got bytes.Buffer
	if err := c.DumpXML(&got); err != nil || !ok {
		t.Fatalf("dump-xml: %v, drbdadm: %v", err, ok)
	}
	if got.String() != want {
		t.Errorf("dump-xml of\n%s\ngot\n%s\nwant\n%s", text, got.String(), want)
	}
}

// drbdCorpus lists whole files (without global section) on which we and
// drbdadm must agree, valid and invalid ones.
func drbdCorpus() []string {
	list := []string{
		"",
		"resource r0 { }",
		"common { protocol B; net { timeout 5; } disk { on-io-error detach; } } common { }",
		"common { protocol B; net { timeout 5; } disk { on-io-error detach; } startup { wfc-timeout 3; } handlers { split-brain \"a b\"; } options { cpu-mask 1; } syncer { rate 5M; } }" + inResource(""),
		"skip \"resource x\" { foo { bar } }\nskip foo { a \"}\" } skip { }\n" + inResource(""),
		"skip resource x { }",
		"resource \"a b\" {" + hosts + "}",
		"resource r0 { device /dev/drbd1; disk /dev/sda; meta-disk internal; on be1 { address 10.0.0.1:7; } on be2 { address ipv4 10.0.0.2:7; disk /dev/sdb; } }",
		`resource r0 { volume 1 { device minor 5; disk /dev/sda; meta-disk /dev/md[2]; } volume 0 { device /dev/drbd_foo minor 6; disk "/dev/s b"; flexible-meta-disk /dev/x; }
 on be1 { address ipv6 [fe80::1]:7; } on be2 { address ipv6 [::1]:7; volume 1 { disk /dev/sdc; } } }`,
		"resource r0 { device /dev/drbd1; disk /dev/sda; flexible-meta-disk internal; floating 10.0.0.1:7; floating ipv4 10.0.0.2:7 { disk /dev/q; } }",
		"resource r0 { ignore-on be7; device /dev/drbd1; disk /dev/sda; meta-disk internal; on x { address 1.2.3.4:5; } on be2 { address 1.2.3.5:5; } }",
		"resource r0 { device minor 1; disk /dev/sda; meta-disk internal; on a b { address 1.2.3.4:5; } on be2 { address 1.2.3.5:5; } }",
		"resource r0 { device drbd1; disk /dev/sda; meta-disk internal; on be1 { address ssocks 1.2.3.4:5; } on be2 { address sdp 1.2.3.5:5; } }",
		`resource r0 { volume 0 { disk /dev/x; device minor 2; meta-disk internal; } volume 1 { disk /dev/y; device minor 3; meta-disk internal; }
 on be1 { address 1.2.3.4:5; options { on-no-data-accessible io-error; } volume 1 { disk { resync-rate 7M; } } } on be2 { address 1.2.3.5:5; } }`,
		inResource("") + "resource r1 { device minor 0; disk /dev/vdb; meta-disk internal; on be1 { address 1.2.3.4:6; } on be2 { address 1.2.3.5:6; } }",
		inResource("") + "resource r1 { device minor 1; disk /dev/vdb; meta-disk internal; on be1 { address 10.9.0.1:7789; } on be2 { address 1.2.3.5:6; } }",
		inResource("") + inResource(""),
		inResource("") + ";",
		"resource r0 { volume 1 { device minor 1; disk /dev/y; meta-disk internal; }" + hosts + "}",
		"common { startup { become-primary-on be9; } }" + inResource(""),
		"resource r0 { disk /dev/sda; meta-disk internal; on be1 { address 1.2.3.4:5; } on be2 { address 1.2.3.5:5; } }",
		"resource r0 { volume 0 { device minor 3; disk /dev/sda; meta-disk internal; } on be1 { address 1.2.3.4:5; device minor 4; } on be2 { address 1.2.3.5:5; } }",
		host("address 10.9.0.1:1; address 10.9.0.1:2; device minor 0; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1:65536; device minor 0; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1; device minor 0; disk /dev/x; meta-disk internal;"),
		host("address h:1; device minor 0; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1:1; device minor 0; disk none; meta-disk internal;"),
		host("address 10.9.0.1:1; device minor 0; disk /dev/x; meta-disk /dev/m[-1];"),
		host("address 10.9.0.1:1; device /dev/drbd1 minor 2; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1:1; device /dev/foo; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1:1; device drbd_foo; disk /dev/x; meta-disk internal;"),
	}
	for _, body := range drbdBodies {
		list = append(list, inResource(body))
	}
	return list
}

// drbdBodies stand in a resource with two complete hosts.
var drbdBodies = []string{
	"net { allow-two-primaries; tcp-cork no; always-asbp yes; use-rle; }",
	"net { timeout 5; timeout 6; }", "net { timeout 5; } net { ping-int 3; }", "net { } disk { } startup { } handlers { } options { }",
	"net { no-timeout; }", "net { no-tcp-cork yes; }", "net { tcp-cork off; }", `net { tcp-cork "yes"; }`, "net { pig-timeout 5; }",
	"net { timeout 5 6; }", "net { timeout 5 }", "net { timeout; }", "net { timeout abc; }", "net { timeout 010; }", "net { timeout 0x10; }",
	"net { ko-count -1; }", "net { sndbuf-size 1.5M; }", "net { sndbuf-size 1MB; }", "net { sndbuf-size 2048s; }", "net { sndbuf-size 1g; }",
	`net { timeout "5"; shared-secret "a b"; verify-alg ""; }`, `net { shared-secret "#a;{}"; }`, `net { shared-secret "a\nb\\c\"d"; }`, "net { shared-secret a$b; }",
	"net { discard-my-data; }", "net { transport tcp; }", `net { "timeout" 5; }`, "net { after-sb-0pri discard-node-be2; after-sb-2pri violently-as0p; }",
	"protocol a;", "protocol D;", "protocol C; net { ping-int 3; }", "protocol C; protocol C;",
	"disk { size 1048576G; no-disk-flushes; no-md-flushes; rate 5M; use-bmbv; }", "disk { size 1T; }", "disk { rate; }",
	"disk { resync-rate 1s; }", "disk { resync-rate 40m; c-max-rate 1k; }", "disk { c-fill-target 1k; }", "disk { max-bio-bvecs 3; }",
	"syncer { rate 40M; al-extents 100; verify-alg md5; csums-alg sha1; use-rle; cpu-mask ff; c-plan-ahead 0; on-no-data-accessible io-error; }",
	"syncer { foo 1; }", "syncer { rate 5; } disk { resync-rate 6; }", "disk { resync-rate 6; } syncer { rate 5; }",
	"startup { wfc-timeout 5; become-primary-on be1 be2; wait-after-sb; outdated-wfc-timeout 9; stacked-timeouts; }",
	"startup { stacked-timeouts no; }", "startup { become-primary-on both; }", "startup { become-primary-on nosuch; }", "startup { wait-after-sb 5; }",
	"net { allow-two-primaries; } startup { become-primary-on both; }",
	`handlers { split-brain "/x \"a\" 'b' <c>"; pri-lost foo; outdate-peer "x"; }`, "handlers { quorum-lost x; }",
	"handlers { before-resync-source a; unfence-peer b; after-resync-target c; before-resync-target d; initial-split-brain e; pri-on-incon-degr f; out-of-sync g; local-io-error h; pri-lost-after-sb i; fence-peer j; }",
	"options { cpu-mask \"\"; on-no-data-accessible suspend-io; }", "options { auto-promote yes; }",
	"network { }", ";", "skip { }", "include x;", "frob 5;", "on be1 { address 10.9.0.5:1; }", "device minor 7; device minor 8;",
}

// uncheckedByDrbdadm are options whose range only drbdsetup knows.
var uncheckedByDrbdadm = map[string]bool{
	"ping-timeout": true, "unplug-watermark": true, "socket-check-timeout": true, "al-extents": true,
	"disk-timeout": true, "rs-discard-granularity": true, "max-bio-bvecs": true,
}

// TestRangesOfDrbdadm walks every numeric option of DRBD: its bounds are
// accepted by both, and one beyond is refused by both.
func TestRangesOfDrbdadm(t *testing.T) {
	o := newOracle(t)
	for _, spec := range []*sectionSpec{&netSpec, &diskSpec, &startupSpec} {
		for _, opt := range spec.options {
			if opt.kind != kindNumber {
				continue
			}
			for value, valid := range bounds(opt) {
				text := o.localise(noVerify + inResource(fmt.Sprintf("%s { %s %s; }", spec.name, opt.name, value)))
				_, accepts := o.run(t, "dump", text)
				_, err := Load(o.file)
				if accepts != (valid || uncheckedByDrbdadm[opt.name]) || (err == nil) != valid {
					t.Errorf("%s %s: drbdadm accepts %v, we %v, the table says %v", opt.name, value, accepts, err, valid)
				}
			}
		}
	}
}

// bounds returns the values at and beside the ends of an option's range.
func bounds(o option) map[string]bool {
	u := o.unit.suffix()
	if u == "s" || u == "k" {
		u = "" // a bare number counts the same
	}
	list := map[string]bool{fmt.Sprint(o.min) + u: true, fmt.Sprint(o.max) + u: true, fmt.Sprint(o.max+1) + u: false, fmt.Sprint(uint64(math.MaxUint64)) + u: false}
	if o.min > 0 {
		list[fmt.Sprint(o.min-1)+u] = false
	}
	return list
}

// TestDefaultsOfDrbdsetup compares the whole table with drbdsetup's own list of
// options, ranges, defaults and enum words.
func TestDefaultsOfDrbdsetup(t *testing.T) {
	tool := drbdsetup84(t)
	for spec, verb := range map[*sectionSpec]string{&netSpec: "net-options", &diskSpec: "attach", &optionsSpec: "resource-options"} {
		out, err := exec.CommandContext(t.Context(), tool, "xml-help", verb).Output()
		if err != nil {
			t.Fatalf("%s xml-help %s: %v", tool, verb, err)
		}
		var help xmlHelp
		if err := xml.Unmarshal(out, &help); err != nil {
			t.Fatal(err)
		}
		for _, want := range help.Options {
			if o := spec.find(want.Name); o != nil {
				compareOption(t, o, want)
			} else if want.Name != "set-defaults" {
				t.Errorf("section %s lacks %s", spec.name, want.Name)
			}
		}
	}
}

// drbdsetup84 finds the 8.4 front end that the drbd-utils package hides in its
// library folder.
func drbdsetup84(t *testing.T) string {
	t.Helper()
	dir := filepath.Dir(filepath.Dir(reqtool.Path(t, "drbdadm"))) // /usr or /
	for _, name := range []string{filepath.Join(dir, "lib/drbd/drbdsetup-84"), "/lib/drbd/drbdsetup-84"} {
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	reqtool.Missing(t, "drbdadm", "its package has no drbdsetup-84")
	return ""
}

type xmlHelp struct {
	Options []xmlOption `xml:"option"`
}

type xmlOption struct {
	Name     string   `xml:"name,attr"`
	Type     string   `xml:"type,attr"`
	Min      string   `xml:"min"`
	Max      string   `xml:"max"`
	Default  string   `xml:"default"`
	Unit     string   `xml:"unit_prefix"`
	Handlers []string `xml:"handler"`
}

func compareOption(t *testing.T, o *option, want xmlOption) {
	t.Helper()
	switch {
	case o.name == "resync-after": // a minor for drbdsetup, a resource name in the file
	case o.kind == kindNumber:
		got := xmlOption{o.name, "numeric", fmt.Sprint(o.min), fmt.Sprint(o.max), fmt.Sprint(o.def), string(rune(o.unit)), nil}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("have %+v, drbdsetup %+v", got, want)
		}
	case o.kind == kindFlag:
		if want.Type != "boolean" || o.yes != (want.Default == "yes") {
			t.Errorf("flag %s %v, drbdsetup %+v", o.name, o.yes, want)
		}
	case o.kind == kindEnum:
		if got := slices.Sorted(slices.Values(o.words)); !slices.Equal(got, slices.Sorted(slices.Values(want.Handlers))) {
			t.Errorf("%s has words %v, drbdsetup %v", o.name, got, want.Handlers)
		}
	case want.Type != "string":
		t.Errorf("%s is text, drbdsetup %+v", o.name, want)
	}
}

// TestStricterThanDrbdadm lists where we refuse what drbdadm lets pass: values
// it leaves to drbdsetup or the kernel, and files that would lose data.
func TestStricterThanDrbdadm(t *testing.T) {
	o := newOracle(t)
	for _, body := range []string{
		inResource("net { after-sb-0pri frob; }"),
		inResource("disk { on-io-error frob; }"),
		inResource("net { verify-alg frob; }"),
		inResource("net { allow-two-primaries; protocol A; }"),
		inResource("disk { resync-after r0; }"),
		"resource r0 {" + hosts, // a file cut off in the middle
		host("address 10.9.0.400:1; device minor 0; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1:1; device minor 1048576; disk /dev/x; meta-disk internal;"),
		host("address 10.9.0.1:1; device minor 0; disk /dev/x; meta-disk /dev/x;"),
		inResource("") + "resource r1 { device minor 1; disk /dev/vda; meta-disk internal; on be1 { address 1.2.3.4:6; } on be2 { address 1.2.3.5:6; } }",
		"resource r0 {" + hosts + "volume 1 { device minor 1; disk /dev/y; meta-disk internal; } }", // it would drop volume 1
		"resource a/b { }", "resource all { }",
	} {
		if _, accepts := o.run(t, "dump", o.localise(noVerify+body)); !accepts {
			t.Errorf("drbdadm refuses it too; move it to the corpus:\n%s", body)
		}
		if _, err := Load(o.file); err == nil {
			t.Errorf("accepted:\n%s", body)
		}
	}
}
