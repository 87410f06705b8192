package pki

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"replicad/config"
)

// resource is r0 on be1 of a configuration whose key files are in a folder.
func resource(t *testing.T, dir, net string) *config.LocalResource {
	t.Helper()
	text := "resource r0 { device /dev/nbd0; meta-disk internal;\nnet { tls yes;\n" + strings.ReplaceAll(net, "DIR", dir) + "}\n" +
		"on be1 b1.example.com { disk /x; address 10.0.0.1:7788; }\non be2 { disk /y; address 10.0.0.2:7788; } }\n"
	path := filepath.Join(t.TempDir(), "r.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	locals, err := cfg.Resolve(config.Self{Node: "be1", RunDir: "/run"})
	if err != nil {
		t.Fatal(err)
	}
	return locals[0]
}

const statements = "tls-cert \"DIR/be1.crt\";\ntls-key \"DIR/be1.key\";\ntls-ca \"DIR/ca.crt\";\n"

var both = []Subject{{"be1", "b1.example.com"}, {"be2"}}

// made is a folder with everything, as of a time.
func made(t *testing.T, days int, now time.Time) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "made")
	if err := Init(dir, both, days, now); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestInit(t *testing.T) {
	dir := made(t, 10, time.Now())
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 6 {
		t.Fatalf("%d files, %v", len(entries), err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if err := Init(dir, both, 10, time.Now()); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}
	node, err := Load(resource(t, dir, statements))
	if err != nil || node == nil || node.Identity.PeerNames[0] != "be2" {
		t.Fatalf("load: %v", err)
	}
	if notes := node.Notes(time.Now()); len(notes) != 1 || notes[0].Bad || !strings.Contains(notes[0].Msg, "expires in 9 days") {
		t.Errorf("notes: %v", notes)
	}
	if err := Renew(dir, both[:1], 400, time.Now()); err != nil {
		t.Fatal(err)
	}
	if node, err = Load(resource(t, dir, statements)); err != nil || len(node.Notes(time.Now())) != 0 {
		t.Errorf("renewed: %v, %v", node.Notes(time.Now()), err)
	}
	for name, nodes := range map[string][]Subject{
		"path": {{"a/b"}, {"c"}}, "hidden": {{".a"}, {"c"}}, "twice": {{"a"}, {"A"}}, "the CA's": {{"ca"}, {"b"}}, "empty": {{""}, {"b"}}, "blank": {{"a b"}, {"c"}},
	} {
		if err := Init(t.TempDir(), nodes, 10, time.Now()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := Init(t.TempDir(), both, DaysMax+1, time.Now()); err == nil {
		t.Error("too many days: accepted")
	}
}

// TestNotes: a certificate out of its time does not stop a daemon, but is said
// to be bad; of several CAs one that is good is enough.
func TestNotes(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		made time.Time
		bad  bool
		text string
	}{
		"fresh":   {now, false, ""},
		"soon":    {now.AddDate(0, 0, -80), false, "expires in 19 days"},
		"expired": {now.AddDate(0, 0, -101), true, "expired on"},
		"future":  {now.AddDate(0, 0, 2), true, "is not valid before"},
	} {
		dir := made(t, 100, c.made)
		node, err := Load(resource(t, dir, statements))
		if err != nil {
			t.Fatal(name, err)
		}
		notes := node.Notes(now)
		if (len(notes) > 0) != (c.text != "") || len(notes) > 0 && (notes[0].Bad != c.bad || !strings.Contains(notes[0].String(), "r.conf:3: certificate be1") || !strings.Contains(notes[0].Msg, c.text)) {
			t.Errorf("%s: %v", name, notes)
		}
	}
	old, fresh := made(t, 100, now.AddDate(-11, 0, 0)), made(t, 100, now)
	for _, e := range []struct {
		files []string
		bad   bool
	}{{[]string{old, fresh}, false}, {[]string{old}, true}} {
		var text []byte
		for _, dir := range e.files {
			b, err := os.ReadFile(filepath.Join(dir, CAFile))
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, b...)
		}
		ca := filepath.Join(t.TempDir(), "both.crt")
		if err := os.WriteFile(ca, text, 0o600); err != nil {
			t.Fatal(err)
		}
		node, err := Load(resource(t, fresh, strings.ReplaceAll(statements, "DIR/ca.crt", ca)))
		if err != nil {
			t.Fatal(err)
		}
		if notes := node.Notes(now); len(notes) != 1 || notes[0].Bad != e.bad {
			t.Errorf("%d CAs: %v", len(e.files), notes)
		}
	}
}

// TestLoadFaults: each has the place of its statement, and no panic or hang.
func TestLoadFaults(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(dir string) error
		net  string
		want string
	}{
		"no tls-key":   {nil, "tls-cert \"DIR/be1.crt\";\ntls-ca \"DIR/ca.crt\";\n", "r.conf:2: in resource r0: tls is set, but 'tls-key' is missing"},
		"missing":      {func(d string) error { return os.Remove(d + "/be1.key") }, statements, "r.conf:4: in resource r0: tls-key"},
		"empty":        {func(d string) error { return os.Truncate(d+"/ca.crt", 0) }, statements, "r.conf:5: in resource r0: tls-ca"},
		"half a PEM":   {func(d string) error { return os.Truncate(d+"/be1.crt", 100) }, statements, "holds no certificate in PEM"},
		"not a key":    {func(d string) error { return os.Truncate(d+"/be1.key", 20) }, statements, "r.conf:4: in resource r0"},
		"huge":         {func(d string) error { return os.Truncate(d+"/be1.crt", fileMax+1) }, statements, "larger than"},
		"a folder":     {func(d string) error { return errors.Join(os.Remove(d+"/ca.crt"), os.Mkdir(d+"/ca.crt", 0o700)) }, statements, "not a regular file"},
		"a pipe":       {func(d string) error { return errors.Join(os.Remove(d+"/be1.key"), syscall.Mkfifo(d+"/be1.key", 0o600)) }, statements, "not a regular file"},
		"world's key":  {func(d string) error { return os.Chmod(d+"/be1.key", 0o604) }, statements, "mode 0604"},
		"group writes": {func(d string) error { return os.Chmod(d+"/be1.key", 0o620) }, statements, "mode 0620"},
		"peer's cert": {func(d string) error {
			return errors.Join(os.Rename(d+"/be2.crt", d+"/be1.crt"), os.Rename(d+"/be2.key", d+"/be1.key"))
		}, statements, "is the certificate of the peer"},
	} {
		dir := made(t, 10, time.Now())
		if c.harm != nil {
			if err := c.harm(dir); err != nil {
				t.Fatal(name, err)
			}
		}
		_, err := Load(resource(t, dir, c.net))
		if _, ok := errors.AsType[config.Errors](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
