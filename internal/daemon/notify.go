package daemon

import (
	"net"
	"os"
)

// announce tells the service manager a state change, by systemd's notification
// protocol: a datagram to the socket that NOTIFY_SOCKET names. Without a
// manager there is nobody to tell, and it must not matter if telling fails.
func (d *Daemon) announce(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if name[0] == '@' {
		name = "\x00" + name[1:] // the abstract namespace
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		d.log.Warn("service manager cannot be told", "state", state, "err", err)
		return
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(state)); err != nil {
		d.log.Warn("service manager cannot be told", "state", state, "err", err)
	}
}
