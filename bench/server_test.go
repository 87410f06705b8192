package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replicad/nbd"
)

// errCause is the innermost error.
func errCause(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}

// honest is a server whose export is a real file.
func honest(t *testing.T) (*server, *export) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := createImage(image, testSize, 0); err != nil {
		t.Fatal(err)
	}
	e := newExport()
	e.data = nil
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &server{label: "test", image: image, uri: serveExport(t, &spoilt{fileExport{f, testSize}, e})}, e
}

// spoilt is a file export whose answers a test can spoil.
type spoilt struct {
	fileExport
	script *export
}

func (e *spoilt) Open(nbd.ClientInfo) (nbd.Handler, error) { return e, nil }

func (e *spoilt) Serve(r *nbd.Request) {
	err := e.perform(r)
	if e.script.spoil != nil && err == nil {
		err = e.script.spoil(r)
	}
	r.Reply(err)
}

func TestVerifyAcceptsAnHonestServer(t *testing.T) {
	s, _ := honest(t)
	if err := s.verify(t.Context(), testSize); err != nil {
		t.Fatal(err)
	}
	if !s.flushes {
		t.Error("FLUSH was not noticed")
	}
	if err := s.check(t.Context(), testSize); err != nil {
		t.Error(err)
	}
}

func TestVerifyCatchesLiars(t *testing.T) {
	for name, spoil := range map[string]func(r *nbd.Request) error{
		"refuses flushes": func(r *nbd.Request) error {
			if r.Op == nbd.OpFlush {
				return nbd.EIO
			}
			return nil
		},
		"refuses large writes": func(r *nbd.Request) error {
			if r.Op == nbd.OpWrite && r.Length > stampEvery {
				return nbd.EIO
			}
			return nil
		},
		"flips a bit": func(r *nbd.Request) error {
			if r.Op == nbd.OpRead {
				r.Data[len(r.Data)-1] ^= 1
			}
			return nil
		},
		"reads another place": func(r *nbd.Request) error {
			if r.Op == nbd.OpRead {
				stamp(r.Data, int64(r.Offset)+stampEvery, 0)
			}
			return nil
		},
	} {
		s, script := honest(t)
		script.spoil = spoil
		if err := s.verify(t.Context(), testSize); err == nil {
			t.Errorf("a server that %s passed", name)
		}
	}
}

func TestVerifyComparesWithTheImage(t *testing.T) {
	s, _ := honest(t)
	other := s.image + ".other"
	if err := createImage(other, testSize, 0); err != nil {
		t.Fatal(err)
	}
	s.image = other // writes are readable, but never get here
	if err := s.verify(t.Context(), testSize); err == nil || !strings.Contains(err.Error(), "image") {
		t.Errorf("writes that reach no file: %v", err)
	}
}

func TestVerifyWantsTheWholeSize(t *testing.T) {
	s, _ := honest(t)
	if err := s.verify(t.Context(), testSize+1); err == nil {
		t.Error("an export that is too small passed")
	}
}

func TestCheckFindsDamage(t *testing.T) {
	s, _ := honest(t)
	overwrite(t, s.image, testSize-stampEvery, make([]byte, 8))
	if err := s.check(t.Context(), testSize); !errors.Is(err, errMisplaced) {
		t.Errorf("a lost block: %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	socket := endpoint{path: "/run/x.sock"}
	if got := socket.listen() + " " + socket.uri("r0"); got != "unix:/run/x.sock nbd+unix:///r0?socket=/run/x.sock" {
		t.Error(got)
	}
	tcp := endpoint{host: "127.0.0.1", port: "7"}
	if got := tcp.listen() + " " + tcp.uri(""); got != "127.0.0.1:7 nbd://127.0.0.1:7/" {
		t.Error(got)
	}
}

func TestSessionNotesDamage(t *testing.T) {
	good, _ := honest(t)
	bad, _ := honest(t)
	bad.label = "bad"
	overwrite(t, bad.image, 0, []byte{1})
	s := &session{opt: options{size: testSize}, ready: []*server{good, bad}, screen: io.Discard}
	s.check(t.Context())
	if !s.failed || len(s.notes) != 1 || !strings.HasPrefix(s.notes[0], "FAULT: bad: ") {
		t.Errorf("failed %v, notes %q", s.failed, s.notes)
	}
}
