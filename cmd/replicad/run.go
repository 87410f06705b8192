package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"replicad/internal/ctl"
	"replicad/internal/daemon"
	"replicad/internal/failpoint"
)

// runCmd is the daemon.
type runCmd struct {
	LogFormat   string `name:"log-format" enum:"text,json" default:"text" help:"text or json."`
	LogLevel    string `name:"log-level" enum:"debug,info,warn,error" default:"info" help:"debug, info, warn or error."`
	LockMemory  bool   `name:"lock-memory" help:"Let no memory in use be swapped out (where swap may lie on a device served here)."`
	StopTimeout string `name:"stop-timeout" default:"60" placeholder:"SECONDS" help:"How long an orderly shutdown may take (60)."`
}

// Run is called by kong.
func (c *runCmd) Run(a *app) error {
	stopTimeout, err := parseSeconds(c.StopTimeout)
	if err != nil {
		return fail(exitUsage, "--stop-timeout: %s", err.Error())
	}
	path, err := a.daemonConfigPath()
	if err != nil {
		return err
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	socket, err := filepath.Abs(a.client().Socket())
	if err != nil {
		return fmt.Errorf("find the socket: %w", err)
	}
	log := slog.New(c.logHandler(a))
	if rules := failpoint.Armed(); rules != "" {
		log.Warn("failpoints are armed: this daemon will fail on purpose; do not trust it with data",
			"rules", rules, "from", failpoint.Env)
	}
	ctx, reload := a.daemonSignals()
	daemon.ProtectProcess(log, c.LockMemory)
	err = daemon.Run(ctx, daemon.Options{
		ConfigPath: path, Self: self, Socket: socket, Version: version,
		StopTimeout: stopTimeout, Log: log,
		MakeRunDir: func() error {
			_, err := ctl.MakeRunDir(a.global.Node)
			return err
		},
	}, reload)
	return daemonStartError(path, err)
}

// daemonConfigPath is the configuration's absolute path: a reload must find it
// again.
func (a *app) daemonConfigPath() (string, error) {
	path := a.global.Config
	if path == "" {
		exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
		path = defaultConfigs[max(0, slices.IndexFunc(defaultConfigs, exists))]
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find the configuration: %w", err)
	}
	return absolute, nil
}

func daemonStartError(path string, err error) error {
	if err == nil {
		return nil
	}
	if unauthenticated(err) {
		return fail(exitConfig, "%s", err.Error())
	}
	if held, ok := errors.AsType[*daemon.HeldError](err); ok {
		return &exitError{
			code: exitExecution, lines: []string{held.Error()},
			hint: "stop it first, or give this one a node name or a socket of its own: --node NAME, -s PATH",
		}
	}
	if faults := configError(path, err); isConfigFault(faults) {
		return faults
	}
	return fail(exitExecution, "%s", err.Error())
}

// isConfigFault tells what configError recognised from what it did not.
func isConfigFault(err error) bool {
	e, ok := errors.AsType[*exitError](err)
	return ok && (len(e.lines) > 1 || e.hint != "" || e.code == exitConfig)
}

func (c *runCmd) logHandler(a *app) slog.Handler {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo // kong has checked the word
	}
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.NewJSONHandler(a.err, o)
	}
	return slog.NewTextHandler(a.err, o)
}

// daemonSignals ends the context with the first SIGTERM or SIGINT and the
// process with the second; SIGHUP asks for a reload.
func (a *app) daemonSignals() (context.Context, <-chan struct{}) {
	a.release()
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	reload := make(chan struct{}, 1)
	go func() {
		stopping := false
		for s := range signals {
			switch {
			case s == syscall.SIGHUP:
				select {
				case reload <- struct{}{}:
				default: // one is waiting already
				}
			case stopping:
				fmt.Fprintln(os.Stderr, "second signal: leaving at once")
				os.Exit(128 + int(s.(syscall.Signal)))
			default:
				stopping = true
				cancel()
			}
		}
	}()
	return ctx, reload
}

// parseSeconds reads a number of seconds, or a duration such as 90s.
func parseSeconds(text string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(text, 64); err == nil && n > 0 && n < 1e9 {
		return time.Duration(n * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a number of seconds", text)
	}
	return d, nil
}
