package replica

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"replicad/internal/reqtool"
	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/disk/disktest"
)

// strict refuses what a block device with 4 KiB sectors refuses.
type strict struct{ disk.Device }

func (s strict) check(off, n int64) error {
	if (off|n)%4096 != 0 {
		return fmt.Errorf("%w: %d at %d", disk.ErrUnaligned, n, off)
	}
	return nil
}

func (s strict) BlockSize() int { return 4096 }

func (s strict) ReadAt(p []byte, off int64) (int, error) {
	if err := s.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.Device.ReadAt(p, off)
}

func (s strict) WriteAt(p []byte, off int64) (int, error) {
	if err := s.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.Device.WriteAt(p, off)
}

func (s strict) WriteDurable(p []byte, off int64) (int, error) {
	if err := s.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.Device.WriteDurable(p, off)
}

func (s strict) WriteZeroes(off, n int64, noHole bool) error {
	if err := s.check(off, n); err != nil {
		return err
	}
	return s.Device.WriteZeroes(off, n, noHole)
}

// TestSectoredDevice compares unaligned operations with a plain byte slice.
func TestSectoredDevice(t *testing.T) {
	const size = 256 << 10
	d := &sectored{Device: strict{disktest.New(size)}, block: 4096}
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		off := rng.Int64N(size/512) * 512
		n := min(rng.Int64N(40)*512+512, size-off)
		var err error
		switch rng.IntN(4) {
		case 0:
			err = d.WriteZeroes(off, n, rng.IntN(2) == 0)
			clear(want[off:][:n])
		case 1:
			got := make([]byte, n)
			_, err = d.ReadAt(got, off)
			if !bytes.Equal(got, want[off:][:n]) {
				t.Fatalf("step %d: read of %d at %d differs", i, n, off)
			}
		default:
			copy(want[off:], pattern(byte(i), int(n)))
			write := d.WriteAt
			if rng.IntN(2) == 0 {
				write = d.WriteDurable
			}
			_, err = write(want[off:][:n], off)
		}
		if err != nil {
			t.Fatalf("step %d: %d at %d: %v", i, n, off, err)
		}
	}
	got := make([]byte, size)
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("content differs (err %v)", err)
	}
}

// loopDevice attaches an image to a loop device with the given sector size.
func loopDevice(t *testing.T, image string, sector int) string {
	t.Helper()
	losetup := reqtool.Path(t, "losetup")
	out, err := exec.Command(losetup, "--find", "--show", "--sector-size", fmt.Sprint(sector), image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device here: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// TestBlockDevices runs a pair on block devices, which have no page cache and
// may have large sectors.
func TestBlockDevices(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			a, b := newPair(t, 'C')
			for _, n := range []*testNode{a, b} {
				cfg := n.cfg
				cfg.Volumes = []VolumeConfig{cfg.Volumes[0]}
				cfg.Volumes[0].Disk = loopDevice(t, n.image, sector)
				n.must("reconfigure", n.Reconfigure(testCtx(t), cfg))
				n.open = openFile
				n.image = cfg.Volumes[0].Disk
				t.Cleanup(func() {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					n.must("close", n.Close(ctx))
				})
				n.up()
			}
			a.await("connect", connected)
			a.must("primary --force", a.Primary(testCtx(t), true))
			a.await("initial sync", inSync)
			c := a.client()
			c.write(512, pattern(1, 1536))
			c.write(1<<20, pattern(2, 2<<20))
			c.ok(IO{Op: OpWrite, Off: 8 << 20, Len: 4096, FUA: true, Data: pattern(3, 4096)})
			c.ok(IO{Op: OpZero, Off: 1<<20 + 512, Len: 64 << 10})
			want := append(make([]byte, 512), pattern(1, 1536)...)
			if got := c.read(0, 2048); !bytes.Equal(got, want) {
				t.Fatal("read returns other bytes than were written")
			}
			if got := c.read(8<<20, 4096); !bytes.Equal(got, pattern(3, 4096)) {
				t.Fatal("read returns other bytes than were written")
			}
			if a.Status().Volumes[0].State.Disk != core.UpToDate {
				t.Fatal("the disk was lost")
			}
			c.h.Close()
			a.must("secondary", a.Secondary(testCtx(t)))
			sameData(t, a, b)
		})
	}
}
