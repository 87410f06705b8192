package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/internal/failpoint"
	"replicad/internal/ledger"
)

// A plan is its seed's, and the seeds of a night bring every kind of episode,
// every protocol and every failpoint of the table.
func TestPlans(t *testing.T) {
	kinds, rules, protocols, wide := map[kind]int{}, map[string]int{}, map[string]int{}, 0
	for seed := range uint64(5000) {
		p := newPlan(seed)
		if !reflect.DeepEqual(p, newPlan(seed)) {
			t.Fatalf("seed %d makes two plans", seed)
		}
		protocols[p.protocol]++
		if p.wide {
			wide++
		}
		if p.areaMiB >= p.diskMiB || len(p.episodes) == 0 {
			t.Fatalf("bad plan: %s", p)
		}
		for _, e := range p.episodes {
			kinds[e.kind]++
			if err := failpoint.Check(e.rules); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for _, rules := range e.starts {
				if err := failpoint.Check(rules); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			rule, _, _ := strings.Cut(e.rules, "@")
			rules[rule]++
		}
	}
	for _, w := range weights {
		if kinds[w.kind] == 0 {
			t.Errorf("no %s", w.kind)
		}
	}
	for _, s := range strikes {
		for _, act := range s.acts {
			if rules[s.point+"="+act] == 0 {
				t.Errorf("no %s=%s", s.point, act)
			}
		}
	}
	if len(protocols) != 3 || wide == 0 {
		t.Errorf("protocols %v, %d wide", protocols, wide)
	}
}

// What a wide plan writes lies in more extents than the activity log holds,
// and is read back from where it was written.
func TestAreaOfWidePlan(t *testing.T) {
	p := &plan{wide: true, diskMiB: wideExtents*4 + 4}
	sectors := wideExtents * chunkBytes / ledger.SectorSize
	extents, device := map[int64]bool{}, make(marks)
	for at := range sectors {
		off := p.offset(at)
		extents[off/extentBytes] = true
		if device[off] {
			t.Fatalf("two sectors lie at %d", off)
		}
		device[off] = true
	}
	if len(extents) != wideExtents {
		t.Errorf("%d extents", len(extents))
	}
	buf := make([]byte, 3*chunkBytes)
	if n, err := (area{p, device}).ReadAt(buf, chunkBytes/2); n != len(buf) || err != nil {
		t.Fatal(n, err)
	}
	for at := 0; at < len(buf); at += ledger.SectorSize {
		if buf[at] != 1 {
			t.Fatalf("byte %d was not read from a written sector", at)
		}
	}
	if p.fits(chunkBytes/ledger.SectorSize-1, 2) || !p.fits(0, chunkBytes/ledger.SectorSize) {
		t.Error("fits is wrong at the border of a chunk")
	}
}

// marks is a device that reads as ones where something was marked.
type marks map[int64]bool

func (m marks) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0
		if m[(off+int64(i))/ledger.SectorSize*ledger.SectorSize] {
			p[i] = 1
		}
	}
	return len(p), nil
}

// TestRound plays one plan that has a takeover, a failpoint and a link fault,
// with a binary made from this source.
func TestRound(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	p := newPlan(1)
	p.protocol, p.wide, p.diskMiB, p.areaMiB = "C", false, 16, 8
	p.episodes = []episode{
		{kind: killPrimary, after: 300 * time.Millisecond, promote: true},
		{kind: failSecondary, after: 300 * time.Millisecond, rules: "disk.write=kill@50"},
		{kind: linkClose, after: 200 * time.Millisecond, bytes: 1000},
	}
	c, err := playRound(options{binary: build(t)}, p)
	if err != nil {
		t.Fatal(err)
	}
	if c.takeovers != 1 || c.failpoints["disk.write=kill"] != 1 || c.completed == 0 || c.verified == 0 {
		t.Errorf("%+v", c)
	}
}

// A disk that was written to behind the pair's back is noticed: the harness
// does look.
func TestRoundNoticesLostWrite(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	p := newPlan(2)
	p.protocol, p.wide, p.diskMiB, p.areaMiB = "C", false, 16, 8
	r, err := newRound(build(t), p)
	if err != nil {
		t.Fatal(err)
	}
	r.count = newCounts()
	defer func() { _ = os.RemoveAll(r.dir) }()
	defer r.close()
	if err := r.setUp(); err != nil {
		t.Fatal(err)
	}
	if err := r.loadFor(300 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := r.end(false); err != nil {
		t.Fatal(err)
	}
	c, err := r.primary.open()
	if err != nil {
		t.Fatal(err)
	}
	w := r.led.Issue(7, 1, false) // completed for the ledger alone
	w.Completed(true)
	if err := r.check(r.primary, nothingLost); err == nil || !strings.Contains(err.Error(), "1 completed writes are lost") {
		t.Errorf("a lost write: %v", err)
	}
	if _, err := c.WriteAt(bytes.Repeat([]byte{1}, ledger.SectorSize), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.check(r.primary, subset); err == nil || !strings.Contains(err.Error(), "nobody wrote there") {
		t.Errorf("a foreign sector: %v", err)
	}
	flip(t, r.peer.file("img"))
	if err := r.sameImages(1 << 20); err == nil {
		t.Error("images that differ in one byte pass as equal")
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 1<<19); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b[:], 1<<19); err != nil {
		t.Fatal(err)
	}
}

// TestMain removes the program that build made.
func TestMain(m *testing.M) {
	code := m.Run()
	if dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// dir is where build puts the program.
var dir string

// build makes the program, once for all tests.
func build(t *testing.T) string {
	t.Helper()
	binary, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

var buildOnce = sync.OnceValues(func() (string, error) {
	var err error
	if dir, err = os.MkdirTemp("", "torture"); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "replicad")
	// As make build does, so that the compiler's cache serves both.
	cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "replicad/cmd/replicad")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w: %s", err, out)
	}
	return binary, nil
})
