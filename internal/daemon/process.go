package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// oomScore makes the kernel choose almost any other process first when memory
// runs out: with this one go all who use its devices.
const oomScore = -900

// oomScoreFile is where a process finds its own score.
const oomScoreFile = "/proc/self/oom_score_adj"

// ProtectProcess does what the server of a block device should against memory
// running out, as far as it may, and logs once what it could not do. Only root
// may; for others it does nothing. It is called once, before the daemon runs,
// from any goroutine. With lockMemory no page in use is ever swapped out.
func ProtectProcess(log *slog.Logger, lockMemory bool) {
	var errs []error
	if lockMemory {
		errs = append(errs, lockPages())
	}
	if os.Geteuid() == 0 {
		errs = append(errs, lowerOOMScore(), markIOFlusher())
	}
	if err := errors.Join(errs...); err != nil {
		log.Info("protection against a shortage of memory is not complete", "err", err)
	}
}

// lowerOOMScore leaves a score alone that somebody chose (OOMScoreAdjust= of
// systemd).
func lowerOOMScore() error {
	text, err := os.ReadFile(oomScoreFile)
	if err != nil {
		return fmt.Errorf("read out-of-memory score: %w", err)
	}
	if strings.TrimSpace(string(text)) != "0" {
		return nil
	}
	if err := os.WriteFile(oomScoreFile, []byte(strconv.Itoa(oomScore)), 0); err != nil {
		return fmt.Errorf("lower out-of-memory score: %w", err)
	}
	return nil
}

// markIOFlusher tells the kernel that these threads are on the way of other
// people's write-back (prctl(2), PR_SET_IO_FLUSHER): an allocation of theirs must not
// wait for write-back to the very device that they serve. The mark belongs to a
// thread and is inherited by those it starts. A program that is linked with
// cgo cannot reach all of its threads; ours is not.
func markIOFlusher() error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("mark threads as I/O flushers: %w", errno)
	}
	return nil
}

// lockPages locks pages as they come into use. Without MCL_ONFAULT all that the
// runtime has reserved would be made real.
func lockPages() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}
