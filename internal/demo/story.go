package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// step is a chapter: it does what its title says and fails if that is not so.
type step struct {
	title string
	play  func(*stage) error
}

var story = []step{
	{"Two nodes are set up", (*stage).setUp},
	{"be1 becomes Primary, and everything is copied once", (*stage).firstSync},
	{"A file system is written to the device", (*stage).writeFiles},
	{"The link is cut, and the Primary goes on alone", (*stage).cutLink},
	{"The link heals, and only what changed is copied", (*stage).healLink},
	{"The Primary is killed in the middle of writes, under protocol C", (*stage).killUnderC},
	{"The old Primary comes back and catches up", (*stage).comeBack},
	{"The same under protocol A, which promises less", (*stage).killUnderA},
	{"The other one comes back, and both are stopped", (*stage).theEnd},
}

// fsSteps is how many files the growing file system gets in the end; each
// chapter that writes gets some of them.
const fsSteps = 120

func (s *stage) setUp() error {
	s.say("   Each node has a disk of %d MiB, which is a file here, a configuration, and later a daemon.", s.size>>20)
	s.say("   They talk over 127.0.0.1 through a cable that the demo can cut: between the two daemons it carries the")
	s.say("   bytes of their connections, with some time on the way. Cut, it swallows them and tells nobody.")
	for _, n := range []*node{s.a, s.b} {
		f, err := os.Create(n.disk)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(s.size), f.Close()); err != nil {
			return err
		}
	}
	if err := s.writeConfigs("C"); err != nil {
		return err
	}
	for _, n := range []*node{s.a, s.b} {
		if err := s.do(n, "create-md", "r0"); err != nil {
			return err
		}
	}
	for _, n := range []*node{s.a, s.b} {
		s.say("   %s# replicad run &", n.name)
		if err := n.start(s.ctx); err != nil {
			return err
		}
	}
	if err := s.do(s.a, "wait-connect", "--timeout", "15", "r0"); err != nil {
		return err
	}
	s.say("   Connected. Neither knows whose data is good, so both are Inconsistent:")
	return errors.Join(s.status(), s.await(s.a, "dstate", "Inconsistent/Inconsistent", 5*time.Second))
}

func (s *stage) firstSync() error {
	if err := s.do(s.a, "primary", "--force", "r0"); err != nil {
		return err
	}
	if err := s.watchResync(time.Minute, false); err != nil {
		return err
	}
	if err := s.do(s.a, "wait-sync", "--timeout", "15", "r0"); err != nil {
		return err
	}
	s.say("   A second Primary is refused, and so is whoever opens the device on the Secondary:")
	if err := s.refused(s.b, 11, "primary", "r0"); err != nil {
		return err
	}
	err := s.dial(s.b)
	if err == nil {
		return errors.New("the Secondary let a client in")
	}
	s.show(err.Error())
	return nil
}

// refused runs a verb that has to fail with a code.
func (s *stage) refused(n *node, code int, words ...string) error {
	err := s.do(n, words...)
	refusal, ok := errors.AsType[*verbError](err)
	if !ok || refusal.code != code {
		return fmt.Errorf("%s on %s: %w, instead of exit code %d", words[0], n.name, errOr(err), code)
	}
	s.show(refusal.stderr)
	return nil
}

var errNone = errors.New("it succeeded")

func errOr(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

func (s *stage) writeFiles() error {
	if err := s.dial(s.a); err != nil {
		return err
	}
	s.plan = planFor(int64(s.client.Size()))
	tree, image := filepath.Join(s.dir, "files"), filepath.Join(s.dir, "files.image")
	count, err := gatherFiles(tree, s.exe, s.plan.filesSize/2)
	if err != nil {
		return fmt.Errorf("gather files: %w", err)
	}
	if err := packImage(s.ctx, image, tree, s.plan.filesSize); err != nil {
		return err
	}
	if s.files, err = os.ReadFile(image); err != nil {
		return err
	}
	kind := "an ext4 file system"
	if tool("mkfs.ext4") == "" {
		kind = "a tar archive (mkfs.ext4 is not installed)"
	}
	s.say("   %d real files in %s of %d MiB go through the NBD socket of be1.", count, kind, s.plan.filesSize>>20)
	if err := writeAll(s.client, 0, s.files); err != nil {
		return err
	}
	if err := s.layFoundations(); err != nil {
		return err
	}
	return s.status()
}

// layFoundations writes what the load begins with: the file system that will
// grow, and the records.
func (s *stage) layFoundations() error {
	var err error
	if s.fs, err = growFS(s.ctx, s.dir, s.plan.fsSize, fsSteps); err != nil {
		return err
	}
	if s.fs == nil {
		s.say("   (Without mkfs.ext4 and debugfs there is no second file system to grow under load.)")
	} else {
		s.say("   A second, empty file system of %d MiB follows: the load below adds file after file to it.", s.plan.fsSize>>20)
		if err := writeAll(s.client, s.plan.fsAt, s.fs.base); err != nil {
			return err
		}
		for off := int64(0); off < s.plan.fsSize; off += blockSize {
			s.ledger.Baseline(s.plan.fsAt+off, s.fs.base[off:off+blockSize])
		}
	}
	blank := make([]byte, s.plan.records*blockSize)
	if err := writeAll(s.client, s.plan.recordsAt, blank); err != nil {
		return err
	}
	for i := range s.plan.records {
		s.ledger.Baseline(s.plan.recordsAt+i*blockSize, blank[:blockSize])
	}
	return nil
}

func (s *stage) cutLink() error {
	s.cable.SetCut(true)
	s.say("   Cut. The load starts now: it adds files and flushes after each, and overwrites 4 KiB records from %d tasks.", recordTasks)
	s.newLoad(0)
	s.load.start(s.ctx)
	if err := s.await(s.a, "cstate", "WFConnection", 15*time.Second); err != nil {
		return err
	}
	s.say("   be1 waited for its peer as long as its timeouts say, then went on alone. What be2 lacks is counted as oos:")
	first, err := s.outOfSync(s.a)
	if err != nil {
		return err
	}
	pause(s.ctx, time.Second)
	second, err := s.outOfSync(s.a)
	if err != nil {
		return err
	}
	s.say("      oos:%d, and a second later oos:%d (KiB)", first, second)
	if second <= first {
		return fmt.Errorf("oos did not grow: %d KiB, then %d", first, second)
	}
	if err := s.load.stop(); err != nil {
		return err
	}
	if err := s.await(s.b, "cstate", "WFConnection", 10*time.Second); err != nil {
		return err
	}
	if err := s.status(); err != nil {
		return err
	}
	return s.expect(s.a, "dstate", "UpToDate/DUnknown")
}

func (s *stage) healLink() error {
	oos, err := s.outOfSync(s.a)
	if err != nil {
		return err
	}
	s.say("   The resync is slowed down, so that it can be watched:")
	rate := fmt.Sprintf("--resync-rate=%dK", max(oos/3, 256))
	for _, n := range []*node{s.a, s.b} {
		if err := s.do(n, "disk-options", rate, "r0"); err != nil {
			return err
		}
	}
	s.cable.SetCut(false)
	s.say("   The cable is whole again.")
	if err := s.watchResync(45*time.Second, true); err != nil {
		return err
	}
	for _, n := range []*node{s.a, s.b} {
		if err := s.do(n, "adjust", "r0"); err != nil {
			return err
		}
	}
	s.say("   Both disks are the same again, byte for byte:")
	return s.sameDisks()
}

// sameDisks compares the data area of both disks.
func (s *stage) sameDisks() error {
	size := int64(0)
	if s.client != nil {
		if err := s.client.Flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		size = int64(s.client.Size())
	}
	equal, err := sameContent(s.a.disk, s.b.disk, size)
	if err != nil {
		return err
	}
	if !equal {
		return errors.New("the disks differ")
	}
	s.say("      %d bytes compared, no difference", size)
	return nil
}

func sameContent(a, b string, size int64) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer func() { _ = fa.Close() }()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer func() { _ = fb.Close() }()
	const piece = 1 << 20
	bufA, bufB := make([]byte, piece), make([]byte, piece)
	for off := int64(0); off < size; off += piece {
		n := min(piece, size-off)
		if _, err := io.ReadFull(io.NewSectionReader(fa, off, n), bufA[:n]); err != nil {
			return false, err
		}
		if _, err := io.ReadFull(io.NewSectionReader(fb, off, n), bufB[:n]); err != nil {
			return false, err
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			return false, nil
		}
	}
	return true, nil
}
