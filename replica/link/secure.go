package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"replicad/wire"
)

// secureDial turns a connection we dialled into TLS, if that is configured:
// both announce it with a start frame, then nothing but TLS follows. It never
// falls back.
func (l *Link) secureDial(t *talk) error {
	if l.cfg.TLS == nil {
		return nil
	}
	start, err := wire.AppendStart(nil, l.cfg.Resource)
	if err != nil {
		return fmt.Errorf("announce TLS: %w", err)
	}
	// Who refuses may hang up before our frame is sent: look for it all the same.
	sendErr := t.send(start, nil)
	answer, err := t.read()
	if err != nil {
		return errors.Join(sendErr, err)
	}
	if err := wire.ParseStartAnswer(answer, l.cfg.Resource); err != nil {
		return fmt.Errorf("announce TLS: %w", err)
	}
	id := l.cfg.TLS.Identity()
	s := secure(t.conn, id.tlsConfig(), true)
	refused, err := t.shake(s, id, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	if refused != nil {
		return t.sendRefusal(refused)
	}
	return nil
}

// secureAccept does the same for a connection whose first frame was a start.
// It returns the hello that follows inside TLS.
func (l *Link) secureAccept(t *talk) ([]byte, error) {
	start, err := wire.AppendStart(nil, l.cfg.Resource)
	if err := t.send(start, err); err != nil {
		return nil, err
	}
	id := l.cfg.TLS.Identity()
	s := secure(t.conn, id.tlsConfig(), false)
	refused, err := t.shake(s, id, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	// The dialler's frame is on its way. Left unread, it would turn our
	// answer into a reset. It is not looked at before the verdict.
	first, err := t.read()
	if refused != nil {
		return nil, t.sendRefusal(refused)
	}
	return first, err
}

// shake runs the TLS handshake and judges the other end. An error means that
// there is no TLS; a refusal that there is, with somebody who is not the peer.
// From here on the talk goes through TLS.
func (t *talk) shake(s *sealed, id *Identity, usage x509.ExtKeyUsage) (refused *wire.RefusedError, err error) {
	if err := s.tls.Handshake(); err != nil {
		return nil, tlsError(err)
	}
	state := s.tls.ConnectionState()
	binding, err := state.ExportKeyingMaterial(bindingLabel, nil, wire.BindingSize)
	if err != nil {
		return nil, fmt.Errorf("export channel binding: %w", err)
	}
	t.sealed, t.rw, t.binding = s, s.tls, binding
	return id.judge(&state, usage, time.Now()), nil
}

// sendRefusal tells the other end of a TLS connection that it is not the peer.
func (t *talk) sendRefusal(refused *wire.RefusedError) error {
	return errors.Join(refused, t.send(wire.AppendRefusal(nil, refused.Reason), nil))
}

// tlsError types the failure of a handshake. A connection that ended or took
// too long is no refusal.
func tlsError(err error) error {
	op, isOp := errors.AsType[*net.OpError](err)
	byPeer := isOp && op.Op == "remote error" // how package tls wraps the peer's alert
	local := isOp && op.Op == "local error"
	if isOp && !byPeer && !local || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	return &wire.RefusedError{Reason: wire.RefusedTLSFailed, ByPeer: byPeer, Detail: err.Error()}
}

// cipherOf names the cipher suite of a connection, "" when it is plain.
func cipherOf(s stream) string {
	if s.sealed == nil {
		return ""
	}
	return tls.CipherSuiteName(s.sealed.tls.ConnectionState().CipherSuite)
}
