package demo

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Real files for the first half of the device: the program itself and what
// this machine has for documentation, as far as there is room.

const (
	fileBytesMax = 4 << 20
	filesMax     = 300
)

// gatherFiles fills a folder with real files of about so many bytes.
func gatherFiles(dir string, exe string, room int64) (count int, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	left := room
	take := func(from string) {
		info, statErr := os.Stat(from)
		if statErr != nil || !info.Mode().IsRegular() || info.Size() > left || count >= filesMax || err != nil {
			return
		}
		left -= info.Size() + blockSize
		count++
		err = copyFile(filepath.Join(dir, fmt.Sprintf("%03d-%s", count, filepath.Base(from))), from)
	}
	take(exe)
	walkErr := filepath.WalkDir("/usr/share/doc", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fs.SkipDir
		case count >= filesMax || left < blockSize:
			return fs.SkipAll
		case d.Type().IsRegular():
			if info, err := d.Info(); err == nil && info.Size() <= fileBytesMax {
				take(path)
			}
		}
		return nil
	})
	if count < 10 { // a bare machine
		count, err = writeNotes(dir, count)
	}
	return count, errors.Join(err, walkErr)
}

func writeNotes(dir string, count int) (int, error) {
	for range 20 {
		count++
		text := strings.Repeat(fmt.Sprintf("This is file %d of a machine without documentation.\n", count), 200*count)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d-note.txt", count)), []byte(text), 0o644); err != nil {
			return count, err
		}
	}
	return count, nil
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// packImage puts a folder of files into an image: an ext4 file system, or a
// tar archive where e2fsprogs is not installed.
func packImage(ctx context.Context, image, dir string, size int64) error {
	if mkfs := tool("mkfs.ext4"); mkfs != "" {
		return makeExt4(ctx, mkfs, image, dir, size)
	}
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return fmt.Errorf("pack the files: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack the files: %w", err)
	}
	if int64(packed.Len()) > size {
		return fmt.Errorf("the files need %d bytes of %d", packed.Len(), size)
	}
	return os.WriteFile(image, append(packed.Bytes(), make([]byte, size-int64(packed.Len()))...), 0o644)
}

func makeExt4(ctx context.Context, mkfs, image, dir string, size int64) error {
	args := []string{"-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard"}
	if dir != "" {
		args = append(args, "-d", dir)
	}
	return runTool(ctx, mkfs, append(args, image, fmt.Sprintf("%dk", size>>10))...)
}

// runTool runs a program that prints only when something is wrong.
func runTool(ctx context.Context, name string, args ...string) error {
	text, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(string(text)))
	}
	return nil
}

// fsState is what a file system image becomes by one more file: the blocks
// that differ from before.
type fsState struct {
	file   string   // the new file's name
	sum    [32]byte // of its content
	blocks map[int64][]byte
}

// growingFS is an ext4 file system on its way from one file to the next. The
// load plays the steps onto the device as a file system would write them.
type growingFS struct {
	base  []byte
	steps []fsState
}

// growFS makes a file system and records how it changes with each new file.
// Without e2fsprogs there is none.
func growFS(ctx context.Context, dir string, size int64, steps int) (*growingFS, error) {
	mkfs, debugfs := tool("mkfs.ext4"), tool("debugfs")
	if mkfs == "" || debugfs == "" {
		return nil, nil //nolint:nilnil // the load goes without
	}
	image := filepath.Join(dir, "growing.ext4")
	if err := makeExt4(ctx, mkfs, image, "", size); err != nil {
		return nil, err
	}
	now, err := os.ReadFile(image)
	if err != nil {
		return nil, err
	}
	g := &growingFS{base: now}
	for i := range steps {
		step := fsState{file: fmt.Sprintf("file-%02d", i)}
		content := randomBytes(uint64(i), 30<<10+i*512)
		step.sum = sha256.Sum256(content)
		source := filepath.Join(dir, step.file)
		if err := os.WriteFile(source, content, 0o644); err != nil {
			return nil, err
		}
		if err := runTool(ctx, debugfs, "-w", "-R", "write "+source+" "+step.file, image); err != nil {
			return nil, err
		}
		next, err := os.ReadFile(image)
		if err != nil {
			return nil, err
		}
		step.blocks = differences(now, next)
		g.steps, now = append(g.steps, step), next
	}
	return g, nil
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0x7265706c69636164))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

// differences returns the blocks of b that are not those of a.
func differences(a, b []byte) map[int64][]byte {
	changed := map[int64][]byte{}
	for off := 0; off+blockSize <= len(b); off += blockSize {
		if !bytes.Equal(a[off:off+blockSize], b[off:off+blockSize]) {
			changed[int64(off)] = slices.Clone(b[off : off+blockSize])
		}
	}
	return changed
}

// repairFS runs e2fsck on a copy of the file system as found after a crash,
// and makes sure that a second run finds nothing.
func repairFS(ctx context.Context, image string) error {
	e2fsck := tool("e2fsck")
	err := runTool(ctx, e2fsck, "-fy", image)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		err = nil // mended what a crash leaves
	}
	if err != nil {
		return err
	}
	return runTool(ctx, e2fsck, "-fn", image)
}

// intactFiles counts how many of the files, from the first on, are in the
// image with their content, and how many there are in all.
func (g *growingFS) intactFiles(ctx context.Context, dir, image string) (fromFirst, all int, err error) {
	unbroken := true
	for _, step := range g.steps {
		out := filepath.Join(dir, "read-back")
		if err := os.Remove(out); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, err
		}
		// debugfs exits with 0 when the file is not there.
		if err := runTool(ctx, tool("debugfs"), "-R", "dump "+step.file+" "+out, image); err != nil {
			return 0, 0, err
		}
		data, err := os.ReadFile(out)
		ok := err == nil && sha256.Sum256(data) == step.sum
		if ok {
			all++
		}
		unbroken = unbroken && ok
		if unbroken {
			fromFirst++
		}
	}
	return fromFirst, all, nil
}

// copyOut copies a range of the device to a file.
func copyOut(path string, device io.ReaderAt, off, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.NewSectionReader(device, off, size))
	return errors.Join(err, f.Close())
}
