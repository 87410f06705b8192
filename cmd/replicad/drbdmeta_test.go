package main

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"replicad/internal/reqtool"
)

// drbdmeta runs the real tool on a node's image and returns its standard output.
func drbdmeta(t *testing.T, n *testNode, words ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := append([]string{"--force", "0", "v08", n.file("img"), "internal"}, words...)
	cmd := exec.CommandContext(ctx, reqtool.Path(t, "drbdmeta"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("drbdmeta %s: %v\n%s%s", strings.Join(words, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// body is a dump without the comment lines that name the time and the caller,
// and without the flags, which drbdmeta 9.22 always prints as 0.
func body(dump string) string {
	var kept []string
	for line := range strings.Lines(dump) {
		if trimmed := strings.TrimSpace(line); !strings.HasPrefix(trimmed, "#") && !strings.HasPrefix(trimmed, "flags") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestDrbdmeta: daemons attach metadata that the real drbdmeta created, use it,
// die with writes under way, and drbdmeta reads what they left: ids and flags,
// the activity log and the bitmap. The daemons then go on from what it wrote.
func TestDrbdmeta(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*testNode{p.be1(), p.be2()} {
		drbdmeta(t, n, "create-md")
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	p.be1().must("wait-connect", "--timeout", "15", "r0")
	p.be1().must("primary", "--force", "r0")
	p.settle()
	c := p.be1().dial()
	p.be2().kill()
	block := bytes.Repeat([]byte{7}, 4096)
	for i := range int64(40) {
		if _, err := c.WriteAt(block, i*8192); err != nil {
			t.Fatal(err)
		}
	}
	p.be1().kill()
	if ours, real := p.be1().must("get-gi", "r0"), drbdmeta(t, p.be1(), "get-gi"); ours != real {
		t.Errorf("after kill -9 get-gi says %q, the real drbdmeta %q", ours, real)
	}
	drbdmeta(t, p.be1(), "apply-al")
	real := drbdmeta(t, p.be1(), "dump-md")
	if ours := p.be1().must("dump-md", "r0"); body(ours) != body(real) {
		t.Errorf("dump-md differs\nours:\n%s\ndrbdmeta:\n%s", ours, real)
	}
	if !strings.Contains(real, "# bits-set 1024;") {
		t.Errorf("the hot extent's 1024 blocks are not marked:\n%s", real)
	}
	for _, n := range []*testNode{p.be1(), p.be2()} {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
	}
	p.settle()
	p.be1().must("primary", "r0")
	p.be1().dial()
	p.be1().hangUp()
	p.sameDisks(p.be1(), 8<<20)
}
