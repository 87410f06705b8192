package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// onFullTmpfs returns a sparse device on a tmpfs without a free page. The first
// 64 KiB have their space.
func onFullTmpfs(t *testing.T) (f *File, ballast string) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "disk.img")
	if err := errors.Join(os.WriteFile(path, make([]byte, 64<<10), 0o600), os.Truncate(path, testSize)); err != nil {
		t.Fatal(err)
	}
	f = open(t, path)
	t.Cleanup(func() { _ = f.Close() })
	ballast = filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the file system does not become full: %v", err)
	}
	return f, ballast
}

// TestNoSpaceIsTheWritesOwn: a write that finds no space, durable or not, takes
// nothing from any other, so the device stays good.
func TestNoSpaceIsTheWritesOwn(t *testing.T) {
	f, ballast := onFullTmpfs(t)
	p := make([]byte, 4096)
	for range 2 {
		if _, err := f.WriteAt(p, 1<<20); !NoSpace(err) {
			t.Fatalf("write: %v, want no space", err)
		}
		if _, err := f.WriteDurable(p, 1<<20); !NoSpace(err) {
			t.Fatalf("durable write: %v, want no space", err)
		}
		if err := f.Reserve(1<<20, 4096); !NoSpace(err) {
			t.Fatalf("reserve: %v, want no space", err)
		}
		if _, err := f.WriteDurable(p, 4096); err != nil {
			t.Fatalf("durable write to allocated space: %v", err)
		}
		if err := f.Sync(); err != nil {
			t.Fatalf("sync: %v", err)
		}
	}
	if c, err := f.Inspect(); err != nil || !c.Full || c.Moved {
		t.Errorf("inspect: %+v, %v", c, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteDurable(p, 1<<20); err != nil {
		t.Errorf("durable write once there is room: %v", err)
	}
	if err := f.Reserve(2<<20, 4096); err != nil {
		t.Errorf("reserve once there is room: %v", err)
	}
}

// TestNoSpaceMayBeOldNews: on a file system that is not known to answer
// exactly, the error may be about an earlier write, and is final.
func TestNoSpaceMayBeOldNews(t *testing.T) {
	f, ballast := onFullTmpfs(t)
	f.keepsRoom = false
	if _, err := f.WriteAt(make([]byte, 4096), 1<<20); NoSpace(err) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("write: %v, want a final error", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("sync after it: %v, want the first error", err)
	}
}

// TestCutFileIsGivenUp: once a flush or a look has seen that the file was cut,
// nothing is read from it or written to it.
func TestCutFileIsGivenUp(t *testing.T) {
	for name, notice := range map[string]func(*File) error{
		"sync":    func(f *File) error { return f.Sync() },
		"durable": func(f *File) error { _, err := f.WriteDurable(make([]byte, 512), 0); return err },
		"inspect": func(f *File) error {
			c, err := f.Inspect()
			return errors.Join(err, c.Shrunk)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := imageFile(t)
			f := open(t, path)
			if err := os.Truncate(path, testSize/2); err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{
				notice(f), f.Sync(),
				second(f.ReadAt(make([]byte, 512), 0)), second(f.WriteAt(make([]byte, 512), testSize-512)),
			} {
				if _, ok := errors.AsType[*ShrunkError](err); !ok {
					t.Errorf("%v, want a ShrunkError", err)
				}
			}
			if got := fileSize(t, path); got != testSize/2 {
				t.Errorf("the file has %d bytes again", got)
			}
		})
	}
}

func second(_ int, err error) error { return err }

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestInspectFollowsTheName: renamed away, replaced, put back.
func TestInspectFollowsTheName(t *testing.T) {
	path := imageFile(t)
	f := open(t, path)
	look := func(step string, want bool) {
		t.Helper()
		if c, err := f.Inspect(); err != nil || c.Moved != want {
			t.Errorf("%s: moved %v, %v", step, c.Moved, err)
		}
	}
	look("at first", false)
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	look("renamed", true)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	look("replaced", true)
	if err := os.Rename(path+".aside", path); err != nil {
		t.Fatal(err)
	}
	look("put back", false)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Inspect(); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
