package config

import (
	"errors"
	"strings"
	"testing"
)

// TestCheckBuilt: what this version does not have, and must not ignore, is
// refused with the place and the reason.
func TestCheckBuilt(t *testing.T) {
	for _, c := range []struct{ statement, what string }{
		{"", ""},
		{"tls yes;", ""},
		{"allow-two-primaries yes;", "allow-two-primaries"},
	} {
		text := "resource r0 { net { " + c.statement + " } device /dev/nbd0; meta-disk internal;\n" +
			"on a { disk /x; address 127.0.0.1:7788; }\non b { disk /y; address 127.0.0.1:7789; } }\n"
		cfg, err := LoadFS(files("/r.conf", text), "/r.conf")
		if err != nil {
			t.Fatal(err)
		}
		list, err := cfg.Resolve(Self{Node: "a", RunDir: "/run"})
		if err != nil {
			t.Fatal(err)
		}
		err = list[0].CheckBuilt()
		var unbuilt *UnbuiltError
		if got := errors.As(err, &unbuilt); got != (c.what != "") {
			t.Errorf("%q: %v", c.statement, err)
		}
		if c.what != "" && !strings.HasPrefix(err.Error(), "/r.conf:1: in resource r0: not built yet: "+c.what) {
			t.Errorf("%q: %v", c.statement, err)
		}
	}
}
