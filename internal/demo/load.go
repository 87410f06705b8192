package demo

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"replicad/internal/ledger"
	"replicad/nbd"
)

// plan is where what lies on the device.
type plan struct {
	filesSize int64 // from 0: the image with real files
	fsAt      int64 // the file system that grows
	fsSize    int64
	recordsAt int64 // single blocks, written over and over
	records   int64 // number of blocks
}

const (
	blockSize    = ledger.BlockSize
	fsBytes      = 16 << 20
	recordsMax   = 1024 // blocks
	recordTasks  = 8
	fsStepPause  = 25 * time.Millisecond
	recordsPause = 500 * time.Microsecond
)

// planFor divides a device of that many bytes.
func planFor(size int64) plan {
	const align = 1 << 20
	var p plan
	p.records = recordsMax
	p.recordsAt = (size - p.records*blockSize) / align * align
	p.fsSize = min(fsBytes, size/4/align*align)
	p.fsAt = p.recordsAt - p.fsSize
	p.filesSize = p.fsAt
	return p
}

// load writes like a busy client: a file system that gets file after file and
// is flushed after each, and records that are written all over the place by
// several tasks. Everything goes into the ledger.
type load struct {
	client *nbd.Client
	plan   plan
	ledger *ledger.Ledger
	fs     *growingFS
	next   int // step of the file system to write next
	seed   uint64

	mu      sync.Mutex
	flushed int // steps of the file system whose flush completed
	err     error
	failed  chan struct{} // closed with the first error
	wg      sync.WaitGroup
	cancel  context.CancelFunc
}

// start begins to write.
func (l *load) start(ctx context.Context) {
	ctx, l.cancel = context.WithCancel(ctx)
	l.failed = make(chan struct{})
	if l.fs != nil {
		l.wg.Go(func() { l.note(l.growFiles(ctx)) })
	}
	for task := range recordTasks {
		l.wg.Go(func() { l.note(l.writeRecords(ctx, task)) })
	}
}

func (l *load) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && err != nil {
		l.err = err
		close(l.failed)
	}
}

// stop ends the load and returns what ended it before, if anything did.
func (l *load) stop() error {
	l.cancel()
	l.wg.Wait()
	return l.err
}

// write writes one block and keeps the ledger.
func (l *load) write(off int64, data []byte) error {
	completed := l.ledger.Issue(off, data)
	if _, err := l.client.WriteAt(data, off); err != nil {
		return fmt.Errorf("write at %d: %w", off, err)
	}
	completed()
	return nil
}

// growFiles plays the file system's steps, the blocks of one in any order.
func (l *load) growFiles(ctx context.Context) error {
	for ; l.next < len(l.fs.steps) && ctx.Err() == nil; l.next++ {
		step := l.fs.steps[l.next]
		for off, data := range step.blocks {
			if err := l.write(l.plan.fsAt+off, data); err != nil {
				return err
			}
		}
		covered := l.ledger.Flush()
		if err := l.client.Flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		covered()
		l.mu.Lock()
		l.flushed = l.next + 1
		l.mu.Unlock()
		pause(ctx, fsStepPause)
	}
	return nil
}

// writeRecords writes blocks of its own, at random, until the end.
func (l *load) writeRecords(ctx context.Context, task int) error {
	r := rand.New(rand.NewPCG(l.seed, uint64(task)))
	buf := make([]byte, blockSize)
	for n := uint64(0); ctx.Err() == nil; n++ {
		block := r.Int64N(l.plan.records/recordTasks)*recordTasks + int64(task)
		for i := 0; i < blockSize; i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], r.Uint64())
		}
		if err := l.write(l.plan.recordsAt+block*blockSize, buf); err != nil {
			return err
		}
		pause(ctx, recordsPause)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// filesFlushed is how many files the file system holds for certain.
func (l *load) filesFlushed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushed
}

// writeAll writes an image to the device, as qemu-img convert would.
func writeAll(c *nbd.Client, off int64, data []byte) error {
	const piece = 1 << 20
	for at := 0; at < len(data); at += piece {
		part := data[at:min(at+piece, len(data))]
		if _, err := c.WriteAt(part, off+int64(at)); err != nil {
			return fmt.Errorf("write at %d: %w", off+int64(at), err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}
