package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"replicad/nbd"
)

const (
	labelGoNBD      = "go-nbd"
	labelNBDKit     = "nbdkit"
	labelQEMU       = "qemu-nbd"
	labelNBDFile    = "nbd-file"
	labelStandalone = "standalone"
)

// serverLabels are the servers that can be compared, in the order of the table.
func serverLabels() []string {
	return []string{labelGoNBD, labelNBDKit, labelQEMU, labelNBDFile, labelStandalone, "A", "B", "C"}
}

// readyPatience is how long a server may take until it answers.
const readyPatience = 15 * time.Second

// errAbsent means that a server cannot be had here, which is no fault.
var errAbsent = errors.New("not here")

// server is one row's partner: an export and the processes behind it.
type server struct {
	label   string
	uri     string
	image   string // holds the export's bytes from its beginning on
	twin    string // the peer's copy; empty when there is none
	version string
	procs   []*process
	flushes bool // the server knows FLUSH
}

// cpuTime is the CPU time of all of the server's processes so far.
func (s *server) cpuTime() (total time.Duration) {
	for _, p := range s.procs {
		total += p.cpuTime()
	}
	return total
}

// alive reports an error if one of the processes is gone.
func (s *server) alive() error {
	for _, p := range s.procs {
		if err := p.ended(); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the processes in the order they were started.
func (s *server) stop() error {
	var errs []error
	for _, p := range s.procs {
		errs = append(errs, p.stop())
	}
	return errors.Join(errs...)
}

// lab is where servers run: a folder for images, which should be in memory, and
// one for sockets and logs, whose path must be short.
type lab struct {
	opt     options
	images  string
	run     string
	servers []*server
	program string // replicad, or why there is none, once it was looked for
	absent  error
}

func newLab(opt options) (*lab, error) {
	images, err := os.MkdirTemp(opt.dir, "replicad-bench-")
	if err != nil {
		return nil, fmt.Errorf("make image folder: %w", err)
	}
	run, err := os.MkdirTemp("", "rb-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make run folder: %w", err), os.RemoveAll(images))
	}
	return &lab{opt: opt, images: images, run: run}, nil
}

// close ends what still runs and removes the folders.
func (l *lab) close() error {
	var errs []error
	for _, s := range l.servers {
		if err := s.stop(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", s.label, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(l.images), os.RemoveAll(l.run))...)
}

// start starts the server of a label and waits until it answers. The server is
// the lab's from the moment it has a process.
func (l *lab) start(ctx context.Context, label string) (*server, error) {
	s := &server{label: label, image: filepath.Join(l.images, label+".img")}
	l.servers = append(l.servers, s)
	if isReplicad(label) {
		return s, l.startReplicad(ctx, s)
	}
	return s, l.startPeer(ctx, s)
}

// startPeer starts a server that is one process over one file.
func (l *lab) startPeer(ctx context.Context, s *server) error {
	program, err := programOf(s.label)
	if err != nil {
		return err
	}
	if err := createImage(s.image, l.opt.size, 0); err != nil {
		return err
	}
	at, err := l.endpoint(s.label)
	if err != nil {
		return err
	}
	s.uri = at.uri("")
	p, err := startProcess(filepath.Join(l.run, s.label+".log"), program, l.arguments(s, at)...)
	if err != nil {
		return err
	}
	s.procs = append(s.procs, p)
	s.version = versionOf(s.label, program)
	return s.awaitReady(ctx)
}

// programOf finds the program behind a label.
func programOf(label string) (string, error) {
	if label == labelGoNBD || label == labelNBDFile {
		return os.Executable()
	}
	program, err := exec.LookPath(label)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not installed", errAbsent, label)
	}
	return program, nil
}

func (l *lab) arguments(s *server, at endpoint) []string {
	switch s.label {
	case labelNBDKit:
		return append([]string{"-f"}, append(at.choose([]string{"-U", at.path}, []string{"-i", at.host, "-p", at.port}), "file", "file="+s.image)...)
	case labelQEMU:
		args := []string{"-f", "raw", "-t", "-e", "8", "--cache=writeback", "--aio=threads"}
		return append(append(args, at.choose([]string{"-k", at.path}, []string{"-b", at.host, "-p", at.port})...), s.image)
	}
	args := []string{serveVerb, "-kind", s.label, "-listen", at.listen(), "-file", s.image}
	if l.opt.profile != "" {
		args = append(args, "-profile", filepath.Join(l.opt.profile, s.label+".pprof"))
	}
	return args
}

// awaitReady waits until the server takes clients.
func (s *server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		c, err := nbd.Dial(ctx, s.uri)
		if err == nil {
			return c.Close()
		}
		if gone := s.alive(); gone != nil {
			return gone
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// verify makes sure that the server is worth measuring: it gives back what was
// written, through another connection too, and has put it into its file.
func (s *server) verify(ctx context.Context, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	writer, err := nbd.Dial(ctx, s.uri)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer writer.Close()
	reader, err := nbd.Dial(ctx, s.uri)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer reader.Close()
	if got := writer.Size(); got < uint64(size) {
		return fmt.Errorf("verify: the export has %d bytes, needed are %d", got, size)
	}
	s.flushes = writer.Info().Flags&nbd.FlagSendFlush != 0
	if err := s.verifyData(writer, reader, size); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	return nil
}

func (s *server) verifyData(writer, reader *nbd.Client, size int64) error {
	for i, at := range []int64{0, stampEvery, size/2 - stampEvery, size - chunkBytes} {
		p, q := alignedBytes(chunkBytes), alignedBytes(chunkBytes)
		if i < 2 {
			p, q = p[:stampEvery], q[:stampEvery]
		}
		if _, err := reader.ReadAt(q, at); err != nil {
			return fmt.Errorf("read what the image holds: %w", err)
		}
		if err := checkStamp(q, at); err != nil {
			return fmt.Errorf("read what the image holds: %w", err)
		}
		noise(p, uint64(at)+100)
		stamp(p, at, 1)
		if _, err := writer.WriteAt(p, at); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := s.holds(reader, q, p, at); err != nil {
			return err
		}
	}
	if !s.flushes {
		return nil
	}
	return writer.Flush()
}

// holds checks that the export and its file have want at offset at; q is room
// for it.
func (s *server) holds(reader *nbd.Client, q, want []byte, at int64) error {
	if _, err := reader.ReadAt(q, at); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(q, want) {
		return fmt.Errorf("read back other bytes than were written at %d", at)
	}
	f, err := os.Open(s.image)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	if _, err := f.ReadAt(q, at); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	if !bytes.Equal(q, want) {
		return fmt.Errorf("the image has other bytes than were written at %d", at)
	}
	return nil
}

// endpoint is where a server listens.
type endpoint struct {
	path       string // of a unix socket; empty for TCP
	host, port string
}

// endpoint makes an address for a server that is about to start.
func (l *lab) endpoint(label string) (endpoint, error) {
	if l.opt.transport == "unix" {
		return endpoint{path: filepath.Join(l.run, label+".sock")}, nil
	}
	address, err := freeAddress()
	if err != nil {
		return endpoint{}, err
	}
	host, port, err := net.SplitHostPort(address)
	return endpoint{host: host, port: port}, err
}

// freeAddress is a loopback address nobody listens on at this moment.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

func (e endpoint) choose(unix, tcp []string) []string {
	if e.path != "" {
		return unix
	}
	return tcp
}

func (e endpoint) listen() string {
	if e.path != "" {
		return "unix:" + e.path
	}
	return net.JoinHostPort(e.host, e.port)
}

func (e endpoint) uri(export string) string {
	if e.path != "" {
		return "nbd+unix:///" + export + "?socket=" + e.path
	}
	return "nbd://" + net.JoinHostPort(e.host, e.port) + "/" + export
}
