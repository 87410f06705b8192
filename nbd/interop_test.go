package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replicad/internal/reqtool"
)

// run runs an outside program and returns what it printed.
func run(t *testing.T, wantOK bool, tool string, args ...string) string {
	t.Helper()
	path := reqtool.Path(t, tool)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = t.TempDir() // fio leaves state files behind
	out, err := cmd.CombinedOutput()
	if (err == nil) != wantOK {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestNbdinfo(t *testing.T) {
	m := newMemory("r0", testSize)
	m.attr.MultiConn = true
	f := serve(t, Config{}, m)
	var got struct {
		Exports []struct {
			Name       string `json:"export-name"`
			Size       uint64 `json:"export-size"`
			Flush      bool   `json:"can_flush"`
			FUA        bool   `json:"can_fua"`
			Trim       bool   `json:"can_trim"`
			Zero       bool   `json:"can_zero"`
			FastZero   bool   `json:"can_fast_zero"`
			DF         bool   `json:"can_df"`
			MultiConn  bool   `json:"can_multi_conn"`
			ReadOnly   bool   `json:"is_read_only"`
			BlockMin   int    `json:"block_size_minimum"`
			BlockPref  int    `json:"block_size_preferred"`
			BlockLimit int    `json:"block_size_maximum"`
		} `json:"exports"`
	}
	out := run(t, true, "nbdinfo", "--json", f.uri("r0"))
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Exports) != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	e := got.Exports[0]
	if e.Size != testSize || !e.Flush || !e.FUA || !e.Trim || !e.Zero || !e.MultiConn || e.FastZero || e.DF || e.ReadOnly {
		t.Errorf("nbdinfo sees %+v", e)
	}
	if e.BlockMin != 512 || e.BlockPref != 4096 || e.BlockLimit != 32<<20 {
		t.Errorf("nbdinfo sees block sizes %+v", e)
	}
}

// TestNbdinfoOnSecondary: the exports can be listed where they cannot be
// opened, and the refusal carries the reason.
func TestNbdinfoOnSecondary(t *testing.T) {
	r0, r1 := newMemory("r0", testSize), newMemory("r1/2", testSize)
	r0.openErr = errors.New("r0 is Secondary here")
	f := serve(t, Config{}, r0, r1)
	if out := run(t, true, "nbdinfo", "--list", f.uri("")); !strings.Contains(out, `"r0"`) || !strings.Contains(out, `"r1/2"`) {
		t.Errorf("the list lacks an export:\n%s", out)
	}
	if out := run(t, true, "qemu-nbd", "-L", "-k", f.path); !strings.Contains(out, "'r0'") {
		t.Errorf("qemu's list lacks an export:\n%s", out)
	}
	if out := run(t, false, "qemu-io", "-f", "raw", "-c", "read 0 512", f.uri("r0")); !strings.Contains(out, "r0 is Secondary here") {
		t.Errorf("qemu-io was not told why:\n%s", out)
	}
	if out := run(t, false, "nbdcopy", f.uri("r0"), "null:"); !strings.Contains(out, "policy") { // libnbd keeps our sentence to its debug log
		t.Errorf("nbdcopy was not told why:\n%s", out)
	}
}

func TestNbdClientList(t *testing.T) {
	f := serve(t, Config{}, newMemory("r0", testSize), newMemory("r1", testSize))
	if out := run(t, true, "nbd-client", "-l", "-u", f.path); !strings.Contains(out, "r0") || !strings.Contains(out, "r1") {
		t.Errorf("nbd-client lists:\n%s", out)
	}
}

func TestQemuIO(t *testing.T) {
	m := newMemory("r0", testSize)
	f := serve(t, Config{}, m)
	run(t, true, "qemu-io", "-f", "raw",
		"-c", "write -P 0xab 64k 128k", "-c", "read -P 0xab 64k 128k", "-c", "write -f -P 0xcd 1M 4k",
		"-c", "write -z 96k 4k", "-c", "write -z -u 104k 8k", "-c", "discard 128k 64k", "-c", "read -P 0 96k 4k", "-c", "read -P 0xab 0x11001 3333", "-c", "flush", f.uri("r0"))
	if m.fuas.Load() == 0 || m.flushes.Load() == 0 {
		t.Errorf("%d FUA writes, %d flushes arrived", m.fuas.Load(), m.flushes.Load())
	}
	want := make([]byte, testSize)
	copy(want[64<<10:], bytes.Repeat([]byte{0xab}, 64<<10))
	copy(want[1<<20:], bytes.Repeat([]byte{0xcd}, 4096))
	clear(want[96<<10 : 100<<10])
	clear(want[104<<10 : 112<<10])
	if !m.holds(0, want) {
		t.Error("the export does not hold what qemu-io wrote")
	}
}

// TestQemuIOSeesErrors: errors arrive as what they are, and qemu goes on.
func TestQemuIOSeesErrors(t *testing.T) {
	m := newMemory("r0", testSize)
	m.fault = func(r *Request) error {
		if r.Op != OpFlush && r.Offset == 1<<20 {
			return EIO
		}
		return nil
	}
	f := serve(t, Config{}, m)
	out := run(t, false, "qemu-io", "-f", "raw", "-c", "read 1M 4k", "-c", "write 1M 4k", "-c", "write -P 7 2M 4k", "-c", "read -P 7 2M 4k", f.uri("r0"))
	if strings.Count(out, "Input/output error") != 2 || !strings.Contains(out, "read 4096/4096 bytes at offset 2097152") {
		t.Errorf("qemu-io says:\n%s", out)
	}
}

func image(t *testing.T) (path string, data []byte) {
	data = pattern(testSize, 42)
	clear(data[2<<20 : 3<<20])
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func TestQemuImgConvertAndCompare(t *testing.T) {
	path, data := image(t)
	m := newMemory("r0", testSize)
	copy(m.data, pattern(testSize, 1)) // old contents must not shine through
	f := serve(t, Config{}, m)
	run(t, true, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, f.uri("r0"))
	if !m.holds(0, data) {
		t.Error("the export differs from the image")
	}
	run(t, true, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, f.uri("r0"))
	back := filepath.Join(t.TempDir(), "back")
	run(t, true, "qemu-img", "convert", "-f", "raw", "-O", "raw", f.uri("r0"), back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the copy differs: %v", err)
	}
}

func TestNbdcopy(t *testing.T) {
	path, data := image(t)
	m := newMemory("r0", testSize)
	m.attr.MultiConn = true
	f := serve(t, Config{}, m)
	run(t, true, "nbdcopy", "--flush", "--connections=4", path, f.uri("r0"))
	if !m.holds(0, data) || m.opens.Load() < 2 {
		t.Errorf("the export differs from the image, or %d connections were too few", m.opens.Load())
	}
	back := filepath.Join(t.TempDir(), "back")
	run(t, true, "nbdcopy", f.uri("r0"), back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the copy differs: %v", err)
	}
}

// TestFioVerify writes with checksums at depth over several connections, with
// replies out of order, and verifies.
func TestFioVerify(t *testing.T) {
	m := newMemory("r0", 64<<20)
	m.attr.MultiConn = true
	m.answer = func(r *Request, err error) {
		if r.Offset/4096%3 == 0 {
			go r.Reply(err)
			return
		}
		r.Reply(err)
	}
	f := serve(t, Config{}, m)
	out := run(t, true, "fio", "--name=v", "--ioengine=nbd", "--uri="+f.uri("r0"), "--rw=randwrite", "--bsrange=4k-256k", "--bs_unaligned=0",
		"--size=16m", "--numjobs=4", "--thread", "--offset_increment=16m", "--iodepth=16", "--fsync=50",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--group_reporting")
	if strings.Contains(out, "verify:") && strings.Contains(out, "bad") {
		t.Errorf("fio:\n%s", out)
	}
	if m.flushes.Load() == 0 {
		t.Error("no flush arrived")
	}
}

// TestClientWithOtherServers: our client against servers we did not write.
func TestClientWithOtherServers(t *testing.T) {
	for tool, args := range map[string][]string{
		"nbdkit":   {"-f", "-U", "SOCKET", "file", "file=IMAGE"},
		"qemu-nbd": {"-f", "raw", "-t", "-e", "4", "-k", "SOCKET", "IMAGE"},
	} {
		t.Run(tool, func(t *testing.T) {
			path, data := image(t)
			socket := filepath.Join(t.TempDir(), "s")
			for i := range args {
				args[i] = strings.NewReplacer("SOCKET", socket, "IMAGE", path).Replace(args[i])
			}
			cmd := exec.CommandContext(t.Context(), reqtool.Path(t, tool), args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			var c *Client
			waitFor(t, func() (ok bool) {
				var err error
				c, err = Dial(t.Context(), "nbd+unix:///?socket="+socket)
				return err == nil
			})
			exercise(t, c, data)
		})
	}
}

func exercise(t *testing.T, c *Client, data []byte) {
	if c.Size() != uint64(len(data)) {
		t.Fatalf("size %d", c.Size())
	}
	got := make([]byte, len(data))
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.WriteFUA(data[:1<<20], 0); err != nil {
		t.Error(err)
	}
	hammer(t, c, 4<<20, 1<<20)
	if err := errors.Join(c.Flush(), c.WriteZeroes(4<<20, 1<<20, false), c.Trim(4<<20, 1<<20)); err != nil {
		t.Error(err)
	}
	if _, err := c.ReadAt(got[:4096], 4<<20); err != nil || !bytes.Equal(got[:4096], make([]byte, 4096)) {
		t.Errorf("after zeroing: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
