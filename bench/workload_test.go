package main

import "testing"

func TestPlacesStayWithinTheSpan(t *testing.T) {
	for _, w := range workloads {
		const size = 9*mebibyte + 4096 // no multiple of a mebibyte
		p := newPlaces(w, w.conns-1, size, 3)
		seen := map[int64]int{}
		for range 10_000 {
			at := p.offset()
			if at < 0 || at%int64(w.block) != 0 || at+int64(w.block) > size {
				t.Fatalf("%s goes to %d", w.name, at)
			}
			seen[at]++
		}
		if most := int(size / int64(w.block)); len(seen) < most*95/100 {
			t.Errorf("%s visited %d of %d places", w.name, len(seen), most)
		}
	}
}

func TestPlacesAreTheSameForAllServers(t *testing.T) {
	w, _ := findWorkload("r4q32c4")
	p, q := newPlaces(w, 2, sizeDefault, 1), newPlaces(w, 2, sizeDefault, 1)
	other, round := newPlaces(w, 3, sizeDefault, 1), newPlaces(w, 2, sizeDefault, 2)
	equalOther, equalRound := true, true
	for range 100 {
		at := p.offset()
		if q.offset() != at {
			t.Fatal("two servers get different places")
		}
		equalOther = other.offset() == at && equalOther
		equalRound = round.offset() == at && equalRound
	}
	if equalOther || equalRound {
		t.Error("connections or rounds repeat each other")
	}
}

func TestSequentialPlacesAdvance(t *testing.T) {
	w, _ := findWorkload("sw1m")
	p := newPlaces(w, 0, 3*mebibyte, 0)
	for _, want := range []int64{0, 1, 2, 0, 1} {
		if got := p.offset(); got != want*mebibyte {
			t.Fatalf("at %d, want %d MiB", got, want)
		}
	}
}

func TestWorkloadWords(t *testing.T) {
	w, _ := findWorkload("w4q32c4")
	if got, want := w.describe(), "random write of 4 KiB, depth 32, 4 connections"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
