package meta

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"replicad/internal/reqtool"
	"replicad/replica/disk"
	"replicad/replica/disk/disktest"
)

// ownContents are those that drbdmeta does not know or asks another tool about.
var ownContents = []struct {
	name   string
	found  string
	refuse bool
	put    func(p []byte)
}{
	{"btrfs full", "btrfs filesystem", true, func(p []byte) {
		copy(p[0x10040:], "_BHRfS_M")
		binary.LittleEndian.PutUint64(p[0x10070:], 64<<20)
	}},
	{"btrfs with room", "btrfs filesystem", false, func(p []byte) {
		copy(p[0x10040:], "_BHRfS_M")
		binary.LittleEndian.PutUint64(p[0x10070:], 16<<20)
	}},
	{"luks", "LUKS encrypted volume", true, func(p []byte) { copy(p, "LUKS\xba\xbe\x00\x02") }},
	{"gpt 512", "GPT partition table", true, func(p []byte) {
		putPartition(p, 0, 0xEE, 1, 131071)
		copy(p[512:], "EFI PART")
	}},
	{"gpt 4096", "GPT partition table", true, func(p []byte) { copy(p[4096:], "EFI PART") }},
	{"mbr full", "MBR partition table", true, func(p []byte) {
		putPartition(p, 0, 0x83, 2048, 1000)
		putPartition(p, 1, 0x83, 4096, 131072-4096)
	}},
	{"mbr with room", "MBR partition table", false, func(p []byte) { putPartition(p, 3, 0x83, 2048, 1000) }},
	{"boot sector", "some data", false, func(p []byte) {
		copy(p[440:], strings.Repeat("code", 17))
		p[510], p[511] = 0x55, 0xAA
	}},
	{"lvm", "LVM2 physical volume signature", true, func(p []byte) { putLVM(p, 64<<20) }},
	{"lvm with room", "LVM2 physical volume signature", false, func(p []byte) { putLVM(p, 32<<20) }},
	{"lvm of unknown size", "LVM2 physical volume signature", true, func(p []byte) { putLVM(p, 0) }},
	{"ext4 beyond 16 TiB", "ext3 filesystem", true, func(p []byte) {
		putExt(p, 5, 2, 4)
		p[0x460], p[0x550] = 0x80, 1
	}},
	{"xfs of absurd size", "xfs filesystem", true, func(p []byte) { putXFS(p, 1<<63) }},
}

func putPartition(p []byte, n int, kind byte, first, sectors uint32) {
	entry := p[446+16*n:]
	entry[4] = kind
	binary.LittleEndian.PutUint32(entry[8:], first)
	binary.LittleEndian.PutUint32(entry[12:], sectors)
	p[510], p[511] = 0x55, 0xAA
}

func putLVM(p []byte, size uint64) {
	copy(p[0x200:], "LABELONE")
	binary.LittleEndian.PutUint32(p[0x214:], 32)
	copy(p[0x218:], "LVM2 001")
	binary.LittleEndian.PutUint64(p[0x240:], size)
}

func TestOwnContents(t *testing.T) {
	for _, c := range ownContents {
		t.Run(c.name, func(t *testing.T) {
			m := disktest.New(64 << 20)
			head := make([]byte, deviceMin)
			c.put(head)
			if _, err := m.WriteAt(head, 0); err != nil {
				t.Fatal(err)
			}
			writes := m.Ops()
			err := Create(m, internal, CreateOptions{})
			var refusal *RefusedError
			switch {
			case !c.refuse && !errors.Is(err, ErrUnconfirmed):
				t.Errorf("%v, want ErrUnconfirmed", err)
			case c.refuse && (!errors.As(err, &refusal) || refusal.Found != c.found):
				t.Errorf("%v, want %s refused", err, c.found)
			case m.Ops() != writes:
				t.Error("something was written")
			}
			text, _ := survey(t, m, internal)
			if !strings.Contains(text, "Found "+c.found+"\n") {
				t.Errorf("text does not name %s:\n%s", c.found, text)
			}
			err = Create(m, internal, CreateOptions{Confirmed: true})
			if c.refuse != errors.As(err, &refusal) {
				t.Errorf("confirmed: %v", err)
			}
		})
	}
}

// TestRealExt4 uses what mkfs really writes.
func TestRealExt4(t *testing.T) {
	mkfs := reqtool.Path(t, "mkfs.ext4")
	path := image(t, 64<<20)
	if out, err := exec.Command(mkfs, "-q", "-F", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	onImage(t, path, func(dev disk.Device) {
		var refusal *RefusedError
		if err := Create(dev, internal, CreateOptions{Confirmed: true}); !errors.As(err, &refusal) {
			t.Errorf("%v, want a refusal", err)
		}
	})
}

func TestExternalOverExistingIsRefused(t *testing.T) {
	for _, p := range []Placement{{Kind: FlexExternal}, {Kind: Indexed}} {
		m := disktest.New(200 << 20)
		head := make([]byte, deviceMin)
		putXFS(head, 10)
		if _, err := m.WriteAt(head, 0); err != nil {
			t.Fatal(err)
		}
		var refusal *RefusedError
		if _, err := Survey(m, p, CreateOptions{}); !errors.As(err, &refusal) {
			t.Errorf("%v: %v, want a refusal", p, err)
		}
	}
}

func TestFormatKiB(t *testing.T) {
	for kib, want := range map[uint64]string{
		0: "0 KB", 4: "4 KB", 9999: "9999 KB", 10000: "10 MB", 16384: "16 MB", 4096 * 1237: "4948 MB",
		10<<20 + 512: "10 GB", 1<<64 - 1: "16384 EB",
	} {
		if got := FormatKiB(kib); got != want {
			t.Errorf("%d KiB: %s, want %s", kib, got, want)
		}
	}
}

func TestSetGIRefuses(t *testing.T) {
	for _, spec := range []string{"x", "12345678901234567", "::::2", "::::x", strings.Repeat(":", 11)} {
		s := Super{Current: 5}
		if err := s.SetGI("7:" + spec); !errors.Is(err, ErrBadGI) {
			t.Errorf("%q: %v", spec, err)
		}
		if s.Current != 5 {
			t.Errorf("%q: a refused change was made in part", spec)
		}
	}
}

func TestOutdateAndInvalidate(t *testing.T) {
	m := created(t)
	s := mustOpen(t, m, internal)
	next := s.Super()
	if err := next.SetGI("5:6:7:8:1:1:0:0:0:1"); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		run  func() error
		want string
	}{
		{func() error { return s.WriteSuper(&next) }, "UpToDate"},
		{s.Outdate, "Outdated"},
		{s.Invalidate, "Inconsistent"},
	}
	for _, step := range steps {
		if err := step.run(); err != nil {
			t.Fatal(err)
		}
		if got := mustOpen(t, m, internal).Super().DiskState(); got != step.want {
			t.Errorf("disk state %s, want %s", got, step.want)
		}
	}
	if !s.Super().Flags.has(FlagFullSync) || !s.Super().Clean() {
		t.Errorf("flags %#x", s.Super().Flags)
	}
}
