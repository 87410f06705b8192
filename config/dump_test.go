package config

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func dumpText(t testing.TB, c *Config, self Self, names ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Dump(&out, self, names...); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestDumpRecorded compares with what drbdadm printed on a real node.
func TestDumpRecorded(t *testing.T) {
	text, err := os.ReadFile("testdata/t00.conf")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/t00.dump")
	if err != nil {
		t.Fatal(err)
	}
	c, err := LoadFS(files("/etc/drbd.conf", string(text)), "/etc/drbd.conf")
	if err != nil {
		t.Fatal(err)
	}
	if got := dumpText(t, c, be1, "pc0"); got != string(want) {
		t.Errorf("dump\n%s\nwant\n%s", got, want)
	}
	if got := dumpText(t, c, be1, "nosuch"); got != "" {
		t.Errorf("dump of an unknown resource: %q", got)
	}
}

// everything uses each statement of ours and most of DRBD's once.
const everything = `global { usage-count no; minor-count 5; dialog-refresh 2; disable-ip-verification; status-file "/s/%n"; }
common { protocol B; options { cpu-mask 3; } handlers { split-brain "/x \"q\" \\ y"; } syncer { rate 5M; verify-alg md5; } startup { become-primary-on be1; wfc-timeout 5; } }
resource "r 0" {
 net { shared-secret ""; allow-two-primaries no; no-tcp-cork; fence-via "a b"; tls; tls-ca "/t/%n"; }
 disk { on-io-error pass_on; rescue-dir /r; }
 proxy { memlimit 5M; plugin { zlib level 9; } }
 on be1 b1 { address 10.0.0.1:1; options { on-no-data-accessible suspend-io; }
  volume 1 { device minor 5; disk "/dev/s b"; meta-disk /dev/md[2]; nbd-listen "127.0.0.1:1"; nbd-listen "unix:/%n"; disk { size 1G; } }
  volume 0 { device /dev/nbd0; disk /dev/a; flexible-meta-disk /dev/m; } }
 on be2 { address ipv6 [fd00::1]:7;
  volume 0 { device /dev/drbd_x minor 9; disk none; meta-disk internal; } volume 1 { device minor 5; disk /dev/b; meta-disk internal; } }
 election { vrid 51; virtual-ip 10.0.0.50/24 dev eth0; takeover { order "vip last"; } on be1 { priority 100; } }
}
resource r1 { floating 10.2.0.1:1; floating 10.2.0.2:1; device minor 7; disk /dev/q; meta-disk internal; nbd-listen "unix:/q"; }
resource r2 { stacked-on-top-of r1 { device minor 8; address 10.2.0.9:1; } on be9 { device minor 8; disk /dev/q; meta-disk internal; address 10.2.0.8:1; } }
`

// TestDumpRoundTrip: what a dump prints is a configuration with the same dump
// and, but for its line numbers, the same meaning.
func TestDumpRoundTrip(t *testing.T) {
	c := mustParse(t, everything)
	first := dumpText(t, c, be1)
	again, err := parseText(first)
	if err != nil {
		t.Fatalf("%v\n%s", err, first)
	}
	drop := func(text string) string { return dropLines(text, "# defined at") }
	if second := dumpText(t, again, be1); drop(second) != drop(first) {
		t.Errorf("second dump\n%s\ndiffers from first\n%s", second, first)
	}
	for _, line := range []string{
		`        verify-alg       md5;`, `        become-primary-on be1;`, `        shared-secret     "";`, `    status-file "/s/%n";`,
		`        split-brain      "/x \"q\" \\ y";`, `            nbd-listen   "unix:/%n";`, `            order "vip last";`,
	} {
		if !strings.Contains(first, line+"\n") {
			t.Errorf("dump lacks %q:\n%s", line, first)
		}
	}
}

// dropLines removes the lines that contain one of marks.
func dropLines(text string, marks ...string) string {
	var keep []string
	for line := range strings.SplitSeq(text, "\n") {
		isMarked := false
		for _, mark := range marks {
			isMarked = isMarked || strings.Contains(line, mark)
		}
		if !isMarked {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "\n")
}

// failingWriter refuses everything.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestDumpReportsWriteErrors(t *testing.T) {
	c := mustParse(t, everything)
	if err := c.Dump(failingWriter{}, be1); err == nil {
		t.Error("Dump hides a write error")
	}
	if err := c.DumpXML(failingWriter{}); err == nil {
		t.Error("DumpXML hides a write error")
	}
}
