package daemon

import (
	"net/http"
	"time"
)

// controlHeaderMax is the largest request with its options, bytes. No request
// has a body.
const controlHeaderMax = 64 << 10

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
