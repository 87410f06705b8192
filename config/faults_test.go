package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const globalWant = "usage-count | minor-count | dialog-refresh | disable-ip-verification | udev-always-use-vnr | " +
	"cmd-timeout-short | cmd-timeout-medium | cmd-timeout-long | status-file"

// fault is a text and exactly what a user sees for it.
type fault struct{ text, want string }

func checkFaults(t *testing.T, faults []fault) {
	t.Helper()
	for _, tc := range faults {
		_, err := parseText(tc.text)
		if err == nil {
			t.Errorf("accepted, want %q:\n%s", tc.want, tc.text)
		} else if err.Error() != tc.want {
			t.Errorf("%s\n got %q\nwant %q", tc.text, err, tc.want)
		}
	}
}

// TestOptionFaults: slips inside the option sections.
func TestOptionFaults(t *testing.T) {
	checkFaults(t, []fault{
		{inResource("net { pig-timeout 5; }"), "t.conf:1: Parse error: 'an option keyword' expected,\n\tbut got 'pig-timeout' (did you mean 'ping-timeout'?)"},
		{inResource("net { shared-secert x; }"), "t.conf:1: Parse error: 'an option keyword' expected,\n\tbut got 'shared-secert' (did you mean 'shared-secret'?)"},
		{inResource("disk { no-disk-flush; }"), "t.conf:1: Parse error: 'an option keyword' expected,\n\tbut got 'no-disk-flush' (did you mean 'no-disk-flushes'?)"},
		{inResource("net { no-timeout; }"), "t.conf:1: Parse error: 'an option keyword' expected,\n\tbut got 'no-timeout' (did you mean 'timeout'?)"},
		{inResource("net { timeout 601; }"), "t.conf:1: timeout 601 => 601 out of range [1..600]."},
		{inResource("net { timeout 1K; }"), "t.conf:1: timeout 1K => 1024 out of range [1..600]."},
		{inResource("net { ko-count -1; }"), "t.conf:1: ko-count -1 => -1 out of range [0..200]."},
		{inResource("disk { resync-rate 0; }"), "t.conf:1: resync-rate 0 => 0k out of range [1..4194304]k."},
		{inResource("disk { c-fill-target 600M; }"), "t.conf:1: c-fill-target 600M => 1228800s out of range [0..1048576]s."},
		{inResource("net { sndbuf-size 99999999999999999999; }"), "t.conf:1: sndbuf-size 99999999999999999999 => 18446744073709551615 out of range [0..10485760]."},
		{inResource("net { timeout abc; }"), "t.conf:1: Parse error: 'a number' expected,\n\tbut got 'abc'"},
		{inResource("net { sndbuf-size 0x10; }"), "t.conf:1: Parse error: 'a number' expected,\n\tbut got '0x10'"},
		{inResource("net { timeout; }"), "t.conf:1: Parse error: 'a value of timeout' expected,\n\tbut got ';'"},
		{inResource("net { timeout 5 }"), "t.conf:1: Parse error: ';' expected,\n\tbut got '}'"},
		{inResource("net { timeout 5 6; }"), "t.conf:1: Parse error: ';' expected,\n\tbut got '6'"},
		{inResource("net { tcp-cork off; }"), "t.conf:1: Parse error: 'yes | no | ;' expected,\n\tbut got 'off'"},
		{inResource("net { after-sb-0pri discard-yunger-primary; }"), "t.conf:1: Parse error: 'disconnect | discard-younger-primary | discard-older-primary | discard-zero-changes | discard-least-changes | discard-local | discard-remote' expected,\n\tbut got 'discard-yunger-prima...' (did you mean 'discard-younger-primary'?)"},
		{inResource("disk { on-io-error pass-on; }"), "t.conf:1: Parse error: 'detach | pass_on | call-local-io-error' expected,\n\tbut got 'pass-on' (did you mean 'pass_on'?)"},
		{inResource("net { verify-alg sha265; }"), "t.conf:1: Parse error: 'the name of a digest such as sha256' expected,\n\tbut got 'sha265' (did you mean 'sha256'?)"},
		{inResource("protocol D;"), "t.conf:1: unknown protocol 'D', should be one of A,B,C"},
		{inResource("syncer { rte 5M; }"), "t.conf:1: Parse error: 'a syncer option keyword' expected,\n\tbut got 'rte' (did you mean 'rate'?)"},
		{inResource("handlers { splitbrain x; }"), "t.conf:1: Parse error: 'an option keyword' expected,\n\tbut got 'splitbrain' (did you mean 'split-brain'?)"},
		{inResource("network { }"), "t.conf:1: Parse error: '" + resourceKeywords + "' expected,\n\tbut got 'network'"},
		{inResource("deivce /dev/drbd0;"), "t.conf:1: Parse error: '" + resourceKeywords + "' expected,\n\tbut got 'deivce' (did you mean 'device'?)"},
		{inResource(`net { shared-secret "` + strings.Repeat("x", 65) + `"; }`), "t.conf:1: shared-secret is 65 characters long, at most 64 are allowed."},
		{inResource("net { shared-secret \"a\nb\"; }"), "t.conf:1: Unterminated double quoted string\n  we don't allow embedded newlines\n  >>>\"a<<<"},
		{inResource("net { timeout 5; } net { ping-int 5; }"), "t.conf:1: conflicting use of net section 'r0:net' ...\nt.conf:1: net section 'r0:net' first used here."},
		{inResource("protocol C; protocol C;"), "t.conf:1: conflicting use of protocol statement 'r0: protocol' ...\nt.conf:1: protocol statement 'r0: protocol' first used here."},
		{inResource("net { allow-two-primaries; protocol A; }"), "t.conf:1: in resource r0: allow-two-primaries needs protocol C, not A."},
		{inResource("net { on-congestion pull-ahead; }"), "t.conf:1: in resource r0: on-congestion pull-ahead needs protocol A, not C."},
		{inResource("protocol A; disk { fencing resource-and-stonith; }"), "t.conf:1: in resource r0: fencing resource-and-stonith needs protocol B or C, not A."},
		{inResource("startup { become-primary-on both; }"), "t.conf:1: in resource r0:\nbecome-primary-on is set to both, but allow-two-primaries is not set."},
		{inResource("startup { become-primary-on nosuch; }"), "t.conf:1: in resource r0:\n\tbecome-primary-on contains 'nosuch', which is not named with the 'on' sections."},
		{inResource("net { after-sb-0pri discard-node-be3; }"), "t.conf:1: in resource r0:\n\tafter-sb-0pri names node 'be3', which has no 'on' section."},
		{inResource("disk { resync-after r0; }"), "t.conf:1: in resource r0: 'resync-after' leads back to the resource itself."},
	})
}

// TestSectionFaults: slips in the structure around the options.
func TestSectionFaults(t *testing.T) {
	checkFaults(t, []fault{
		{inResource("election { vird 51; }"), "t.conf:1: Parse error: 'advert | on | secret | takeover | takeover-when | version | virtual-ip | vrid' expected,\n\tbut got 'vird' (did you mean 'vrid'?)"},
		{inResource("election { takeover { oder x; } }"), "t.conf:1: Parse error: 'mount | order | services' expected,\n\tbut got 'oder' (did you mean 'order'?)"},
		{inResource("election { vrid; }"), "t.conf:1: Parse error: 'a value' expected,\n\tbut got ';'"},
		{inResource(`nbd-listen "127.0.0.1";`), "t.conf:1: nbd-listen '127.0.0.1': neither unix:PATH nor IP:PORT."},
		{inResource(`nbd-listen "unix:sock";`), "t.conf:1: nbd-listen 'unix:sock': the path of the socket must be absolute."},
		{inResource(`nbd-listen "be1:10809";`), "t.conf:1: nbd-listen 'be1:10809': the host must be a numeric address or localhost."},
		{inResource(`nbd-listen "127.0.0.1:0";`), "t.conf:1: nbd-listen '127.0.0.1:0': the port must be a number from 1 to 65535."},
		{inResource("net { tls-cert cert.pem; }"), "t.conf:1: tls-cert 'cert.pem' is not an absolute path."},
		{inResource("volume 1 { device minor 9; }"), "t.conf:2: in resource r0: you must not mix implicit and explicit volumes\nt.conf:3: in resource r0: you must not mix implicit and explicit volumes"},
		{"frob { a; b { } }\n" + inResource(""), "t.conf:1: Parse error: 'global | common | resource | skip | include' expected,\n\tbut got 'frob'"},
		{"resuorce r0 { }", "t.conf:1: Parse error: 'global | common | resource | skip | include' expected,\n\tbut got 'resuorce' (did you mean 'resource'?)"},
		{"}", "t.conf:1: Parse error: 'global | common | resource | skip | include' expected,\n\tbut got '}'"},
		{"global { frob; }", "t.conf:1: Parse error: '" + globalWant + "' expected,\n\tbut got 'frob'"},
		{"global { usage-count maybe; }", "t.conf:1: Parse error: 'yes | no | ask' expected,\n\tbut got 'maybe'"},
		{"global { } global { }", "t.conf:1: conflicting use of global section 'global' ...\nt.conf:1: global section 'global' first used here."},
		{"common { on be1 { } }", "t.conf:1: in the common section, there are no host sections allowed."},
		{"skip resource x { }", "t.conf:1: Parse error: '[ some_text ] {' expected,\n\tbut got 'resource'"},
		{"skip {\n a", "t.conf:1: reached eof while parsing this skip block."},
		{"resource r0 {", "t.conf:1: Parse error: '}' expected,\n\tbut got '<end of file>'"},
		{"resource { }", "t.conf:1: Parse error: 'a resource name' expected,\n\tbut got '{'"},
		{"resource a/b { }", "t.conf:1: resource name 'a/b': no '/', tabulator or leading '.' is allowed, as RESOURCE/VOLUME and socket names are made of it."},
		{"resource all { }", "t.conf:1: resource name 'all' has a meaning of its own."},
		{"resource " + strings.Repeat("a", 129) + " { }", "t.conf:1: Token too long >>>aaaaaaaaaaaaaaaaaaaa...<<<"},
		{"resource r\x01 { }", "t.conf:1: Parse error: '{' expected,\n\tbut got '?'"},
		{"resource \"" + strings.Repeat("a", 256) + "\" { }", "t.conf:1: Double quoted string too long >>>aaaaaaaaaaaaaaaaaaaa...<<<"},
		{"resource \"" + strings.Repeat("a", 129) + "\" { }", "t.conf:1: a resource name has 1 to 128 characters."},
		{inResource("net { shared-secret \"a\rb\"; }"), "t.conf:1: Control character in double quoted string >>>a?b<<<"},
		{inResource("volume 70000 { }"), "t.conf:1: volume 70000 => 70000 out of range [0..65535]."},
		{inResource("volume 1 { address 1.2.3.4:5; }"), "t.conf:1: Parse error: 'device | disk | meta-disk | flexible-meta-disk | nbd-listen' expected,\n\tbut got 'address'"},
		{inResource(";"), "t.conf:1: Parse error: '" + resourceKeywords + "' expected,\n\tbut got ';'"},
	})
}

// host builds a resource whose first host section is body.
func host(body string) string {
	return "resource r0 {\n on be1 { " + body + " }\n on be2 { address 10.9.0.2:7789; device minor 0; disk /dev/vda; meta-disk internal; }\n}\n"
}

func TestHostFaults(t *testing.T) {
	const rest = " device minor 0; disk /dev/vda; meta-disk internal;"
	checkFaults(t, []fault{
		{host("address 10.9.0.1:99999;" + rest), "t.conf:2: port 99999 => 99999 out of range [1..65535]."},
		{host("address 10.9.0.1;" + rest), "t.conf:2: Parse error: ':' expected,\n\tbut got ';'"},
		{host("address be1:7789;" + rest), "t.conf:2: Parse error: 'ssocks | sdp | ipv4 | ipv6 | <ipv4 address> ' expected,\n\tbut got 'be1'"},
		{host("address 10.9.0.400:7789;" + rest), "t.conf:2: Parse error: 'ssocks | sdp | ipv4 | ipv6 | <ipv4 address> ' expected,\n\tbut got '10.9.0.400'"},
		{host("address ipv6 [fe80::zz]:7789;" + rest), "t.conf:2: Parse error: 'an ipv6 address' expected,\n\tbut got 'fe80'"},
		{host("address 0.0.0.0:7789;" + rest), "t.conf:2: address 0.0.0.0 cannot be the end of a link."},
		{host("address 10.9.0.2:7789;" + rest), "t.conf:3: conflicting use of IP '10.9.0.2:7789' ...\nt.conf:2: IP '10.9.0.2:7789' first used here."},
		{host("address 10.9.0.1:1; address 10.9.0.1:2;" + rest), "t.conf:2: conflicting use of address statement 'r0:on be1:address' ...\nt.conf:2: address statement 'r0:on be1:address' first used here."},
		{host(rest + " proxy { }"), "t.conf:2: Parse error: 'on' expected,\n\tbut got '{'"},
		{host(rest), "t.conf:2: in resource r0, on be1 { ... }: 'address' keyword missing."},
		{host("address 10.9.0.1:1; disk /dev/vda; meta-disk internal;"), "t.conf:2: in resource r0, on be1 { ... }: 'device' keyword missing."},
		{host("address 10.9.0.1:1; device minor 0; meta-disk internal;"), "t.conf:2: in resource r0, on be1 { ... }: 'disk' keyword missing."},
		{host("address 10.9.0.1:1; device minor 0; disk /dev/vda;"), "t.conf:2: in resource r0, on be1 { ... }: 'meta-disk' keyword missing."},
		{host("address 10.9.0.1:1; device minor 1048576; disk /dev/vda; meta-disk internal;"), "t.conf:2: minor 1048576 => 1048576 out of range [0..1048575]."},
		{host("address 10.9.0.1:1; device /dev/drbd_x; disk /dev/vda; meta-disk internal;"), "t.conf:2: no minor given nor device name contains a minor number"},
		{host("address 10.9.0.1:1; device /dev/sda; disk /dev/vda; meta-disk internal;"), "t.conf:2: device name must be /dev/drbdN, /dev/nbdN or start with /dev/drbd_\n\t(/dev/ is optional), and N must be at most 1048575"},
		{host("address 10.9.0.1:1; device /dev/nbd1 minor 2; disk /dev/vda; meta-disk internal;"), "t.conf:2: explicit minor number must match with device name\n\tTry \"device /dev/nbd2 minor 2;\",\n\tor leave off either device name or explicit minor."},
		{host("address 10.9.0.1:1; device /dev/nbd1; disk /dev/nbd1; meta-disk internal;"), "t.conf:2: in resource r0, on be1 { ... }: /dev/nbd1 cannot be both device and disk."},
		{host("address 10.9.0.1:1; device minor 0; disk vda; meta-disk internal;"), "t.conf:2: disk 'vda' is not an absolute path."},
		{host("address 10.9.0.1:1; device minor 0; disk /dev/vda; meta-disk /dev/x[a];"), "t.conf:2: Parse error: 'a number' expected,\n\tbut got 'a'"},
		{host("address 10.9.0.1:1; device minor 0; disk /dev/vda; meta-disk /dev/vda;"), "t.conf:2: conflicting use of disk 'disk:be1:/dev/vda' ...\nt.conf:2: disk 'disk:be1:/dev/vda' first used here."},
		{host("address 10.9.0.1:1; device minor 0; disk /dev/vda; meta-disk /dev//vda[0];"), "t.conf:2: conflicting use of disk 'disk:be1:/dev/vda' ...\nt.conf:2: disk 'disk:be1:/dev/vda' first used here."},
		{host("addres 10.9.0.1:1; device minor 0; disk /dev/vda; meta-disk internal;"), "t.conf:2: Parse error: 'device | disk | meta-disk | flexible-meta-disk | nbd-listen | volume | address | alternate-link-address | options | proxy' expected,\n\tbut got 'addres' (did you mean 'address'?)"},
	})
}

// TestSeveralFaults: one run names every faulty statement, and only those.
func TestSeveralFaults(t *testing.T) {
	_, err := parseText(`resource r0 {
 net { timeout 900;
   pingint 5;
   ping-int 5
 }
 frob { timeout 5; { } }
 disk { resync-rate 40M; on-io-error x; }
 on be1 { address 10.9.0.1:7789; device minor 0; disk /dev/vda; meta-disk internal; }
`)
	var list Errors
	if !errors.As(err, &list) {
		t.Fatalf("error %T is not Errors", err)
	}
	var lines []int
	for _, e := range list {
		lines = append(lines, e.Pos.Line)
	}
	if got, want := fmt.Sprint(lines), "[2 3 5 6 7 9]"; got != want {
		t.Errorf("faults at lines %s, want %s:\n%v", got, want, err)
	}
	if one, ok := errors.AsType[*Error](err); !ok || one != list[0] {
		t.Errorf("errors.AsType finds %v, want the first fault", one)
	}
}

func TestFaultsAreBounded(t *testing.T) {
	_, err := parseText(inResource("net { " + strings.Repeat("x 1;", 10000) + "}"))
	list, ok := errors.AsType[Errors](err)
	if !ok || len(list) != errorsMax+1 || !strings.Contains(list[errorsMax].Msg, "too many errors") {
		t.Errorf("%d faults reported, want %d and a note", len(list), errorsMax)
	}
}

func TestConflictsBetweenResources(t *testing.T) {
	second := func(address, minor, disk, meta string) string {
		return inResource("") + fmt.Sprintf(`resource r1 {
 on be1 { address %s; device minor %s; disk %s; meta-disk %s; }
 on be2 { address 10.9.9.2:1; device minor 9; disk /dev/vdz; meta-disk internal; }
}`, address, minor, disk, meta)
	}
	for _, tc := range []struct{ text, want string }{
		{second("10.9.0.1:7789", "1", "/dev/vdb", "internal"), "IP '10.9.0.1:7789'"},
		{second("10.9.0.2:7789", "1", "/dev/vdb", "internal"), "IP '10.9.0.2:7789'"},
		{second("10.9.0.1:7790", "0", "/dev/vdb", "internal"), "device-minor 'device-minor:be1:0'"},
		{second("10.9.0.1:7790", "1", "/dev/vda", "internal"), "disk 'disk:be1:/dev/vda'"},
		{second("10.9.0.1:7790", "1", "/dev/vdb", "/dev/vda"), "disk 'disk:be1:/dev/vda'"},
		{second("10.9.0.1:7790", "1", "/dev/vdb", "/dev/vda[1]"), "disk 'disk:be1:/dev/vda'"},
		{inResource("") + inResource(""), "resource section 'r0'"},
	} {
		_, err := parseText(tc.text)
		if err == nil || !strings.Contains(err.Error(), "conflicting use of "+tc.want+" ...\nt.conf:") {
			t.Errorf("want conflict of %s, got %v", tc.want, err)
		}
	}
	mustParse(t, second("10.9.0.1:7790", "1", "/dev/vdb", "/dev/md[1]"))
}

func TestMetaSlotConflicts(t *testing.T) {
	volumes := func(first, second string) string {
		return `resource r0 { volume 0 { device minor 0; disk /dev/a; meta-disk ` + first + `; }
 volume 1 { device minor 1; disk /dev/b; meta-disk ` + second + `; }
 on be1 { address 10.9.0.1:1; } on be2 { address 10.9.0.2:1; } }`
	}
	mustParse(t, volumes("/dev/m[0]", "/dev/m[1]"))
	for _, pair := range [][2]string{{"/dev/m[0]", "/dev/m[0]"}, {"/dev/m[0]", "/dev/m"}, {"/dev/m", "/dev/m[0]"}, {"/dev/m", "/dev/m"}, {"/dev/b", "internal"}, {"/dev/b[3]", "internal"}} {
		if _, err := parseText(volumes(pair[0], pair[1])); err == nil || !strings.Contains(err.Error(), "conflicting use") {
			t.Errorf("meta-disks %v: %v, want a conflict", pair, err)
		}
	}
}
