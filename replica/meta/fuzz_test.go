package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"replicad/bitmap"
	"replicad/replica/disk"
	"replicad/replica/disk/disktest"
)

// fence is a copy of a device that stops the test when something is written
// outside the metadata, or read in a piece that a number on disk alone has chosen.
type fence struct {
	disk.Device // what lies below the copied blocks

	t        testing.TB
	blocks   map[int64]*[blockSize]byte
	from, to int64 // where the metadata lies
	writes   int
}

func newFence(t testing.TB, below disk.Device, from, to int64) *fence {
	return &fence{Device: below, t: t, blocks: map[int64]*[blockSize]byte{}, from: from, to: to}
}

func (f *fence) ReadAt(p []byte, off int64) (int, error) {
	if len(p) > transferMax {
		f.t.Fatalf("%d bytes read at once", len(p))
	}
	n, err := f.Device.ReadAt(p, off)
	for at := off / blockSize; err == nil && at*blockSize < off+int64(len(p)); at++ {
		if b := f.blocks[at]; b != nil {
			skip := max(off-at*blockSize, 0)
			copy(p[max(at*blockSize-off, 0):], b[skip:])
		}
	}
	return n, err
}

// change is for the fuzzer itself: it may write anywhere.
func (f *fence) change(p []byte, off int64) error {
	if err := disk.CheckRange(off, int64(len(p)), f.Size()); err != nil {
		return err
	}
	for len(p) > 0 {
		at := off / blockSize
		b := f.blocks[at]
		if b == nil {
			b = new([blockSize]byte)
			if _, err := f.Device.ReadAt(b[:], at*blockSize); err != nil {
				return err
			}
			f.blocks[at] = b
		}
		n := copy(b[off%blockSize:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (f *fence) WriteAt(p []byte, off int64) (int, error) {
	f.writes++
	if off < f.from || off+int64(len(p)) > f.to {
		f.t.Fatalf("%d bytes written at %d, outside the metadata at %d to %d", len(p), off, f.from, f.to)
	}
	return len(p), f.change(p, off)
}

func (f *fence) WriteDurable(p []byte, off int64) (int, error) { return f.WriteAt(p, off) }

func (f *fence) WriteZeroes(off, n int64, _ bool) error {
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}

func (f *fence) Sync() error { return nil }

func (f *fence) Discard(off, n int64) error {
	f.t.Fatalf("%d bytes discarded at %d", n, off)
	return nil
}

// specimen is a metadata image for the fuzzer to damage.
type specimen struct {
	image  *disktest.Mem
	place  Placement
	layout Layout
}

// specimens are left by Primaries that died: inside, outside, and with stripes.
func specimens(t testing.TB) []specimen {
	t.Helper()
	var all []specimen
	for _, c := range []struct {
		place Placement
		size  int64
		al    ALGeometry
	}{
		{internal, memSize, DefaultALGeometry},
		{Placement{Kind: FlexExternal}, 1 << 20, DefaultALGeometry},
		{internal, memSize, ALGeometry{Stripes: 4, StripeSize: 3}},
	} {
		m := disktest.New(c.size)
		if err := Create(m, c.place, CreateOptions{AL: c.al}); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, m, c.place)
		use(t, s, rand.New(rand.NewPCG(7, 2)), 20)
		all = append(all, specimen{m, c.place, s.layout})
	}
	return all
}

// damage changes bytes of the superblock, the log or the bitmap: four bytes of
// edits each name the place and the new value.
func (s *specimen) damage(t testing.TB, f *fence, edits []byte) {
	t.Helper()
	one := make([]byte, 1)
	for ; len(edits) >= 4; edits = edits[4:] {
		at := int64(binary.BigEndian.Uint16(edits[1:]))
		switch edits[0] % 8 {
		case 0, 1, 2, 3:
			at = s.layout.Super.Bytes() + at%96 // where the fields are
		case 4:
			at = s.layout.Super.Bytes() + at%blockSize
		case 5, 6:
			at = s.layout.AL.Bytes() + at%s.layout.Geometry.sectors().Bytes()
		default:
			at = s.layout.Bitmap.Bytes() + at%blockSize
		}
		one[0] = edits[3]
		if err := f.change(one, at); err != nil {
			t.Fatal(err)
		}
	}
}

// reseal makes the checksums of superblock and log right again, so that what
// lies behind them is reached.
func (s *specimen) reseal(t testing.TB, f *fence) {
	t.Helper()
	block := newBlocks(1)
	at := s.layout.Super.Bytes()
	_, err := f.ReadAt(block, at)
	if err == nil {
		binary.BigEndian.PutUint32(block[offChecksum:], crc32.Checksum(block[:offChecksum], castagnoli))
		err = f.change(block, at)
	}
	for i := 0; err == nil && i < s.layout.Geometry.Blocks(); i++ {
		at := s.layout.AL.Bytes() + int64(i)*blockSize
		if _, err = f.ReadAt(block, at); err == nil {
			binary.BigEndian.PutUint32(block[offTxChecksum:], alChecksum(block))
			err = f.change(block, at)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// edit is one change of a field of the superblock, as damage reads it.
func edit(area byte, at int, value ...byte) (b []byte) {
	for i, v := range value {
		b = append(b, area, byte((at+i)>>8), byte(at+i), v)
	}
	return b
}

// FuzzImage damages metadata on disk anywhere and takes it into use: every step
// succeeds or refuses, nothing is written outside the metadata, an activity log
// that is refused is left as it was, and applying it twice is applying it once.
func FuzzImage(f *testing.F) {
	all := specimens(f)
	ones := bytes.Repeat([]byte{0xFF}, 8)
	for i := range uint8(3) {
		f.Add(i, true, []byte{})
		f.Add(i, true, edit(0, offLaSize, ones...))
		f.Add(i, true, edit(0, offLaSize, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF))
		f.Add(i, true, edit(0, offSize, ones[:4]...))
		f.Add(i, true, edit(0, offSize, 0, 0, 0, 80))
		f.Add(i, true, edit(0, offALOffset, 0x80, 0, 0, 0))
		f.Add(i, true, edit(0, offBMOffset, ones[:4]...))
		f.Add(i, true, edit(0, offBytesPerBit, 0, 0, 0, 0))
		f.Add(i, true, edit(0, offALStripes, append(slices.Clone(ones[:4]), ones[:4]...)...))
		f.Add(i, true, edit(0, offALStripes, 0, 0, 0, 4, 0, 0, 4, 0))
		f.Add(i, true, edit(0, offFlags, ones[:4]...))
		f.Add(i, true, edit(0, offMagic, 0x83, 0x74, 0x02, 0x6B))
		f.Add(i, true, edit(5, offTxContext, ones[:4]...))
		f.Add(i, true, edit(5, offTxExtents, 0x7F, 0xFF, 0xFF, 0xFF))
		f.Add(i, true, edit(5, blockSize+offTxNumber, ones[:4]...))
		f.Add(i, true, edit(5, offTxUpdates, 0, 64, 0xFF, 0xFF, 0xFF, 0xFE))
		f.Add(i, false, edit(5, blockSize, 1))
		f.Add(i, false, edit(4, 100, 1))
	}
	f.Fuzz(func(t *testing.T, which uint8, sealed bool, edits []byte) {
		s := &all[int(which)%len(all)]
		f := newFence(t, s.image, s.layout.Bitmap.Bytes(), (s.layout.Super + blockSectors).Bytes())
		if s.place.Kind != Internal {
			f.from, f.to = s.layout.Super.Bytes(), (s.layout.Super + s.layout.Size).Bytes()
		}
		s.damage(t, f, edits[:min(len(edits), 1<<12)])
		if sealed {
			s.reseal(t, f)
		}
		takeIntoUse(t, f, s.place)
	})
}

// takeIntoUse does what attaching does, and a dump before it.
func takeIntoUse(t *testing.T, f *fence, place Placement) {
	s, err := Open(f, f, place)
	if err != nil {
		if err.Error() == "" || f.writes != 0 {
			t.Fatalf("Open: %q after %d writes", err, f.writes)
		}
		return
	}
	// A dump is as long as the bitmap that the superblock claims.
	if s.super.LaSize < 1<<22 || s.layout.BitmapSize < 1<<13 {
		if err := s.Dump(io.Discard, DumpHeader{}, true); err != nil {
			t.Fatalf("dump: %v", err)
		}
	}
	if f.writes != 0 {
		t.Fatal("reading has written")
	}
	before := s.Super()
	if _, err := s.ApplyAL(); err != nil {
		damaged, ok := errors.AsType[*ALDamagedError](err)
		if !ok || damaged.Reason == "" {
			t.Fatalf("apply the log: %v", err)
		}
		if f.writes != 0 || s.Super() != before {
			t.Fatalf("a log that is refused (%v) changed something", err)
		}
		if err := s.AbandonAL(); err != nil || !s.Super().Flags.has(FlagFullSync) {
			t.Fatalf("give the log up: %v", err)
		}
	}
	after := readBitmap(t, s)
	if newly, err := s.ApplyAL(); err != nil || newly != 0 || !slices.Equal(readBitmap(t, s), after) {
		t.Fatalf("applied again: %d KiB, %v", newly, err)
	}
	attachTwice(t, f, place, s)
}

// readBitmap loads what covers the usable device.
func readBitmap(t *testing.T, s *Store) []uint64 {
	t.Helper()
	b := bitmap.New(min(uint64(s.Usable()/sectorsPerBit), 1<<20))
	if err := s.ReadBitmap(b); err != nil {
		t.Fatal(err)
	}
	return words(b)
}

func attachTwice(t *testing.T, f *fence, place Placement, s *Store) {
	err := s.Attach()
	if _, misfit := errors.AsType[*MisfitError](err); misfit {
		return
	}
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	again, err := Open(f, f, place)
	if err != nil {
		t.Fatalf("our own superblock is refused: %v", err)
	}
	if got, want := again.Super(), s.Super(); got != want || got.Clean() {
		t.Fatalf("read back %+v, wrote %+v", got, want)
	}
	if err := again.Attach(); !errors.Is(err, ErrUnclean) {
		t.Fatalf("attached without applying the log: %v", err)
	}
}

// FuzzSetGI: identifiers that are accepted are printed as they were meant, and
// what is refused changes nothing.
func FuzzSetGI(f *testing.F) {
	f.Add("0123456789ABCDEF:0:0x00000000000000aa:ffffffffffffffff:1:0:1:0:1:0:1")
	f.Add(":::::::::::")
	f.Add("::::2")
	f.Add("0x:-1:+1:1_0")
	f.Add("1:2:3:4:1:1:x")
	f.Add("1:g")
	f.Add(strings.Repeat("0", 1<<16) + "1")
	f.Add(strings.Repeat(":", 1<<16))
	f.Add("10000000000000000")
	f.Fuzz(func(t *testing.T, spec string) {
		s := Super{Current: 4, Bitmap: 3, History: [2]UUID{2, 1}, Flags: FlagConsistent | FlagALClean | 1<<31, LaSize: 77}
		before := s
		if err := s.SetGI(spec); err != nil {
			if s != before || !errors.Is(err, ErrBadGI) {
				t.Fatalf("%q: %v left %+v", spec, err, s)
			}
			return
		}
		if s.LaSize != before.LaSize || s.Flags&(FlagALClean|1<<31) != before.Flags&(FlagALClean|1<<31) {
			t.Fatalf("%q changed what it does not name: %+v", spec, s)
		}
		var back Super
		back.Flags, back.LaSize = FlagALClean|1<<31, 77
		if err := back.SetGI(s.GI()); err != nil || back != s {
			t.Fatalf("%q became %q, read again as %+v, %v", spec, s.GI(), back, err)
		}
		// Each field, alone, does the same: fields do not touch each other.
		alone := before
		for i, field := range strings.Split(spec, ":") {
			if err := alone.SetGI(strings.Repeat(":", i) + field); err != nil {
				t.Fatalf("field %d of %q: %v", i, spec, err)
			}
		}
		if alone != s {
			t.Fatalf("%q field by field gives %+v, at once %+v", spec, alone, s)
		}
	})
}

// FuzzSurvey: whatever the head of a device holds, looking at it writes nothing,
// what is recognised is never overwritten unasked, and what create-md makes can be opened.
func FuzzSurvey(f *testing.F) {
	for _, c := range []struct {
		at   int
		text string
	}{{0, "XFSB\x00\x00\x10\x00\xff\xff\xff\xff\xff\xff\xff\xff"}, {0x218, "LVM2"}, {0x438, "\x53\xEF"}, {4086, "SWAPSPACE2"}, {0x8000, "JFS1"}, {0x10034, "ReIsErFs"}, {0x10040, "_BHRfS_M"}, {0, "LUKS\xba\xbe"}, {512, "EFI PART"}, {510, "\x55\xAA"}} {
		f.Add(uint32(c.at), []byte(c.text), uint32(0), []byte{})
		f.Add(uint32(c.at), []byte(c.text), uint32(c.at)+8, bytes.Repeat([]byte{0xFF}, 64))
	}
	f.Add(uint32(0x404), bytes.Repeat([]byte{0xFF}, 0x60), uint32(0x438), []byte("\x53\xEF"))
	f.Add(uint32(0x214), []byte("\xff\xff\xff\xff"), uint32(0x218), []byte("LVM2"))
	f.Fuzz(func(t *testing.T, at1 uint32, first []byte, at2 uint32, second []byte) {
		m := disktest.New(1 << 20)
		for _, put := range []struct {
			at   uint32
			text []byte
		}{{at1, first}, {at2, second}} {
			at := int64(put.at % (deviceMin - 1))
			if _, err := m.WriteAt(put.text[:min(int64(len(put.text)), deviceMin-at)], at); err != nil {
				t.Fatal(err)
			}
		}
		l, err := NewLayout(internal, m.Size(), DefaultALGeometry)
		if err != nil {
			t.Fatal(err)
		}
		d := newFence(t, m, l.Bitmap.Bytes(), m.Size())
		questions, err := Survey(d, internal, CreateOptions{})
		blank := len(first)+len(second) == 0
		if refused, ok := errors.AsType[*RefusedError](err); err != nil && (!ok || refused.Found == "") {
			t.Fatal(err)
		}
		if blank && (err != nil || len(questions) != 0) {
			t.Fatalf("an empty device: %v, %v", questions, err)
		}
		if created := Create(d, internal, CreateOptions{}); (created == nil) != (err == nil && len(questions) == 0) {
			t.Fatalf("survey says %v and %d questions, create %v", err, len(questions), created)
		} else if created != nil && d.writes != 0 {
			t.Fatal("written without a yes")
		}
		if err == nil {
			if err := Create(d, internal, CreateOptions{Confirmed: true}); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, d, internal)
		}
	})
}
