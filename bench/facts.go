package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fact is something about the machine or the run that a reader of the figures
// must know. No fact names a place in this machine's file system.
type fact struct{ name, value string }

func (s *session) collectFacts() []fact {
	return []fact{
		{"date", s.began.UTC().Format(time.RFC3339)},
		{"processor", fmt.Sprintf("%s, %d cores", processor(), runtime.NumCPU())},
		{"kernel", kernel()},
		{"Go", runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH},
		{"images", fmt.Sprintf("%d MiB each on %s", s.opt.size/mebibyte, fileSystem(s.lab.images))},
		{"transport", s.opt.transport + "; replication over TCP on loopback"},
		{"cells", fmt.Sprintf("%v after a warm-up of %v, up to %d rounds", s.opt.cell, s.opt.cell/warmUpShare, s.opt.rounds)},
		{"load average at the start", loadText()},
	}
}

// versions tells what was measured.
func (s *session) versions() (facts []fact) {
	for _, srv := range s.ready {
		facts = append(facts, fact{srv.label, srv.version})
	}
	return facts
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

func fileSystem(folder string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return "unknown"
	}
	switch fs.Type {
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return fmt.Sprintf("a file system of type %#x", fs.Type)
}

func loadText() string {
	text, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 3 {
		return "unknown"
	}
	return strings.Join(fields[:3], " ")
}

// loadAverage is the average over one minute; 0 when unknown.
func loadAverage() float64 {
	first, _, _ := strings.Cut(loadText(), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

// versionOf says in one line what a server is.
func versionOf(label, program string) string {
	switch label {
	case labelGoNBD:
		return "go-nbd " + moduleVersion("github.com/pojntfx/go-nbd") + ", file backend; no FLUSH"
	case labelNBDFile:
		return "this project's NBD server over a plain file, without replication"
	case labelNBDKit:
		return firstLine(label, program, "--version") + ", file plugin"
	case labelQEMU:
		return firstLine(label, program, "--version") + ", raw, writeback, threads"
	case labelStandalone:
		return firstLine("replicad", program, "version") + ", one node, StandAlone"
	}
	return "a pair of the same, protocol " + label
}

func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "of unknown version"
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return "of unknown version"
}

// firstLine is what the program prints first. It is called by its bare name,
// which some programs repeat.
func firstLine(name, program string, args ...string) string {
	out, err := (&exec.Cmd{Path: program, Args: append([]string{name}, args...)}).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return "of unknown version"
	}
	return line
}
