package replica

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"replicad/replica/core"
)

// Resource is one replicated resource running on this node: the state machine
// of package core together with its disks, its link and its clients.
//
// All methods may be called from any goroutine.
type Resource struct {
	cfg    Config
	log    *slog.Logger
	start  time.Time // origin of core.Time
	vols   []*Volume // same order as cfg.Volumes
	copies copies
	bufs   *buffers
	room   admission
	line   line // the way to the peer
	alarm  alarm
	feed   feed // state changes, for those who watch

	stop    context.CancelFunc // ends everything that waits for stopped
	done    context.Context
	wg      sync.WaitGroup // every goroutine of the resource
	watched chan struct{}  // closed when watchDisks has ended, which a hung file system can prevent

	// mu guards the core and everything the core's actions change at once: the
	// fields below, Volume's guarded fields and line's. It is never held over I/O.
	mu      sync.Mutex
	core    *core.Node
	closed  bool // the core steps no more
	closing bool // no client may open a volume any more
	logs    logQueue
	answers map[uint64]chan commandAnswer
	lastCmd uint64

	handlers chan handlerCall

	open  openDevice
	abort func() // ends the process after a broken invariant
}

// New returns a resource that is Secondary, StandAlone and Diskless, with its
// goroutines running. Close ends them.
func New(cfg Config) (*Resource, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	r := &Resource{
		cfg: cfg, log: cfg.Log.With("resource", cfg.Resource), start: time.Now(),
		open: cfg.OpenDevice, abort: exitOnBrokenInvariant,
	}
	r.done, r.stop = context.WithCancel(context.Background())
	r.watched = make(chan struct{})
	r.answers = make(map[uint64]chan commandAnswer)
	r.handlers = make(chan handlerCall, handlersMax)
	r.bufs = newBuffers(cfg.Limits.Requests, cfg.Limits.PayloadBytes)
	r.bufs.unpark = func(op diskOp) { op.vol.work.push(op) }
	r.room.init(cfg.Limits.Requests, cfg.Limits.RequestBytes)
	r.alarm.init()
	r.feed.init()
	r.logs.init()
	r.line.init(r)
	r.core = core.New(cfg.Core, randomBits)
	for i := range cfg.Volumes {
		r.vols = append(r.vols, newVolume(r, cfg.Volumes[i]))
	}
	r.startGoroutines()
	return r, nil
}

// check refuses what would make the resource misbehave later.
func (c *Config) check() error {
	if c.Resource == "" || len(c.Core.Volumes) == 0 || len(c.Core.Volumes) != len(c.Volumes) {
		return errors.New("resource needs a name and one volume configuration per volume")
	}
	for i := range c.Volumes {
		if c.Volumes[i].Vol != c.Core.Volumes[i].Vol {
			return fmt.Errorf("volume %d is configured as volume %d in the core", c.Volumes[i].Vol, c.Core.Volumes[i].Vol)
		}
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OpenDevice == nil {
		c.OpenDevice = openFile
	}
	l := &c.Limits
	l.Requests = max(orDefault(l.Requests, DefaultRequests), piecesMax)
	l.RequestBytes = max(orDefault(l.RequestBytes, DefaultRequestBytes), requestBytesMax)
	l.PayloadBytes = max(orDefault(l.PayloadBytes, DefaultPayloadBytes), payloadBytesMin)
	l.DiskWorkers = max(orDefault(l.DiskWorkers, DefaultDiskWorkers), 1)
}

func orDefault[T int | int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func (r *Resource) startGoroutines() {
	for _, v := range r.vols {
		for range r.cfg.Limits.DiskWorkers {
			r.wg.Go(v.diskWorker)
		}
		r.wg.Go(v.metaWriter)
	}
	r.wg.Go(r.watchDeadline)
	r.wg.Go(r.line.supervise)
	r.wg.Go(r.notifySent)
	r.wg.Go(r.runHandlers)
	r.wg.Go(r.writeLogs)
	go func() {
		defer close(r.watched)
		r.watchDisks()
	}()
}

// randomBits supplies generation ids and nonces. crypto/rand cannot fail on a
// kernel that runs this program: it aborts the process instead.
func randomBits() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// now reads the monotonic clock. It is never 0, which the core may use for "never".
func (r *Resource) now() core.Time { return core.Time(time.Since(r.start)) + 1 }

// wallTime turns a reading of now into a time of day.
func (r *Resource) wallTime(t core.Time) time.Time { return r.start.Add(time.Duration(t)) }

// volume returns a configured volume, nil if there is none of that number.
func (r *Resource) volume(vol uint16) *Volume {
	for _, v := range r.vols {
		if v.number == vol {
			return v
		}
	}
	return nil
}

// Volume returns volume vol, nil if it is not configured.
func (r *Resource) Volume(vol uint16) *Volume { return r.volume(vol) }

// Name returns the resource's name.
func (r *Resource) Name() string { return r.cfg.Resource }

// exitOnBrokenInvariant ends the process the way a fatal signal would: nothing
// is acknowledged, flushed or tidied up with state that cannot be trusted.
func exitOnBrokenInvariant() { os.Exit(134) }
