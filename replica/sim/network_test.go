package sim

import (
	"strings"
	"testing"

	"replicad/replica/core"
	"replicad/wire"
)

// TestNodeClock: whatever a clock does, it never goes back for the core, and a
// tick asked for at a reading comes at that reading or later.
func TestNodeClock(t *testing.T) {
	for _, ppm := range []int64{0, 100, -100, 50_000, -50_000} {
		c := nodeClock{base: 12345, since: 7, ppm: ppm}
		last := c.at(7)
		for now := core.Time(8); now < 1e12; now = now*3/2 + 1 {
			if now%5 == 0 {
				c.jump(now, 3600*second)
			}
			if got := c.at(now); got < last {
				t.Fatalf("ppm %d: the clock went from %d to %d", ppm, last, got)
			}
			last = c.at(now)
			want := last + 123456789
			if w := c.world(want); w < now || c.at(w) < want || c.at(w-2) >= want {
				t.Fatalf("ppm %d: reading %d is said to come at %d, when it reads %d", ppm, want, w, c.at(w))
			}
		}
	}
}

// testPair is a connected pair at rest, driven by hand.
func testPair(t *testing.T) *World {
	t.Helper()
	s := NewScript()
	for _, line := range []string{"pair", "start", "a primary", "settle", "expect b cs:Connected"} {
		if _, err := s.Do(line); err != nil {
			t.Fatal(err)
		}
	}
	return s.w
}

// TestDamagedFramesAreRefused sends frames through each damage: none reaches
// the core, and the session ends.
func TestDamagedFramesAreRefused(t *testing.T) {
	for d := damageFlip; d <= damageEnd; d++ {
		for range 40 {
			w := testPair(t)
			w.calm = false
			w.net.damage[0][w.rng.IntN(2)] = d
			r := &request{kind: core.EvWrite, first: 8, count: 16, client: -1, fua: true}
			done := false
			r.answer = func(core.IOResult, []content) { done = true }
			w.net.damage[0][0] = d
			before := w.nodes[1].core.Status().Session
			w.nodes[0].issue(r)
			w.run(w.now+120*second, func() bool { return done && w.nodes[1].core.Status().Session > before && w.good() })
			if w.failure != nil {
				t.Fatalf("damage %d: %v", d, w.failure)
			}
			if !done || !w.good() {
				t.Fatalf("damage %d: no way back: %s", d, w.summary())
			}
		}
	}
}

// TestParserNoticesEveryFlip flips each bit of a frame in turn.
func TestParserNoticesEveryFlip(t *testing.T) {
	var net network
	data := []content{1, 2}
	m := wire.Msg{Kind: wire.KindData, Off: 4096, Len: 1024, Seq: 9}
	b, err := wire.AppendMsg(nil, &m, net.payloadBytes(data))
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, net.payloadBytes(data)...)
	if _, err := parseStream(b, 0); err != nil {
		t.Fatalf("an undamaged frame is refused: %v", err)
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := parseStream(b, 0); err == nil {
			t.Errorf("bit %d is flipped, and the frame accepted", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

// TestChecksFail breaks what each check of checks.go looks for.
func TestChecksFail(t *testing.T) {
	breaks := map[string]func(w *World){
		"P17": func(w *World) {
			l := w.net.links[0]
			l.verdicts[1][0] = core.WFBitMapT
			w.concluded(w.nodes[0], 0, w.nodes[0].vols[0].st, core.Connected)
		},
		"P26": func(w *World) {
			w.opt.Net.KoCount, w.opt.Net.Timeout = 2, 100*millisecond
			n := w.nodes[0]
			id := n.bufs.take(w.rng.IntN)
			n.bufs.all[id-1].request = &request{kind: core.EvWrite, issued: w.now}
			w.now += 3600 * second
			w.watchRequests(n)
		},
		"P25": func(w *World) {
			n := w.nodes[0]
			n.newCommand(core.Command{Kind: core.CmdConnect})
			w.watchCommands(n)
			w.now += commandTime + second
			w.watchCommands(n)
		},
		"P28": func(w *World) {
			n := w.nodes[0]
			w.watchCounters(n)
			n.vols[0].counters.Read++
			n.vols[0].counters.AL++
			w.watchCounters(n)
		},
		"P28 at rest": func(w *World) {
			w.net.links[0].sentAt[0][0]++
			w.countersAgree(0)
		},
	}
	for name, breakIt := range breaks {
		w := testPair(t)
		w.net.links[0].said[0][0] = w.nodes[0].vols[0].st
		breakIt(w)
		property, _, _ := strings.Cut(name, " ")
		if w.failure == nil || w.failure.Property != property {
			t.Errorf("%s: broken on purpose, and reported: %v", name, w.failure)
		}
	}
}
