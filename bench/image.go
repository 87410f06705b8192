package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

const (
	stampEvery = 4 << 10 // every block of this size says where it belongs
	chunkBytes = 1 << 20 // images are written and compared in such pieces
)

var (
	errMisplaced = errors.New("a block is not the one of this place")
	errDiffer    = errors.New("the two copies differ")
)

// stamp makes p the content of offset: the first eight bytes of each block are
// its place, the next eight a serial number, so that no two writes are alike.
func stamp(p []byte, offset int64, serial uint64) {
	for at := 0; at < len(p); at += stampEvery {
		binary.BigEndian.PutUint64(p[at:], uint64(offset)+uint64(at))
		binary.BigEndian.PutUint64(p[at+8:], serial)
	}
}

// checkStamp reports whether p can be the content of offset.
func checkStamp(p []byte, offset int64) error {
	for at := 0; at < len(p); at += stampEvery {
		want := uint64(offset) + uint64(at)
		if got := binary.BigEndian.Uint64(p[at:]); got != want {
			return fmt.Errorf("%w: at %d there is %#x", errMisplaced, want, got)
		}
	}
	return nil
}

// noise fills p with bytes that no compression shortens.
func noise(p []byte, seed uint64) {
	rng := rand.NewPCG(seed, 1)
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, rng.Uint64())
	}
}

// createImage writes a file of size stamped bytes and room for metadata behind
// them, which stays a hole.
func createImage(path string, size, room int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	chunk := make([]byte, chunkBytes)
	noise(chunk, 0)
	for at := int64(0); at < size; at += chunkBytes {
		part := chunk[:min(chunkBytes, size-at)]
		stamp(part, at, 0)
		if _, err := f.Write(part); err != nil {
			return fmt.Errorf("fill image: %w", err)
		}
	}
	if err := f.Truncate(size + room); err != nil {
		return fmt.Errorf("fill image: %w", err)
	}
	return nil
}

// checkImage verifies that the first size bytes of the file are blocks of their
// places.
func checkImage(path string, size int64) error {
	return eachChunk(path, size, func(p []byte, at int64) error { return checkStamp(p, at) })
}

// compareImages verifies that the first size bytes of two files are equal.
func compareImages(path, twin string, size int64) error {
	other, err := os.Open(twin)
	if err != nil {
		return fmt.Errorf("compare images: %w", err)
	}
	defer other.Close()
	q := make([]byte, chunkBytes)
	return eachChunk(path, size, func(p []byte, at int64) error {
		if _, err := other.ReadAt(q[:len(p)], at); err != nil {
			return fmt.Errorf("compare images: %w", err)
		}
		if !bytes.Equal(p, q[:len(p)]) {
			return fmt.Errorf("%w within %d bytes from %d on", errDiffer, len(p), at)
		}
		return nil
	})
}

func eachChunk(path string, size int64, visit func(p []byte, at int64) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	defer f.Close()
	chunk := make([]byte, chunkBytes)
	for at := int64(0); at < size; at += chunkBytes {
		part := chunk[:min(chunkBytes, size-at)]
		if _, err := io.ReadFull(f, part); err != nil {
			return fmt.Errorf("read image: %w", err)
		}
		if err := visit(part, at); err != nil {
			return err
		}
	}
	return nil
}
