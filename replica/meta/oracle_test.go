package meta

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"replicad/internal/reqtool"
	"replicad/replica/disk"
)

// drbdmeta runs the real tool on image files.
type drbdmeta struct {
	t    *testing.T
	path string
}

type output struct {
	out, err string
	exit     int
}

func oracle(t *testing.T) drbdmeta {
	t.Helper()
	return drbdmeta{t, reqtool.Path(t, "drbdmeta")}
}

// run forces: without that the tool refuses regular files.
func (d drbdmeta) run(image string, p Placement, command ...string) output {
	d.t.Helper()
	args := append([]string{"--force", "-", "v08", image, p.String()}, command...)
	cmd := exec.CommandContext(d.t.Context(), d.path, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return output{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// must is run for a command that has to succeed; it returns standard output.
func (d drbdmeta) must(image string, p Placement, command ...string) string {
	d.t.Helper()
	o := d.run(image, p, command...)
	if o.exit != 0 {
		d.t.Fatalf("drbdmeta %v: exit %d\n%s%s", command, o.exit, o.out, o.err)
	}
	return o.out
}

// image makes a sparse file of the given size.
func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// onImage opens a file as a device for the time of one call: drbdmeta and we
// take turns.
func onImage(t testing.TB, path string, use func(dev disk.Device)) {
	t.Helper()
	dev, err := disk.Open(path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	}()
	use(dev)
}

// onStore is onImage for metadata whose data lies on the same device.
func onStore(t testing.TB, path string, p Placement, use func(s *Store)) {
	t.Helper()
	onImage(t, path, func(dev disk.Device) { use(mustOpen(t, dev, p)) })
}

func mustOpen(t testing.TB, dev disk.Device, p Placement) *Store {
	t.Helper()
	s, err := Open(dev, dev, p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var flagsLine = regexp.MustCompile(`flags 0x[0-9A-F]{8};`)

// comparable cuts from a dump what may differ: date, host and command, and the
// flags, which drbdmeta 9.22 always prints as zero.
func comparable(dump string) string {
	lines := strings.SplitAfter(dump, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "# DRBD meta data dump") {
			lines = append(lines[:i+1], lines[i+3:]...)
			break
		}
	}
	return flagsLine.ReplaceAllString(strings.Join(lines, ""), "flags;")
}

func dumpText(t testing.TB, s *Store, force bool) string {
	t.Helper()
	var b strings.Builder
	header := DumpHeader{Time: time.Unix(1795400731, 0).UTC(), Host: "be1", Command: []string{"drbdmeta", "dump-md"}}
	if err := s.Dump(&b, header, force); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func checkSameDump(t *testing.T, d drbdmeta, path string, p Placement) {
	t.Helper()
	want := comparable(d.must(path, p, "dump-md"))
	onStore(t, path, p, func(s *Store) {
		if got := comparable(dumpText(t, s, true)); got != want {
			t.Errorf("dump differs\nours:\n%s\ndrbdmeta:\n%s", clip(got), clip(want))
		}
	})
}

func clip(s string) string { return s[:min(len(s), 3000)] }

// place is a placement and a size to test it on.
type place struct {
	name string
	Placement
	size int64
}

var places = []place{
	{"internal 64 MiB", Placement{Kind: Internal}, 64 << 20},
	{"internal 1 GiB", Placement{Kind: Internal}, 1 << 30},
	{"internal odd", Placement{Kind: Internal}, 123<<20 + 7*512 + 3},
	{"internal smallest", Placement{Kind: Internal}, 68 << 10},
	{"internal 10 GiB", Placement{Kind: Internal}, 10 << 30},
	{"flexible 1 MiB", Placement{Kind: FlexExternal}, 1 << 20},
	{"flexible odd", Placement{Kind: FlexExternal}, 3<<20 + 5*512},
	{"index 0", Placement{Kind: Indexed}, 128 << 20},
	{"index 1", Placement{Kind: Indexed, Index: 1}, 257 << 20},
}

func onPlaces(t *testing.T, test func(t *testing.T, p place)) {
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

// metadataBytes reads the whole metadata area.
func metadataBytes(t testing.TB, dev disk.Device, l Layout) []byte {
	t.Helper()
	first := min(l.Super, l.AL, l.Bitmap)
	p := disk.AlignedBuffer(int(l.Size.Bytes()), blockSize)
	if _, err := dev.ReadAt(p, first.Bytes()); err != nil {
		t.Fatal(err)
	}
	return p
}

func imageMetadata(t testing.TB, path string, p Placement) (area []byte) {
	t.Helper()
	onStore(t, path, p, func(s *Store) { area = metadataBytes(t, s.md, s.layout) })
	return area
}
