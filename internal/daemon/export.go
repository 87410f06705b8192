package daemon

import (
	"errors"
	"fmt"
	"sync"

	"replicad/nbd"
	"replicad/replica"
	"replicad/replica/core"
)

// export offers one volume to NBD clients while its resource is up.
type export struct {
	unit      *unit
	res       *replica.Resource
	vol       *replica.Volume
	name      string
	addresses []string // where it is offered; fixed once published
}

// NewExport returns the export that the daemon offers for a volume of res, under
// the given name, for those who run a resource without a daemon.
func NewExport(res *replica.Resource, vol uint16, name string) nbd.Export {
	return &export{res: res, vol: res.Volume(vol), name: name}
}

// exportName is how clients ask for a volume.
func exportName(resource string, volume int, only bool) string {
	if only && volume == 0 {
		return resource
	}
	return fmt.Sprintf("%s/%d", resource, volume)
}

// Name implements nbd.Export.
func (e *export) Name() string { return e.name }

// Description implements nbd.Export.
func (e *export) Description() string {
	s := e.res.Status()
	return fmt.Sprintf("%s, volume %d, %s on this node", s.Resource, e.vol.Number(), s.Role)
}

// Size implements nbd.Export.
func (e *export) Size() uint64 { return e.vol.Size() }

// Attributes implements nbd.Export. A flush is a barrier for the resource, so
// it covers the writes of every connection.
func (e *export) Attributes() nbd.Attributes { return nbd.Attributes{MultiConn: true} }

// Open implements nbd.Export. The client reads the error.
func (e *export) Open(nbd.ClientInfo) (nbd.Handler, error) {
	h, err := e.vol.Open()
	if _, notPrimary := errors.AsType[*replica.NotPrimaryError](err); notPrimary {
		return nil, errors.New(whyNotServed(e.res.Status()))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.name, err)
	}
	return &handler{handle: h}, nil
}

// whyNotServed tells the client of a node that is not Primary where to go.
func whyNotServed(s replica.Snapshot) string {
	peer, peerRole := s.Peer, core.RoleUnknown
	for i := range s.Volumes {
		peerRole = s.Volumes[i].State.Peer
	}
	switch peerRole {
	case core.Primary:
		return fmt.Sprintf(`%s: this node is %s, the peer %s is Primary: use the device there, or run "replicad secondary %s" there and then "replicad primary %s" here first`,
			s.Resource, s.Role, peer, s.Resource, s.Resource)
	case core.Secondary:
		return fmt.Sprintf(`%s: this node is %s, and so is the peer %s: run "replicad primary %s" here first`,
			s.Resource, s.Role, peer, s.Resource)
	}
	return fmt.Sprintf(`%s: this node is %s, the peer %s is not connected: run "replicad primary %s" here first`,
		s.Resource, s.Role, peer, s.Resource)
}

// handler passes the requests of one connection on to the volume. Nothing on
// the way of a request allocates once as many were in flight as are now.
type handler struct {
	handle *replica.Handle
	mu     sync.Mutex
	free   *pending
}

// pending is a request on its way through the resource.
type pending struct {
	owner *handler
	req   *nbd.Request
	next  *pending
}

// operation translates between two packages that do not know each other.
func operation(op nbd.Op) replica.Op {
	switch op {
	case nbd.OpRead:
		return replica.OpRead
	case nbd.OpWrite:
		return replica.OpWrite
	case nbd.OpFlush:
		return replica.OpFlush
	case nbd.OpTrim:
		return replica.OpTrim
	case nbd.OpWriteZeroes:
		return replica.OpZero
	}
	return 0 // the resource answers that it is invalid
}

// Serve implements nbd.Handler.
func (h *handler) Serve(r *nbd.Request) {
	p := h.take()
	p.req = r
	h.handle.Submit(replica.IO{
		Op: operation(r.Op), FUA: r.FUA, NoHole: r.NoHole, Len: r.Length, Off: r.Offset, Data: r.Data, Done: p,
	})
}

// Drain implements nbd.Handler.
func (h *handler) Drain() { h.handle.Drain() }

// Close implements nbd.Handler.
func (h *handler) Close() { h.handle.Close() }

// Complete implements replica.Completer.
func (p *pending) Complete(result core.IOResult) {
	req := p.req
	p.owner.put(p)
	req.Reply(replyError(result))
}

func (h *handler) take() *pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.free
	if p == nil {
		return &pending{owner: h}
	}
	h.free, p.next = p.next, nil
	return p
}

func (h *handler) put(p *pending) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p.req, p.next, h.free = nil, h.free, p
}

// replyErrors are made once: turning an Errno into an error may allocate.
var replyErrors = [...]error{
	core.IOOK:         nil,
	core.IOError:      nbd.EIO,
	core.IONoSpace:    nbd.ENOSPC,
	core.IONotPrimary: nbd.ESHUTDOWN, // it was, when the client opened it
	core.IONoData:     nbd.EIO,
	core.IOInvalid:    nbd.EINVAL,
	core.IOShutdown:   nbd.ESHUTDOWN,
}

func replyError(result core.IOResult) error {
	if int(result) >= len(replyErrors) {
		return nbd.EIO
	}
	return replyErrors[result]
}
