package core

import "replicad/internal/mutant"

// wrongBranches are the mutants of Compare: what becomes of the verdicts of
// some rules. Both nodes run the same code, so where a rule has a mirror image
// both are wrong: verdicts that contradict each other would be too easy to see.
var wrongBranches = []struct {
	mutant mutant.Mutant
	rules  []int
	then   func(v Verdict, self, peer Facts) Verdict
}{
	{mutant.Compare20, []int{20, 30}, byBitmap},
	{mutant.Compare30, []int{20, 30}, reversed},
	{mutant.Compare34, []int{34, 35}, nothing},
	{mutant.Compare35, []int{34, 35}, reversed},
	{mutant.Compare36, []int{36, 37}, nothing},
	{mutant.Compare37, []int{36, 37}, reversed},
	{mutant.Compare51, []int{51, 71}, uncorrected},
	{mutant.Compare71, []int{51, 71}, reversed},
	{mutant.Compare41, []int{41}, reversed},
	{mutant.Compare50, []int{50}, reversed}, // not so on the newer node
	{mutant.Compare70, []int{50, 70}, reversed},
	{mutant.Compare60, []int{60, 80}, byBitmap},
	{mutant.Compare80, []int{60, 80}, reversed},
	{mutant.Compare90, []int{90}, largerWins},
	{mutant.Compare100, []int{100}, largerWins},
}

// misjudge returns what Compare says with the planted bug.
func misjudge(v Verdict, self, peer Facts) Verdict {
	s, p := self.Gen.mask().Current, peer.Gen.mask().Current
	switch {
	case mutant.On(mutant.Compare10) && (s == UUIDJustCreated) != (p == UUIDJustCreated):
		return Verdict{Rule: 10}
	case mutant.On(mutant.Compare40) && v.Rule == 40 && v.Result == ResultNone:
		return Verdict{Result: ResultBitmap, Rule: 40}
	case mutant.On(mutant.Compare40Crashed) && v.Rule == 40:
		return reversed(v, self, peer)
	}
	for _, w := range wrongBranches {
		for _, rule := range w.rules {
			if mutant.On(w.mutant) && v.Rule == rule {
				return w.then(v, self, peer)
			}
		}
	}
	return v
}

func byBitmap(v Verdict, _, _ Facts) Verdict {
	v.Result /= ResultFull
	return v
}

func reversed(v Verdict, _, _ Facts) Verdict {
	if v.Result >= -ResultFull && v.Result <= ResultFull {
		v.Result = -v.Result
	}
	return v
}

func nothing(v Verdict, _, _ Facts) Verdict { return Verdict{Rule: v.Rule} }

func uncorrected(v Verdict, _, _ Facts) Verdict {
	v.FixSelf, v.FixPeer = nil, nil
	return v
}

// largerWins settles a split brain by the current ids, alike on both nodes.
func largerWins(v Verdict, self, peer Facts) Verdict {
	v.Result = ResultBitmap
	if self.Gen.mask().Current < peer.Gen.mask().Current {
		v.Result = -ResultBitmap
	}
	return v
}
