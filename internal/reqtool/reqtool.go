// Package reqtool finds the outside programs that tests compare us with.
//
// A missing program skips the test on a developer's machine and fails it where
// REPLICAD_REQUIRE names the program, so that a CI run can never be green
// because its oracle was not installed.
package reqtool

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sbin holds the places outside an ordinary user's PATH where Debian puts
// administration programs such as drbdmeta and mkfs.ext4.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// Path returns the full path of the program name. When it is not installed
// the test is skipped, or failed if the comma-separated list in the
// environment variable REPLICAD_REQUIRE contains name.
func Path(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range sbin {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	Missing(t, name, "it is not installed")
	return ""
}

// Missing ends a test that cannot use the program name, because of why: as a
// failure where REPLICAD_REQUIRE names the program, else as a skip.
func Missing(t testing.TB, name, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("REPLICAD_REQUIRE"), ","), name) {
		t.Fatalf("%s: %s, and REPLICAD_REQUIRE names it", name, why)
	}
	t.Skipf("%s: %s", name, why)
}
