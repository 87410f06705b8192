package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOptionsRefused(t *testing.T) {
	for _, args := range []string{
		"-size 1", "-seconds 0", "-rounds 0", "-limit 0s", "-transport pigeon", "-servers ,", "-workloads ,",
		"-servers go-nbd,nbdkitt", "-workloads r4q2", "stray",
	} {
		if _, err := parseOptions(strings.Fields(args), io.Discard); !errors.Is(err, errOption) {
			t.Errorf("%q: error %v, want a wrong option", args, err)
		}
	}
	if _, err := parseOptions([]string{"-rounds", "x"}, io.Discard); err == nil {
		t.Error("-rounds x was accepted")
	}
}

func TestOptionsTaken(t *testing.T) {
	opt, err := parseOptions(strings.Fields("-quick -rounds 7 -servers C,go-nbd,C -workloads w4q1 -size 8"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if opt.rounds != 7 || opt.cell != 80*time.Millisecond || opt.limit != 35*time.Second {
		t.Errorf("-quick -rounds 7 gives %d rounds, cells of %v, limit %v", opt.rounds, opt.cell, opt.limit)
	}
	if !slices.Equal(opt.servers, []string{"C", "go-nbd"}) || len(opt.workloads) != 1 || opt.workloads[0].name != "w4q1" {
		t.Errorf("servers %q, workloads %v", opt.servers, opt.workloads)
	}
	if opt.size != 8<<20 || opt.dir == "" {
		t.Errorf("size %d in %q", opt.size, opt.dir)
	}
}

// The default run has to fit into three minutes with every server, with a
// quarter of the time left for starting them and for the pauses between cells.
func TestDefaultRunIsShort(t *testing.T) {
	for _, c := range []struct {
		args  []string
		limit time.Duration
	}{{nil, 3 * time.Minute}, {[]string{"-quick"}, 40 * time.Second}} {
		opt, err := parseOptions(c.args, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		cells := opt.rounds * len(opt.servers) * len(opt.workloads)
		planned := time.Duration(cells) * (opt.cell + opt.cell/warmUpShare)
		if planned > c.limit*3/4+c.limit/20 {
			t.Errorf("%q: %d cells take %v of %v", c.args, cells, planned, c.limit)
		}
		if opt.limit >= c.limit {
			t.Errorf("%q: limit %v", c.args, opt.limit)
		}
	}
}

func TestImagesOf(t *testing.T) {
	if n := imagesOf([]string{"go-nbd", "standalone", "A", "C"}); n != 6 {
		t.Errorf("%d images, want 6: a pair has two", n)
	}
}
