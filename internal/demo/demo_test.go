package demo

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replicad/internal/reqtool"
)

// The plan's parts do not overlap and fill the device, whatever its size.
func TestPlan(t *testing.T) {
	for size := int64(SizeMin) - 64<<10; size <= 256<<20; size += 777 * 512 {
		p := planFor(size)
		if p.filesSize <= 0 || p.fsSize < 4<<20 || p.filesSize > p.fsAt || p.fsAt+p.fsSize > p.recordsAt ||
			p.recordsAt+p.records*blockSize > size || p.fsAt%blockSize != 0 || p.recordsAt%blockSize != 0 {
			t.Fatalf("device of %d bytes: %+v", size, p)
		}
	}
}

func TestSizeIsBounded(t *testing.T) {
	for _, size := range []int64{0, SizeMin - 1, SizeMax + 1} {
		if err := Run(t.Context(), Options{Size: size}); err == nil || !strings.Contains(err.Error(), "size must be") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestWorkFolderIsNotWrittenOver(t *testing.T) {
	dir := t.TempDir()
	if got, err := workFolder(filepath.Join(dir, "new", "one")); err != nil || !filepath.IsAbs(got) {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := workFolder(dir); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a folder in use: %v", err)
	}
}

// The file system grows by one file per step, and the steps together lead from
// the first image to a clean one with all files.
func TestGrowFS(t *testing.T) {
	for _, name := range []string{"mkfs.ext4", "debugfs", "e2fsck"} {
		reqtool.Path(t, name)
	}
	dir := t.TempDir()
	const steps = 5
	g, err := growFS(t.Context(), dir, 8<<20, steps)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.steps) != steps {
		t.Fatalf("%d steps", len(g.steps))
	}
	image := bytes.Clone(g.base)
	for done := range steps + 1 {
		path := filepath.Join(dir, "now.ext4")
		if err := os.WriteFile(path, image, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := repairFS(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if first, all, err := g.intactFiles(t.Context(), dir, path); err != nil || first != done || all != done {
			t.Fatalf("after %d steps: %d, %d, %v", done, first, all, err)
		}
		if done < steps {
			for off, data := range g.steps[done].blocks {
				copy(image[off:], data)
			}
		}
	}
	// A file whose data did not arrive is noticed.
	for off, data := range g.steps[2].blocks {
		if bytes.Contains(data, randomBytes(2, 64)) {
			copy(image[off:], make([]byte, blockSize))
		}
	}
	path := filepath.Join(dir, "now.ext4")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
	if first, all, err := g.intactFiles(t.Context(), dir, path); err != nil || first != 2 || all != steps-1 {
		t.Errorf("with a damaged file: %d, %d, %v", first, all, err)
	}
}

func TestPackImageWithoutE2fsprogs(t *testing.T) {
	t.Setenv("PATH", "")
	sbin := toolFolders
	toolFolders = nil
	t.Cleanup(func() { toolFolders = sbin })
	dir := t.TempDir()
	count, err := gatherFiles(filepath.Join(dir, "files"), "/proc/self/exe-that-is-not-there", 1<<20)
	if err != nil || count < 10 {
		t.Fatalf("%d files, %v", count, err)
	}
	image := filepath.Join(dir, "image")
	if err := packImage(context.Background(), image, filepath.Join(dir, "files"), 4<<20); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(image); err != nil || info.Size() != 4<<20 {
		t.Errorf("%v, %v", info, err)
	}
	if err := packImage(context.Background(), image, filepath.Join(dir, "files"), 64<<10); err == nil {
		t.Error("files that do not fit were packed")
	}
	if g, err := growFS(context.Background(), dir, 4<<20, 1); g != nil || err != nil {
		t.Errorf("%v, %v", g, err)
	}
}

func TestSameContent(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	data := randomBytes(1, 3<<20)
	if err := os.WriteFile(a, data, 0o644); err != nil {
		t.Fatal(err)
	}
	data[len(data)-1]++
	if err := os.WriteFile(b, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if same, err := sameContent(a, b, int64(len(data))); err != nil || same {
		t.Errorf("a difference in the last byte: %v, %v", same, err)
	}
	if same, err := sameContent(a, b, int64(len(data))-1); err != nil || !same {
		t.Errorf("up to the difference: %v, %v", same, err)
	}
	if _, err := sameContent(a, a, int64(len(data))+1); err == nil {
		t.Error("files that are too short are taken")
	}
}
