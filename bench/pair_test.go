package main

import (
	"io"
	"testing"

	"replicad/config"
)

func TestConfigurationIsAccepted(t *testing.T) {
	for _, label := range []string{labelStandalone, "A", "B", "C"} {
		for _, transport := range []string{"unix", "tcp"} {
			opt, err := parseOptions([]string{"-dir", t.TempDir(), "-transport", transport}, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", t.TempDir())
			l, err := newLab(opt)
			if err != nil {
				t.Fatal(err)
			}
			p, err := l.newPair(label, "replicad")
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Load(p.config)
			if err != nil || len(cfg.Warnings) > 0 {
				t.Errorf("%s over %s: %v, warnings %v", label, transport, err, cfg)
			}
			if err := l.close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestNodeNamesDiffer(t *testing.T) {
	seen := map[string]string{}
	l := &lab{opt: options{transport: "unix"}, run: t.TempDir()}
	for _, label := range []string{labelStandalone, "A", "B", "C"} {
		p, err := l.newPair(label, "replicad")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range p.nodes {
			if seen[n.name] != "" || seen[n.control] != "" {
				t.Errorf("%s shares %s with %s", label, n.name, seen[n.name])
			}
			seen[n.name], seen[n.control] = label, label
		}
	}
}
