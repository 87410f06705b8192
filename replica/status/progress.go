package status

import (
	"fmt"
	"strconv"
	"time"
)

// Time is a moment on the caller's clock, in nanoseconds from an origin of its
// choice.
type Time int64

const (
	markCount = 8               // marks kept
	markStep  = 3 * time.Second // least time between two marks
	markFar   = 2               // steps from the last mark round to the one that speed is measured from
)

// Progress remembers how far a resync or verify was at some earlier moments,
// so that the current speed can be told (DRBD 8.4: eight marks, at least three
// seconds apart; speed is measured from one about eighteen seconds old). It
// belongs to whoever runs the resync and is not safe for concurrent use. Left
// counts blocks of 4 KiB: out of sync and not failed, or not yet verified.
type Progress struct {
	total    uint64
	start    Time
	pausedAt Time
	paused   time.Duration
	isPaused bool
	last     int
	marks    [markCount]mark
}

type mark struct {
	at   Time
	left uint64
}

// SyncProgress is a resync or verify at one moment.
type SyncProgress struct {
	Total  uint64 // blocks at the start
	Left   uint64 // blocks still to do, failed ones not counted
	Failed uint64 // blocks that could not be synchronised
	Far    Mark   // about 18 s ago, or the start
	Near   Mark   // the last mark
	Active time.Duration
	Paused time.Duration
	Want   uint64 // KiB/s that the resync controller aims at
}

// Mark is an earlier moment of a resync.
type Mark struct {
	Left uint64        // blocks that were left then
	Age  time.Duration // how long ago it was
}

// NewProgress starts at now with total blocks to do.
func NewProgress(now Time, total uint64) *Progress {
	p := &Progress{total: total, start: now}
	for i := range p.marks {
		p.marks[i] = mark{at: now, left: total}
	}
	return p
}

// Mark notes that left blocks remain. It may be called as often as one likes:
// it keeps a mark only when the last one is old enough and something changed,
// and none while paused.
func (p *Progress) Mark(now Time, left uint64) {
	last := p.marks[p.last]
	if p.isPaused || now-last.at < Time(markStep) || left == last.left {
		return
	}
	p.last = (p.last + 1) % markCount
	p.marks[p.last] = mark{at: now, left: left}
}

// Pause stops the clock of the average speed.
func (p *Progress) Pause(now Time) {
	if !p.isPaused {
		p.isPaused, p.pausedAt = true, now
	}
}

// Resume ends a pause. The marks move on by its length, so that the speed shown
// right after it is the one from before and not nearly nothing.
func (p *Progress) Resume(now Time) {
	if !p.isPaused {
		return
	}
	p.isPaused = false
	p.paused += time.Duration(now - p.pausedAt)
	for i := range p.marks {
		p.marks[i].at += now - p.pausedAt
	}
}

// At reports the progress at now, with left blocks to do. Want and Failed are
// for the caller to fill in.
func (p *Progress) At(now Time, left uint64) SyncProgress {
	paused, clock := p.paused, now
	if p.isPaused {
		paused += time.Duration(now - p.pausedAt)
		clock = p.pausedAt
	}
	age := func(m mark) Mark { return Mark{Left: m.left, Age: time.Duration(clock - m.at)} }
	return SyncProgress{
		Total:  p.total,
		Left:   left,
		Far:    age(p.marks[(p.last+markFar)%markCount]),
		Near:   age(p.marks[p.last]),
		Active: time.Duration(now-p.start) - paused,
		Paused: paused,
	}
}

const (
	blockKiB     = 4
	barSteps     = 20
	permilleFull = 1000
	stalledAfter = 180 * time.Second

	// The percentage is computed from blocks shifted right, so that it fits a
	// 32-bit word; small resyncs show it (DRBD 8.4).
	shiftSmall = 10
	shiftLarge = 16
	totalSmall = 1<<32 - 1
	totalInMiB = 1 << 20 // blocks from which amounts are shown in MiB: 4 GiB
)

// left is what remains, at most everything.
func (s *SyncProgress) left() uint64 { return min(s.Left, s.Total) }

// permille is how much is done, in tenths of a percent.
func (s *SyncProgress) permille() uint64 {
	if s.Left > s.Total { // more became dirty than there was at the start
		if s.Total == 0 {
			return permilleFull
		}
		return 0
	}
	shift := shiftSmall
	if s.Total > totalSmall {
		shift = shiftLarge
	}
	return permilleFull - (s.Left>>shift)*permilleFull/(1+s.Total>>shift)
}

// farRate returns the blocks done since the far mark and the seconds they took.
func (s *SyncProgress) farRate() (blocks, seconds uint64) {
	return s.since(s.Far), wholeSeconds(s.Far.Age)
}

// since counts the blocks done since a mark; new dirt may have outrun them.
func (s *SyncProgress) since(m Mark) uint64 { return m.Left - min(s.left(), m.Left) }

// finish estimates the seconds to the end from the recent speed.
func (s *SyncProgress) finish() uint64 {
	blocks, seconds := s.farRate()
	return seconds * (s.left() / (blocks/100 + 1)) / 100
}

// speed is the recent speed, in KiB/s.
func (s *SyncProgress) speed() uint64 {
	blocks, seconds := s.farRate()
	return blocks / seconds * blockKiB
}

// average is the speed since the start without pauses, in KiB/s.
func (s *SyncProgress) average() uint64 {
	return (s.Total - s.left()) / wholeSeconds(s.Active) * blockKiB
}

// wholeSeconds cuts off the fraction; the result is at least 1.
func wholeSeconds(d time.Duration) uint64 {
	return uint64(max(d/time.Second, 1))
}

func appendProgress(dst []byte, conn Conn, s *SyncProgress) []byte {
	permille := s.permille()
	dst = append(dst, "\t["...)
	dst = appendBar(dst, permille)
	tag := "sync'ed:"
	if conn.isVerify() {
		tag = "verified:"
	}
	dst = fmt.Appendf(dst, "] %s%3d.%d%% ", tag, permille/10, permille%10)
	dst = appendAmounts(dst, s)
	rest := s.finish()
	dst = fmt.Appendf(dst, "\n\tfinish: %d:%02d:%02d speed: %s (%s)",
		rest/3600, rest%3600/60, rest%60, grouped(s.speed()), grouped(s.average()))
	if conn == SyncTarget || conn == VerifyS {
		dst = fmt.Appendf(dst, " want: %s", grouped(s.Want))
	}
	dst = append(dst, " K/sec"...)
	if s.Far.Age/time.Second > stalledAfter/time.Second {
		dst = append(dst, " (stalled)"...)
	}
	return append(dst, '\n')
}

// appendBar draws the bar; below 5 % it is one character wider than 20, as in
// DRBD 8.4.
func appendBar(dst []byte, permille uint64) []byte {
	done := int(permille / (permilleFull / barSteps))
	for range done - 1 {
		dst = append(dst, '=')
	}
	dst = append(dst, '>')
	for range barSteps - done {
		dst = append(dst, '.')
	}
	return dst
}

func appendAmounts(dst []byte, s *SyncProgress) []byte {
	if s.Total > totalInMiB {
		return fmt.Appendf(dst, "(%d/%d)M", s.left()>>shiftSmall*blockKiB, s.Total>>shiftSmall*blockKiB)
	}
	return fmt.Appendf(dst, "(%d/%d)K", s.left()*blockKiB, s.Total*blockKiB)
}

// grouped renders n with commas between groups of three digits.
func grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}
