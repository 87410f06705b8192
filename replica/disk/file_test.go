package disk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"replicad/internal/reqtool"
)

const testSize = 4 << 20

// target is one kind of device that File works on.
type target struct {
	name string
	make func(t *testing.T) string // returns the path of a zeroed device of testSize bytes
}

var targets = []target{{"file", imageFile}, {"block", loopDevice}}

func imageFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, testSize); err != nil {
		t.Fatal(err)
	}
	return path
}

// loopDevice attaches an image to a loop device, which needs root.
func loopDevice(t *testing.T) string {
	losetup := reqtool.Path(t, "losetup")
	out, err := exec.Command(losetup, "-f", "--show", imageFile(t)).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "-d", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

func onEach(t *testing.T, test func(t *testing.T, path string)) {
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) { test(t, target.make(t)) })
	}
}

func open(t *testing.T, path string) *File {
	t.Helper()
	f, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestFileAgainstModel mixes every operation, with aligned and unaligned
// memory, and compares each read with a byte slice.
func TestFileAgainstModel(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		f := open(t, path)
		if f.Size() != testSize {
			t.Fatalf("size %d, want %d", f.Size(), testSize)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		model := make([]byte, testSize)
		memory := AlignedBuffer(1<<20+1, 4096)
		for range 300 {
			off := rng.Int64N(testSize/SectorSize) * SectorSize
			n := min((1+rng.Int64N(1+rng.Int64N(1<<20/SectorSize)))*SectorSize, testSize-off)
			skew := rng.IntN(2)
			p := memory[skew : int64(skew)+n]
			fileStep(t, f, rng, model, p, off)
		}
		checkContent(t, path, f, model)
	})
}

func fileStep(t *testing.T, f *File, rng *rand.Rand, model, p []byte, off int64) {
	t.Helper()
	var err error
	part := model[off : off+int64(len(p))]
	switch rng.IntN(6) {
	case 0:
		_, err = f.WriteAt(randomBytes(rng, p), off)
		copy(part, p)
	case 1:
		_, err = f.WriteDurable(randomBytes(rng, p), off)
		copy(part, p)
	case 2:
		err = f.WriteZeroes(off, int64(len(p)), rng.IntN(2) == 0)
		clear(part)
	case 3:
		err = f.Sync()
	case 4:
		// A loop device on a file discards to zeroes, as a hole in a file does.
		err = f.Discard(off, int64(len(p)))
		clear(part)
	case 5:
		if _, err = f.ReadAt(p, off); !bytes.Equal(p, part) {
			t.Fatalf("read of %d bytes at %d differs", len(p), off)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func randomBytes(rng *rand.Rand, p []byte) []byte {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// checkContent closes f and reads the device in another way.
func checkContent(t *testing.T, path string, f *File, want []byte) {
	t.Helper()
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("content on the device differs from what was written")
	}
}

func TestRangeIsChecked(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		f := open(t, path)
		p := make([]byte, SectorSize)
		for _, off := range []int64{-SectorSize, testSize, testSize - 1, 1 << 62} {
			_, readErr := f.ReadAt(p, off)
			_, writeErr := f.WriteAt(p, off)
			_, durableErr := f.WriteDurable(p, off)
			for _, err := range []error{readErr, writeErr, durableErr, f.Discard(off, SectorSize), f.WriteZeroes(off, SectorSize, true)} {
				if !errors.Is(err, ErrRange) {
					t.Errorf("offset %d: %v, want ErrRange", off, err)
				}
			}
		}
	})
}

func TestBlockDeviceRefusesUnaligned(t *testing.T) {
	f := open(t, loopDevice(t))
	if f.BlockSize() < SectorSize {
		t.Fatalf("block size %d", f.BlockSize())
	}
	if _, err := f.WriteAt(make([]byte, 100), 0); !errors.Is(err, ErrUnaligned) {
		t.Errorf("length 100: %v, want ErrUnaligned", err)
	}
	if _, err := f.ReadAt(make([]byte, SectorSize), 7); !errors.Is(err, ErrUnaligned) {
		t.Errorf("offset 7: %v, want ErrUnaligned", err)
	}
}

func TestTruncatedFileIsAnError(t *testing.T) {
	path := imageFile(t)
	f := open(t, path)
	if err := os.Truncate(path, testSize/2); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 4096), testSize/2-512); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read past the new end: %v, want an unexpected EOF", err)
	}
}

func TestZeroesKeepOrReleaseSpace(t *testing.T) {
	path := imageFile(t)
	f := open(t, path)
	full := bytes.Repeat([]byte{0xA5}, testSize)
	if _, err := f.WriteAt(full, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteZeroes(0, testSize/2, true); err != nil {
		t.Fatal(err)
	}
	kept := blocks(t, path)
	if kept*512 < testSize {
		t.Errorf("zeroing without holes released space: %d blocks", kept)
	}
	if err := f.WriteZeroes(0, testSize/2, false); err != nil {
		t.Fatal(err)
	}
	if now := blocks(t, path); now >= kept {
		t.Errorf("zeroing with holes kept %d of %d blocks", now, kept)
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// TestZeroByteFallback covers the way for file systems without fallocate.
func TestZeroByteFallback(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		f := open(t, path)
		want := AlignedBuffer(testSize+1, 4096)[1:] // so that copy buffers have been used
		randomBytes(rand.New(rand.NewPCG(3, 4)), want)
		for range bounceCount {
			if _, err := f.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
		}
		const off, n = 3 * SectorSize, bounceSize + 5*SectorSize
		if err := f.writeZeroBytes(off, n); err != nil {
			t.Fatal(err)
		}
		clear(want[off : off+n])
		checkContent(t, path, f, want)
	})
}

// TestFUAFallback covers kernels and file systems without RWF_DSYNC.
func TestFUAFallback(t *testing.T) {
	f := open(t, imageFile(t))
	f.noFUA.Store(true)
	want := bytes.Repeat([]byte("durable."), 512)
	if n, err := f.WriteDurable(want, 8192); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read back: %v", err)
	}
}

// TestFailedSyncIsFinal makes the kernel refuse fdatasync once, by way of a
// descriptor that cannot sync, and then puts the good one back.
func TestFailedSyncIsFinal(t *testing.T) {
	f := open(t, imageFile(t))
	good := f.fd
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	f.fd = pipe[1]
	first := f.Sync()
	f.fd = good
	var sync *SyncError
	if !errors.As(first, &sync) || !errors.Is(first, unix.EINVAL) {
		t.Fatalf("sync of a pipe: %v, want a SyncError of EINVAL", first)
	}
	if again := f.Sync(); again == nil || again.Error() != first.Error() {
		t.Errorf("second sync: %v, want the first error", again)
	}
	if _, err := f.WriteDurable(make([]byte, 512), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("durable write after a failed sync: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("plain write after a failed sync: %v", err)
	}
}

// TestFailedDurableWriteIsFinal: its error may be one that Sync would have
// returned.
func TestFailedDurableWriteIsFinal(t *testing.T) {
	f := open(t, imageFile(t))
	good := f.fd
	readOnly, err := unix.Open(f.path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(readOnly)
	f.fd = readOnly
	if _, err := f.WriteDurable(make([]byte, 512), 0); !errors.Is(err, unix.EBADF) {
		t.Fatalf("durable write: %v, want EBADF", err)
	}
	f.fd = good
	if err := f.Sync(); !errors.Is(err, unix.EBADF) {
		t.Errorf("sync after a failed durable write: %v, want its error", err)
	}
}

func TestCloseIsFinalAndSafe(t *testing.T) {
	f := open(t, imageFile(t))
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			p := make([]byte, 4096)
			for {
				if _, err := f.ReadAt(p, 0); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Errorf("read during close: %v", err)
					}
					return
				}
			}
		})
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	readers.Wait()
	if err := f.Sync(); !errors.Is(err, ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
	if err := f.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	f, err := Open(imageFile(t), Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	if _, err := f.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a device open for reading took a write")
	}
}

func TestOpenRefusesOddThings(t *testing.T) {
	if _, err := Open(t.TempDir(), Options{ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("directory: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// Environment of the child process that holds a device for the lock tests.
const (
	holdPath   = "REPLICAD_TEST_HOLD"
	holdShared = "REPLICAD_TEST_HOLD_SLOT"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(holdPath); path != "" {
		os.Exit(hold(path))
	}
	os.Exit(m.Run())
}

// hold is the child's main: it says that it has the device and keeps it until
// its standard input ends.
func hold(path string) int {
	opts := Options{}
	if slot := os.Getenv(holdShared); slot != "" {
		n, _ := strconv.Atoi(slot)
		opts = Options{Shared: true, Slot: uint8(n)}
	}
	if _, err := Open(path, opts); err != nil {
		_, _ = io.WriteString(os.Stdout, err.Error()+"\n")
		return 1
	}
	_, _ = io.WriteString(os.Stdout, "held\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// holdInChild starts a process that holds path and returns its pid.
func holdInChild(t *testing.T, path string, env ...string) (pid int, release func()) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(append(os.Environ(), holdPath+"="+path), env...)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 200)
	n, _ := out.Read(answer)
	if string(answer[:n]) != "held\n" {
		t.Fatalf("child: %s", answer[:n])
	}
	release = sync.OnceFunc(func() {
		_ = in.Close()
		_ = child.Wait()
	})
	t.Cleanup(release)
	return child.Process.Pid, release
}

func TestSecondProcessIsRefusedWithPID(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		pid, release := holdInChild(t, path)
		for _, opts := range []Options{{}, {ReadOnly: true}, {Shared: true}} {
			_, err := Open(path, opts)
			var inUse *InUseError
			if !errors.As(err, &inUse) || inUse.PID != pid {
				t.Errorf("%+v: %v, want in use by %d", opts, err, pid)
			}
		}
		release()
		open(t, path)
	})
}

func TestSecondOpenInOneProcessIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		open(t, path)
		var inUse *InUseError
		if _, err := Open(path, Options{}); !errors.As(err, &inUse) {
			t.Errorf("second open: %v, want an InUseError", err)
		}
	})
}

func TestSharedSlots(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		pid, _ := holdInChild(t, path, holdShared+"=3")
		var inUse *InUseError
		if _, err := Open(path, Options{Shared: true, Slot: 3}); !errors.As(err, &inUse) || inUse.PID != pid {
			t.Errorf("same slot: %v, want in use by %d", err, pid)
		}
		other, err := Open(path, Options{Shared: true, Slot: 4})
		if err != nil {
			t.Fatalf("another slot: %v", err)
		}
		defer other.Close()
		if _, err := Open(path, Options{}); !errors.As(err, &inUse) {
			t.Errorf("whole device: %v, want in use", err)
		}
	})
}

func TestMountedDeviceIsRefused(t *testing.T) {
	device := loopDevice(t)
	if out, err := exec.Command(reqtool.Path(t, "mkfs.ext4"), "-q", device).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, 0)
	var inUse *InUseError
	if _, err := Open(device, Options{}); !errors.As(err, &inUse) || inUse.PID != 0 {
		t.Errorf("open of a mounted device: %v, want an InUseError without a pid", err)
	}
}

func TestNoAllocation(t *testing.T) {
	onEach(t, func(t *testing.T, path string) {
		f := open(t, path)
		alignedMemory := AlignedBuffer(8192, 4096)
		for _, p := range [][]byte{alignedMemory[:4096], alignedMemory[1:4097]} {
			checkAllocs(t, "ReadAt", func() { _, _ = f.ReadAt(p, 0) })
			checkAllocs(t, "WriteAt", func() { _, _ = f.WriteAt(p, 0) })
			checkAllocs(t, "WriteDurable", func() { _, _ = f.WriteDurable(p, 0) })
		}
		checkAllocs(t, "Sync", func() { _ = f.Sync() })
		checkAllocs(t, "WriteZeroes", func() { _ = f.WriteZeroes(0, 4096, true) })
	})
}

func checkAllocs(t *testing.T, op string, run func()) {
	t.Helper()
	if n := testing.AllocsPerRun(20, run); n != 0 {
		t.Errorf("%s allocates %v times", op, n)
	}
}
