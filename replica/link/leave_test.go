package link

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestPeerThatLeft: a node whose resource was disconnected while its listener
// goes on (shared, or about to close) must not send its healthy peer to
// StandAlone: the refusal is one to try again after.
func TestPeerThatLeft(t *testing.T) {
	a, b := pair(t, nil, nil)
	connect(t, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	other := newNode(t, b.ln, a.ln.Addr(), func(c *Config) { c.Resource = "r1" })
	waits := connectAsync(ctx, other) // keeps a's address welcome at b's listener
	b.Close()
	if _, err := a.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("connecting to a peer that left: %v, want to be trying still", err)
	}
	<-waits
	back := newNode(t, b.ln, a.ln.Addr(), nil)
	sa, sb := connect(t, a, back)
	checkTwins(t, sa, sb)
}
