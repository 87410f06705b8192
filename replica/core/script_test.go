package core_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replicad/replica/sim"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata show into their expected output")

// TestScripts runs the scenarios in testdata/*.txt. A script is a list of
// blocks: comments (#) and commands, a line of dashes, and what the commands
// show, up to an empty line. With -rewrite the output is written anew: then
// the difference is what there is to review.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runFile(t, file) })
	}
}

const divider = "----"

func runFile(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	script := sim.NewScript()
	var out []string
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		out = append(out, runBlock(t, script, block))
	}
	got := strings.Join(out, "\n\n") + "\n"
	if *rewrite && got != string(text) {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(text) {
		t.Errorf("%s shows something else (go test -run TestScripts -rewrite writes it anew):\n%s", file, got)
	}
}

// runBlock runs the commands of a block and returns it with what they showed.
func runBlock(t *testing.T, script *sim.Script, block string) string {
	commands, _, shows := strings.Cut(block+"\n", divider+"\n")
	var shown strings.Builder
	for line := range strings.SplitSeq(strings.TrimSuffix(commands, "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		out, err := script.Do(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		shown.WriteString(out)
	}
	commands = strings.TrimSuffix(commands, "\n")
	if !shows && shown.Len() == 0 {
		return commands
	}
	return commands + "\n" + divider + strings.TrimSuffix("\n"+shown.String(), "\n")
}
