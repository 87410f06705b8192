package status

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

const header = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: test                    \n"

func standard() Device {
	return Device{
		Conn: Connected, Role: Primary, PeerRole: Secondary, Disk: UpToDate, PeerDisk: UpToDate,
		Protocol: 'C', Counters: Counters{EP: 1, WO: 'f'}, Size: 24536,
	}
}

func down(minor int) Device {
	return Device{Minor: minor, Conn: StandAlone, Role: Secondary, PeerRole: Unknown, Disk: Diskless, PeerDisk: DUnknown}
}

func TestHeaderColumns(t *testing.T) {
	got := string(AppendProc(nil, "test", nil))
	if got != header {
		t.Fatalf("got %q, want %q", got, header)
	}
	long := strings.Repeat("x", 30)
	if got := string(AppendProc(nil, long, nil)); !strings.HasSuffix(got, "srcversion: "+long+"\n") {
		t.Fatalf("long version: %q", got)
	}
}

// The device lines of the reference's full sample.
func TestSampleWithGapAndUnconfigured(t *testing.T) {
	const gib = 1 << 18 // blocks
	a := standard()
	a.Conn, a.PeerDisk = SyncSource, "Inconsistent"
	a.Counters = Counters{NS: 3145728, DW: 112, DR: 3146841, AL: 3, PE: 2, UA: 2, EP: 1, WO: 'f', OOS: 7340032}
	a.Sync = &SyncProgress{
		Total: 10 * gib, Left: 7 * gib, Active: 31 * time.Second,
		Far: Mark{Left: 7*gib + 18*25600, Age: 18 * time.Second},
	}
	b := standard()
	b.Minor, b.Conn, b.PeerRole, b.PeerDisk = 2, WFConnection, Unknown, DUnknown
	b.Counters = Counters{DW: 4096, DR: 664, AL: 2, EP: 1, WO: 'f', OOS: 4096}
	want := header + ` 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:3145728 nr:0 dw:112 dr:3146841 al:3 bm:0 lo:0 pe:2 ua:2 ap:0 ep:1 wo:f oos:7340032
	[=====>..............] sync'ed: 30.1% (7168/10240)M
	finish: 0:01:11 speed: 102,400 (101,472) K/sec

 2: cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown C r-----
    ns:0 nr:0 dw:4096 dr:664 al:2 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:4096
 3: cs:Unconfigured
`
	if got := string(AppendProc(nil, "test", []Device{down(3), a, b})); got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLoneMinorHasGap(t *testing.T) {
	if got, want := string(AppendProc(nil, "test", []Device{down(1)})), header+"\n 1: cs:Unconfigured\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if got, want := string(AppendProc(nil, "test", []Device{down(147)})), header+"\n147: cs:Unconfigured\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestPrimaryWithoutDiskIsConfigured(t *testing.T) {
	d := down(0)
	d.Role = Primary
	got := string(AppendProc(nil, "test", []Device{d}))
	if want := " 0: cs:StandAlone ro:Primary/Unknown ds:Diskless/DUnknown   r-----\n    ns:0 "; !strings.HasPrefix(got[len(header):], want) {
		t.Fatalf("got %q", got)
	}
}

func TestFlagCharacters(t *testing.T) {
	tests := []struct {
		flags Flags
		want  string
	}{
		{Flags{}, "r-----"},
		{Flags{SuspendedUser: true}, "s-----"},
		{Flags{SuspendedNoData: true}, "s-----"},
		{Flags{SuspendedFencing: true}, "s-----"},
		{Flags{AfterPaused: true}, "ra----"},
		{Flags{PeerPaused: true}, "r-p---"},
		{Flags{UserPaused: true}, "r--u--"},
		{Flags{PeerPaused: true, UserPaused: true}, "r-pu--"},
		{Flags{Blocked: BlockedTransient}, "r---d-"},
		{Flags{Blocked: BlockedHandler}, "r---c-"},
		{Flags{Blocked: BackingCongested}, "r---b-"},
		{Flags{Blocked: NetworkCongested}, "r---n-"},
		{Flags{Blocked: BothCongested}, "r---a-"},
		{Flags{ALSuspended: true}, "r----s"},
		{Flags{true, true, true, true, true, true, 'd', true}, "sapuds"},
	}
	for _, tt := range tests {
		if got := tt.flags.String(); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.flags, got, tt.want)
		}
	}
}

// Progress lines appear in these four states only.
func TestStatesWithProgressLines(t *testing.T) {
	want := map[Conn]bool{SyncSource: true, SyncTarget: true, VerifyS: true, VerifyT: true}
	for _, conn := range []Conn{
		StandAlone, WFConnection, Connected, "StartingSyncS", "StartingSyncT", "WFBitMapS", "WFBitMapT", "WFSyncUUID",
		SyncSource, SyncTarget, VerifyS, VerifyT, PausedSyncS, PausedSyncT, "Ahead", "Behind",
	} {
		d := standard()
		d.Conn, d.Sync = conn, &SyncProgress{Total: 1, Left: 1}
		text := string(AppendProc(nil, "test", []Device{d}))
		if got := strings.Contains(text, "\t["); got != want[conn] {
			t.Errorf("%s: progress lines %v", conn, got)
		}
		if got := strings.Contains(text, "verified:"); got != (conn == VerifyS || conn == VerifyT) {
			t.Errorf("%s: verified %v", conn, got)
		}
		if got := strings.Contains(text, "want: "); got != (conn == VerifyS || conn == SyncTarget) {
			t.Errorf("%s: want %v", conn, got)
		}
	}
}

// readers are what other programs look for; see the reference, "Who parses it".
var readers = map[string]*regexp.Regexp{
	"crm-fence-peer":   regexp.MustCompile(`(?m)^ *0: cs:`),
	"lvm snapshot oos": regexp.MustCompile(`(?m)^ *0:.*\n.* oos:(\d+)$`),
	"init script":      regexp.MustCompile(`\bPrimary\b`),
	"drbd-overview":    regexp.MustCompile(`(?m)^ *(\d+):.*\bcs:(\w+)\b.*\bro:(\w+/\w+)\b.*\bds:(\w+/\w+)\b`),
	"overview sync":    regexp.MustCompile(`(?m)^\t\[.*sync'ed:`),
	"ganeti":           regexp.MustCompile(`(?m)^\s*(\d+):\s+cs:(\S+)\s+ro:([^/]+)/(\S+)\s+ds:([^/]+)/(\S+)\s+.*$`),
	"ganeti percent":   regexp.MustCompile(`(?m)^.*sync'ed:\s*([0-9.]+)%.*`),
	"ganeti finish":    regexp.MustCompile(`(?m)finish: (\d+):(\d\d):(\d\d)\s`),
	"chef":             regexp.MustCompile(`UpToDate/Inconsistent`),
}

func TestThirdPartyReaders(t *testing.T) {
	d := standard()
	d.Conn, d.PeerDisk, d.Counters.OOS = SyncSource, "Inconsistent", 8
	d.Sync = &SyncProgress{Total: 1 << 21, Left: 1 << 20}
	text := string(AppendProc(nil, "test", []Device{d}))
	for name, re := range readers {
		if !re.MatchString(text) {
			t.Errorf("%s finds nothing in\n%s", name, text)
		}
	}
	line := strings.Split(text, "\n")[2]
	words := strings.Fields(strings.ReplaceAll(line, ":", " "))
	if words[4] != "Primary/Secondary" || words[6] != "UpToDate/Inconsistent" {
		t.Errorf("fence handlers read %q and %q", words[4], words[6])
	}
}

// The Prometheus node exporter splits at blanks and wants one colon per key.
func TestNodeExporterReads(t *testing.T) {
	d := standard()
	fields := strings.Fields(string(AppendProc(nil, "test", []Device{d}))[len(header):])
	seen := map[string]string{}
	for _, field := range fields {
		name, value, ok := strings.Cut(field, ":")
		if ok && value != "" {
			if strings.Contains(value, ":") {
				t.Errorf("two colons in %q", field)
			}
			seen[name] = value
		}
	}
	for _, name := range []string{"cs", "ro", "ds", "ns", "nr", "dw", "dr", "al", "bm", "lo", "pe", "ua", "ap", "ep", "wo", "oos"} {
		if seen[name] == "" {
			t.Errorf("no value of %s", name)
		}
	}
	if seen["cs"] != "Connected" || !strings.Contains(seen["ro"], "/") || !strings.Contains(seen["ds"], "/") {
		t.Error(fmt.Sprint(seen))
	}
}
