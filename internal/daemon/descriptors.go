package daemon

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// File descriptors are shared out so that clients, however many, never take
// the one that the peer's session or an operator's question needs.
const (
	descriptorsBase     = 24 // logs, poller, sockets listened on, status file
	descriptorsResource = 24 // session, dials, half-open handshakes
	descriptorsVolume   = 4  // disk and metadata, at attach and at detach
	clientsMax          = 128
	clientsMin          = 4
)

// clientShare returns how many NBD clients each address may have under a limit
// of descriptors, and whether that is less than it needs to be.
func clientShare(limit uint64, locals []wanted) (share int, tight bool) {
	need, addresses := descriptorsBase+controlClients, map[string]bool{}
	for _, lr := range locals {
		need += descriptorsResource + descriptorsVolume*len(lr.Volumes)
		for _, v := range lr.Volumes {
			for _, l := range v.NBDListen {
				addresses[l.String()] = true
			}
		}
	}
	room := int(min(limit, 1<<20)) - need
	share = room / max(len(addresses), 1)
	return min(max(share, clientsMin), clientsMax), share < clientsMin
}

// shareDescriptors fixes the number of clients before the first address opens.
func (d *Daemon) shareDescriptors(locals []wanted) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		d.log.Warn("the limit of file descriptors cannot be read", "err", err)
		limit.Cur = 1024
	}
	share, tight := clientShare(limit.Cur, locals)
	d.endpoints.clientsMax = share
	if tight {
		d.log.Warn("the limit of file descriptors is too low for this configuration: raise it (LimitNOFILE=, ulimit -n)",
			"limit", limit.Cur, "nbd-clients", share)
	}
}

// patientListener accepts at most so many connections at a time, and waits
// when there is no descriptor for one, which it says once. One goroutine
// accepts.
type patientListener struct {
	net.Listener
	log   *slog.Logger
	what  string
	slots chan struct{} // holds one token per connection
	full  time.Time     // when it was last said that all slots are taken; Accept's alone
}

func newPatientListener(l net.Listener, log *slog.Logger, what string, connections int) *patientListener {
	return &patientListener{Listener: l, log: log, what: what, slots: make(chan struct{}, connections)}
}

const (
	patienceMin = 20 * time.Millisecond
	patienceMax = time.Second

	// fullEvery is how often it is said that all connections are in use: a crowd
	// that comes and goes must not fill the log.
	fullEvery = time.Minute
)

// Accept implements net.Listener.
func (l *patientListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	default:
		if now := time.Now(); l.full.IsZero() || now.Sub(l.full) >= fullEvery {
			l.full = now
			l.log.Warn("all connections are in use, more have to wait", "on", l.what, "connections", cap(l.slots))
		}
		l.slots <- struct{}{}
	}
	for pause := patienceMin; ; pause = min(2*pause, patienceMax) {
		conn, err := l.Listener.Accept()
		if err == nil {
			if pause > patienceMin {
				l.log.Info("connections are accepted again", "on", l.what)
			}
			return &slotConn{Conn: conn, free: sync.OnceFunc(func() { <-l.slots })}, nil
		}
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ENOMEM) {
			<-l.slots
			return nil, err
		}
		if pause == patienceMin {
			l.log.Warn("connections cannot be accepted for now; those there are go on", "on", l.what, "err", err)
		}
		time.Sleep(pause)
	}
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// descriptorsEvery is how often the use of descriptors is looked at.
const descriptorsEvery = 2 * time.Second

// watchDescriptors says once when descriptors run out, and once when they are
// there again: every part of the daemon that lacks one only tries again.
func (d *Daemon) watchDescriptors() {
	tick := time.NewTicker(descriptorsEvery)
	defer tick.Stop()
	out := false
	for {
		select {
		case <-tick.C:
		case <-d.ctx.Done():
			return
		}
		f, err := os.Open(os.DevNull)
		if err == nil {
			_ = f.Close()
		}
		switch now := errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE); {
		case now && !out:
			d.log.Error("no file descriptor is left: new clients, verbs and the peer's next connection have to wait; "+
				"raise the limit (LimitNOFILE=, ulimit -n)", "err", err)
			out = true
		case !now && out:
			d.log.Info("file descriptors are available again")
			out = false
		}
	}
}
