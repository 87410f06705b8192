package ledger

import (
	"fmt"
	"io"
)

// Verdict is what comparing a device with a [Sectors] gave.
type Verdict struct {
	Sectors  int // compared
	Lost     int // completed writes that the device does not show everywhere, nor later ones there
	LostSafe int // of those, how many a flush or their own FUA had covered
	Disorder int // writes that are there although one that completed before they were issued is lost
	Foreign  int // sectors that hold what nobody wrote there
	Example  string
}

// compareBytes is how much of a device is read at a time.
const compareBytes = 1 << 20

// Compare reads the device and holds it against the writes since the last
// Adopt. No write may be in flight.
func (s *Sectors) Compare(device io.ReaderAt) (Verdict, error) {
	return s.scan(device, false)
}

// Adopt takes what the device holds for the new truth, after Compare: a lost
// tail is lost, and what got no answer is decided.
func (s *Sectors) Adopt(device io.ReaderAt) error {
	_, err := s.scan(device, true)
	return err
}

func (s *Sectors) scan(device io.ReaderAt, adopt bool) (Verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := Verdict{Sectors: len(s.sectors)}
	for i := range s.writes {
		s.writes[i].lost = false
	}
	var present map[int]bool
	if !adopt {
		present = map[int]bool{}
	}
	buf := make([]byte, compareBytes)
	for at := 0; at < len(s.sectors); {
		part := buf[:min(len(buf), (len(s.sectors)-at)*SectorSize)]
		if _, err := device.ReadAt(part, int64(at)*SectorSize); err != nil {
			return v, fmt.Errorf("read sector %d: %w", at, err)
		}
		for ; len(part) > 0; part, at = part[SectorSize:], at+1 {
			c := s.recognise(part[:SectorSize], at)
			if adopt {
				s.sectors[at] = sector{base: c, writes: s.sectors[at].writes[:0]}
				continue
			}
			s.compare(at, c, present, &v)
		}
	}
	if adopt {
		s.clock++
		s.note("adopted")
	} else {
		s.sum(present, &v)
	}
	return v, nil
}

// compare judges one sector.
func (s *Sectors) compare(at int, c content, present map[int]bool, v *Verdict) {
	newest, known := s.origin(at, c)
	if !known {
		v.Foreign++
		v.example("sector %d holds %s", at, c)
		return
	}
	for _, number := range s.sectors[at].writes {
		w := &s.writes[number-1]
		if w.completed != 0 && s.precedes(newest, w) {
			w.lost = true
			v.example("sector %d holds %s, not write #%d or a later one", at, c, number)
		}
	}
	if c.write > 0 && newest > 0 {
		present[newest] = true
	}
}

func (v *Verdict) example(format string, args ...any) {
	if v.Example == "" {
		v.Example = fmt.Sprintf(format, args...)
	}
}

// sum counts over all writes.
func (s *Sectors) sum(present map[int]bool, v *Verdict) {
	first := int64(0) // completion of the earliest lost write
	for i := range s.writes {
		w := &s.writes[i]
		if !w.lost {
			continue
		}
		v.Lost++
		if w.safe || w.completed < s.safe {
			v.LostSafe++
		}
		if first == 0 || w.completed < first {
			first = w.completed
		}
	}
	for number := range present {
		if first != 0 && s.writes[number-1].issued > first {
			v.Disorder++
			v.example("write #%d is there although an earlier one is lost", number)
		}
	}
}
