package core

import (
	"testing"

	"replicad/wire"
)

// TestWriteAllocatesNothing follows a 4 KiB write through a lone and a
// connected Primary in steady state: the data path's promise of no allocation
// starts here.
func TestWriteAllocatesNothing(t *testing.T) {
	for _, connected := range []bool{false, true} {
		p, a, _ := syncedPair(t, 'C')
		if !connected {
			p.breakLink(DropPing)
		}
		out := make([]Action, 0, 64)
		buf := Buf(1000)
		write := func() {
			buf++
			out = a.n.Step(p.now, Event{Kind: EvWrite, Buf: buf, Off: uint64(buf%100) * 4096, Len: 4096}, out[:0])
			var op Op
			var seq uint64
			for i := range out {
				switch out[i].Kind {
				case ActDiskWrite:
					op = out[i].Op
				case ActSend:
					if out[i].Msg.Kind == wire.KindData {
						seq = out[i].Msg.Seq
					}
				}
			}
			out = a.n.Step(p.now, Event{Kind: EvDiskDone, Op: op}, out[:0])
			if connected {
				out = a.n.Step(p.now, Event{Kind: EvPeer, Session: a.session, Msg: wire.Msg{Kind: wire.KindWriteAck, Seq: seq}}, out[:0])
			}
			if last := out[len(out)-1]; last.Kind != ActComplete || last.Result != IOOK {
				t.Fatalf("write ended with %+v", last)
			}
		}
		for i := range 200 {
			a.write(Buf(i+1), uint64(i))
		}
		a.push(Event{Kind: EvFlush, Buf: 999})
		p.settle()
		if n := testing.AllocsPerRun(500, write); n != 0 {
			t.Errorf("connected=%v: %v allocations per write", connected, n)
		}
	}
}

// TestPeerWriteAllocatesNothing is the same for the Secondary's side.
func TestPeerWriteAllocatesNothing(t *testing.T) {
	p, _, b := syncedPair(t, 'C')
	out := make([]Action, 0, 64)
	seq := uint64(1 << 40)
	n := testing.AllocsPerRun(500, func() {
		seq += 1 << 16
		m := wire.Msg{Kind: wire.KindData, Flags: wire.FlagWantWriteAck, Seq: seq, Off: 4096, Len: 4096}
		out = b.n.Step(p.now, Event{Kind: EvPeer, Session: b.session, Msg: m, Buf: 77}, out[:0])
		out = b.n.Step(p.now, Event{Kind: EvDiskDone, Op: out[len(out)-1].Op}, out[:0])
	})
	if n != 0 {
		t.Errorf("%v allocations per mirrored write", n)
	}
}

func BenchmarkProtocolCWrite(b *testing.B) {
	p, a, _ := syncedPair(&testing.T{}, 'C')
	out := make([]Action, 0, 64)
	buf := Buf(1000)
	a.write(1, 0) // makes the extent hot
	b.ReportAllocs()
	for b.Loop() {
		buf++
		out = a.n.Step(p.now, Event{Kind: EvWrite, Buf: buf, Off: uint64(buf%100) * 4096, Len: 4096}, out[:0])
		seq, op := out[0].Msg.Seq, out[len(out)-1].Op
		out = a.n.Step(p.now, Event{Kind: EvDiskDone, Op: op}, out[:0])
		out = a.n.Step(p.now, Event{Kind: EvPeer, Session: a.session, Msg: wire.Msg{Kind: wire.KindWriteAck, Seq: seq}}, out[:0])
	}
}
