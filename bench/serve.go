package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/backend"
	gonbd "github.com/pojntfx/go-nbd/pkg/server"
	"golang.org/x/sys/unix"

	"replicad/nbd"
)

// serveVerb makes this program one of the servers: "bench serve -kind …".
const serveVerb = "serve"

var errKind = errors.New("no such kind of server")

// serve runs a server over a file until SIGTERM.
func serve(args []string) (err error) {
	fs := flag.NewFlagSet(serveVerb, flag.ContinueOnError)
	kind := fs.String("kind", "", "go-nbd or nbd-file")
	listen := fs.String("listen", "", "unix:PATH or HOST:PORT")
	file := fs.String("file", "", "the image")
	profile := fs.String("profile", "", "write a CPU profile to this file")
	if err := fs.Parse(args); err != nil {
		return err
	}
	f, err := os.OpenFile(*file, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	l, err := nbd.Listen(*listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	finish, err := startProfile(*profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish()) }()
	switch *kind {
	case labelGoNBD:
		return serveGoNBD(ctx, l, f)
	case labelNBDFile:
		return serveFile(ctx, l, f)
	}
	return fmt.Errorf("%w: %q", errKind, *kind)
}

// startProfile profiles the CPU into path, if there is one, until finish.
func startProfile(path string) (finish func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("start profile: %w", err), f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// serveGoNBD is go-nbd's own server over its own file backend, as its example
// runs it.
func serveGoNBD(ctx context.Context, l net.Listener, f *os.File) error {
	exports := []*gonbd.Export{{Description: "bench", Backend: backend.NewFileBackend(f)}}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer conn.Close()
			if err := gonbd.Handle(conn, exports, &gonbd.Options{SupportsMultiConn: true}); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "connection:", err)
			}
		}()
	}
}

// serveFile is this project's NBD server over a plain file: what it costs
// without replication.
func serveFile(ctx context.Context, l net.Listener, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("size of image: %w", err)
	}
	srv, err := nbd.NewServer(nbd.Config{})
	if err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	if err := srv.Add(&fileExport{file: f, size: uint64(info.Size())}); err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	closed := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		closed <- srv.Close(limit)
	})
	if err := srv.Serve(l); !errors.Is(err, nbd.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return <-closed
}

// fileExport is an export over a file in the page cache: every request is done
// at once, on the connection's goroutine. Any goroutine may use it.
type fileExport struct {
	file *os.File
	size uint64
}

func (e *fileExport) Name() string               { return "" }
func (e *fileExport) Description() string        { return "bench" }
func (e *fileExport) Size() uint64               { return e.size }
func (e *fileExport) Attributes() nbd.Attributes { return nbd.Attributes{MultiConn: true} }
func (e *fileExport) Drain()                     {}
func (e *fileExport) Close()                     {}

func (e *fileExport) Open(nbd.ClientInfo) (nbd.Handler, error) { return e, nil }

func (e *fileExport) Serve(r *nbd.Request) { r.Reply(e.perform(r)) }

func (e *fileExport) perform(r *nbd.Request) error {
	var err error
	switch r.Op {
	case nbd.OpRead:
		_, err = e.file.ReadAt(r.Data, int64(r.Offset))
	case nbd.OpWrite:
		_, err = e.file.WriteAt(r.Data, int64(r.Offset))
	case nbd.OpFlush:
		return unix.Fdatasync(int(e.file.Fd()))
	default:
		return nbd.ENOTSUP
	}
	if err == nil && r.FUA {
		err = unix.Fdatasync(int(e.file.Fd()))
	}
	return err
}
