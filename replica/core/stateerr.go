package core

import "strconv"

// StateErr is the verdict on a requested state change, in DRBD 8.4's numbers:
// positive when it may happen (3 and 4 are DRBD's "agreed cluster-wide"),
// negative when it is refused. It travels to the peer and to the administrator.
type StateErr int

// Verdicts that let a change happen.
const (
	Success     StateErr = 1
	NothingToDo StateErr = 2 // the state already is what was asked for
)

// Refusals. Numbers, texts and exit codes are interface: scripts test them.
const (
	ErrTwoPrimaries      StateErr = -1
	ErrNoUpToDateDisk    StateErr = -2
	ErrNoLocalDisk       StateErr = -4
	ErrNoRemoteDisk      StateErr = -5
	ErrConnectedOutdates StateErr = -6
	ErrPrimaryNotFenced  StateErr = -7
	ErrResyncRunning     StateErr = -8
	ErrAlreadyStandAlone StateErr = -9
	ErrRefusedByPeer     StateErr = -10
	ErrDiskless          StateErr = -11
	ErrDeviceInUse       StateErr = -12
	ErrNoNetConfig       StateErr = -13
	ErrNoVerifyAlg       StateErr = -14
	ErrNeedConnection    StateErr = -15
	ErrLowerThanOutdated StateErr = -16
	ErrNotSupported      StateErr = -17
	ErrTransient         StateErr = -18
	ErrConcurrent        StateErr = -19
	ErrOtherVolPrimary   StateErr = -20
	ErrOutdateNoConn     StateErr = -21
)

// Exit codes of the drbdsetup of DRBD 8.4. The same number also means other
// things elsewhere in the command line; these are for state changes.
const (
	exitOK           = 0
	exitOutdated     = 5
	exitRefused      = 11
	exitNoLocalDisk  = 16
	exitNoGoodData   = 17
	exitUnknownError = 20
)

// refusals holds DRBD's words for refusal -n at index n; empty means that DRBD
// 8.4 has no such number.
var refusals = [...]string{
	-ErrTwoPrimaries:      "Multiple primaries not allowed by config",
	-ErrNoUpToDateDisk:    "Need access to UpToDate data",
	-ErrNoLocalDisk:       "Can not resync without local disk",
	-ErrNoRemoteDisk:      "Can not resync without remote disk",
	-ErrConnectedOutdates: "Refusing to be Outdated while Connected",
	-ErrPrimaryNotFenced:  "Refusing to be Primary while peer is not outdated",
	-ErrResyncRunning:     "Can not start OV/resync since it is already active",
	-ErrAlreadyStandAlone: "Can not disconnect a StandAlone device",
	-ErrRefusedByPeer:     "State change was refused by peer node",
	-ErrDiskless:          "Device is diskless, the requested operation requires a disk",
	-ErrDeviceInUse:       "Device is held open by someone",
	-ErrNoNetConfig:       "Have no net/connection configuration",
	-ErrNoVerifyAlg:       "Need a verify algorithm to start online verify",
	-ErrNeedConnection:    "Need a connection to start verify or resync",
	-ErrLowerThanOutdated: "Disk state is lower than outdated",
	-ErrNotSupported:      "Peer does not support protocol",
	-ErrTransient:         "In transient state, retry after next state change",
	-ErrConcurrent:        "Concurrent state changes detected and aborted",
	-ErrOtherVolPrimary:   "Other vol primary on peer not allowed by config",
	-ErrOutdateNoConn:     "Need a connection for a graceful disconnect/outdate peer",
}

// Text returns DRBD's words for e. Numbers may come from the peer; one that
// DRBD 8.4 does not know has words of our own.
func (e StateErr) Text() string {
	switch {
	case e == NothingToDo:
		return "Nothing to do"
	case e >= Success:
		return "Success"
	case e.known():
		return refusals[-e]
	}
	return "Unknown state error"
}

// known reports whether e is a refusal that DRBD 8.4 has. The comparison comes
// before the negation: the most negative number has no positive counterpart.
func (e StateErr) known() bool {
	return e < 0 && e > -StateErr(len(refusals)) && refusals[-e] != ""
}

// Failed reports whether the change was refused.
func (e StateErr) Failed() bool { return e < Success }

// Err returns e as an error when the change was refused, else nil. A positive
// StateErr stored in an error would be a failure that is none.
func (e StateErr) Err() error {
	if e.Failed() {
		return e
	}
	return nil
}

// Error returns the number and the words, as drbdsetup prints them after
// "State change failed: ".
func (e StateErr) Error() string { return "(" + strconv.Itoa(int(e)) + ") " + e.Text() }

// ExitCode returns the exit code that drbdsetup of DRBD 8.4 ends with.
func (e StateErr) ExitCode() int {
	switch {
	case e >= Success:
		return exitOK
	case e == ErrNoUpToDateDisk:
		return exitNoGoodData
	case e == ErrNoLocalDisk:
		return exitNoLocalDisk
	case e == ErrLowerThanOutdated:
		return exitOutdated
	case e.known():
		return exitRefused
	}
	return exitUnknownError
}
