package core

import "testing"

// TestFirstPromotionOnUnequalDisks: two new disks of different sizes agree on
// the smaller one when they connect, and the promotion of either starts the
// first resync at that size.
func TestFirstPromotionOnUnequalDisks(t *testing.T) {
	const small, large = 8 << 20, 12 << 20
	for name, disks := range map[string][2]uint64{"larger promoted": {large, small}, "smaller promoted": {small, large}} {
		t.Run(name, func(t *testing.T) {
			p := newPairOf(t, 'C', disks)
			a, b := p.nodes[0], p.nodes[1]
			a.expect("cs:Connected ro:Secondary/Secondary ds:Inconsistent/Inconsistent")
			if err := a.command(Command{Kind: CmdPrimary, Force: true}); err != Success {
				t.Fatalf("forced promotion: %v", err)
			}
			p.advance(20e9)
			a.expect("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")
			for _, x := range []*testNode{a, b} {
				if got := x.n.vols[0].size; got != small {
					t.Errorf("%s has %d bytes, want %d", x.name, got, small)
				}
			}
		})
	}
}
