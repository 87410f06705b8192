package tidy

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// TestRepository is the reason for this package.
func TestRepository(t *testing.T) {
	found, err := Check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, finding := range found {
		t.Error(finding)
	}
}

const clean = "// Package p does nothing.\npackage p\n"

// Each rule must find what it is for, and nothing in code that follows it.
func TestRulesFind(t *testing.T) {
	tests := []struct {
		name, file, src string
		want            string // "" for nothing
	}{
		{"nothing", "p/a.go", clean, ""},
		{"long function", "p/a.go", clean + "func f() {\n" + strings.Repeat("\n", 69) + "}\n", "p/a.go:3: f is 71 lines"},
		{"longest function", "p/a.go", clean + "func f() {\n" + strings.Repeat("\n", 68) + "}\n", ""},
		{"long function in a test", "p/a_test.go", clean + "func f() {\n" + strings.Repeat("\n", 69) + "}\n", "71 lines"},
		{"long file", "p/a.go", clean + strings.Repeat("\n", 600), "file of 602 lines"},
		{"long test", "p/a_test.go", clean + strings.Repeat("\n", 600), ""},
		{"vague name", "p/a.go", "// Package util is one.\npackage util\n", "says nothing"},
		{"no package comment", "p/a.go", "package p\n", "p:1: package without a comment"},
		{"impure import", "wire/a.go", clean + "import \"net/netip\"\n", "pure package imports net/netip"},
		{"chance", "bitmap/a.go", clean + "import \"math/rand/v2\"\n", "pure package imports math/rand/v2"},
		{"pure test", "wire/a_test.go", clean + "import \"os\"\n", ""},
		{"similar name", "wire/a.go", clean + "import \"network\"\n", ""},
		{"impure package", "nbd/a.go", clean + "import \"net\"\n", ""},
		{"clock", "replica/core/a.go", clean + "import \"time\"\nvar t = time.Now()\n", "reads the clock: time.Now"},
		{"renamed clock", "replica/core/a.go", clean + "import c \"time\"\nvar t = c.Since\n", "reads the clock: time.Since"},
		{"duration", "replica/core/a.go", clean + "import \"time\"\nconst d = time.Second\n", ""},
		{"wall clock", "replica/link/a.go", clean + "import \"time\"\nvar t = time.Now().UnixNano()\n", "UnixNano loses the monotonic reading"},
		{"wall time", "nbd/a.go", clean + "import \"time\"\nvar t = time.Unix(2, 0)\n", "time.Unix has no monotonic reading"},
		{"stripped time", "replica/a.go", clean + "import \"time\"\nvar t = time.Now().Round(0)\n", "Round(0) loses"},
		{"the past", "nbd/a.go", clean + "import \"time\"\nvar t = time.Unix(1, 0)\n", ""},
		{"wall clock elsewhere", "replica/meta/a.go", clean + "import \"time\"\nvar t = time.Now().Unix()\n", ""},
		{"goroutine", "replica/status/a.go", clean + "func f() { go f() }\n", "starts a goroutine"},
		{"sideways", "nbd/a.go", clean + "import \"replicad/replica\"\n", "nbd may not import replica"},
		{"sideways below", "election/vip/a.go", clean + "import \"replicad/nbd\"\n", "election may not import nbd"},
		{"up", "replica/link/a.go", clean + "import \"replicad/replica\"\n", "replica/link may not import replica"},
		{"up from core", "replica/core/a.go", clean + "import \"replicad/replica/meta\"\n", "replica/core may not import"},
		{"into the simulator", "replica/a.go", clean + "import \"replicad/replica/sim\"\n", "replica may not import replica/sim"},
		{"test disk", "replica/a.go", clean + "import \"replicad/replica/disk/disktest\"\n", "replica may not import replica/disk/disktest"},
		{"down", "replica/a.go", clean + "import \"replicad/replica/core\"\n", ""},
		{"within", "election/a.go", clean + "import \"replicad/election/vip\"\n", ""},
		{"command", "p/a.go", clean + "import \"replicad/cmd/replicad\"\n", "import of a command"},
		{"joins", "cmd/replicad/a.go", clean + "import (\n\"replicad/nbd\"\n\"replicad/replica\"\n)\n", ""},
		{"%v of an error", "p/a.go", clean + "var e = fmt.Errorf(\"%d%%: %v\", 1, err)\n", "formatted with %v"},
		{"%s of a cause", "p/a.go", clean + "var e = fmt.Errorf(\"%*d: %s\", 1, 2, err.Error())\n", "formatted with %s"},
		{"%w", "p/a.go", clean + "var e = fmt.Errorf(\"%v: %w\", name, err)\n", ""},
		{"undocumented function", "p/a.go", clean + "func F() {}\n", "F has no comment"},
		{"undocumented method", "p/a.go", clean + "func (t *T[V]) F() {}\n", "F has no comment"},
		{"method of a hidden type", "p/a.go", clean + "func (t t) F() {}\n", ""},
		{"undocumented type", "p/a.go", clean + "type T int\n", "T has no comment"},
		{"undocumented value", "p/a.go", clean + "const (\n// A is first.\nA = 1\nB = 2\n)\n", "B has no comment"},
		{"iota", "p/a.go", clean + "const (\n// A is first.\nA = iota\nB\n)\n", ""},
		{"group", "p/a.go", clean + "// Both.\nvar A, B int\n", ""},
		{"marker", "p/a.go", clean + "// FIX" + "ME: later\n", "left in"},
		{"machine path", "docs/a.md", "one\nsee /wor" + "k/main\n", "docs/a.md:2: machine path"},
		{"registry", ".ci/run", "curl https://proxy" + ".example.org\n", "registry host"},
		{"sums", "go.sum", "/wor" + "k/\n", ""},
		{"skipped", "bin/a.md", "/wor" + "k/\n", ""},
		{"worktree", ".git", "gitdir: /wor" + "k/\n", ""},
		{"binary", "a.img", "\x00/wor" + "k/\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, err := Check(fstest.MapFS{tt.file: {Data: []byte(tt.src)}})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("found %q", found)
			case tt.want != "" && (len(found) != 1 || !strings.Contains(found[0], tt.want)):
				t.Errorf("found %q, want %q", found, tt.want)
			}
		})
	}
}

func TestBrokenGoIsAnError(t *testing.T) {
	if _, err := Check(fstest.MapFS{"p/a.go": {Data: []byte("package")}}); err == nil {
		t.Error("no error")
	}
}
