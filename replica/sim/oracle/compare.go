package oracle

// A second, literal table of how DRBD 8.4 compares two generations, from its
// documentation. Bit 0 of every id is the role and is masked.

const (
	justCreated = 4
	syncOffset  = 0x0001000000000000 // from a bitmap id to the sync id derived from it
)

type ids struct{ cur, bm, h1, h2 uint64 }

func idsOf(s *Super) ids {
	return ids{s.Current &^ 1, s.Bitmap &^ 1, s.H1 &^ 1, s.H2 &^ 1}
}

// rule is one row of the table; s is the node itself, p its peer.
type rule struct {
	number int
	holds  func(s, p ids, crash crashes) bool
	result int
}

// crashes says which node carries the crashed-primary mark.
type crashes struct{ self, peer bool }

// The results are those of DRBD: 0 none, 1 bitmap, 2 full (plus: self is the
// source), 100 split brain, -100 split brain without a common base.
var rules = []rule{
	{10, func(s, p ids, _ crashes) bool { return s.cur == justCreated && p.cur == justCreated }, 0},
	{20, func(s, p ids, _ crashes) bool { return (s.cur == justCreated || s.cur == 0) && p.cur != justCreated }, -2},
	{30, func(s, p ids, _ crashes) bool { return s.cur != justCreated && (p.cur == justCreated || p.cur == 0) }, 2},
	{34, func(s, p ids, _ crashes) bool {
		return s.cur == p.cur && p.bm == 0 && s.bm != 0 && s.bm == p.h1 && s.h1 == p.h2
	}, 1},
	{36, func(s, p ids, _ crashes) bool { return s.cur == p.cur && p.bm == 0 && s.bm != 0 }, 1},
	{35, func(s, p ids, _ crashes) bool {
		return s.cur == p.cur && s.bm == 0 && p.bm != 0 && s.h1 == p.bm && s.h2 == p.h1
	}, -1},
	{37, func(s, p ids, _ crashes) bool { return s.cur == p.cur && s.bm == 0 && p.bm != 0 }, -1},
	{40, func(s, p ids, c crashes) bool { return s.cur == p.cur && !c.self && !c.peer }, 0},
	{40, func(s, p ids, c crashes) bool { return s.cur == p.cur && c.self }, 1}, // or -1: both crashed, a token decides
	{40, func(s, p ids, _ crashes) bool { return s.cur == p.cur }, -1},
	{50, func(s, p ids, _ crashes) bool { return s.cur == p.bm }, -1},
	{51, func(s, p ids, _ crashes) bool { return s.cur == p.h1 && p.h1+syncOffset == p.bm }, -1},
	{60, func(s, p ids, _ crashes) bool { return s.cur == p.h1 || s.cur == p.h2 }, -2},
	{70, func(s, p ids, _ crashes) bool { return s.bm == p.cur }, 1},
	{71, func(s, p ids, _ crashes) bool { return s.h1 == p.cur && s.h1+syncOffset == s.bm }, 1},
	{80, func(s, p ids, _ crashes) bool { return p.cur == s.h1 || p.cur == s.h2 }, 2},
	{90, func(s, p ids, _ crashes) bool { return s.bm == p.bm && s.bm != 0 }, 100},
	{100, func(s, p ids, _ crashes) bool { return s.h1 == p.h1 || s.h1 == p.h2 || s.h2 == p.h1 || s.h2 == p.h2 }, -100},
}

// unrelatedData is the result when no rule holds.
const unrelatedData = -1000

// Compare returns DRBD's verdict on two superblocks whose nodes meet as
// Secondaries, and the number of the rule.
func Compare(self, peer *Super) (result, number int) {
	const crashed = FlagCrashedPrimary | FlagPrimary
	c := crashes{self.Flags&crashed != 0, peer.Flags&crashed != 0}
	s, p := idsOf(self), idsOf(peer)
	for _, r := range rules {
		if r.holds(s, p, c) {
			return r.result, r.number
		}
	}
	return unrelatedData, 100
}

// settles reports that two superblocks need no marks: when the nodes meet,
// everything is copied, or they refuse to connect for want of any relation, or
// neither has good data.
func settles(a, b *Super) bool {
	result, number := Compare(a, b)
	switch result {
	case 2, -2, unrelatedData:
		return true
	case -100:
		return (a.Flags^b.Flags)&FlagConsistent != 0 // one is Inconsistent: a full copy
	}
	return number == 10
}
