package replica

import (
	"net"
	"net/netip"
	"testing"

	"replicad/replica/core"
)

// TestConnectAfterDisconnectUsesTheNewConfiguration: between disconnect and
// connect the way to the peer may be configured anew. However close together
// the three come, what is dialled then is the new way.
func TestConnectAfterDisconnectUsesTheNewConfiguration(t *testing.T) {
	a, b := newPair(t, 'C')
	b.up()
	right := a.cfg
	wrong := a.cfg
	wrong.Link.Peer = freeAddr(t)
	wrong.Link.Local = freeAddr(t)
	a.must("reconfigure", a.Reconfigure(testCtx(t), wrong))
	a.up()
	a.await("a try", func(s core.State) bool { return s.Conn == core.WFConnection })
	waitUntil(t, "a link to be made", func() bool { return listens(wrong.Link.Local) })
	ctx := testCtx(t)
	a.must("disconnect", a.Disconnect(ctx, false))
	a.must("reconfigure", a.Reconfigure(ctx, right))
	a.must("connect", a.Connect(ctx, ConnectOptions{}))
	a.await("connect", connected)
}

// listens reports whether anybody accepts connections on a loopback address.
func listens(addr netip.AddrPort) bool {
	conn, err := net.Dial("tcp", addr.String())
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}
