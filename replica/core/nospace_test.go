package core

import "testing"

// fullDisk makes node x's next local write end with IONoSpace.
func (x *testNode) fullDisk(buf Buf, block uint64) {
	x.p.t.Helper()
	x.noSpace = true
	x.write(buf, block)
	x.noSpace = false
}

// TestNoSpace: a full file system below a lone Primary's image is the client's
// error, not the end of the disk; with a good peer the peer serves.
func TestNoSpace(t *testing.T) {
	p, a, b := syncedPair(t, 'C')
	a.write(1, 5)
	p.breakLink(DropPing)
	a.fullDisk(2, 7)
	if a.results[2] != IONoSpace {
		t.Errorf("write to a lone Primary's full disk: %v", a.results[2])
	}
	a.expect("cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown")
	if !a.n.vols[0].disk.bm.Test(7) {
		t.Error("the block of the failed write is not marked")
	}
	p.heal()
	p.advance(3e9)
	a.expect("ds:UpToDate/UpToDate")
	a.fullDisk(3, 9)
	if a.results[3] != IOOK {
		t.Errorf("write that the peer took: %v", a.results[3])
	}
	a.expect("cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate")
	b.expect("ds:UpToDate/Diskless")
}
