package status

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

const (
	gib    = 1 << 18 // blocks
	second = Time(time.Second)
)

// The reference's test vectors.
func TestProgressVectors(t *testing.T) {
	tests := []struct {
		name string
		conn Conn
		s    SyncProgress
		want string
	}{
		{
			"10 GiB at the start", SyncTarget,
			SyncProgress{Total: 10 * gib, Left: 10 * gib, Far: Mark{Left: 10 * gib, Age: time.Second}, Active: time.Second, Want: 102400},
			"\t[>....................] sync'ed:  0.1% (10240/10240)M\n\tfinish: 7:16:54 speed: 0 (0) want: 102,400 K/sec\n",
		},
		{
			"7 of 10 GiB left at 100 MiB/s", SyncTarget,
			SyncProgress{Total: 10 * gib, Left: 7 * gib, Far: Mark{Left: 7*gib + 18*25600, Age: 18 * time.Second}, Active: 31 * time.Second, Want: 102400},
			"\t[=====>..............] sync'ed: 30.1% (7168/10240)M\n\tfinish: 0:01:11 speed: 102,400 (101,472) want: 102,400 K/sec\n",
		},
		{
			"half of 2 GiB at 50 MiB/s", SyncSource,
			SyncProgress{Total: 2 * gib, Left: gib, Far: Mark{Left: gib + 18*12800, Age: 18 * time.Second}, Active: 20 * time.Second},
			"\t[=========>..........] sync'ed: 50.1% (1048576/2097152)K\n\tfinish: 0:00:20 speed: 51,200 (52,428) K/sec\n",
		},
		{
			"no progress for 200 s", SyncTarget,
			SyncProgress{Total: 2 * gib, Left: gib, Far: Mark{Left: gib, Age: 200 * time.Second}, Active: 400 * time.Second, Want: 4},
			"\t[=========>..........] sync'ed: 50.1% (1048576/2097152)K\n\tfinish: 145:38:08 speed: 0 (2,620) want: 4 K/sec (stalled)\n",
		},
		{
			"one block", SyncSource,
			SyncProgress{Total: 1, Left: 1, Far: Mark{Left: 1}},
			"\t[===================>] sync'ed:100.0% (4/4)K\n\tfinish: 0:00:00 speed: 0 (0) K/sec\n",
		},
		{
			"nothing to do", SyncSource,
			SyncProgress{},
			"\t[===================>] sync'ed:100.0% (0/0)K\n\tfinish: 0:00:00 speed: 0 (0) K/sec\n",
		},
		{
			"more became dirty", SyncSource,
			SyncProgress{Total: gib, Left: gib + 1, Far: Mark{Left: gib, Age: 20 * time.Second}},
			"\t[>....................] sync'ed:  0.0% (1048576/1048576)K\n\tfinish: 14:33:48 speed: 0 (0) K/sec\n",
		},
		{
			"2048 blocks start high", VerifyT,
			SyncProgress{Total: 2048, Left: 2048, Far: Mark{Left: 2048}},
			"\t[=====>..............] verified: 33.4% (8192/8192)K\n\tfinish: 0:00:20 speed: 0 (0) K/sec\n",
		},
	}
	for _, tt := range tests {
		if got := string(appendProgress(nil, tt.conn, &tt.s)); got != tt.want {
			t.Errorf("%s: got\n%q, want\n%q", tt.name, got, tt.want)
		}
	}
}

func TestStalledFrom181Seconds(t *testing.T) {
	for age, want := range map[time.Duration]string{
		180*time.Second + 999*time.Millisecond: "K/sec\n",
		181 * time.Second:                      "K/sec (stalled)\n",
	} {
		s := SyncProgress{Total: 5, Left: 5, Far: Mark{Left: 5, Age: age}}
		got := string(appendProgress(nil, SyncSource, &s))
		if got[len(got)-len(want):] != want {
			t.Errorf("after %v: %q", age, got)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 2000000: "2,000,000", 1234567890: "1,234,567,890"} {
		if got := grouped(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

// A steady resync shows its speed, measured from a mark 18 to 24 s old once it
// has run that long.
func TestSteadySpeed(t *testing.T) {
	const perSecond = 1000
	p := NewProgress(0, 1e6)
	for now := Time(0); now <= 100*second; now += second / 10 {
		left := uint64(1e6 - perSecond*float64(now)/1e9)
		p.Mark(now, left)
		s := p.At(now, left)
		if got := s.speed(); now > second && (got > perSecond*4*2 || got < perSecond*4-4) {
			t.Fatalf("at %v: speed %d", time.Duration(now), got)
		}
		if now > 30*second && (s.Far.Age < 17*time.Second || s.Far.Age > 25*time.Second) {
			t.Fatalf("at %v: measured from %v ago", time.Duration(now), s.Far.Age)
		}
	}
}

func TestMarksNeedTimeAndChange(t *testing.T) {
	p := NewProgress(0, 100)
	p.Mark(2*second, 90) // too early
	p.Mark(5*second, 100)
	if s := p.At(5*second, 100); s.Near != (Mark{Left: 100, Age: 5 * time.Second}) {
		t.Fatalf("a mark was kept: %+v", s.Near)
	}
	p.Mark(6*second, 80)
	if s := p.At(7*second, 80); s.Near != (Mark{Left: 80, Age: time.Second}) || s.Far.Left != 100 {
		t.Fatalf("no mark was kept: %+v", s)
	}
}

func TestPauseStopsTheClock(t *testing.T) {
	p := NewProgress(0, 1000)
	p.Mark(10*second, 900)
	p.Pause(10 * second)
	p.Pause(20 * second)
	p.Mark(100*second, 800) // kept by nobody
	if s := p.At(110*second, 900); s.Active != 10*time.Second || s.Paused != 100*time.Second || s.Near.Age != 0 {
		t.Fatalf("paused: %+v", s)
	}
	p.Resume(110 * second)
	p.Resume(120 * second)
	s := p.At(120*second, 800)
	if s.Active != 20*time.Second || s.Paused != 100*time.Second || s.Near != (Mark{Left: 900, Age: 10 * time.Second}) {
		t.Fatalf("resumed: %+v", s)
	}
	if s.average() != 40 || s.speed() != 40 {
		t.Fatalf("speed %d (%d), want 40 (40)", s.speed(), s.average())
	}
}

// Whatever the numbers, rendering ends, and the bar has 20 characters, or 21
// below 5 %.
func TestProgressNeverBreaks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := SyncProgress{
			Total: rapid.Uint64Range(0, 1<<50).Draw(t, "total"), Left: rapid.Uint64Range(0, 1<<50).Draw(t, "left"),
			Far:    Mark{rapid.Uint64Range(0, 1<<50).Draw(t, "far"), time.Duration(rapid.Int64Range(-5, 1<<45).Draw(t, "age"))},
			Active: time.Duration(rapid.Int64Range(-5, 1<<60).Draw(t, "active")),
		}
		text := string(appendProgress(nil, SyncTarget, &s))
		bar := len(text[2:]) - len(text[2:][indexByte(text[2:], ']'):])
		want := 20
		if s.permille() < 50 {
			want = 21
		}
		if s.permille() > 1000 || bar != want {
			t.Fatalf("%d permille, %q", s.permille(), text)
		}
		newJSONSync(&s)
	})
}

func indexByte(text string, c byte) int {
	for i := range len(text) {
		if text[i] == c {
			return i
		}
	}
	return len(text)
}
