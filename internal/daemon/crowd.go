package daemon

import (
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// controlConnsMax is how many connections the control socket takes at a time:
	// enough for every verb that waits, and too few to use up the descriptors
	// that NBD clients and the link need.
	controlConnsMax = 256
	// controlHeaderMax is the largest request with its options, bytes. No request
	// has a body.
	controlHeaderMax = 64 << 10
	// controlIdle is how long a connection without a request may stay.
	controlIdle = time.Minute
)

// crowdLimit is a listener that hangs up on connections beyond max.
type crowdLimit struct {
	net.Listener
	max int

	mu   sync.Mutex
	open int
}

// Accept returns the next connection there is room for.
func (l *crowdLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.enter() {
			return &counted{Conn: conn, leave: sync.OnceFunc(l.leave)}, nil
		}
		_ = conn.Close() // one too many; nobody to tell
	}
}

func (l *crowdLimit) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max {
		return false
	}
	l.open++
	return true
}

func (l *crowdLimit) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
}

// counted is a connection that makes room when it is closed.
type counted struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}

// withoutBody refuses requests that carry one: none of ours does, and a client
// that sends it slowly would keep the connection for as long as it likes.
func withoutBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		http.Error(w, "options belong in the query, a request has no body", http.StatusRequestEntityTooLarge)
		// The server would now wait for the rest of the body. A connection
		// that does not know deadlines is none of ours.
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	})
}
