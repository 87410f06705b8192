package main

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"replicad/internal/ctl"
)

func TestReorder(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"replicad", "primary r0", "primary r0"},
		{"replicad", "-c x --node primary primary r0", "primary -c x --node primary r0"},
		{"replicad", "-s sock -d down all -v", "down -s sock -d all -v"},
		{"replicad", "-- --overwrite-data-of-peer primary r0", "primary --overwrite-data-of-peer r0"},
		{"replicad", "-c x -- --force create-md r0", "create-md -c x --force r0"},
		{"replicad", "create-md -- --force r0", "create-md --force r0"},
		{"replicad", "status --watch", "status --watch=2"},
		{"replicad", "status --watch 5 r0", "status --watch=5 r0"},
		{"replicad", "status --watch r0", "status --watch=2 r0"},
		{"replicad", "--help", "--help"},
		{"replicad", "", ""},
		{"drbdadm", "-W --force primary r0", "primary --force r0"},
		{"drbdadm", "-W--force primary r0", "primary --force r0"},
		{"drbdadm", "--setup-option=--force primary r0", "primary --force r0"},
		{"drbdadm", "-c x -d up all", "up -c x -d all"},
	}
	for _, tt := range tests {
		a := &app{name: tt.name}
		got, err := a.reorder(strings.Fields(tt.in))
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s %s: %q, %v, want %q", tt.name, tt.in, strings.Join(got, " "), err, tt.want)
		}
	}
	for _, in := range []string{"-S up r0", "-P up r0", "-s x up r0", "--drbdsetup=x up r0", "-m x up r0"} {
		if got, err := (&app{name: "drbdadm"}).reorder(strings.Fields(in)); err == nil {
			t.Errorf("drbdadm %s: %q, want a refusal", in, got)
		}
	}
}

// Words in any place never make the program panic or hang.
func FuzzReorder(f *testing.F) {
	f.Add("-c x primary r0")
	f.Add("-- -W -s --watch")
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Fields(line)
		for _, name := range []string{"replicad", "drbdadm"} {
			got, err := (&app{name: name}).reorder(words)
			if err == nil && len(got) > len(words) {
				t.Errorf("%s: %q became %q", name, words, got)
			}
		}
	})
}

func TestNearest(t *testing.T) {
	known := visibleVerbs()
	for word, want := range map[string]string{
		"primry": "primary", "secondry": "secondary", "stauts": "status", "wait-snyc": "wait-sync",
		"conect": "connect", "frobnicate": "", "x": "", "uo": "up",
	} {
		if got := nearest(word, known); got != want {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"up", "up", 0}, {"up", "pu", 1}, {"abc", "abd", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// Every verb of the interface is there, or says that it is not built yet.
func TestEveryPromisedVerb(t *testing.T) {
	const promised = `run up down attach detach connect disconnect primary secondary invalidate invalidate-remote outdate verify
		pause-sync resume-sync suspend-io resume-io resize adjust new-current-uuid wait-connect wait-sync role cstate dstate status show-gi
		get-gi events2 disk-options net-options create-md wipe-md dump-md apply-al set-gi dump dump-xml check sh-dev sh-minor sh-resources
		sh-ll-dev sh-md-dev sh-md-idx sh-ip sh-status version help completion explain demo doctor election handover`
	all := append(verbs(), notBuilt...)
	for verb := range strings.FieldsSeq(promised) {
		if !slices.Contains(all, verb) {
			t.Errorf("%s is missing", verb)
		}
	}
	for _, verb := range notBuilt {
		if slices.Contains(verbs(), verb) {
			t.Errorf("%s is built and still listed as not", verb)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"64M": 64 << 20, "1g": 1 << 30, "512K": 512 << 10, "4096": 4096} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "M", "64MM", "x", "64T", "9999999999999G"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q became %d", text, got)
		}
	}
}

func TestParseSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{"60": time.Minute, "0.5": time.Second / 2, "90s": 90 * time.Second, "2m": 2 * time.Minute} {
		if got, err := parseSeconds(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "soon", "1e12", "NaN", "Inf"} {
		if got, err := parseSeconds(text); err == nil {
			t.Errorf("%q became %s", text, got)
		}
	}
}

func TestProgressText(t *testing.T) {
	r := ctl.Resource{Name: "r0", Connection: "SyncTarget", Volumes: []ctl.Volume{{Sync: &ctl.Sync{TotalKiB: 400 << 10, LeftKiB: 100 << 10, RateKiB: 10 << 10}}}}
	const want = "r0: SyncTarget, volume 0 [===============.....] 75.0%, 100 of 400 MiB to go, 10240 KiB/s, 10s left"
	if got := progressText(r); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	for _, s := range []ctl.Sync{{}, {TotalKiB: 4, LeftKiB: 8}, {TotalKiB: 4}} {
		r.Volumes[0].Sync = &s
		if got := progressText(r); !strings.Contains(got, "%") {
			t.Errorf("%+v: %s", s, got)
		}
	}
}

// When piped, only what is new is printed.
func TestProgressLinePiped(t *testing.T) {
	var out bytes.Buffer
	p := newProgressLine(&out)
	for _, conn := range []string{"WFConnection", "WFConnection", "Connected"} {
		p.show(ctl.Resource{Name: "r0", Connection: conn})
	}
	p.finish()
	if got := out.String(); got != "r0: WFConnection\nr0: Connected\n" {
		t.Errorf("%q", got)
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{&exitError{code: 11, lines: []string{"a", "b"}, hint: "c"}, 11, "a\nb\nCommand 'x' terminated with exit code 11\nc\n"},
		{&exitError{code: 1}, 1, ""},
		{errors.New("broken"), exitExecution, "broken\nCommand 'x' terminated with exit code 20\n"},
	} {
		var out bytes.Buffer
		if code := report(&out, tt.err, "x"); code != tt.code || out.String() != tt.want {
			t.Errorf("%v: %d %q", tt.err, code, out.String())
		}
	}
}

func TestIsTerminal(t *testing.T) {
	if isTerminal(&bytes.Buffer{}) {
		t.Error("a buffer is no terminal")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	if isTerminal(w) {
		t.Error("a pipe is no terminal")
	}
}
