package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// drbdmeta dumps an image's metadata with the real tool; "" if it is not
// installed, which is an error where REPLICAD_REQUIRE names it.
func drbdmeta(image string) (string, error) {
	path, err := exec.LookPath("drbdmeta")
	if err != nil { // an ordinary user's PATH lacks the folder
		path, err = exec.LookPath("/usr/sbin/drbdmeta")
	}
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("REPLICAD_REQUIRE"), ","), "drbdmeta") {
			return "", fmt.Errorf("REPLICAD_REQUIRE names drbdmeta: %w", err)
		}
		return "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--force", "0", "v08", image, "internal", "dump-md").Output()
	if err != nil {
		return "", fmt.Errorf("drbdmeta dump-md: %w", err)
	}
	return string(out), nil
}

// dumpBody is a dump without the comment lines that name the time and the
// caller, and without the flags, which drbdmeta 9.22 always prints as 0.
func dumpBody(dump string) string {
	var kept []string
	for line := range strings.Lines(dump) {
		if trimmed := strings.TrimSpace(line); !strings.HasPrefix(trimmed, "#") && !strings.HasPrefix(trimmed, "flags") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}
