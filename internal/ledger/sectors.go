package ledger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// SectorSize is the unit in which a [Sectors] knows a device, bytes.
const SectorSize = 512

// Sectors is a ledger for writers that overlap, of any size: it knows for every
// sector which writes covered it. Each sector written carries the number of its
// write, its own address and a checksum, so what a device shows names its origin,
// and a sector that is torn, misplaced or from another life is recognised.
//
// Everything is also appended to a journal. A Sectors may be used from any
// goroutine.
type Sectors struct {
	nonce   uint64
	file    *os.File // nil: no journal
	mu      sync.Mutex
	journal *bufio.Writer
	err     error // of the journal
	clock   int64 // counts what happens
	safe    int64 // what completed before this was covered by a flush
	writes  []entry
	sectors []sector
	done    Totals
}

// Totals count what clients did, since the ledger began.
type Totals struct {
	Issued, Completed, Failed, Flushes, Flushed int64 // Flushed: completed writes that a flush or FUA covered
	uncovered                                   int64
}

// entry is one write. Times are of the ledger's clock, 0 for never.
type entry struct {
	zero              bool
	issued, completed int64
	safe              bool // by its own FUA
	lost              bool // seen missing by the current comparison
}

// sector is the history of one sector since the last adoption.
type sector struct {
	base   content
	writes []int // numbers of writes, by time of issue
}

// content is what one sector holds: the stamp of a write, zeroes, or neither.
type content struct {
	write int // number from 1; 0 if not a stamp
	zero  bool
	alien uint64 // hash of what is neither
}

// NewSectors returns a ledger of the first n sectors of a device, which hold
// zeroes unless Adopt is called first. nonce tells
// its stamps from those of other lives. path is where the journal goes; "" for none.
func NewSectors(n int, nonce uint64, path string) (*Sectors, error) {
	s := &Sectors{nonce: nonce, sectors: make([]sector, n), journal: bufio.NewWriter(io.Discard)}
	for i := range s.sectors {
		s.sectors[i].base.zero = true
	}
	if path == "" {
		return s, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create the ledger's journal: %w", err)
	}
	s.file, s.journal = f, bufio.NewWriterSize(f, 64<<10)
	return s, nil
}

// Sync makes the journal durable.
func (s *Sectors) Sync() error {
	s.mu.Lock()
	err := errors.Join(s.err, s.journal.Flush())
	s.mu.Unlock()
	if s.file != nil {
		err = errors.Join(err, s.file.Sync())
	}
	return err
}

// Close ends the journal.
func (s *Sectors) Close() error {
	err := s.Sync()
	if s.file != nil {
		err = errors.Join(err, s.file.Close())
	}
	return err
}

// Note writes a line of the caller's into the journal.
func (s *Sectors) Note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(format, args...)
}

func (s *Sectors) note(format string, args ...any) {
	if _, err := fmt.Fprintf(s.journal, "%d "+format+"\n", append([]any{s.clock}, args...)...); err != nil {
		s.err = err
	}
}

// Totals returns what clients did so far.
func (s *Sectors) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// Write is one write under way.
type Write struct {
	s      *Sectors
	number int
	first  int
	n      int
}

// Issue notes that n sectors from first are about to be written: with stamps
// that Fill makes, or with zeroes.
func (s *Sectors) Issue(first, n int, zero bool) Write {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	s.done.Issued++
	s.writes = append(s.writes, entry{zero: zero, issued: s.clock})
	w := Write{s: s, number: len(s.writes), first: first, n: n}
	for i := first; i < first+n; i++ {
		s.sectors[i].writes = append(s.sectors[i].writes, w.number)
	}
	kind := "write"
	if zero {
		kind = "zero"
	}
	s.note("%s #%d: %d sectors from %d", kind, w.number, n, first)
	return w
}

// Fill makes the content of the write; p holds its n sectors.
func (w Write) Fill(p []byte) {
	for i := range w.n {
		w.s.stamp(p[i*SectorSize:(i+1)*SectorSize], w.number, w.first+i)
	}
}

const stampMagic = 0x7265706c69636164

// stamp fills one sector. The middle depends on the write, so that no two
// writes share more than the head.
func (s *Sectors) stamp(p []byte, write, at int) {
	le := binary.LittleEndian
	le.PutUint64(p, stampMagic)
	le.PutUint64(p[8:], s.nonce)
	le.PutUint64(p[16:], uint64(write))
	le.PutUint64(p[24:], uint64(at))
	x := uint64(write)*0x9e3779b97f4a7c15 + uint64(at) + 1
	for i := 32; i < SectorSize-8; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		le.PutUint64(p[i:], x)
	}
	le.PutUint64(p[SectorSize-8:], xxhash.Sum64(p[:SectorSize-8]))
}

// recognise tells what a sector at a place holds.
func (s *Sectors) recognise(p []byte, at int) content {
	le := binary.LittleEndian
	if le.Uint64(p) == stampMagic && le.Uint64(p[8:]) == s.nonce && le.Uint64(p[24:]) == uint64(at) &&
		le.Uint64(p[SectorSize-8:]) == xxhash.Sum64(p[:SectorSize-8]) {
		return content{write: int(le.Uint64(p[16:]))}
	}
	for _, b := range p {
		if b != 0 {
			return content{alien: xxhash.Sum64(p)}
		}
	}
	return content{zero: true}
}

// Completed notes that the answer came, without an error; fua that it promised
// stable storage.
func (w Write) Completed(fua bool) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.clock++
	e := &w.s.writes[w.number-1]
	e.completed, e.safe = w.s.clock, fua
	w.s.done.Completed++
	if fua {
		w.s.done.Flushed++
	} else {
		w.s.done.uncovered++
	}
	w.s.note("completed #%d", w.number)
}

// Failed notes that the answer was an error, or never came: the write may be
// there, wholly or in part.
func (w Write) Failed(err error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.clock++
	w.s.done.Failed++
	w.s.note("failed #%d: %v", w.number, err)
}

// Flush notes that a flush goes out, and returns a function to call when it
// completed: what had completed before it was issued is then covered.
func (s *Sectors) Flush() (completed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	issued, covers := s.clock, s.done.uncovered
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.clock++
		s.safe = max(s.safe, issued)
		s.done.Flushes++
		covers = min(covers, s.done.uncovered)
		s.done.Flushed += covers
		s.done.uncovered -= covers
		s.note("flushed what completed before %d", issued)
	}
}

// Now is the time of the ledger's clock, for [Sectors.CheckRead].
func (s *Sectors) Now() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	return s.clock
}

// CheckRead holds what a read returned, that was issued at a time of Now,
// against the writes: every sector must be from a write that no write which
// had completed before the read strictly follows. A sector that a write was
// changing meanwhile may come out in parts: a file is read through the page
// cache, which promises nothing to who reads what he writes.
func (s *Sectors) CheckRead(first int, p []byte, issued int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i*SectorSize < len(p); i++ {
		at := first + i
		got := s.recognise(p[i*SectorSize:(i+1)*SectorSize], at)
		newest, known := s.origin(at, got)
		if !known && s.changing(at, issued) {
			continue
		}
		if !known {
			return fmt.Errorf("sector %d holds %s, which nobody wrote there", at, got)
		}
		for _, number := range s.sectors[at].writes {
			if w := &s.writes[number-1]; w.completed != 0 && w.completed < issued && s.precedes(newest, w) {
				return fmt.Errorf("sector %d reads as %s although write #%d had completed before", at, got, number)
			}
		}
	}
	return nil
}

// String says what a sector holds.
func (c content) String() string {
	switch {
	case c.zero:
		return "zeroes"
	case c.write > 0:
		return fmt.Sprintf("write #%d", c.write)
	}
	return fmt.Sprintf("data of another origin (%016x)", c.alien)
}

// changing reports that a write to a sector was under way at or after since.
func (s *Sectors) changing(at int, since int64) bool {
	for _, number := range s.sectors[at].writes {
		if w := &s.writes[number-1]; w.completed == 0 || w.completed > since {
			return true
		}
	}
	return false
}

// origin finds the write that can have left c at a sector and ended last; 0
// stands for what was there before all of them. Zeroes tell nothing of who
// wrote them, and the one that was issued last need not have come last.
func (s *Sectors) origin(at int, c content) (number int, known bool) {
	for _, n := range s.sectors[at].writes {
		w := &s.writes[n-1]
		if (w.zero && c.zero || !w.zero && c.write == n) && (!known || s.endsAfter(n, number)) {
			number, known = n, true
		}
	}
	return number, known || s.sectors[at].base == c
}

// endsAfter compares completions; a write without an answer may end at any time.
func (s *Sectors) endsAfter(a, b int) bool {
	last := s.writes[b-1].completed
	return last != 0 && (s.writes[a-1].completed == 0 || s.writes[a-1].completed > last)
}

// precedes reports that write number (0: what was there before) had completed
// when w was issued. A write without an answer may take effect at any time.
func (s *Sectors) precedes(number int, w *entry) bool {
	if number == 0 {
		return true
	}
	before := &s.writes[number-1]
	return before.completed != 0 && before.completed < w.issued
}
