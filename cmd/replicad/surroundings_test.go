package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replicad/internal/reqtool"
	"replicad/nbd"
)

// daemonEnvironments are the cases around the daemon's other files, its sockets
// and its limits; and disks below which the storage itself fails.
var daemonEnvironments = []environment{
	{"failed write-back below a lone Primary", testFailedWriteBack},
	{"failing meta-disk", testFailingMetaDisk},
	{"disk with external metadata resized while down", testExternalResized},
	{"sparse metadata on a full file system", testSparseMetadata},
	{"status file on a full file system", testStatusFileFull},
	{"status file on a read-only file system", testStatusFileReadOnly},
	{"folder of the status file removed", testStatusFolderRemoved},
	{"disk and folder without permission", testNoPermission},
	{"control socket removed", testControlSocketRemoved},
	{"sockets removed with their folder", testSocketFolderRemoved},
	{"control socket path too long", testLongControlPath},
	{"NBD socket path too long", testLongNBDPath},
	{"file in the place of the NBD socket", testFileInTheWay},
	{"another process on the NBD socket", testForeignSocket},
	{"descriptor limit", testDescriptorLimit},
	{"descriptor limit too low to serve", testDescriptorLimitTiny},
	{"shortage of memory", testProtection},
}

// testFailedWriteBack: the kernel takes a write and cannot store it later. The
// ext4 below the disk lies on storage that is used up, which it was not told.
func testFailedWriteBack(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(map[string]string{"SIZE": "24"}); err != nil {
		t.Fatal(err)
	}
	tmpfsOn(t, filepath.Join(p.dir, "pool"), 16)
	small := filepath.Join(p.dir, "pool", "small")
	ext4On(t, small, 64)
	p.edit("DIR/a.img", "DIR/pool/small/a.img")
	if err := truncate(filepath.Join(small, "a.img"), 24<<20); err != nil {
		t.Fatal(err)
	}
	n, c := p.be1(), p.startAlone()
	failed := false
	for off := int64(0); off < 20<<20 && !failed; off += 1 << 20 {
		if _, err := c.WriteAt(random(1<<20), off); err != nil {
			failed = true
		} else if err := c.Flush(); err != nil {
			failed = errors.Is(err, nbd.EIO)
			if !failed {
				t.Fatalf("flush: %v, want EIO", err)
			}
		}
	}
	if !failed {
		t.Fatal("nothing fails")
	}
	n.awaitDisks("Diskless/DUnknown")
	n.says("level=ERROR.*input/output error")
}

func random(size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

func testFailingMetaDisk(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(map[string]string{"SIZE": "24"}); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(p.dir, "small")
	ext4On(t, small, 32)
	p.edit(`disk "DIR/a.img";`, `disk "DIR/a.img"; flexible-meta-disk "DIR/small/a.meta";`)
	if err := truncate(filepath.Join(small, "a.meta"), 4<<20); err != nil {
		t.Fatal(err)
	}
	c := p.settled()
	breakExt4(t, small)
	writeSome(t, p.be1(), c)
	p.be1().awaitDisks("Diskless/UpToDate")
	p.be1().says("metadata write failed, the disk is detached.*(read-only file system|input/output error)")
}

// testExternalResized: the metadata is found and knows how large the disk was.
func testExternalResized(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(map[string]string{"SIZE": "24"}); err != nil {
		t.Fatal(err)
	}
	p.edit(`disk "DIR/a.img";`, `disk "DIR/a.img"; flexible-meta-disk "DIR/a.meta";`)
	n := p.be1()
	if err := truncate(filepath.Join(p.dir, "a.meta"), 4<<20); err != nil {
		t.Fatal(err)
	}
	writeSome(t, n, p.startAlone())
	n.hangUp()
	awaitNoClient(t, n)
	n.must("down", "r0")
	for _, mib := range []int64{20, 28} {
		if err := os.Truncate(n.file("img"), mib<<20); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := n.run("up", "r0")
		if refused := code == 10 && strings.Contains(stderr, "(111)"); refused != (mib < 24) {
			t.Errorf("up with %d MiB instead of 24: exit code %d: %s", mib, code, stderr)
		}
		if mib < 24 {
			n.must("down", "r0")
		}
	}
	n.must("primary", "r0")
	c := n.dial()
	if c.Size() != 24<<20 {
		t.Errorf("the device has %d bytes, not what was agreed", c.Size())
	}
	writeSome(t, n, c)
}

// testSparseMetadata: an image whose metadata became holes, as a sparse copy
// makes them, is not attached where they could not be filled when it matters.
func testSparseMetadata(t *testing.T) {
	p := onSmall(t, tmpfsOn, 24, map[string]string{"SIZE": "512"})
	n := p.be1()
	n.must("create-md", "r0")
	f, err := os.OpenFile(p.smallImage(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const metaBytes = 64 << 10 // superblock, log, and most of the bitmap before them
	at := sizeOf(t, p.smallImage()) - metaBytes
	super := make([]byte, metaBytes)
	_, err = f.ReadAt(super, at)
	err = errors.Join(err, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, metaBytes-40<<10), f.Close())
	if err != nil {
		t.Fatal(err)
	}
	squeeze(t, p)
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := n.run("attach", "r0")
	if code != 10 || !strings.Contains(stderr, "reserve") || !strings.Contains(stderr, "no space left") {
		t.Errorf("attach: exit code %d: %s", code, stderr)
	}
	if err := os.Remove(filepath.Join(p.dir, "small", "ballast")); err != nil {
		t.Fatal(err)
	}
	n.must("attach", "r0")
}

// statusOn puts the status file of be1 on a file system of its own.
func statusOn(t *testing.T) (p *pair, n *testNode, file string) {
	t.Helper()
	p = newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	tmpfsOn(t, filepath.Join(p.dir, "small"), 1)
	p.edit(`status-file "DIR/`, `status-file "DIR/small/`)
	p.settled()
	return p, p.be1(), filepath.Join(p.dir, "small", "be1.proc")
}

// keptAgain checks that the trouble was said once, and that it is over.
func (n *testNode) keptAgain(t *testing.T, file string) {
	t.Helper()
	n.says("the status file is kept again")
	if got := n.says("the status file cannot be kept"); got != 1 {
		t.Errorf("the trouble is said %d times:\n%s", got, n.log())
	}
	text, err := os.ReadFile(file)
	if err != nil || !connected.Match(text) {
		t.Errorf("the status file holds %s (%v)", text, err)
	}
}

func awaitGone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(daemonPatience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", path)
		}
	}
}

func testStatusFileFull(t *testing.T) {
	p, n, file := statusOn(t)
	full := time.Now()
	for since := full; time.Since(since) < 2*statusTick; time.Sleep(10 * time.Millisecond) {
		squeeze(t, p)
		if _, err := os.Lstat(file); err == nil {
			since = time.Now() // what it left when it was removed was room for the next one
		}
		if time.Since(full) > daemonPatience {
			t.Fatalf("the status file is kept on a full file system:\n%s", n.log())
		}
	}
	n.says("the status file cannot be kept.*no space left on device")
	writeSome(t, n, n.client)
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is no longer true can be read (%v)", err)
	}
	if err := os.Remove(filepath.Join(p.dir, "small", "ballast")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(daemonPatience); ; time.Sleep(20 * time.Millisecond) {
		if text, err := os.ReadFile(file); err == nil && connected.Match(text) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the status file does not come back:\n%s", n.log())
		}
	}
	n.says("the status file is kept again")
	if got, attempts := n.says("the status file cannot be kept"), int(time.Since(full)/statusTick); got > 1+attempts/2 {
		t.Errorf("the trouble is said %d times in %d attempts:\n%s", got, attempts, n.log())
	}
}

// statusTick is how often a daemon writes its status file.
const statusTick = time.Second

func testStatusFileReadOnly(t *testing.T) {
	p, n, file := statusOn(t)
	small := filepath.Join(p.dir, "small")
	if err := unix.Mount("", small, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	n.says("the status file cannot be kept.*read-only file system")
	time.Sleep(2 * statusTick)
	writeSome(t, n, n.client)
	if err := unix.Mount("", small, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	n.keptAgain(t, file)
}

func testStatusFolderRemoved(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	p.edit(`status-file "DIR/`, `status-file "DIR/status/`)
	p.settled()
	folder := filepath.Join(p.dir, "status")
	if err := os.Rename(folder, folder+".gone"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(daemonPatience); ; time.Sleep(20 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(folder, "be1.proc")); err == nil && connected.Match(text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the status file does not come back:\n%s", p.be1().log())
		}
	}
}

// testNoPermission: a daemon of an ordinary user.
func testNoPermission(t *testing.T) {
	const nobody = 65534
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	n := p.be1()
	n.must("create-md", "r0")
	own := filepath.Join(p.dir, "own")
	makeDir(t, own)
	closed := filepath.Join(p.dir, "closed")
	p.edit(`status-file "DIR/`, `status-file "DIR/closed/`)
	err := errors.Join(os.Mkdir(closed, 0o700), os.Chmod(p.dir, 0o777), os.Chmod(filepath.Join(p.dir, "r.conf"), 0o644), os.Chmod(n.file("img"), 0o600))
	exe, err2 := os.Executable()
	text, err3 := os.ReadFile(exe)
	program := filepath.Join(own, "replicad")
	if err := errors.Join(err, err2, err3, os.WriteFile(program, text, 0o755)); err != nil {
		t.Fatal(err)
	}
	n.under = []string{reqtool.Path(t, "setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups", "env", "PATH=" + own + ":" + os.Getenv("PATH")}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	n.says("the status file cannot be kept.*permission denied")
	_, stderr, code := n.run("attach", "r0")
	if code != 10 || !strings.Contains(stderr, n.file("img")) || !strings.Contains(stderr, "permission denied") {
		t.Errorf("attach: exit code %d: %s", code, stderr)
	}
	if err := os.Chown(n.file("img"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	n.must("attach", "r0")
	if err := os.Chmod(closed, 0o777); err != nil {
		t.Fatal(err)
	}
	n.says("the status file is kept again")
}

func testControlSocketRemoved(t *testing.T) {
	p := newSystem(t, nil)
	n := p.be1()
	for _, files := range [][]string{{n.file("ctl")}, {n.file("ctl"), n.file("ctl.lock")}} {
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.await(connected, "status"); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.says("the control socket was removed and is made again"); got != 2 {
		t.Errorf("it is said %d times", got)
	}
	if _, stderr, code := n.run("run"); code != 20 || !strings.Contains(stderr, "another daemon has the socket") {
		t.Errorf("second daemon: exit code %d: %s", code, stderr)
	}
	if code, err := n.stop(); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	awaitGone(t, n.file("ctl"))
}

func testSocketFolderRemoved(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	makeDir(t, filepath.Join(p.dir, "run"))
	p.edit(`nbd-listen "unix:DIR/a.nbd"`, `nbd-listen "unix:DIR/run/a.nbd"`)
	n := p.be1()
	n.must("create-md", "r0")
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	n.must("primary", "--force", "r0")
	uri := "nbd+unix:///r0?socket=" + filepath.Join(p.dir, "run", "a.nbd")
	old, err := nbd.Dial(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Abort()
	if err := os.Rename(filepath.Join(p.dir, "run"), filepath.Join(p.dir, "gone")); err != nil {
		t.Fatal(err)
	}
	n.says("the socket for NBD clients was removed and is made again")
	fresh, err := nbd.Dial(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Abort()
	writeSome(t, n, old)
	writeSome(t, n, fresh)
	old.Abort()
	fresh.Abort()
	if code, err := n.stop(); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	awaitGone(t, filepath.Join(p.dir, "run", "a.nbd"))
}

// testProtection: what the daemon asks of the kernel against a shortage of
// memory is granted, or it says what was not.
func testProtection(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	n := p.be1()
	n.runFlags = []string{"--lock-memory"}
	writeSome(t, n, p.startAlone())
	if n.memory(t, "VmLck") == 0 {
		t.Error("no memory is locked")
	}
	t.Logf("%d of %d KiB are in memory", n.memory(t, "VmRSS"), n.memory(t, "VmLck"))
	if !mayRaiseLimits(t) {
		n.says("protection against a shortage of memory is not complete.*out-of-memory score")
		return
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", n.cmd.Process.Pid))
	if err != nil || string(score) != "-900\n" {
		t.Errorf("out-of-memory score %q (%v)", score, err)
	}
	if strings.Contains(n.log(), "mark threads as I/O flushers: operation not supported") {
		return // linked with cgo for this test; the program is not
	}
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", n.cmd.Process.Pid))
	if err != nil || len(stats) < 3 {
		t.Fatalf("threads %v (%v)", stats, err)
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		const noIO = 0x00080000 // PF_MEMALLOC_NOIO of include/linux/sched.h
		_, rest, _ := strings.Cut(string(text), ") ")
		flags, err2 := strconv.ParseUint(strings.Fields(rest)[6], 10, 64)
		if err := errors.Join(err, err2); err != nil || flags&noIO == 0 {
			t.Errorf("thread %s has flags %#x (%v)", stat, flags, err)
		}
	}
}

// mayRaiseLimits reports whether root here has CAP_SYS_RESOURCE; in containers
// it often has not.
func mayRaiseLimits(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`CapEff:\s+([0-9a-f]+)`).FindSubmatch(text)
	if m == nil {
		t.Fatal("no CapEff")
	}
	caps, err := strconv.ParseUint(string(m[1]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return caps&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func longName(dir string) string { return filepath.Join(dir, strings.Repeat("n", 108-len(dir)-1)) }

func testLongControlPath(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := p.be1().run("-s", longName(p.dir), "run")
	if code != 10 || !strings.Contains(stderr, "has 108 bytes: unix sockets take 107") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func testLongNBDPath(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	p.edit("unix:DIR/a.nbd", "unix:"+longName(p.dir))
	_, stderr, code := p.be1().run("run")
	if code != 10 || !strings.Contains(stderr, "the path of the socket is longer than 107 bytes") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func testFileInTheWay(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	n := p.be1()
	n.must("create-md", "r0")
	if err := os.WriteFile(n.file("nbd"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	n.says("a file that is not a socket is in the way")
	if text, err := os.ReadFile(n.file("nbd")); err != nil || string(text) != "precious" {
		t.Errorf("the file holds %q (%v)", text, err)
	}
}

func testForeignSocket(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	n := p.be1()
	n.must("create-md", "r0")
	l, err := net.Listen("unix", n.file("nbd"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	n.says("another process answers on this socket")
}

// testDescriptorLimit: clients that take all they can get leave enough for the
// peer and for verbs, and the log is not filled.
func testDescriptorLimit(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	p.be1().under = []string{reqtool.Path(t, "prlimit"), "--nofile=140:140"}
	p.settled()
	n := p.be1()
	for range 300 {
		c, err := net.Dial("unix", n.file("nbd"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	writeSome(t, n, n.client)
	for range 3 {
		p.be2().kill()
		if err := n.await(waiting, "cstate", "r0"); err != nil {
			t.Fatal(err)
		}
		if err := p.be2().start(); err != nil {
			t.Fatal(err)
		}
		p.settle()
	}
	if got := n.says("nbd client turned away"); got > 3 {
		t.Errorf("it is said %d times that clients are turned away", got)
	}
	if lines := strings.Count(n.log(), "too many open files"); lines > 0 {
		t.Errorf("descriptors ran out:\n%s", n.log())
	}
}

// testDescriptorLimitTiny: less than the configuration needs is said at the
// start; connections that find no descriptor are waited for without spinning.
func testDescriptorLimitTiny(t *testing.T) {
	p := newPair(t, shortTempDir(t))
	if err := p.write(nil); err != nil {
		t.Fatal(err)
	}
	p.be1().under = []string{reqtool.Path(t, "prlimit"), "--nofile=30:30"}
	p.settled()
	n := p.be1()
	n.says("the limit of file descriptors is too low for this configuration")
	var held []net.Conn
	for range 40 {
		if c, err := net.Dial("unix", n.file("ctl")); err == nil {
			held = append(held, c)
		}
	}
	n.says("(connections cannot be accepted for now|no file descriptor is left).*too many open files")
	before := n.cpu(t)
	time.Sleep(time.Second)
	if used := n.cpu(t) - before; used > 30 {
		t.Errorf("waiting for a descriptor takes %d ticks of a second's 100", used)
	}
	writeSome(t, n, n.client)
	for _, c := range held {
		_ = c.Close()
	}
	if err := n.await(regexp.MustCompile("^Connected\n"), "cstate", "r0"); err != nil {
		t.Error(err)
	}
	if lines := strings.Count(n.log(), "too many open files"); lines > 6 {
		t.Errorf("it is said %d times:\n%s", lines, n.log())
	}
}
