package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func resourceNames(c *Config) string {
	var names []string
	for _, r := range c.Resources {
		names = append(names, r.Name)
	}
	return strings.Join(names, " ")
}

// empty is a resource that needs nothing.
func empty(name string) string { return "resource " + name + " { }\n" }

func TestInclude(t *testing.T) {
	fsys := files("/etc/drbd.conf", `include "drbd.d/*.res"; include "/abs/x.conf"; include "none/*.res"; resource last { }`,
		"/etc/drbd.d/b.res", empty("b"), "/etc/drbd.d/a.res", "include \"sub/*\";\n"+empty("a"),
		"/etc/drbd.d/sub/c", empty("c"), "/etc/drbd.d/.hidden.res", "{{{", "/etc/drbd.d/a.bak", "{{{", "/abs/x.conf", empty("x"))
	c, err := LoadFS(fsys, "/etc/drbd.conf")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := resourceNames(c), "c a b x last"; got != want {
		t.Errorf("resources %s, want %s", got, want)
	}
	if got, want := c.Resources[0].Pos, (Pos{"/etc/drbd.d/sub/c", 1}); got != want {
		t.Errorf("first resource at %s, want %s", got, want)
	}
}

func TestIncludeFaults(t *testing.T) {
	for _, tc := range []struct{ main, other, want string }{
		{`include "none.res";`, "", "m.conf:1: Failed to open include file 'none.res'."},
		{`include "[";`, "", "m.conf:1: Failed to open include file '['."},
		{`include d;`, "", "m.conf:1: Failed to open include file 'd': "},
		{"\ninclude m.conf;", "", "m.conf:2: file 'm.conf' includes itself."},
		{"include d/o.conf;", `include "../m.conf";`, "d/o.conf:1: file 'm.conf' includes itself."},
		{"include d/o.conf;", "\nresource r { net { timeout 0; } }", "d/o.conf:2: timeout 0 => 0 out of range [1..600]."},
		{"include d/o.conf; include d/o.conf;", empty("r"), "d/o.conf:1: conflicting use of resource section 'r' ..."},
		{"resource r { include d/o.conf; }", "", "m.conf:1: Parse error: '" + resourceKeywords + "' expected,\n\tbut got 'include'"},
	} {
		_, err := LoadFS(files("/m.conf", tc.main, "/d/o.conf", tc.other), "m.conf")
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s + %s:\n got %v\nwant %s", tc.main, tc.other, err, tc.want)
		}
	}
}

func TestIncludeDepth(t *testing.T) {
	var pairs []string
	for i := range 40 {
		pairs = append(pairs, fmt.Sprintf("/%d", i), fmt.Sprintf("include %d;", i+1))
	}
	_, err := LoadFS(files(pairs...), "0")
	if want := "15:1: include files are nested more than 16 deep."; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestFileSizeIsBounded(t *testing.T) {
	big := strings.Repeat("#", fileBytesMax+1)
	if _, err := LoadFS(files("/b", big), "b"); err == nil {
		t.Error("a huge file is accepted")
	}
	if _, err := LoadFS(files("/m", "include b;", "/b", big), "m"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge include file: %v", err)
	}
}

// TestLoadDisk reads real files: relative names stay relative in messages.
func TestLoadDisk(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{"m.conf": `include "d/*.res";`, "d/a.res": "\n" + empty("a")} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load("m.conf")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Resources[0].Pos.String(); got != "d/a.res:2" {
		t.Errorf("resource at %s", got)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := dumpText(t, c, be1, "a"); !strings.Contains(got, "# defined at "+filepath.Join(real, "d/a.res")+":2\n") {
		t.Errorf("dump does not name the full path:\n%s", got)
	}
	if _, err := Load("nosuch.conf"); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("missing file: %v", err)
	}
}

// unwrapAll returns the innermost error.
func unwrapAll(err error) error {
	for {
		inner, ok := err.(interface{ Unwrap() error })
		if !ok || inner.Unwrap() == nil {
			return err
		}
		err = inner.Unwrap()
	}
}

// FuzzParse: no text makes the parser panic or hang, and what it accepts can
// be resolved and dumped, and the dump means the same.
func FuzzParse(f *testing.F) {
	f.Add(everything)
	f.Add(inResource("net { timeout 5; } syncer { rate 5M; }"))
	f.Add("skip \"x\" { a { \"}\" } } include \"t.conf\"; global { usage-count ask; }")
	f.Add("resource r { on a { address ipv6 [::1%eth0]:5; } floating ssocks 1.2.3.4:5 { } }")
	f.Add("resource \"\\\"\" { election { on a { x; } ; } } } {")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseText(text)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		if _, err := c.Resolve(be1); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		first := dumpText(t, c, be1)
		again, err := parseText(first)
		if err != nil {
			t.Fatalf("dump is refused: %v\n%s\nof\n%s", err, first, text)
		}
		if second := dumpText(t, again, be1); dropLines(second, "# defined at") != dropLines(first, "# defined at") {
			t.Fatalf("dump of the dump\n%s\ndiffers from\n%s", second, first)
		}
		if err := c.DumpXML(&strings.Builder{}); err != nil {
			t.Fatal(err)
		}
	})
}
