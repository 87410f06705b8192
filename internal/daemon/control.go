package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"replicad/internal/ctl"
	"replicad/replica/status"
)

// controlLinger is how long the last answers may take at the end.
const controlLinger = 2 * time.Second

const (
	// controlIdle ends a connection to the control socket that asks nothing.
	controlIdle = time.Minute
	// controlClients is how many may be connected; more wait.
	controlClients = 64
	// socketEvery is how soon the loss of the control socket is noticed.
	socketEvery = time.Second
)

// serveControl answers on the control socket until the daemon ends.
func (d *Daemon) serveControl(socket *heldSocket) {
	server := &http.Server{
		Handler:           withoutBody(d.afterStart(d.controlHandler())),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       controlIdle,
		MaxHeaderBytes:    controlHeaderMax,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	d.wg.Go(func() {
		<-d.ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), controlLinger)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			_ = server.Close() // somebody waits for an answer that does not come
		}
	})
	d.serveSocket(server, socket)
	d.keepSocket(server, socket)
}

// serveSocket lets server accept on the socket. What it returns says nothing that
// keepSocket or the end of the daemon does not.
func (d *Daemon) serveSocket(server *http.Server, socket *heldSocket) {
	listener := newPatientListener(socket.listener, d.log, "control socket", controlClients)
	d.wg.Go(func() { _ = server.Serve(listener) })
}

// keepSocket makes the control socket again when its name has gone, with the
// folder or without: a daemon that cannot be asked could only be restarted. It
// says each change once.
func (d *Daemon) keepSocket(server *http.Server, socket *heldSocket) {
	tick := time.NewTicker(socketEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-tick.C:
		case <-d.ctx.Done():
			return
		}
		if socket.inPlace() {
			continue
		}
		if err := d.remakeSocket(socket); err != nil {
			if err.Error() != said {
				said = err.Error()
				d.log.Error("the control socket is gone and cannot be made again; replication goes on, verbs do not reach this daemon",
					"socket", socket.path, "err", err)
			}
			continue
		}
		said = ""
		d.log.Warn("the control socket was removed and is made again", "socket", socket.path)
		d.serveSocket(server, socket)
	}
}

// remakeSocket takes the socket's place as at the start.
func (d *Daemon) remakeSocket(socket *heldSocket) error {
	if err := d.makeDir(filepath.Dir(socket.path)); err != nil {
		return err
	}
	return socket.remake()
}

// makeDir makes the folder of a socket again. The run folder has its own rules.
func (d *Daemon) makeDir(dir string) error {
	if dir == d.opts.Self.RunDir && d.opts.MakeRunDir != nil {
		return d.opts.MakeRunDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make folder of socket: %w", err)
	}
	return nil
}

// startPatience bounds how long a question may have to wait for a disk that is
// slow to attach.
const startPatience = 10 * time.Second

// afterStart holds requests back until the resources are up: right after the
// start, the answer would be that nothing is there.
func (d *Daemon) afterStart(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-d.ready:
		case <-time.After(startPatience):
		case <-r.Context().Done():
		}
		next.ServeHTTP(w, r)
	})
}

func (d *Daemon) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /proc/drbd", d.handleProc)
	mux.HandleFunc("GET /v1/daemon", d.handleDaemon)
	mux.HandleFunc("GET /v1/status", d.handleStatus)
	mux.HandleFunc("GET /v1/resources", d.handleResources)
	mux.HandleFunc("GET /v1/resources/{resource}", d.handleResource)
	mux.HandleFunc("GET /v1/resources/{resource}/{question}", d.handleQuestion)
	mux.HandleFunc("POST /v1/resources/{resource}/{verb}", d.handleCommand)
	return mux
}

func (d *Daemon) handleProc(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	d.answer(w, d.procText(r.URL.Query()["resource"]))
}

func (d *Daemon) handleStatus(w http.ResponseWriter, r *http.Request) {
	text, err := status.AppendJSON(nil, d.statusResources(r.URL.Query()["resource"]))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	d.answer(w, text)
}

func (d *Daemon) handleDaemon(w http.ResponseWriter, _ *http.Request) {
	d.answerJSON(w, ctl.Daemon{
		PID: os.Getpid(), Version: d.opts.Version, Node: d.opts.Self.Node,
		Config: d.opts.ConfigPath, RunDir: d.opts.Self.RunDir,
	})
}

func (d *Daemon) handleResources(w http.ResponseWriter, _ *http.Request) {
	all := []ctl.Resource{}
	for _, u := range d.allUnits() {
		all = append(all, u.view())
	}
	d.answerJSON(w, all)
}

func (d *Daemon) handleResource(w http.ResponseWriter, r *http.Request) {
	u := d.unit(r.PathValue("resource"))
	if u == nil {
		http.Error(w, "no such resource", http.StatusNotFound)
		return
	}
	d.answerJSON(w, u.view())
}

func (d *Daemon) handleQuestion(w http.ResponseWriter, r *http.Request) {
	o, err := parseOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply, known := d.question(r.PathValue("resource"), r.PathValue("question"), o)
	d.answerReply(w, reply, known)
}

func (d *Daemon) handleCommand(w http.ResponseWriter, r *http.Request) {
	o, err := parseOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply, known := d.run(r.Context(), r.PathValue("resource"), r.PathValue("verb"), o)
	if known && reply.Exit != 0 {
		d.log.Info("command refused", "resource", r.PathValue("resource"), "verb", r.PathValue("verb"), "exit", reply.Exit, "why", reply.Err)
	}
	d.answerReply(w, reply, known)
}

func parseOptions(values url.Values) (options, error) {
	o := options{volume: -1, values: values}
	if text := values.Get("volume"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return o, errors.New("volume is not a number: " + text)
		}
		o.volume = int(n)
	}
	return o, nil
}

func (d *Daemon) answerReply(w http.ResponseWriter, reply ctl.Reply, known bool) {
	if !known {
		http.Error(w, "no such verb or question", http.StatusNotFound)
		return
	}
	d.answerJSON(w, reply)
}

func (d *Daemon) answerJSON(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	d.answer(w, append(text, '\n'))
}

func (d *Daemon) answer(w http.ResponseWriter, text []byte) {
	if _, err := w.Write(text); err != nil {
		d.log.Debug("a client of the control socket left early", "err", err)
	}
}
