package ledger

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A scenario: w0+2 issues write 1, 2, ... of sectors 0 and 1, z0+2 zeroes them,
// c1 completes write 1, u1 likewise with FUA, e1 fails it, f flushes,
// p1 puts write 1 on the device, p1@0 its sector 0 alone, x3 damages sector 3.
func playSectors(t *testing.T, script string) Verdict {
	t.Helper()
	const n = 8
	s, err := NewSectors(n, 7, "")
	if err != nil {
		t.Fatal(err)
	}
	d := make(device, n*SectorSize)
	var writes []Write
	var zero []bool
	for word := range strings.FieldsSeq(script) {
		var a, b int
		switch {
		case scan(word, "w%d+%d", &a, &b), scan(word, "z%d+%d", &a, &b):
			writes, zero = append(writes, s.Issue(a, b, word[0] == 'z')), append(zero, word[0] == 'z')
		case word == "f":
			s.Flush()()
		case scan(word, "p%d@%d", &a, &b):
			put(d, writes[a-1], zero[a-1], b, b+1)
		case scan(word, "c%d", &a):
			writes[a-1].Completed(false)
		case scan(word, "u%d", &a):
			writes[a-1].Completed(true)
		case scan(word, "e%d", &a):
			writes[a-1].Failed(errors.New("no"))
		case scan(word, "p%d", &a):
			put(d, writes[a-1], zero[a-1], 0, n)
		case scan(word, "x%d", &a):
			d[a*SectorSize+100]++
		case word == "adopt":
			if err := s.Adopt(d); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	v, err := s.Compare(d)
	if err != nil {
		t.Fatal(err)
	}
	v.Sectors, v.Example = 0, ""
	return v
}

// put stores the part of a write that lies between two sectors.
func put(d device, w Write, zero bool, from, to int) {
	p := make([]byte, w.n*SectorSize)
	if !zero {
		w.Fill(p)
	}
	for i := range w.n {
		if at := w.first + i; at >= from && at < to {
			copy(d[at*SectorSize:], p[i*SectorSize:(i+1)*SectorSize])
		}
	}
}

func TestSectors(t *testing.T) {
	for _, tt := range []struct {
		script string
		want   Verdict
	}{
		{"", Verdict{}},
		{"w0+2 p1 c1", Verdict{}},
		{"w0+2 c1", Verdict{Lost: 1}},
		{"w0+2 c1 f", Verdict{Lost: 1, LostSafe: 1}},
		{"f w0+2 c1", Verdict{Lost: 1}},
		{"w0+2 u1", Verdict{Lost: 1, LostSafe: 1}},
		{"w0+2 p1@0 c1", Verdict{Lost: 1}},
		{"w0+2 p1@0", Verdict{}},
		{"w0+2 p1@0 e1", Verdict{}},
		{"w0+2 p1 c1 w1+2 p2 c2", Verdict{}},
		{"w0+2 p1 c1 w1+2 c2", Verdict{Lost: 1}},
		// Overlapping writes in flight together: either may be the last one.
		{"w0+2 w1+2 c1 c2 p2 p1", Verdict{}},
		{"w0+2 w1+2 c1 c2 p1 p2", Verdict{}},
		{"w0+2 w1+2 c1 c2 p1", Verdict{Lost: 1}},
		// One that got no answer may come late, but not after the adoption.
		{"w0+1 w0+1 c2 p2 p1", Verdict{}},
		{"w0+1 adopt w0+1 c2 p2 p1", Verdict{Foreign: 1}},
		{"w0+1 p1 adopt", Verdict{}},
		{"w0+1 p1 adopt w0+1 c2", Verdict{Lost: 1}},
		{"w0+2 p1 c1 x1", Verdict{Foreign: 1}},
		{"x3", Verdict{Foreign: 1}},
		{"w0+2 p1 c1 z1+1 p2 c2", Verdict{}},
		{"w0+2 p1 c1 z1+1 c2", Verdict{Lost: 1}},
		{"z0+2 c1", Verdict{}},
		// Order: what is there may not be younger than something lost.
		{"w0+1 c1 w1+1 p2 c2", Verdict{Lost: 1, Disorder: 1}},
		{"w0+1 c1 w1+1 p2", Verdict{Lost: 1, Disorder: 1}},
		{"w0+1 w1+1 c1 p2 c2", Verdict{Lost: 1}},
		{"w0+1 p1 c1 w1+1 c2 w2+1 c3", Verdict{Lost: 2}},
	} {
		if got := playSectors(t, tt.script); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.script, got, tt.want)
		}
	}
}

func TestMisplacedSectorIsForeign(t *testing.T) {
	s, err := NewSectors(4, 7, "")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewSectors(4, 8, "")
	if err != nil {
		t.Fatal(err)
	}
	d := make(device, 4*SectorSize)
	w := s.Issue(0, 2, false)
	p := make([]byte, 2*SectorSize)
	w.Fill(p)
	copy(d[SectorSize:], p) // one sector too far
	other.Issue(3, 1, false).Fill(d[3*SectorSize:])
	if v, err := s.Compare(d); err != nil || v.Foreign != 3 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestCheckRead(t *testing.T) {
	s, err := NewSectors(4, 7, "")
	if err != nil {
		t.Fatal(err)
	}
	p, zero := make([]byte, SectorSize), make([]byte, SectorSize)
	early := s.Now()
	w := s.Issue(1, 1, false)
	w.Fill(p)
	for _, step := range []struct {
		what   string
		data   []byte
		issued int64
		ok     bool
	}{
		{"old, in flight", zero, early, true},
		{"new, in flight", p, early, true},
	} {
		if err := s.CheckRead(1, step.data, step.issued); (err == nil) != step.ok {
			t.Errorf("%s: %v", step.what, err)
		}
	}
	w.Completed(false)
	if err := s.CheckRead(1, zero, early); err != nil {
		t.Errorf("a read that began before: %v", err)
	}
	if err := s.CheckRead(1, zero, s.Now()); err == nil {
		t.Error("a read that went back in time was accepted")
	}
	if err := s.CheckRead(2, p, s.Now()); err == nil {
		t.Error("a misplaced sector was accepted")
	}
}

// Whatever serial order writes are applied in, the device agrees with the
// ledger; and leaving out any completed write that nothing covers is noticed.
func TestSectorsRandom(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		s, err := NewSectors(16, 7, "")
		if err != nil {
			t.Fatal(err)
		}
		d := make(device, 16*SectorSize)
		last := -1 // a sector that the last write alone covers
		for range 30 {
			first := r.IntN(16)
			w := s.Issue(first, 1+r.IntN(16-first), r.IntN(5) == 0)
			put(d, w, s.writes[w.number-1].zero, 0, 16)
			w.Completed(r.IntN(3) == 0)
			last = first
		}
		if v, err := s.Compare(d); err != nil || v.Lost+v.Disorder+v.Foreign != 0 {
			t.Fatalf("seed %d: %+v, %v", seed, v, err)
		}
		w := s.Issue(last, 1, false)
		w.Completed(false)
		if v, err := s.Compare(d); err != nil || v.Lost != 1 {
			t.Fatalf("seed %d: a write was left out: %+v, %v", seed, v, err)
		}
	}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s, err := NewSectors(4, 7, path)
	if err != nil {
		t.Fatal(err)
	}
	w := s.Issue(1, 2, false)
	w.Completed(false)
	s.Flush()()
	s.Note("here %s died", "somebody")
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"write #1: 2 sectors from 1", "completed #1", "flushed what", "here somebody died"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the journal lacks %q:\n%s", want, text)
		}
	}
	if got := s.Totals(); got.Issued != 1 || got.Completed != 1 || got.Flushed != 1 || got.Flushes != 1 {
		t.Errorf("%+v", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A read during a write may see the sector in parts, one after it may not; and
// zeroes may come from any writer of zeroes that was still at it.
func TestCheckReadWhileWriting(t *testing.T) {
	s, err := NewSectors(4, 7, "")
	if err != nil {
		t.Fatal(err)
	}
	p, zero := make([]byte, SectorSize), make([]byte, SectorSize)
	slow := s.Issue(1, 1, true)
	s.Issue(1, 1, true).Completed(false)
	w := s.Issue(1, 1, false)
	w.Fill(p)
	clear(p[:SectorSize/2])
	during := s.Now()
	if err := s.CheckRead(1, p, during); err != nil {
		t.Errorf("in parts, during the write: %v", err)
	}
	w.Completed(false)
	if err := s.CheckRead(1, p, during); err != nil {
		t.Errorf("in parts, by a read that began during the write: %v", err)
	}
	if err := s.CheckRead(1, zero, s.Now()); err != nil {
		t.Errorf("zeroes of a writer that is still at it: %v", err)
	}
	slow.Completed(false)
	if err := s.CheckRead(1, p, s.Now()); err == nil {
		t.Error("a sector in parts was accepted after the write")
	}
	done := s.Issue(1, 1, false)
	done.Completed(false)
	if err := s.CheckRead(1, zero, s.Now()); err == nil {
		t.Error("zeroes of a writer that had ended before were accepted")
	}
}
