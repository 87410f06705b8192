package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"replicad/internal/failpoint"
)

const (
	// statusEvery is how old the status file may get: counters change without
	// an event, and its age tells whether the daemon lives.
	statusEvery = time.Second
	// statusPause keeps a storm of state changes from becoming one of renames.
	statusPause = 20 * time.Millisecond
)

// keepStatusFile keeps a file equal to what `replicad status` prints, and
// removes it in the end: what is no longer true must not be read. Whatever
// happens to the file, replication goes on.
func (d *Daemon) keepStatusFile() {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var file statusFile
	for {
		d.reportStatusFile(&file, file.write(d.statusPath(), d.procText(nil)))
		select {
		case <-tick.C:
		case <-d.dirty:
			time.Sleep(statusPause)
		case <-d.ctx.Done():
			file.remove()
			return
		}
	}
}

// reportStatusFile logs one line per change of condition, not one per attempt.
func (d *Daemon) reportStatusFile(f *statusFile, err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	switch {
	case said == f.said:
		return
	case err == nil:
		d.log.Info("the status file is kept again", "file", f.path)
	default:
		d.log.Warn("the status file cannot be kept and is removed if possible; replication is not affected: "+
			"make room, or the folder writable, or name another status-file", "file", f.path, "err", err)
	}
	f.said = said
}

func (d *Daemon) statusPath() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.statusFile
}

// statusFile is a file that is only ever replaced as a whole. It belongs to one
// goroutine.
type statusFile struct {
	path string
	said string // the error last logged, empty when all was well
}

// write replaces the file. On failure it removes what is there: a stale file
// would be taken for the truth.
func (f *statusFile) write(path string, text []byte) error {
	if f.path != path {
		f.remove()
		f.path = path
	}
	err := f.replace(text)
	if err != nil {
		_ = os.Remove(f.fresh()) // half of it may be there, and take the room
		f.remove()
	}
	return err
}

// writeFresh writes the text beside its place.
func (f *statusFile) writeFresh(text []byte) error {
	h, err := failpoint.Begin(failpoint.StatusWrite)
	if err != nil {
		return err
	}
	defer h.End()
	return os.WriteFile(f.fresh(), text, 0o644)
}

// replace makes the folder if it is not there: it may be removed at any time.
func (f *statusFile) replace(text []byte) error {
	err := f.writeFresh(text)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
			return fmt.Errorf("make folder of status file: %w", err)
		}
		err = f.writeFresh(text)
	}
	if err != nil {
		return fmt.Errorf("write status file: %w", err)
	}
	h, err := failpoint.Begin(failpoint.StatusRename)
	if err == nil {
		err = os.Rename(f.fresh(), f.path)
		h.End()
	}
	if err != nil {
		return fmt.Errorf("replace status file: %w", err)
	}
	return nil
}

func (f *statusFile) fresh() string { return f.path + ".new" }

func (f *statusFile) remove() {
	if f.path != "" {
		_ = os.Remove(f.path) // nobody is left to tell
	}
}
