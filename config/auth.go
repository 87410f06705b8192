package config

import (
	"crypto/rand"
	"fmt"
)

// UnauthenticatedError says that a link would run without a secret over a
// network. Its text holds a fresh secret to paste.
type UnauthenticatedError struct {
	Resource string
	Pos      Pos // of the net section, or of the resource without one
	Local    Address
	Peer     Address
	Secret   string // a suggestion, random
}

// Error names the file and line and the two statements that settle it.
func (e *UnauthenticatedError) Error() string {
	return fmt.Sprintf("%s: in resource %s: no 'shared-secret', and the link %s - %s is not a loopback link.\n"+
		"\tPut this line into the net section of the resource, the same on both nodes:\n"+
		"\t\tshared-secret \"%s\";\n"+
		"\tor make certificates: replicad tls init %s\n"+
		"\tor, if everything on that network may be trusted with the data: allow-unauthenticated yes;",
		e.Pos, e.Resource, e.Local.AddrPort, e.Peer.AddrPort, e.Secret, e.Resource)
}

// CheckAuthentication returns an *UnauthenticatedError when the link has no
// shared-secret and no TLS, leaves the loopback network, and
// allow-unauthenticated is not set. The daemon must not start the resource then.
func (r *LocalResource) CheckAuthentication() error {
	isLocal := r.Local.Address.AddrPort.Addr().IsLoopback() && r.Peer.Address.AddrPort.Addr().IsLoopback()
	if r.Net.SharedSecret != "" || r.Net.TLS || r.Net.AllowUnauthenticated || isLocal {
		return nil
	}
	return &UnauthenticatedError{
		Resource: r.Name, Pos: r.netPos, Local: r.Local.Address, Peer: r.Peer.Address,
		Secret: rand.Text(),
	}
}

// UnbuiltError says that a statement asks for protection or behaviour that
// this version does not have, and that running without it would break a
// promise silently.
type UnbuiltError struct {
	Resource string
	Pos      Pos
	What     string // the statement
	Why      string
}

func (e *UnbuiltError) Error() string {
	return fmt.Sprintf("%s: in resource %s: not built yet: %s: %s", e.Pos, e.Resource, e.What, e.Why)
}

// CheckBuilt returns an *UnbuiltError when the resource asks for something
// that must not be ignored. The daemon must not start it then.
func (r *LocalResource) CheckBuilt() error {
	if r.Net.AllowTwoPrimaries {
		return &UnbuiltError{r.Name, r.netPos, "allow-two-primaries", "writes of two Primaries to one block would have no common order"}
	}
	return nil
}
