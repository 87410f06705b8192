// Package ctl is the language between the daemon and the verbs of the command
// line: HTTP with JSON over a unix socket, so that curl speaks it too.
//
//	curl --unix-socket S http://replicad/proc/drbd
//	curl --unix-socket S http://replicad/v1/resources
//	curl --unix-socket S -X POST 'http://replicad/v1/resources/r0/primary?force=yes'
//
// The paths:
//
//	GET  /proc/drbd[?resource=R...]        the text of /proc/drbd
//	GET  /v1/daemon                        [Daemon]
//	GET  /v1/status[?resource=R...]        what drbdsetup status --json prints
//	GET  /v1/resources                     array of [Resource]
//	GET  /v1/resources/R                   [Resource]
//	GET  /v1/resources/R/QUERY[?volume=N]  [Reply] of a question: role, cstate, dstate, show-gi, get-gi, status, sh-status
//	POST /v1/resources/R/VERB[?volume=N&…] [Reply] of a command; options are query parameters of the options' names
//
// The socket has mode 0600: who may open it may do everything.
//
// The package holds the types of both ends, the client's end, and the place of
// the socket. It knows nothing of replication. Everything here may be used from
// any goroutine.
package ctl

// Reply is the outcome of a command or a question.
type Reply struct {
	// Exit is the exit code for the command line, DRBD's where it has one.
	Exit int `json:"exit"`
	// Out is for standard output.
	Out string `json:"out,omitempty"`
	// Err holds the lines for standard error, DRBD's words first.
	Err []string `json:"err,omitempty"`
	// Hint says in one line what to do next.
	Hint string `json:"hint,omitempty"`
}

// Daemon describes the process that answers on a socket.
type Daemon struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Node    string `json:"node"`
	Config  string `json:"config"` // absolute path
	RunDir  string `json:"run-dir"`
}

// Resource is the state of a configured resource. The words are DRBD's.
type Resource struct {
	Name       string   `json:"name"`
	Configured bool     `json:"configured"` // false: down
	Peer       string   `json:"peer"`
	Role       string   `json:"role"`
	PeerRole   string   `json:"peer-role"`
	Connection string   `json:"connection"` // of the volume that is furthest behind
	Volumes    []Volume `json:"volumes"`
}

// Volume is the state of a volume.
type Volume struct {
	Number       int      `json:"volume"`
	Minor        int      `json:"minor"`
	Connection   string   `json:"connection"`
	Disk         string   `json:"disk"`
	PeerDisk     string   `json:"peer-disk"`
	Attached     bool     `json:"attached"` // the backing disk is in use
	SizeKiB      uint64   `json:"size-kib"`
	OutOfSyncKiB uint64   `json:"out-of-sync-kib"`
	Openers      int      `json:"openers"`
	NBD          []string `json:"nbd"` // URIs of the export
	Sync         *Sync    `json:"sync,omitempty"`
}

// Sync is how far a resync is.
type Sync struct {
	TotalKiB uint64 `json:"total-kib"`
	LeftKiB  uint64 `json:"left-kib"`
	RateKiB  uint64 `json:"rate-kib"` // per second, of late
}
