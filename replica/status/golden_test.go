package status

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// goldenTexts reads a file of testdata: what a kernel DRBD 8.4.11 pair and its
// tools (drbd-utils 9.22) printed, text after text, each ended by a "%%" line.
func goldenTexts(t *testing.T, name string) []string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	texts := strings.Split(string(data), "\n%%\n")
	texts = texts[:len(texts)-1]
	if len(texts) < 5 {
		t.Fatalf("%s holds %d texts only", name, len(texts))
	}
	for i := range texts {
		texts[i] += "\n"
	}
	return texts
}

var (
	deviceLine  = regexp.MustCompile(`^ ?(\d+): cs:(\w+) ro:(\w+)/(\w+) ds:(\w+)/(\w+) ([ABC ]) (.{6})$`)
	counterLine = regexp.MustCompile(`^    ns:(\d+) nr:(\d+) dw:(\d+) dr:(\d+) al:(\d+) bm:(\d+) lo:(\d+) pe:(\d+) ua:(\d+) ap:(\d+) ep:(\d+) wo:(.) oos:(\d+)$`)
	amountLine  = regexp.MustCompile(`\((\d+)/(\d+)\)K$`)
	speedLine   = regexp.MustCompile(`^\tfinish: (\d+):(\d\d):(\d\d) speed: ([\d,]+) \(([\d,]+)\)(?: want: ([\d,]+))? K/sec$`)
)

// TestProcGolden fills a Device from every recorded /proc/drbd and renders it
// again. What cannot be read back (bar, percentage) is thereby computed.
func TestProcGolden(t *testing.T) {
	for i, want := range goldenTexts(t, "proc.txt") {
		lines := strings.Split(want, "\n")
		version := strings.TrimSpace(strings.TrimPrefix(lines[1], "srcversion: "))
		var devices []Device
		if len(lines) > 4 {
			devices = []Device{parseDevice(t, lines[2:])}
		}
		if got := string(AppendProc(nil, version, devices)); got != want {
			t.Errorf("text %d: got\n%s\nwant\n%s", i, got, want)
		}
	}
}

func parseDevice(t *testing.T, lines []string) Device {
	t.Helper()
	m := deviceLine.FindStringSubmatch(lines[0])
	c := counterLine.FindStringSubmatch(lines[1])
	if m == nil || c == nil {
		t.Fatalf("cannot parse %q", lines)
	}
	d := Device{
		Minor: number[int](t, m[1]), Conn: Conn(m[2]), Role: Role(m[3]), PeerRole: Role(m[4]),
		Disk: Disk(m[5]), PeerDisk: Disk(m[6]), Flags: parseFlags(m[8]),
	}
	if m[7] != " " {
		d.Protocol = m[7][0]
	}
	d.Counters = Counters{
		NS: number[uint64](t, c[1]), NR: number[uint64](t, c[2]), DW: number[uint64](t, c[3]), DR: number[uint64](t, c[4]),
		AL: number[uint64](t, c[5]), BM: number[uint64](t, c[6]), LO: number[int](t, c[7]), PE: number[int](t, c[8]),
		UA: number[int](t, c[9]), AP: number[int](t, c[10]), EP: number[int](t, c[11]), WO: c[12][0], OOS: number[uint64](t, c[13]),
	}
	if len(lines) > 3 {
		d.Sync = parseProgress(t, lines[2], lines[3])
	}
	return d
}

func parseFlags(text string) Flags {
	f := Flags{
		SuspendedUser: text[0] == 's', AfterPaused: text[1] == 'a', PeerPaused: text[2] == 'p',
		UserPaused: text[3] == 'u', ALSuspended: text[5] == 's',
	}
	if text[4] != '-' {
		f.Blocked = Blocked(text[4])
	}
	return f
}

// parseProgress finds a history that leads to the printed speeds.
func parseProgress(t *testing.T, first, second string) *SyncProgress {
	t.Helper()
	amounts := amountLine.FindStringSubmatch(first)
	m := speedLine.FindStringSubmatch(second)
	if amounts == nil || m == nil {
		t.Fatalf("cannot parse %q, %q", first, second)
	}
	s := &SyncProgress{Left: number[uint64](t, amounts[1]) / 4, Total: number[uint64](t, amounts[2]) / 4}
	finish := number[uint64](t, m[1])*3600 + number[uint64](t, m[2])*60 + number[uint64](t, m[3])
	speed, average := number[uint64](t, m[4]), number[uint64](t, m[5])
	if m[6] != "" {
		s.Want = number[uint64](t, m[6])
	}
	for seconds := uint64(1); seconds <= 180; seconds++ {
		s.Active = time.Duration(seconds) * time.Second
		s.Far = Mark{Age: s.Active, Left: s.Left + speed/4*seconds}
		for range seconds {
			if s.finish() == finish && s.speed() == speed && fitAverage(s, average) {
				return s
			}
			s.Far.Left++
		}
	}
	t.Fatalf("no history gives %q", second)
	return nil
}

func fitAverage(s *SyncProgress, average uint64) bool {
	for seconds := range 1000 {
		if s.Active = time.Duration(seconds) * time.Second; s.average() == average {
			return true
		}
	}
	return false
}

func number[T int | uint64](t *testing.T, text string) T {
	t.Helper()
	n, err := strconv.ParseUint(strings.ReplaceAll(text, ",", ""), 10, 63)
	if err != nil {
		t.Fatal(err)
	}
	return T(n)
}

// keys are the key:value items of one object that a tool printed.
type keys map[string]string

func parseKeys(line string) keys {
	out := keys{}
	for item := range strings.FieldsSeq(line) {
		if name, value, ok := strings.Cut(item, ":"); ok {
			out[name] = value
		}
	}
	return out
}

func (k keys) number(t *testing.T, name string) uint64 {
	t.Helper()
	if k[name] == "" {
		return 0
	}
	return number[uint64](t, k[name])
}

// conn84 translates DRBD 9's words back to DRBD 8.4's.
func conn84(connection, replication string) Conn {
	switch {
	case connection == "Connecting":
		return WFConnection
	case connection != "" && connection != "Connected":
		return Conn(connection)
	case replication == "Established":
		return Connected
	case replication == "Off":
		return WFReportParams
	case replication == "":
		return StandAlone
	}
	return Conn(replication)
}

// parseResource rebuilds a resource with one volume from the items that a tool
// printed about the resource, its device, its connection and its peer device.
func parseResource(t *testing.T, name string, res, dev, conn, peer keys) Resource {
	t.Helper()
	d := Device{
		Conn: conn84(conn["connection"], peer["replication"]), Role: Role(res["role"]), PeerRole: Role(conn["role"]),
		Disk: Disk(dev["disk"]), PeerDisk: Disk(peer["peer-disk"]), Size: dev.number(t, "size"),
		Counters: Counters{
			DR: dev.number(t, "read"), DW: dev.number(t, "written"), AL: dev.number(t, "al-writes"), BM: dev.number(t, "bm-writes"),
			AP: int(dev.number(t, "upper-pending")), LO: int(dev.number(t, "lower-pending")),
			NR: peer.number(t, "received"), NS: peer.number(t, "sent"), OOS: peer.number(t, "out-of-sync"),
			PE: int(peer.number(t, "pending")), UA: int(peer.number(t, "unacked")),
		},
	}
	if res["write-ordering"] == "flush" {
		d.WO = 'f'
	}
	if d.PeerRole == "" {
		d.PeerRole = Unknown
	}
	if d.PeerDisk == "" {
		d.PeerDisk = DUnknown
	}
	if len(conn) > 0 && conn["connection"] != "StandAlone" {
		d.Protocol = 'C'
	}
	return Resource{Name: name, Devices: []Device{d}}
}

// parseTree splits a tree by its indentation: 0 resource, 2 device or "peer",
// 4 resource or peer device, more: whatever came last.
func parseTree(t *testing.T, text string) Resource {
	t.Helper()
	parts := map[string]keys{"res": {}, "dev": {}, "conn": {}, "peer": {}}
	name, _, _ := strings.Cut(text, " ")
	at := "res"
	for line := range strings.Lines(text) {
		switch indent := len(line) - len(strings.TrimLeft(line, " ")); {
		case indent == 2 && strings.HasPrefix(line, "  peer"):
			at = "conn"
		case indent == 2:
			at = "dev"
		case indent == 4 && at == "conn":
			at = "peer"
		}
		maps.Copy(parts[at], parseKeys(line))
	}
	r := parseResource(t, name, parts["res"], parts["dev"], parts["conn"], parts["peer"])
	if done := parts["peer"]["done"]; done != "" && r.Devices[0].Size == 0 {
		fitDone(t, &r.Devices[0], done)
	}
	return r
}

// fitDone finds the out-of-sync amount of a 24536 KiB device that gives done.
func fitDone(t *testing.T, d *Device, done string) {
	t.Helper()
	for d.Size = 24536; d.OOS <= d.Size; d.OOS += blockKiB {
		if fmt.Sprintf("%.2f", d.percentInSync()) == done {
			return
		}
	}
	t.Fatalf("no amount gives done:%s", done)
}

func TestTreeGolden(t *testing.T) {
	for name, o := range map[string]TreeOptions{
		"tree.txt":         {},
		"tree-verbose.txt": {Verbose: true, Statistics: true},
	} {
		for i, want := range goldenTexts(t, name) {
			r := parseTree(t, want)
			if got := string(AppendTree(nil, &r, o)); got != want {
				t.Errorf("%s %d: got\n%s\nwant\n%s", name, i, got, want)
			}
		}
	}
}

func TestEventsGolden(t *testing.T) {
	for i, want := range goldenTexts(t, "events.txt") {
		lines := strings.Split(want, "\n")
		res, conn, dev, peer := parseKeys(lines[0]), parseKeys(lines[1]), parseKeys(lines[2]), parseKeys(lines[3])
		r := parseResource(t, res["name"], res, dev, conn, peer)
		got := Events{Statistics: true}.AppendExists(nil, []Resource{r})
		if !bytes.Equal(got, []byte(want)) {
			t.Errorf("text %d: got\n%s\nwant\n%s", i, got, want)
		}
	}
}
