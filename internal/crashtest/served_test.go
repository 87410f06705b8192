package crashtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/internal/daemon"
	"replicad/nbd"
)

const (
	clientBlocks = 6 // few, so that clients meet
	blocksFirst  = 1022
	thinkClient  = time.Millisecond
	refusedPause = 20 * time.Millisecond // after a request that failed
)

// served is a pair whose Primary offers its volume over NBD.
type served struct {
	*pair
	t       testing.TB
	dir     string
	wrap    func(nbd.Export) nbd.Export
	mu      sync.Mutex
	now     *service // nil while nobody serves
	started int
}

// service is one node's time as the server of the clients.
type service struct {
	server *nbd.Server
	uri    string
	over   atomic.Bool // the node died: what its clients hear now does not count
}

// serve lets clients in at node n, which is Primary.
func (s *served) serve(n *node) {
	s.t.Helper()
	server, err := nbd.NewServer(nbd.Config{})
	n.must("nbd server", err)
	export := daemon.NewExport(n.Resource, 0, "r0")
	if s.wrap != nil {
		export = s.wrap(export)
	}
	n.must("export", server.Add(export))
	s.started++
	socket := filepath.Join(s.dir, fmt.Sprintf("s%d", s.started))
	l, err := net.Listen("unix", socket)
	n.must("listen", err)
	go func() { _ = server.Serve(l) }() // ends with the server
	v := &service{server: server, uri: "nbd+unix:///r0?socket=" + socket}
	n.machine.OnCut(func() {
		v.over.Store(true)
		s.net.kill(n.id, n.knobs.silent)
		n.log.note("%s is killed", n.name)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = v
}

// service returns where clients are served, nil if nowhere.
func (s *served) service() *service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// sendAway ends the service in order: what was asked is answered.
func (s *served) sendAway() {
	s.mu.Lock()
	v := s.now
	s.now = nil
	s.mu.Unlock()
	if v == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := v.server.Close(ctx); err != nil {
		s.t.Errorf("clients cannot be sent away: %v", err)
	}
}

// client is one connection to the device after another.
type client struct {
	id      int
	s       *served
	history *history
	rng     *rand.Rand
	stop    *atomic.Bool
	answers *atomic.Int64
}

func (c *client) run() {
	for !c.stop.Load() {
		v := c.s.service()
		if v == nil || !c.session(v) {
			time.Sleep(time.Millisecond)
		}
	}
}

// session works on one connection until it ends.
func (c *client) session(v *service) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := nbd.Dial(ctx, v.uri)
	if err != nil {
		return false
	}
	defer conn.Abort()
	for !c.stop.Load() {
		if err := c.request(conn, v); err != nil {
			if _, refused := errors.AsType[nbd.Errno](err); !refused {
				return true
			}
			time.Sleep(refusedPause)
		}
		time.Sleep(time.Duration(c.rng.Int64N(int64(thinkClient))))
	}
	return true
}

// request makes one request of one or two blocks and notes its outcome for each.
func (c *client) request(conn *nbd.Client, v *service) error {
	first, count := blocksFirst+c.rng.IntN(clientBlocks), 1+c.rng.IntN(8)/7
	p := make([]byte, count*blockBytes)
	off := int64(first) * blockBytes
	var id uint32
	var err error
	write := true
	call := c.history.clock.Add(1)
	switch k := c.rng.IntN(20); {
	case k < 9:
		write = false
		_, err = conn.ReadAt(p, off)
	case k < 17:
		id = c.history.lastID.Add(1)
		for i := range count {
			fillBlock(p[i*blockBytes:], id, first+i)
		}
		if k == 9 {
			_, err = conn.WriteFUA(p, off)
		} else {
			_, err = conn.WriteAt(p, off)
		}
	case k == 17:
		err = conn.WriteZeroes(off, int64(len(p)), false)
	case k == 18:
		err = conn.Trim(off, int64(len(p)))
	default:
		return conn.Flush()
	}
	// The order counts: if the node is dead by now, its answer may be a ghost's.
	open := err != nil || v.over.Load()
	for i := range count {
		a := access{write, id}
		if !write {
			a.value = valueOf(p[i*blockBytes:], first+i)
		}
		if write || !open {
			c.history.add(c.id, first+i, a, call, open)
		}
	}
	if !open {
		c.answers.Add(1)
	}
	return err
}
