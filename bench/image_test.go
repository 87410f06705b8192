package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestImageChecks(t *testing.T) {
	const size, room = 3*mebibyte + stampEvery, mebibyte
	dir := t.TempDir()
	path, twin := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{path, twin} {
		if err := createImage(p, size, room); err != nil {
			t.Fatal(err)
		}
	}
	if err := createImage(path, size, room); !errors.Is(err, os.ErrExist) {
		t.Errorf("an image was overwritten: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != size+room {
		t.Fatalf("image of %v, %v", info, err)
	}
	if err := checkImage(path, size); err != nil {
		t.Errorf("a fresh image: %v", err)
	}
	if err := compareImages(path, twin, size); err != nil {
		t.Errorf("two fresh images: %v", err)
	}
	if err := checkImage(path, size+room); !errors.Is(err, errMisplaced) {
		t.Errorf("the hole behind the data passed as data: %v", err)
	}
	overwrite(t, twin, size-1, []byte{0})
	if err := compareImages(path, twin, size); !errors.Is(err, errDiffer) {
		t.Errorf("the last byte differs: %v", err)
	}
	overwrite(t, path, 2*mebibyte+7, []byte{^byte(0)})
	if err := checkImage(path, size); !errors.Is(err, errMisplaced) {
		t.Errorf("a damaged stamp: %v", err)
	}
	if err := checkImage(twin, size+2*room); err == nil {
		t.Error("a short image passed")
	}
}

func overwrite(t *testing.T, path string, at int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
}

func TestAwaitCopy(t *testing.T) {
	dir := t.TempDir()
	path, twin := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{path, twin} {
		if err := createImage(p, testSize, 0); err != nil {
			t.Fatal(err)
		}
	}
	overwrite(t, path, testSize-1, []byte("x"))
	if err := awaitCopy(t.Context(), path, twin, testSize, 60*time.Millisecond); !errors.Is(err, errDiffer) {
		t.Errorf("a copy that stays behind: %v", err)
	}
	late := time.AfterFunc(100*time.Millisecond, func() { overwrite(t, twin, testSize-1, []byte("x")) })
	defer late.Stop()
	if err := awaitCopy(t.Context(), path, twin, testSize, 10*time.Second); err != nil {
		t.Errorf("a copy that comes late: %v", err)
	}
	if err := awaitCopy(t.Context(), path, twin+"?", testSize, time.Hour); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a copy that is not there: %v", err)
	}
}

func TestStampCoversEveryBlock(t *testing.T) {
	p := make([]byte, 4*stampEvery)
	stamp(p, 8*stampEvery, 5)
	if err := checkStamp(p, 8*stampEvery); err != nil {
		t.Error(err)
	}
	if err := checkStamp(p, 9*stampEvery); !errors.Is(err, errMisplaced) {
		t.Errorf("data of another place passed: %v", err)
	}
	for block := range 4 {
		q := append([]byte(nil), p...)
		q[block*stampEvery] ^= 1
		if err := checkStamp(q, 8*stampEvery); !errors.Is(err, errMisplaced) {
			t.Errorf("block %d was not looked at", block)
		}
	}
}
