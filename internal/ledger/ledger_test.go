package ledger

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

func block(v byte) []byte { return bytes.Repeat([]byte{v}, BlockSize) }

// device is blocks in memory.
type device []byte

func (d device) ReadAt(p []byte, off int64) (int, error) { return copy(p, d[off:]), nil }

func (d device) put(n int, v byte) { copy(d[n*BlockSize:], block(v)) }

// newDevice returns a device of n zero blocks, and a ledger that knows them.
func newDevice(n int) (device, *Ledger) {
	l := New()
	for i := range n {
		l.Baseline(int64(i)*BlockSize, block(0))
	}
	return make(device, n*BlockSize), l
}

// A scenario is told as words: w0=1 issues a write of 1 to block 0, c0
// completes the last one of block 0, f flushes, d0=1 is what the device holds
// in the end.
func play(t *testing.T, script []string) Finding {
	t.Helper()
	d, l := newDevice(4)
	pending := map[int]func(){}
	for _, word := range script {
		var n, v int
		switch {
		case word == "f":
			l.Flush()()
		case scan(word, "w%d=%d", &n, &v):
			pending[n] = l.Issue(int64(n)*BlockSize, block(byte(v)))
		case scan(word, "c%d", &n):
			pending[n]()
		case scan(word, "d%d=%d", &n, &v):
			d.put(n, byte(v))
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	f, err := l.Compare(d)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func scan(word, format string, into ...any) bool {
	n, err := fmt.Sscanf(word, format, into...)
	return err == nil && n == len(into)
}

func TestCompare(t *testing.T) {
	tests := []struct {
		name   string
		script []string
		want   Finding
	}{
		{"nothing", nil, Finding{}},
		{"there", []string{"w0=1", "c0", "d0=1"}, Finding{Completed: 1}},
		{"lost", []string{"w0=1", "c0"}, Finding{Completed: 1, Lost: 1}},
		{"lost after a flush", []string{"w0=1", "c0", "f"}, Finding{Completed: 1, Lost: 1, LostSafe: 1}},
		{"lost after an earlier flush", []string{"f", "w0=1", "c0"}, Finding{Completed: 1, Lost: 1}},
		{"open and there", []string{"w0=1", "d0=1"}, Finding{Open: 1, OpenKept: 1}},
		{"open and not there", []string{"w0=1"}, Finding{Open: 1}},
		{"overwritten", []string{"w0=1", "c0", "w0=2", "c0", "d0=2"}, Finding{Completed: 2}},
		{"older version", []string{"w0=1", "c0", "w0=2", "c0", "d0=1"}, Finding{Completed: 2, Lost: 1}},
		{"overwritten by an open one", []string{"w0=1", "c0", "w0=2", "d0=2"}, Finding{Completed: 1, Open: 1, OpenKept: 1}},
		{"foreign", []string{"w0=1", "c0", "d0=9"}, Finding{Foreign: 1}},
		{"tail", []string{"w0=1", "c0", "w1=1", "c1", "d0=1"}, Finding{Completed: 2, Lost: 1}},
		{"disorder", []string{"w0=1", "c0", "w1=1", "c1", "d1=1"}, Finding{Completed: 2, Lost: 1, Disorder: 1}},
		{"repeated content", []string{"w1=1", "c1", "w0=1", "c0", "w1=1", "c1", "d1=1"}, Finding{Completed: 3, Lost: 1}},
		{"concurrent", []string{"w0=1", "w1=1", "c0", "c1", "d1=1"}, Finding{Completed: 2, Lost: 1}},
		{"disorder of an open one", []string{"w0=1", "c0", "w1=1", "d1=1"}, Finding{Completed: 1, Lost: 1, Open: 1, OpenKept: 1, Disorder: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := play(t, tt.script); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// Every prefix of a sequence of writes is a set closed under "completed before
// issued", and leaving one write out of the middle never is.
func TestPrefixesAreInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		const n = 12
		cut := r.IntN(n + 1)
		d, l := newDevice(n)
		for i := range n {
			l.Issue(int64(i)*BlockSize, block(1))()
			if i < cut {
				d.put(i, 1)
			}
		}
		f, err := l.Compare(d)
		if err != nil {
			t.Fatal(err)
		}
		if f.Disorder != 0 || f.Lost != n-cut {
			t.Fatalf("prefix of %d: %+v", cut, f)
		}
		if cut < 2 {
			continue
		}
		hole := r.IntN(cut - 1)
		d.put(hole, 0)
		if f, err = l.Compare(d); err != nil || f.Disorder != cut-1-hole {
			t.Fatalf("hole at %d of %d: %+v, %v", hole, cut, f, err)
		}
	}
}

func TestAdopt(t *testing.T) {
	d, l := newDevice(2)
	l.Issue(0, block(1))()
	if err := l.Adopt(d); err != nil {
		t.Fatal(err)
	}
	if f, err := l.Compare(d); err != nil || f != (Finding{}) {
		t.Errorf("%+v, %v", f, err)
	}
}
