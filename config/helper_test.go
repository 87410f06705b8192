package config

import (
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
)

// be1 is the node most tests ask for.
var be1 = Self{Node: "be1", RunDir: "/run/replicad"}

// files is an in-memory file system, by absolute path.
func files(pairs ...string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		fsys[strings.TrimPrefix(pairs[i], "/")] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return fsys
}

// hosts are two complete host sections.
const hosts = `
 on be1 { address 10.9.0.1:7789; device /dev/drbd0; disk /dev/vda; meta-disk internal; }
 on be2 { address 10.9.0.2:7789; device /dev/drbd0; disk /dev/vda; meta-disk internal; }
`

// inResource puts body on line 1 of a complete resource.
func inResource(body string) string { return "resource r0 { " + body + hosts + "}\n" }

func parseText(text string) (*Config, error) {
	return LoadFS(files("/t.conf", text), "t.conf")
}

func mustParse(t testing.TB, text string) *Config {
	t.Helper()
	c, err := parseText(text)
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, text)
	}
	return c
}

func mustResolve(t testing.TB, text string, self Self) []*LocalResource {
	t.Helper()
	list, err := mustParse(t, text).Resolve(self)
	if err != nil {
		t.Fatalf("resolve: %v", err)
	}
	return list
}

// one resolves a text with a single resource on be1.
func one(t testing.TB, text string) *LocalResource {
	t.Helper()
	list := mustResolve(t, text, be1)
	if len(list) != 1 {
		t.Fatalf("%d resources, want 1", len(list))
	}
	return list[0]
}

func warnings(c *Config) string {
	var lines []string
	for _, w := range c.Warnings {
		lines = append(lines, w.String())
	}
	return strings.Join(lines, "\n")
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }
