package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"replicad/nbd"
)

// endpoints are the addresses on which NBD clients are served. Volumes that
// name the same address share its server. All methods may be called from any
// goroutine.
type endpoints struct {
	log        *slog.Logger
	wg         sync.WaitGroup // accepting goroutines
	clientsMax int            // per address; set before the first one opens

	life sync.Mutex // held while addresses are opened and closed; comes before mu

	mu   sync.Mutex
	open map[string]*endpoint // by address, as in nbd-listen
}

// endpoint is one address with its server.
type endpoint struct {
	server   *nbd.Server
	users    int          // exports; guarded by endpoints.life
	listener net.Listener // replaced when its name has gone; guarded by endpoints.life
	said     string       // why that failed, as last logged; of keepSockets
}

func newEndpoints(log *slog.Logger) *endpoints {
	return &endpoints{log: log, open: map[string]*endpoint{}}
}

// add offers e on address, which is listened on from the first export to the
// removal of the last.
func (s *endpoints) add(address string, e nbd.Export) error {
	s.life.Lock()
	defer s.life.Unlock()
	p := s.find(address)
	if p == nil {
		var err error
		if p, err = s.listen(address); err != nil {
			return err
		}
		s.put(address, p)
	}
	if err := p.server.Add(e); err != nil {
		return errors.Join(fmt.Errorf("offer %s on %s: %w", e.Name(), address, err), s.dropUnused(context.Background(), address, p))
	}
	p.users++
	return nil
}

// listen opens an address.
func (s *endpoints) listen(address string) (*endpoint, error) {
	server, err := nbd.NewServer(nbd.Config{Logger: s.log.With("nbd", address), ConnectionsMax: s.clientsMax})
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", address, err)
	}
	l, err := nbd.Listen(address)
	if err != nil {
		return nil, fmt.Errorf("serve NBD clients: %w", err)
	}
	s.warnIfPublic(address, l.Addr())
	p := &endpoint{server: server, listener: l}
	s.serve(p)
	return p, nil
}

// serve accepts clients on the endpoint's listener until that or the server is
// closed, which whoever closes it knows. Called with life held.
func (s *endpoints) serve(p *endpoint) {
	server, l := p.server, p.listener
	s.wg.Go(func() { _ = server.Serve(l) })
}

// keepSockets makes unix sockets again whose name has gone, with the folder or
// without; clients that are connected notice nothing. makeDir makes a
// folder. It says each change once, and ends with ctx.
func (s *endpoints) keepSockets(ctx context.Context, makeDir func(string) error) {
	tick := time.NewTicker(socketEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.life.Lock()
		for address, p := range s.snapshot() {
			s.keepSocket(address, p, makeDir)
		}
		s.life.Unlock()
	}
}

func (s *endpoints) snapshot() map[string]*endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.open)
}

// keepSocket is called with life held.
func (s *endpoints) keepSocket(address string, p *endpoint, makeDir func(string) error) {
	path, isUnix := strings.CutPrefix(address, "unix:")
	if !isUnix {
		return
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return // there, or not to be known
	}
	err := makeDir(filepath.Dir(path))
	var l net.Listener
	if err == nil {
		l, err = nbd.Listen(address)
	}
	if err != nil {
		if err.Error() != p.said {
			p.said = err.Error()
			s.log.Error("the socket for NBD clients is gone and cannot be made again; clients that are connected go on", "address", address, "err", err)
		}
		return
	}
	s.log.Warn("the socket for NBD clients was removed and is made again", "address", address)
	old := p.listener
	p.said, p.listener = "", l
	s.serve(p)
	_ = old.Close()
}

func (s *endpoints) warnIfPublic(address string, bound net.Addr) {
	if tcp, ok := bound.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		s.log.Warn("NBD has no authentication: whoever reaches this address can read and write the data", "address", address)
	}
}

// remove withdraws an export and waits until its clients are gone.
func (s *endpoints) remove(ctx context.Context, address, name string) error {
	s.life.Lock()
	defer s.life.Unlock()
	p := s.find(address)
	if p == nil {
		return nil
	}
	err := p.server.Remove(ctx, name)
	p.users--
	return errors.Join(err, s.dropUnused(ctx, address, p))
}

// dropUnused closes an address that has no export. Called with life held.
func (s *endpoints) dropUnused(ctx context.Context, address string, p *endpoint) error {
	if p.users > 0 {
		return nil
	}
	s.put(address, nil)
	if err := p.server.Close(ctx); err != nil {
		return fmt.Errorf("close %s: %w", address, err)
	}
	return nil
}

// disconnect ends the connections of an export on an address.
func (s *endpoints) disconnect(ctx context.Context, address, name string) error {
	if p := s.find(address); p != nil {
		return p.server.Disconnect(ctx, name)
	}
	return nil
}

// clients lists who holds an export open through an address.
func (s *endpoints) clients(address, name string) []nbd.ClientInfo {
	if p := s.find(address); p != nil {
		return p.server.Clients(name)
	}
	return nil
}

func (s *endpoints) find(address string) *endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[address]
}

func (s *endpoints) put(address string, p *endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p == nil {
		delete(s.open, address)
		return
	}
	s.open[address] = p
}

// close ends every server and waits for the accepting goroutines.
func (s *endpoints) close(ctx context.Context) error {
	s.life.Lock()
	defer s.life.Unlock()
	var errs []error
	s.mu.Lock()
	left := s.open
	s.open = map[string]*endpoint{}
	s.mu.Unlock()
	for _, p := range left {
		errs = append(errs, p.server.Close(ctx))
	}
	s.wg.Wait()
	return errors.Join(errs...)
}
