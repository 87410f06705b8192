package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tiny are options for a run of a moment, with every folder inside a test's.
func tiny(t *testing.T, servers string, more ...string) options {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	args := append([]string{"-dir", dir, "-size", "4", "-seconds", "0.01", "-rounds", "2", "-servers", servers}, more...)
	opt, err := parseOptions(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return opt
}

func mustBeEmpty(t *testing.T, folder string) {
	t.Helper()
	left, err := os.ReadDir(folder)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// cells reads a CSV file and returns the records of each workload and server.
func cells(t *testing.T, path string) map[key][][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := csv.NewReader(bytes.NewReader(text))
	r.Comment = '#'
	records, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(records[0], ",") != strings.Join(csvHeader, ",") {
		t.Errorf("header %q", records[0])
	}
	out := map[key][][]string{}
	for _, rec := range records[1:] {
		k := key{rec[1], rec[2]}
		out[k] = append(out[k], rec)
	}
	return out
}

func TestRunMeasuresEverything(t *testing.T) {
	for _, transport := range []string{"unix", "tcp"} {
		results := t.TempDir()
		file := filepath.Join(results, "rows.csv")
		opt := tiny(t, "go-nbd,nbdkit,qemu-nbd,nbd-file", "-transport", transport, "-csv", file, "-md", filepath.Join(results, "t.md"))
		var out, log bytes.Buffer
		if err := run(t.Context(), opt, &out, &log); err != nil {
			t.Fatalf("%v\n%s", err, log.String())
		}
		mustBeEmpty(t, opt.dir)
		got := cells(t, file)
		checkRotation(t, file)
		for _, w := range workloads {
			for _, label := range []string{labelGoNBD, labelNBDFile} {
				want := opt.rounds
				if w.kind == kindWriteFlush && label == labelGoNBD { // it has no FLUSH
					want = 0
				}
				if recs := got[key{w.name, label}]; len(recs) != want {
					t.Errorf("%s on %s was measured %d times, want %d", w.name, label, len(recs), want)
				} else if want > 0 {
					checkRecord(t, recs[0])
				}
			}
		}
		md, err := os.ReadFile(opt.md)
		if err != nil || !bytes.Equal(md, out.Bytes()) {
			t.Errorf("the Markdown file differs from what was printed: %v", err)
		}
		if found := regexp.MustCompile(`[^0-9 a-z]/[a-z]+/`).FindString(out.String()); found != "" || strings.Contains(out.String(), opt.dir) {
			t.Errorf("the report names a place of this machine: %q", found)
		}
	}
}

// checkRotation wants each server to be the first of some workload's turn.
func checkRotation(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	turn, first, all := "", map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(line, ",")
		if len(f) < 3 || f[0] == "round" || strings.HasPrefix(line, "#") {
			continue
		}
		if f[0]+f[1] != turn {
			first[f[2]] = true
		}
		turn, all[f[2]] = f[0]+f[1], true
	}
	if len(all) < 2 || len(first) != len(all) {
		t.Errorf("first of a turn were %v of %v", first, all)
	}
}

func checkRecord(t *testing.T, rec []string) {
	t.Helper()
	for i := 3; i < 9; i++ { // operations to latencies
		if v, err := strconv.ParseFloat(rec[i], 64); err != nil || v <= 0 {
			t.Errorf("%s on %s: %s is %q", rec[1], rec[2], csvHeader[i], rec[i])
		}
	}
	for i := 9; i < 11; i++ { // in so short a cell the CPU time may be unknown
		if v, err := strconv.ParseFloat(rec[i], 64); rec[i] != "" && (err != nil || v < 0) {
			t.Errorf("%s on %s: %s is %q", rec[1], rec[2], csvHeader[i], rec[i])
		}
	}
	if rec[12] != "" {
		t.Errorf("%s on %s: %s", rec[1], rec[2], rec[12])
	}
}

func TestRunIsInterrupted(t *testing.T) {
	opt := tiny(t, "go-nbd,nbd-file", "-seconds", "60")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pids := make(chan []int, 1)
	go func() {
		time.Sleep(300 * time.Millisecond)
		pids <- withChildren(os.Getpid())[1:]
		cancel()
	}()
	began := time.Now()
	if err := run(ctx, opt, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted run: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	children := <-pids
	if len(children) != 2 {
		t.Errorf("children %v, want two servers", children)
	}
	for _, pid := range children {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d is still there", pid)
		}
	}
	mustBeEmpty(t, opt.dir)
}

// A server that dies is a fault of the run, and the others are measured on.
func TestRunNoticesADeadServer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows.csv")
	opt := tiny(t, "go-nbd,nbd-file", "-seconds", "0.1", "-workloads", "r4q1,r4q32,sr1m", "-csv", file)
	go func() {
		time.Sleep(300 * time.Millisecond)
		for _, pid := range withChildren(os.Getpid())[1:] {
			line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
			if bytes.Contains(line, []byte("\x00go-nbd\x00")) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
	var out bytes.Buffer
	if err := run(t.Context(), opt, &out, io.Discard); !errors.Is(err, errFailed) {
		t.Errorf("run: %v, want a failure", err)
	}
	if !strings.Contains(out.String(), "FAULT: go-nbd: ") || !strings.Contains(out.String(), "killed") {
		t.Errorf("the report does not tell of it:\n%s", out.String())
	}
	for _, rec := range cells(t, file)[key{"sr1m", "nbd-file"}] {
		checkRecord(t, rec)
	}
}

// The real program, alone and as pairs: built, synchronised, measured, and its
// copies compared.
func TestRunMeasuresReplicad(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and starts seven daemons")
	}
	file := filepath.Join(t.TempDir(), "rows.csv")
	opt := tiny(t, "standalone,A,B,C", "-rounds", "1", "-csv", file)
	var out, log bytes.Buffer
	if err := run(t.Context(), opt, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	got := cells(t, file)
	for _, w := range workloads {
		for _, label := range opt.servers {
			if recs := got[key{w.name, label}]; len(recs) != 1 {
				t.Errorf("%s on %s was measured %d times", w.name, label, len(recs))
			} else {
				checkRecord(t, recs[0])
			}
		}
	}
	mustBeEmpty(t, opt.dir)
}

func TestRunWithoutReplicad(t *testing.T) {
	opt := tiny(t, "nbd-file,standalone", "-workloads", "r4q1", "-replicad", "/bin/false")
	var out bytes.Buffer
	if err := run(t.Context(), opt, &out, io.Discard); !errors.Is(err, errFailed) {
		t.Errorf("run: %v, want a failure", err)
	}
	if !strings.Contains(out.String(), "FAULT: standalone: replicad create-md") {
		t.Errorf("the report does not tell of it:\n%s", out.String())
	}
}

func TestLimitEndsTheRun(t *testing.T) {
	opt := tiny(t, "nbd-file", "-workloads", "r4q1", "-rounds", "1000", "-seconds", "0.05", "-limit", "1s")
	var out bytes.Buffer
	began := time.Now()
	if err := run(t.Context(), opt, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if !strings.Contains(out.String(), "the time limit of 1s left room for") {
		t.Error("the report does not tell of it")
	}
}

func TestMissingPeerIsNoFault(t *testing.T) {
	opt := tiny(t, "nbdkit,nbd-file", "-workloads", "r4q1")
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	if err := run(t.Context(), opt, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "nbdkit is not installed") {
		t.Error("the report does not tell of it")
	}
}

func TestCommandExitCodes(t *testing.T) {
	if code := command([]string{"-rounds", "0"}); code != 1 {
		t.Errorf("wrong option: exit code %d", code)
	}
	if code := command([]string{"-h"}); code != 0 {
		t.Errorf("help: exit code %d", code)
	}
	if code := command([]string{serveVerb, "-kind", "x", "-file", "/dev/null", "-listen", "unix:" + filepath.Join(t.TempDir(), "s")}); code != 2 {
		t.Errorf("unknown kind of server: exit code %d", code)
	}
}
