package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replicad/internal/figure"
	"replicad/internal/reqtool"
	"replicad/nbd"
)

// Bad environments, made by real means: file systems that are full, read-only
// or broken, files that shrink or vanish, limits of the kernel. The daemon is
// the program itself, and what it logs is part of the test.

const ownMountsEnv = "REPLICAD_TEST_OWN_MOUNTS"

// environment is one case.
type environment struct {
	name string
	run  func(*testing.T)
}

// diskEnvironments are the cases around the files below the disks.
var diskEnvironments = []environment{
	{"full tmpfs below a lone Primary", func(t *testing.T) { testFullAlone(t, tmpfsOn) }},
	{"full ext4 below a lone Primary", func(t *testing.T) { testFullAlone(t, ext4On) }},
	{"full file system below a Primary with a good peer", testFullWithPeer},
	{"full file system below a Secondary", testFullSecondary},
	{"file system goes read-only below a Primary with a good peer", testReadOnlyUnderneath},
	{"file system goes read-only below a lone Primary", testReadOnlyAlone},
	{"read-only file system at attach", testReadOnlyAttach},
	{"disk file cut while attached", testCutFile},
	{"disk file cut while idle", testCutIdle},
	{"disk file removed and put back while attached", testRemovedFile},
	{"disk file shrunk or grown while down", testResizedWhileDown},
}

// environments counts the cases for the summary of a CI run.
var environments atomic.Int64

// TestBadEnvironments runs in a mount namespace of its own, so that whatever
// happens to the test nothing stays mounted.
func TestBadEnvironments(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if os.Getenv(ownMountsEnv) == "" {
		inOwnMounts(t)
		return
	}
	t.Run("all", func(t *testing.T) {
		for _, c := range append(diskEnvironments, daemonEnvironments...) {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel() // most of their time is waiting
				c.run(t)
				if !t.Failed() && !t.Skipped() {
					environments.Add(1)
				}
			})
		}
	})
	figure.Print("bad-environments", environments.Load())
}

func inOwnMounts(t *testing.T) {
	cmd := exec.Command(reqtool.Path(t, "unshare"), "--mount", "--propagation", "private",
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.parallel=4", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), ownMountsEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// mountOn makes a small file system on an empty folder for the test.
type mountOn func(t *testing.T, dir string, mib int)

func tmpfsOn(t *testing.T, dir string, mib int) {
	t.Helper()
	makeDir(t, dir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// ext4On mounts a loop device whose image lies in /tmp, with the default
// delayed allocation: a write takes its blocks only when it is written back.
func ext4On(t *testing.T, dir string, mib int) {
	t.Helper()
	makeDir(t, dir)
	image := dir + ".ext4"
	if err := truncate(image, int64(mib)<<20); err != nil {
		t.Fatal(err)
	}
	tool(t, reqtool.Path(t, "mkfs.ext4"), "-q", "-F", "-m", "0", image)
	tool(t, reqtool.Path(t, "mount"), "-o", "loop,errors=remount-ro", image, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func makeDir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// onSmall makes a pair whose node be1 has its disk, and nothing else, on a
// small file system of its own.
func onSmall(t *testing.T, mount mountOn, mib int, vars map[string]string) *pair {
	t.Helper()
	p := newPair(t, shortTempDir(t))
	small := filepath.Join(p.dir, "small")
	mount(t, small, mib)
	if err := p.write(vars); err != nil {
		t.Fatal(err)
	}
	p.edit("DIR/a.img", "DIR/small/a.img")
	image := p.be1().file("img")
	if err := errors.Join(truncate(p.smallImage(), sizeOf(t, image)), os.Remove(image)); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) smallImage() string { return filepath.Join(p.dir, "small", "a.img") }

// edit replaces a text of the configuration, in which DIR is the folder.
func (p *pair) edit(old, new string) {
	p.t.Helper()
	path := filepath.Join(p.dir, "r.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	old, new = strings.ReplaceAll(old, "DIR", p.dir), strings.ReplaceAll(new, "DIR", p.dir)
	if !strings.Contains(string(text), old) {
		p.t.Fatalf("the configuration does not contain %q", old)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), old, new)), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// startAlone makes be1 a Primary that has never seen its peer.
func (p *pair) startAlone() *nbd.Client {
	p.t.Helper()
	n := p.be1()
	n.must("create-md", "r0")
	if err := n.start(); err != nil {
		p.t.Fatal(err)
	}
	n.must("primary", "--force", "r0")
	return n.dial()
}

// says waits for a line in the daemon's log and returns how many there are.
func (n *testNode) says(pattern string) int {
	n.p.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(daemonPatience); ; time.Sleep(20 * time.Millisecond) {
		if found := re.FindAllString(n.log(), -1); found != nil {
			return len(found)
		}
		if time.Now().After(deadline) {
			n.p.t.Fatalf("the log of %s does not say %s:\n%s", n.name, pattern, n.log())
		}
	}
}

// fillDisk writes block after block until the answer is an error.
func fillDisk(t *testing.T, c *nbd.Client, from, to int64, write func(p []byte, off int64) (int, error)) (firstBad int64) {
	t.Helper()
	buf := make([]byte, 256<<10)
	for i := range buf {
		buf[i] = byte(i)
	}
	for off := from; off+int64(len(buf)) <= to; off += int64(len(buf)) {
		if _, err := write(buf, off); err != nil {
			if !errors.Is(err, nbd.ENOSPC) {
				t.Fatalf("write at %d: %v, want ENOSPC", off, err)
			}
			return off
		}
	}
	t.Fatal("the file system does not become full")
	return 0
}

// testFullAlone: the client of a lone Primary whose file system is full gets
// ENOSPC for what needs space, and everything else goes on: flushes, blocks
// that have their space, and all of it once there is room again.
func testFullAlone(t *testing.T, mount mountOn) {
	p := onSmall(t, mount, 12, map[string]string{"SIZE": "48"})
	ballast := filepath.Join(p.dir, "small", "ballast")
	if err := os.WriteFile(ballast, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	n, c := p.be1(), p.startAlone()
	bad := fillDisk(t, c, 0, 40<<20, c.WriteAt)
	for range 3 {
		if err := c.Flush(); err != nil {
			t.Fatalf("flush on a full file system: %v\n%s", err, n.log())
		}
		fillDisk(t, c, bad, 40<<20, c.WriteFUA)
		if _, err := c.WriteFUA(make([]byte, 64<<10), 0); err != nil {
			t.Fatalf("durable write to a block that has its space: %v\n%s", err, n.log())
		}
	}
	if got := n.says("is full: writes that need new space fail"); got != 1 {
		t.Errorf("%d lines say that the file system is full:\n%s", got, n.log())
	}
	if out := n.must("dstate", "r0"); !strings.HasPrefix(out, "UpToDate/") {
		t.Errorf("the disk is %s", out)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteFUA(make([]byte, 256<<10), bad); err != nil {
		t.Fatalf("write once there is room: %v\n%s", err, n.log())
	}
	n.says("has room again")
}

// settled makes the pair of onSmall Connected and UpToDate, with be1 Primary.
func (p *pair) settled() *nbd.Client {
	p.t.Helper()
	for _, n := range []*testNode{p.be1(), p.be2()} {
		n.must("create-md", "r0")
		if err := n.start(); err != nil {
			p.t.Fatal(err)
		}
	}
	p.be1().must("wait-connect", "--timeout", "15", "r0")
	p.be1().must("primary", "--force", "r0")
	p.settle()
	return p.be1().dial()
}

// awaitDisks waits until a node shows these disk states.
func (n *testNode) awaitDisks(states string) {
	n.p.t.Helper()
	if err := n.await(regexp.MustCompile("^"+states+"\n"), "dstate", "r0"); err != nil {
		n.p.t.Fatal(err)
	}
}

// The resync of an empty pair writes everything, so these disks are large
// enough for that; what fills the file system comes later.
func squeeze(t *testing.T, p *pair) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(p.dir, "small", "ballast"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, size := range []int{1 << 20, 4096} {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
}

func writeSome(t *testing.T, n *testNode, c *nbd.Client) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for i := range buf {
		buf[i] = byte(i)
	}
	for off := int64(0); off < 4<<20; off += int64(len(buf)) {
		if _, err := c.WriteAt(buf, off); err != nil {
			t.Fatalf("write at %d: %v\n%s", off, err, n.log())
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatalf("flush: %v\n%s", err, n.log())
	}
	got := make([]byte, len(buf))
	if _, err := c.ReadAt(got, 2<<20); err != nil || string(got) != string(buf) {
		t.Fatalf("read back: %v", err)
	}
}

// testFullWithPeer: the client of a connected pair notices nothing.
func testFullWithPeer(t *testing.T) {
	p := onSmall(t, tmpfsOn, 40, map[string]string{"SIZE": "24"})
	c := p.settled()
	if err := c.Trim(0, 8<<20); err != nil {
		t.Fatal(err)
	}
	squeeze(t, p)
	writeSome(t, p.be1(), c)
	p.be1().awaitDisks("Diskless/UpToDate")
	p.be1().says("is full: writes that need new space fail")
	if err := os.Remove(filepath.Join(p.dir, "small", "ballast")); err != nil {
		t.Fatal(err)
	}
	p.be1().must("attach", "r0")
	p.settle()
}

// testFullSecondary: the Primary goes on and marks what the peer lacks.
func testFullSecondary(t *testing.T) {
	p := onSmall(t, tmpfsOn, 40, map[string]string{"SIZE": "24"})
	c := p.settled()
	if err := c.Trim(0, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	p.be1().client = nil
	awaitNoClient(t, p.be1())
	p.be1().must("secondary", "r0")
	p.be2().must("primary", "r0")
	squeeze(t, p)
	writeSome(t, p.be2(), p.be2().dial())
	p.be2().awaitDisks("UpToDate/Diskless")
	p.be1().says("is full: writes that need new space fail")
	if err := os.Remove(filepath.Join(p.dir, "small", "ballast")); err != nil {
		t.Fatal(err)
	}
	p.be1().must("attach", "r0")
	p.settle()
}

// breakExt4 makes the ext4 of a test go read-only by itself, as after damage.
func breakExt4(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != dir {
			continue
		}
		if err := os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(f[0]), "trigger_fs_error"), []byte("1"), 0); err != nil {
			reqtool.Missing(t, "ext4-errors", err.Error())
		}
		return
	}
	t.Fatalf("%s is not mounted", dir)
}

func testReadOnlyUnderneath(t *testing.T) {
	p := onSmall(t, ext4On, 64, map[string]string{"SIZE": "24"})
	c := p.settled()
	breakExt4(t, filepath.Join(p.dir, "small"))
	writeSome(t, p.be1(), c)
	p.be1().awaitDisks("Diskless/UpToDate")
	p.be1().says(`level=ERROR.*(read-only file system|input/output error)`)
	if _, stderr, code := p.be1().run("attach", "r0"); code == 0 || !strings.Contains(stderr, "read-only file system") {
		t.Errorf("attach: exit code %d: %s", code, stderr)
	}
}

func testReadOnlyAlone(t *testing.T) {
	p := onSmall(t, ext4On, 64, map[string]string{"SIZE": "24"})
	c := p.startAlone()
	if _, err := c.WriteFUA(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	breakExt4(t, filepath.Join(p.dir, "small"))
	if _, err := c.WriteFUA(make([]byte, 4096), 8<<20); !errors.Is(err, nbd.EIO) {
		t.Errorf("write: %v, want EIO", err)
	}
	p.be1().awaitDisks("Diskless/DUnknown")
	p.be1().says(`level=ERROR.*(read-only file system|input/output error)`)
}

func testReadOnlyAttach(t *testing.T) {
	p := onSmall(t, tmpfsOn, 40, nil)
	n := p.be1()
	n.must("create-md", "r0")
	if err := unix.Mount("", filepath.Dir(p.smallImage()), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := n.run("attach", "r0")
	if code != 10 || !strings.Contains(stderr, "read-only file system") || !strings.Contains(stderr, p.smallImage()) {
		t.Errorf("attach: exit code %d: %s", code, stderr)
	}
	if err := unix.Mount("", filepath.Dir(p.smallImage()), "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	n.must("attach", "r0")
}

// testCutFile: what lay beyond the cut must not come back as zeroes, so the
// file is given up; the peer serves.
func testCutFile(t *testing.T) {
	p := onSmall(t, tmpfsOn, 64, map[string]string{"SIZE": "24"})
	c := p.settled()
	if err := os.Truncate(p.smallImage(), 1<<20); err != nil {
		t.Fatal(err)
	}
	writeSome(t, p.be1(), c)
	p.be1().awaitDisks("Diskless/UpToDate")
	p.be1().says("was cut from [0-9]+ to [0-9]+ bytes while it was in use|unexpected EOF")
	if _, stderr, code := p.be1().run("attach", "r0"); code != 1 {
		t.Errorf("attach of a cut disk: exit code %d: %s", code, stderr)
	}
}

// testCutIdle: the same without any request, and without a peer.
func testCutIdle(t *testing.T) {
	p := onSmall(t, tmpfsOn, 64, map[string]string{"SIZE": "24"})
	c := p.startAlone()
	if err := os.Truncate(p.smallImage(), 1<<20); err != nil {
		t.Fatal(err)
	}
	p.be1().awaitDisks("Diskless/DUnknown")
	p.be1().says("was cut from [0-9]+ to [0-9]+ bytes while it was in use")
	if _, err := c.ReadAt(make([]byte, 4096), 0); !errors.Is(err, nbd.EIO) {
		t.Errorf("read: %v, want EIO", err)
	}
}

func testRemovedFile(t *testing.T) {
	p := onSmall(t, tmpfsOn, 64, map[string]string{"SIZE": "24"})
	n, c := p.be1(), p.startAlone()
	aside := p.smallImage() + ".aside"
	if err := os.Rename(p.smallImage(), aside); err != nil {
		t.Fatal(err)
	}
	n.says("level=ERROR.*was removed, renamed or replaced while it is in use")
	writeSome(t, n, c)
	time.Sleep(2 * time.Second)
	if err := os.Rename(aside, p.smallImage()); err != nil {
		t.Fatal(err)
	}
	n.says("the file is back at its place")
	if got := n.says("was removed, renamed or replaced"); got != 1 {
		t.Errorf("it is said %d times", got)
	}
	n.awaitDisks("UpToDate/DUnknown")
}

func testResizedWhileDown(t *testing.T) {
	p := onSmall(t, tmpfsOn, 64, map[string]string{"SIZE": "24"})
	n := p.be1()
	n.must("create-md", "r0")
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	n.must("down", "r0")
	right := sizeOf(t, p.smallImage())
	for _, size := range []int64{right + 4<<20, right - 4<<20} {
		if err := os.Truncate(p.smallImage(), size); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := n.run("up", "r0")
		if code != 1 || !strings.Contains(stderr, "resized") {
			t.Errorf("up with %d instead of %d bytes: exit code %d: %s", size, right, code, stderr)
		}
		n.must("down", "r0")
		if size > right {
			if err := os.Truncate(p.smallImage(), right); err != nil {
				t.Fatal(err)
			}
			n.must("up", "r0")
			n.must("down", "r0")
		}
	}
}
