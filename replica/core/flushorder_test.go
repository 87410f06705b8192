package core

import (
	"slices"
	"testing"

	"replicad/wire"
)

// stream lists the mirrored writes and the barriers between
// them, as the peer gets them.
func (r *rig) stream() (s []string) {
	for _, m := range r.sent {
		switch m.Kind {
		case wire.KindBarrier:
			s = append(s, "barrier")
		case wire.KindData:
			s = append(s, "write")
		}
	}
	return s
}

// TestFlushOrdersThePeersDisk: under protocol A and B neither a flush nor a
// FUA write waits for the peer's disk, but what a client writes after it has
// completed must never be there without what it covered. So it completes when
// its barrier has been sent.
func TestFlushOrdersThePeersDisk(t *testing.T) {
	for _, fua := range []bool{false, true} {
		for _, protocol := range []byte{'A', 'B'} {
			r := goodPrimary(t, protocol)
			r.sent = nil
			next := Buf(1)
			write := func(fua bool) Buf {
				next++
				r.do(Event{Kind: EvWrite, Buf: next, Len: 4096, Off: uint64(next) * 4096, FUA: fua})
				r.confirmWrites()
				return next
			}
			flush := func() Buf {
				if fua {
					return write(true)
				}
				next++
				r.do(Event{Kind: EvFlush, Buf: next})
				return next
			}
			r.mustHave(write(false), flush()) // the first barrier goes at once
			w, f := write(false), flush()     // this one waits for the first one's ack
			r.mustHave(w)
			r.mustNotHave(f)
			b := r.lastSent(wire.KindBarrier)
			r.peer(wire.Msg{Kind: wire.KindBarrierAck, Seq: b.Seq, Arg: b.Arg})
			r.mustHave(f, write(false))
			want := []string{"write", "barrier", "write", "barrier", "write"}
			if fua {
				want = []string{"write", "write", "barrier", "write", "write", "barrier", "write"}
			}
			if got := r.stream(); !slices.Equal(got, want) {
				t.Errorf("protocol %c, FUA %v: the peer gets %v", protocol, fua, got)
			}
			f = flush()
			if fua {
				r.mustNotHave(f)
			}
			write(false)
			r.do(Event{Kind: EvLinkDown, Session: r.session, Reason: DropBrokenPipe})
			r.mustHave(f)
		}
	}
}

// confirmWrites answers what the protocol waits for.
func (r *rig) confirmWrites() {
	if m := r.lastSent(wire.KindData); m != nil {
		if r.n.cfg.Net.Protocol == 'A' {
			r.do(Event{Kind: EvSent, Session: r.session, Seq: m.Seq})
		} else {
			r.peer(wire.Msg{Kind: wire.KindRecvAck, Seq: m.Seq})
		}
	}
}
