package replica

import (
	"context"
	"log/slog"

	"replicad/replica/core"
)

// logLinesMax bounds the lines that wait for a slow log.
const logLinesMax = 4096

// logQueue holds the core's log lines in their order until the logger has
// written them: nobody who moves requests or pings may wait for a log. The
// fields are guarded by the resource's lock.
type logQueue struct {
	lines   []core.Action
	dropped int
	wake    chan struct{}
}

func (q *logQueue) init() { q.wake = make(chan struct{}, 1) }

// push queues a line. Called with the resource's lock held.
func (q *logQueue) push(a *core.Action) {
	if len(q.lines) >= logLinesMax {
		q.dropped++
		return
	}
	q.lines = append(q.lines, *a)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

var slogLevels = [...]slog.Level{
	core.LevelInfo: slog.LevelInfo, core.LevelWarn: slog.LevelWarn, core.LevelError: slog.LevelError,
}

// writeLogs is the body of the logger goroutine.
func (r *Resource) writeLogs() {
	for {
		select {
		case <-r.logs.wake:
			r.flushLogs()
		case <-r.done.Done():
			r.flushLogs()
			return
		}
	}
}

// flushLogs writes what is queued.
func (r *Resource) flushLogs() {
	r.mu.Lock()
	lines, dropped := r.logs.lines, r.logs.dropped
	r.logs.lines, r.logs.dropped = nil, 0
	r.mu.Unlock()
	for i := range lines {
		a := &lines[i]
		var attrs []slog.Attr
		if a.Vol >= 0 {
			attrs = append(attrs, slog.Int("volume", int(a.Vol)))
		}
		r.log.LogAttrs(context.Background(), slogLevels[a.Level], a.Text, attrs...)
	}
	if dropped > 0 {
		r.log.Warn("log lines were dropped because the log is too slow", "lines", dropped)
	}
}
