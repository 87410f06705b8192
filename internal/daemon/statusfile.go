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
// removes it in the end: what is no longer true must not be read.
func (d *Daemon) keepStatusFile() {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var file statusFile
	for {
		if err := file.write(d.statusPath(), d.procText(nil)); err != nil && !file.failing {
			d.log.Warn("status file cannot be kept", "err", err)
			file.failing = true
		}
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

func (d *Daemon) statusPath() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.statusFile
}

// statusFile is a file that is only ever replaced as a whole. It belongs to one
// goroutine.
type statusFile struct {
	path    string
	failing bool // and said so
}

func (f *statusFile) write(path string, text []byte) error {
	if f.path != path {
		f.remove()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make folder of status file: %w", err)
		}
		f.path = path
	}
	fresh := path + ".new"
	h, err := failpoint.Begin(failpoint.StatusWrite)
	if err == nil {
		err = os.WriteFile(fresh, text, 0o644)
		h.End()
	}
	if err != nil {
		return fmt.Errorf("write status file: %w", err)
	}
	h, err = failpoint.Begin(failpoint.StatusRename)
	if err == nil {
		err = os.Rename(fresh, path)
		h.End()
	}
	if err != nil {
		return fmt.Errorf("replace status file: %w", err)
	}
	f.failing = false
	return nil
}

func (f *statusFile) remove() {
	if f.path == "" {
		return
	}
	if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // nobody is left to tell
	}
	f.path = ""
}
