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
	// RefusedPlain: the dialler speaks plain TCP to a node that has TLS configured.
	RefusedPlain Refusal = 11
	// RefusedTLS: the dialler wants TLS of a node that has none configured.
	RefusedTLS Refusal = 12
	// RefusedCA: the certificate shown does not lead to the pinned CA or key.
	RefusedCA Refusal = 13
	// RefusedExpired: the certificate shown has expired or is not valid yet.
	RefusedExpired Refusal = 14
	// RefusedName: the certificate shown is good, but not that of the peer.
	RefusedName Refusal = 15
	// RefusedTLSFailed: TLS itself failed: wrong version, damaged records, no
	// certificate. It is not sent, for then there is no common language; TLS
	// has alerts of its own.
	RefusedTLSFailed Refusal = 16
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
	return r.tlsString()
}

func (r Refusal) tlsString() string {
	switch r {
	case RefusedPlain:
		return "the dialling node speaks plain TCP, but tls is configured on the other"
	case RefusedTLS:
		return "the dialling node speaks TLS, but tls is not configured on the other"
	case RefusedCA:
		return "the certificate of a node does not lead to what tls-ca holds on the other"
	case RefusedExpired:
		return "the certificate of a node has expired or is not valid yet"
	case RefusedName:
		return "the certificate of a node does not name the peer that the other has configured"
	case RefusedTLSFailed:
		return "the TLS handshake failed"
	}
	return fmt.Sprintf("unknown reason %d", uint8(r))
}

// Permanent reports whether only an operator can remove the reason, so that
// dialling again is pointless (DRBD 8.4 goes StandAlone then).
//
// RefusedSelf is not among them: an address that moves between the nodes, or
// the kernel's simultaneous open on loopback, can lead a dial home for a while.
// Nor are those about TLS: a reload with new files removes them, and so does
// the clock, and most of them are said to whom is not authenticated.
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
	// Unproven says that TLS is configured and the refusal came outside it:
	// anybody on the way can have said it.
	Unproven bool
	// Detail is what else this node knows about its own refusal; often empty.
	Detail string
}

// Error names who refused, and the reason in the words both nodes use.
func (e *RefusedError) Error() string {
	text := "refused here: " + e.Reason.String()
	if e.ByPeer {
		text = "refused by the peer: " + e.Reason.String()
	}
	if e.Detail != "" {
		text += " (" + e.Detail + ")"
	}
	return text
}

// Permanent reports whether dialling again is pointless: the reason is
// permanent, and was not just said by anybody.
func (e *RefusedError) Permanent() bool { return e.Reason.Permanent() && !e.Unproven }
