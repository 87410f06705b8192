package main

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicad/nbd"
)

const testSize = 4 * mebibyte

// export is an NBD export in memory whose answers a test can spoil.
type export struct {
	mu   sync.Mutex
	data []byte
	held []*nbd.Request

	spoil   func(r *nbd.Request) error // called before the reply, after the work
	hold    int                        // replies wait until so many requests are there
	most    int                        // requests held at the same time
	reads   atomic.Int64
	writes  atomic.Int64
	flushes atomic.Int64
}

func newExport() *export {
	e := &export{data: make([]byte, testSize)}
	stamp(e.data, 0, 0)
	return e
}

func (e *export) Name() string                             { return "r0" }
func (e *export) Description() string                      { return "test" }
func (e *export) Size() uint64                             { return uint64(len(e.data)) }
func (e *export) Attributes() nbd.Attributes               { return nbd.Attributes{} }
func (e *export) Open(nbd.ClientInfo) (nbd.Handler, error) { return e, nil }
func (e *export) Close()                                   {}

func (e *export) Serve(r *nbd.Request) {
	e.mu.Lock()
	hold := e.hold > 0
	if hold {
		e.held = append(e.held, r)
		e.most = max(e.most, len(e.held))
	}
	e.mu.Unlock()
	if !hold {
		r.Reply(e.perform(r))
	}
}

// Drain answers what is held, once there is enough of it.
func (e *export) Drain() {
	e.mu.Lock()
	var ready []*nbd.Request
	if e.hold > 0 && len(e.held) >= e.hold {
		ready, e.held = e.held, nil
	}
	e.mu.Unlock()
	for _, r := range ready {
		r.Reply(e.perform(r))
	}
}

// letGo answers what is held, and holds no more.
func (e *export) letGo() {
	e.mu.Lock()
	ready := e.held
	e.held, e.hold = nil, 0
	e.mu.Unlock()
	for _, r := range ready {
		r.Reply(nil)
	}
}

func (e *export) perform(r *nbd.Request) error {
	e.mu.Lock()
	switch r.Op {
	case nbd.OpRead:
		e.reads.Add(1)
		copy(r.Data, e.data[r.Offset:])
	case nbd.OpWrite:
		e.writes.Add(1)
		copy(e.data[r.Offset:], r.Data)
	case nbd.OpFlush:
		e.flushes.Add(1)
	}
	e.mu.Unlock()
	if e.spoil != nil {
		return e.spoil(r)
	}
	return nil
}

// serveExport serves e on a socket of its own and returns the address.
func serveExport(t *testing.T, e nbd.Export) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := nbd.Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := nbd.NewServer(nbd.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Add(e); err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(l) }() // ends with ErrServerClosed
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Close(ctx) // a test that broke the server has said so already
	})
	return "nbd+unix:///" + e.Name() + "?socket=" + path
}

// script is a server that says exactly what it is told to: answer gets the
// connection after the handshake.
func script(t *testing.T, greeting []byte, answer func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := conn.Write(greeting); err == nil {
			answer(conn)
		}
	}()
	return "nbd+unix:///?socket=" + path
}
