package demo

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// killTime is how long the load runs before the Primary dies.
const killTime = 1200 * time.Millisecond

// killUnderC kills be1 and finds every completed write on be2.
func (s *stage) killUnderC() error {
	s.cable.SetLength(2 * time.Millisecond)
	s.say("   The cable gets a length of 2 ms each way. The load runs; then be1 is killed (SIGKILL), and its cable dies with it.")
	if err := s.killMidWrite(s.a); err != nil {
		return err
	}
	if err := s.takeOver(s.b); err != nil {
		return err
	}
	f, err := s.ledger.Compare(s.client)
	if err != nil {
		return err
	}
	s.say("   The clients saw %d writes complete, and %d had no answer yet when be1 died (%d of these arrived all the same).",
		f.Completed, f.Open, f.OpenKept)
	if f.Lost != 0 || f.Foreign != 0 {
		return fmt.Errorf("%d completed writes are lost, %d blocks hold what nobody wrote", f.Lost, f.Foreign)
	}
	if f.Open == 0 {
		return errors.New("no write was in flight at the kill, so nothing was proved")
	}
	s.say("   Each of the %d is on be2. None was lost.", f.Completed)
	if err := s.checkFilesUntouched(); err != nil {
		return err
	}
	return s.checkGrownFS(s.load.filesFlushed())
}

// killMidWrite runs the load on a Primary and kills it.
func (s *stage) killMidWrite(n *node) error {
	s.newLoad(s.load.next)
	s.load.start(s.ctx)
	pause(s.ctx, killTime)
	// The cable first: what is on the way must not arrive while the kernel
	// takes the process apart.
	s.cable.SetCut(true)
	n.kill()
	select {
	case <-s.load.failed:
	case <-time.After(5 * time.Second):
		return errors.New("the load did not notice that the Primary was killed")
	}
	_ = s.load.stop() // fails, as it should
	s.client.Abort()
	s.client = nil
	return s.ctx.Err()
}

// takeOver promotes the survivor once it knows that it is alone, and opens the
// device there.
func (s *stage) takeOver(n *node) error {
	deadline := time.Now().Add(15 * time.Second)
	for {
		_, err := n.run(s.ctx, "primary", "r0")
		if err == nil {
			break
		}
		if time.Now().After(deadline) || s.ctx.Err() != nil {
			return err
		}
		pause(s.ctx, 100*time.Millisecond)
	}
	s.say("   %s# replicad primary r0", n.name)
	if err := s.status(); err != nil {
		return err
	}
	return s.dial(n)
}

// checkFilesUntouched reads the image of the first half back.
func (s *stage) checkFilesUntouched() error {
	got := make([]byte, len(s.files))
	if _, err := s.client.ReadAt(got, 0); err != nil {
		return fmt.Errorf("read the files back: %w", err)
	}
	if !bytes.Equal(got, s.files) {
		return errors.New("the image with the real files has changed")
	}
	return nil
}

// checkGrownFS checks a copy of the file system that was being written: it can
// be repaired, and the first promised files are whole.
func (s *stage) checkGrownFS(promised int) error {
	if s.fs == nil || tool("e2fsck") == "" {
		s.say("   (e2fsprogs is not installed, so the file system under load is not checked.)")
		return nil
	}
	image := filepath.Join(s.dir, "survivor.ext4")
	if err := copyOut(image, s.client, s.plan.fsAt, s.plan.fsSize); err != nil {
		return err
	}
	if err := repairFS(s.ctx, image); err != nil {
		return err
	}
	fromFirst, all, err := s.fs.intactFiles(s.ctx, s.dir, image)
	if err != nil {
		return err
	}
	s.say("   The file system that was growing: e2fsck -fy ends clean; %d files are whole, of %d that had been flushed.", all, s.load.filesFlushed())
	if fromFirst < promised {
		return fmt.Errorf("only the first %d of %d flushed files are whole", fromFirst, promised)
	}
	return nil
}

// comeBack starts the killed node again.
func (s *stage) comeBack() error { return s.rejoin(s.a, s.b) }

func (s *stage) rejoin(back, serving *node) error {
	s.say("   Meanwhile %s serves, and writes go on.", serving.name)
	s.newLoad(s.load.next)
	s.load.start(s.ctx)
	pause(s.ctx, 300*time.Millisecond)
	s.cable.SetCut(false)
	s.say("   %s# replicad run &", back.name)
	if err := back.start(s.ctx); err != nil {
		return err
	}
	if err := s.awaitTarget(back); err != nil {
		return err
	}
	if err := s.load.stop(); err != nil {
		return err
	}
	if err := s.watchResync(45*time.Second, false); err != nil {
		return err
	}
	if err := s.status(); err != nil {
		return err
	}
	f, err := s.ledger.Compare(s.client)
	if err != nil {
		return err
	}
	if f.Lost != 0 || f.Foreign != 0 {
		return fmt.Errorf("%d completed writes are lost, %d blocks hold what nobody wrote", f.Lost, f.Foreign)
	}
	return s.sameDisks()
}

// awaitTarget waits until the returning node is being synchronised, or is
// already done.
func (s *stage) awaitTarget(back *node) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		text, err := back.proc(s.ctx)
		switch {
		case err != nil:
			return err
		case contains(text, "cs:SyncTarget"):
			s.say("   It marked what it was writing when it died, and is SyncTarget now; what it alone had is overwritten:")
			s.show(deviceLines(text))
			return nil
		case contains(text, "cs:SyncSource") || contains(text, "cs:StandAlone"):
			return fmt.Errorf("%s became something else than SyncTarget:\n%s", back.name, text)
		case contains(text, "cs:Connected ") && contains(text, "ds:UpToDate/UpToDate"):
			s.say("   It caught up faster than one can look.")
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not become SyncTarget:\n%s", back.name, text)
		}
		pause(s.ctx, 30*time.Millisecond)
	}
}

// killUnderA kills be2, the Primary of now, and measures what be1 lacks.
func (s *stage) killUnderA() error {
	if err := s.writeConfigs("A"); err != nil {
		return err
	}
	for _, n := range []*node{s.a, s.b} {
		if err := s.do(n, "adjust", "r0"); err != nil {
			return err
		}
	}
	const length = 40 * time.Millisecond
	s.cable.SetLength(length)
	s.say("   Under A a write completes once it is on the local disk and handed to the network. The cable gets a length of %s.", length)
	if err := s.killMidWrite(s.b); err != nil {
		return err
	}
	if err := s.takeOver(s.a); err != nil {
		return err
	}
	f, err := s.ledger.Compare(s.client)
	if err != nil {
		return err
	}
	s.say("   Of %d completed writes, the last %d (%d KiB) were still in the cable and are lost: the price of not waiting.", f.Completed, f.Lost, f.Lost*blockSize/1024)
	if f.Foreign != 0 || f.Disorder != 0 {
		return fmt.Errorf("%d blocks hold what nobody wrote, %d writes overtook a lost one", f.Foreign, f.Disorder)
	}
	if f.Lost == 0 {
		return errors.New("nothing was lost, so the kill did not come in mid-write")
	}
	s.say("   What is there is what there was a moment earlier: no write is there that was issued after a lost one had completed.")
	if err := s.checkFilesUntouched(); err != nil {
		return err
	}
	return s.checkGrownFS(0)
}

func (s *stage) theEnd() error {
	if err := s.ledger.Adopt(s.client); err != nil {
		return err
	}
	if s.fs != nil {
		s.load.next = len(s.fs.steps) // a file system cannot go on from a lost tail
	}
	if err := s.rejoin(s.b, s.a); err != nil {
		return err
	}
	if err := s.hangUp(); err != nil {
		return err
	}
	for _, n := range []*node{s.b, s.a} {
		code, err := n.stop()
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("the daemon of %s ended with exit code %d", n.name, code)
		}
		s.say("   SIGTERM to %s: it let its client go, flushed, demoted, said goodbye, and exited with 0.", n.name)
	}
	return nil
}

func contains(text, what string) bool { return strings.Contains(text, what) }

// deviceLines leaves out the header of /proc/drbd.
func deviceLines(text string) string {
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		if _, rest, ok = strings.Cut(rest, "\n"); ok {
			return rest
		}
	}
	return text
}
