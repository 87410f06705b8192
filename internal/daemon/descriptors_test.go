package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
)

// TestClientShare: what clients may take leaves the peer and the operator theirs.
func TestClientShare(t *testing.T) {
	lr := local(t, strings.ReplaceAll(fullConfig, "meta-disk internal;", `meta-disk internal; nbd-listen "unix:/x/a";`))
	tests := []struct {
		limit uint64
		share int
		tight bool
	}{{1 << 40, 128, false}, {1024, 128, false}, {140, 24, false}, {120, 4, false}, {119, 4, true}, {10, 4, true}}
	for _, tt := range tests {
		if share, tight := clientShare(tt.limit, []wanted{{LocalResource: lr}}); share != tt.share || tight != tt.tight {
			t.Errorf("limit %d: %d clients, tight %v; want %d, %v", tt.limit, share, tight, tt.share, tt.tight)
		}
	}
}

// scarce fails to accept some times for want of descriptors.
type scarce struct {
	net.Listener
	fails int
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.fails--; l.fails >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	if l.fails < -2 {
		return nil, net.ErrClosed
	}
	a, b := net.Pipe()
	return a, b.Close()
}

// TestPatientListener: no descriptor is waited for and said once, a slot comes
// back with its connection, and other errors are the caller's.
func TestPatientListener(t *testing.T) {
	var log bytes.Buffer
	l := newPatientListener(&scarce{fails: 4}, slog.New(slog.NewTextHandler(&log, nil)), "test", 1)
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = c.Close() // gives the slot back once
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("at the end: %v", err)
	}
	if n := strings.Count(log.String(), "cannot be accepted"); n != 1 || !strings.Contains(log.String(), "accepted again") {
		t.Errorf("%d complaints:\n%s", n, &log)
	}
	if len(l.slots) != 0 {
		t.Errorf("%d slots are lost", len(l.slots))
	}
}
