package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"replicad/nbd"
)

// endpoints are the addresses on which NBD clients are served. Volumes that
// name the same address share its server. All methods may be called from any
// goroutine.
type endpoints struct {
	log *slog.Logger
	wg  sync.WaitGroup // accepting goroutines

	life sync.Mutex // held while addresses are opened and closed; comes before mu

	mu   sync.Mutex
	open map[string]*endpoint // by address, as in nbd-listen
}

// endpoint is one address with its server.
type endpoint struct {
	server *nbd.Server
	users  int // exports; guarded by endpoints.life
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
	server, err := nbd.NewServer(nbd.Config{Logger: s.log.With("nbd", address)})
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", address, err)
	}
	l, err := nbd.Listen(address)
	if err != nil {
		return nil, fmt.Errorf("serve NBD clients: %w", err)
	}
	s.warnIfPublic(address, l.Addr())
	s.wg.Go(func() {
		if err := server.Serve(l); !errors.Is(err, nbd.ErrServerClosed) {
			s.log.Error("NBD clients are no longer accepted", "address", address, "err", err)
		}
	})
	return &endpoint{server: server}, nil
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
