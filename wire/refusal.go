package wire

import "fmt"

// Refusal is why one node ends a handshake. It travels in the refusal frame,
// so that both nodes log the same words.
type Refusal uint8

// Reasons for a refusal, by their numbers on the wire.
const (
	// RefusedWrongSecret: the other node's proof does not fit our shared secret.
	RefusedWrongSecret Refusal = 1
	// RefusedNoSecret: one node is configured with a shared secret, the other is not.
	RefusedNoSecret Refusal = 2
	// RefusedResource: the connection is for a resource that is not this one.
	RefusedResource Refusal = 3
	// RefusedVersion: the nodes' version ranges do not overlap.
	RefusedVersion Refusal = 4
	// RefusedSelf: both ends of the connection are one node.
	RefusedSelf Refusal = 5
	// RefusedNotPeer: the connection does not come from the configured peer's address.
	RefusedNotPeer Refusal = 6
	// RefusedCrossed: both nodes dialled, and the other attempt goes first.
	RefusedCrossed Refusal = 7
	// RefusedBusy: too many unfinished handshakes.
	RefusedBusy Refusal = 8
	// RefusedSession: a control connection names a session that is not being set up.
	RefusedSession Refusal = 9
	// RefusedNotConnecting: the resource is configured, but does not want a connection now.
	RefusedNotConnecting Refusal = 10
)

// String is the sentence that both nodes log.
func (r Refusal) String() string {
	switch r {
	case RefusedWrongSecret:
		return "the shared secrets of the two nodes differ"
	case RefusedNoSecret:
		return "only one of the two nodes has a shared secret"
	case RefusedResource:
		return "the two nodes name different resources"
	case RefusedVersion:
		return "the two nodes have no protocol version in common"
	case RefusedSelf:
		return "the connection leads from a node to itself"
	case RefusedNotPeer:
		return "the connection does not come from the configured peer"
	case RefusedCrossed:
		return "another connection attempt of this pair goes first"
	case RefusedBusy:
		return "too many unfinished handshakes"
	case RefusedSession:
		return "the control connection belongs to no session being set up"
	case RefusedNotConnecting:
		return "the resource does not want a connection now"
	}
	return fmt.Sprintf("unknown reason %d", uint8(r))
}

// Permanent reports whether only an operator can remove the reason, so that
// dialling again is pointless (DRBD 8.4 goes StandAlone then).
//
// RefusedSelf is not among them: an address that moves between the nodes, or
// the kernel's simultaneous open on loopback, can lead a dial home for a while.
func (r Refusal) Permanent() bool {
	switch r {
	case RefusedWrongSecret, RefusedNoSecret, RefusedResource, RefusedVersion:
		return true
	}
	return false
}

// RefusedError is a handshake that one of the two nodes refused.
type RefusedError struct {
	Reason Refusal
	ByPeer bool // the peer refused us; otherwise we refused it
}

// Error names who refused, and the reason in the words both nodes use.
func (e *RefusedError) Error() string {
	if e.ByPeer {
		return "refused by the peer: " + e.Reason.String()
	}
	return "refused here: " + e.Reason.String()
}
