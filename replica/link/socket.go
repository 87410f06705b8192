package link

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SocketOptions are set on every socket of a link before it connects.
// TCP_NODELAY is always on: the outbox makes the batches.
type SocketOptions struct {
	// SendBuffer and ReceiveBuffer are DRBD's sndbuf-size and rcvbuf-size in
	// bytes; 0 leaves them to the kernel. Under protocol A, SendBuffer bounds
	// what is lost with the Primary.
	SendBuffer    int
	ReceiveBuffer int
	// UserTimeout is how long sent bytes may stay unacknowledged before the
	// kernel drops the connection (TCP_USER_TIMEOUT); 0 is the kernel's default.
	UserTimeout time.Duration
	// KeepAliveIdle and KeepAliveInterval are TCP keep-alive times, a last
	// resort behind the core's pings; 0 is 15 s, negative turns it off.
	KeepAliveIdle     time.Duration
	KeepAliveInterval time.Duration
}

func (o SocketOptions) keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: o.KeepAliveIdle >= 0, Idle: o.KeepAliveIdle, Interval: o.KeepAliveInterval}
}

// control is the Control function of a dialer or a listener. Sockets that are
// accepted inherit all of these options from the listening one.
func (o SocketOptions) control(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = o.apply(int(fd)) })
	if err != nil {
		return fmt.Errorf("reach socket: %w", err)
	}
	return failed
}

func (o SocketOptions) apply(fd int) error {
	for _, opt := range []struct {
		text        string
		level, name int
		value       int
	}{
		{"send buffer", unix.SOL_SOCKET, unix.SO_SNDBUF, o.SendBuffer},
		{"receive buffer", unix.SOL_SOCKET, unix.SO_RCVBUF, o.ReceiveBuffer},
		{"TCP user timeout", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.UserTimeout.Milliseconds())},
	} {
		if opt.value <= 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, opt.level, opt.name, opt.value); err != nil {
			return fmt.Errorf("set %s to %d: %w", opt.text, opt.value, err)
		}
	}
	return nil
}
