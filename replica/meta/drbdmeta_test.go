package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replicad/bitmap"
	"replicad/replica/disk"
)

// TestCreateEqualsDrbdmeta compares every byte of the metadata, but for our
// tail and the device uuid, which drbdadm sets in a second step.
func TestCreateEqualsDrbdmeta(t *testing.T) {
	d := oracle(t)
	onPlaces(t, func(t *testing.T, p place) {
		theirs, ours := image(t, p.size), image(t, p.size)
		d.must(theirs, p.Placement, "create-md")
		d.must(theirs, p.Placement, "write-dev-uuid", "0123456789ABCDEF")
		var out strings.Builder
		onImage(t, ours, func(dev disk.Device) {
			opts := CreateOptions{DeviceUUID: 0x0123456789ABCDEF, Out: &out}
			if err := Create(dev, p.Placement, opts); err != nil {
				t.Fatal(err)
			}
		})
		if want := "initializing activity log\nWriting meta data...\nNew drbd meta data block successfully created.\n"; out.String() != want {
			t.Errorf("create-md printed %q", out.String())
		}
		got, want := imageMetadata(t, ours, p.Placement), imageMetadata(t, theirs, p.Placement)
		onStore(t, ours, p.Placement, func(s *Store) {
			if s.Super().Instance == (InstanceID{}) {
				t.Error("no instance id")
			}
			super := int(s.layout.Super-min(s.layout.Super, s.layout.Bitmap)) * sectorSize
			clear(got[super+offTail : super+sectorSize])
		})
		if !bytes.Equal(got, want) {
			t.Errorf("metadata differs from drbdmeta's at byte %d", firstDifference(got, want))
		}
		checkSameDump(t, d, ours, p.Placement)
		checkSameDump(t, d, theirs, p.Placement)
	})
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestStripedGeometry covers logs of other shapes.
func TestStripedGeometry(t *testing.T) {
	d := oracle(t)
	for _, g := range []ALGeometry{{Stripes: 2, StripeSize: 8}, {Stripes: 3, StripeSize: 16}, {Stripes: 4, StripeSize: 256}} {
		t.Run(fmt.Sprintf("%dx%d", g.Stripes, g.StripeSize), func(t *testing.T) {
			path, p := image(t, 64<<20), Placement{Kind: Internal}
			d.must(path, p, "--al-stripes", fmt.Sprint(g.Stripes), "--al-stripe-size-kB", fmt.Sprint(4*g.StripeSize), "create-md")
			onStore(t, path, p, func(s *Store) {
				if s.Super().AL != g {
					t.Fatalf("geometry %+v", s.Super().AL)
				}
				use(t, s, rand.New(rand.NewPCG(7, uint64(g.Stripes))), 3*g.Blocks())
			})
			checkApplyEqualsDrbdmeta(t, d, path, p)
		})
	}
}

// use drives a store the way a Primary does: hot extents, dirty pages and new
// generations. It leaves it attached, as a crash would.
func use(t testing.TB, s *Store, rng *rand.Rand, transactions int) {
	t.Helper()
	if err := s.Attach(); err != nil {
		t.Fatal(err)
	}
	super := s.Super()
	super.LaSize = s.Usable()
	super.Current, super.Bitmap = UUID(rng.Uint64()|1), UUID(rng.Uint64())
	super.Flags |= FlagConsistent | FlagWasUpToDate | FlagPrimaryIndicator
	super.ALExtents = 61
	super.PeerMaxBio = 1 << 20
	if err := s.WriteSuper(&super); err != nil {
		t.Fatal(err)
	}
	blocks := uint64(super.LaSize / sectorsPerBit)
	log := bitmap.NewActivityLog(61)
	for range transactions {
		writeTransaction(t, s, log, rng, blocks)
	}
	writeDirtyBits(t, s, rng, blocks)
}

func writeTransaction(t testing.TB, s *Store, log *bitmap.ActivityLog, rng *rand.Rand, blocks uint64) {
	t.Helper()
	want := bitmap.ExtentOf(rng.Uint64N(blocks))
	if log.Hot(want) {
		log.Pin(want)
		log.Unpin(want)
		return
	}
	tx, _, ok := log.Prepare([]bitmap.Extent{want})
	if !ok {
		t.Fatal("no slot for a new extent")
	}
	if err := s.WriteAL(tx); err != nil {
		t.Fatal(err)
	}
	log.Commit(tx)
}

func writeDirtyBits(t testing.TB, s *Store, rng *rand.Rand, blocks uint64) {
	t.Helper()
	b := bitmap.New(blocks)
	for range 100 {
		b.SetRange(rng.Uint64N(blocks), 1+rng.Uint64N(min(blocks, 3000)))
	}
	var pages []Page
	for page := range b.Pages() {
		data := newBlocks(1)
		b.CopyPage(page, data)
		pages = append(pages, Page{Number: page, Data: data})
	}
	if err := s.WriteBitmapPages(pages); err != nil {
		t.Fatal(err)
	}
}

// TestDrbdmetaReadsWhatWeWrote is the round trip of the whole format, and
// checks that applying the log gives what drbdmeta makes of it.
func TestDrbdmetaReadsWhatWeWrote(t *testing.T) {
	d := oracle(t)
	onPlaces(t, func(t *testing.T, p place) {
		for seed := range uint64(4) {
			path := image(t, p.size)
			d.must(path, p.Placement, "create-md")
			onStore(t, path, p.Placement, func(s *Store) {
				use(t, s, rand.New(rand.NewPCG(seed, 1)), int(seed)*9)
			})
			if o := d.run(path, p.Placement, "dump-md"); !strings.Contains(o.err, ErrUnclean.Error()) {
				t.Fatalf("drbdmeta does not take metadata in use for unclean: %s%s", o.out, o.err)
			}
			checkApplyEqualsDrbdmeta(t, d, path, p.Placement)
		}
	})
}

// checkApplyEqualsDrbdmeta lets both apply the log of copies of one image.
func checkApplyEqualsDrbdmeta(t *testing.T, d drbdmeta, path string, p Placement) {
	t.Helper()
	before := imageMetadata(t, path, p)
	var message string
	onStore(t, path, p, func(s *Store) {
		marked, err := s.ApplyAL()
		if err != nil {
			t.Fatal(err)
		}
		message = fmt.Sprintf("Marked additional %s as out-of-sync based on AL.\n", FormatKiB(marked))
		if s.md.(*disk.File).Sync() != nil || !s.Super().Clean() {
			t.Fatal("not clean after the log was applied")
		}
	})
	ours := imageMetadata(t, path, p)
	checkSameDump(t, d, path, p)

	onStore(t, path, p, func(s *Store) {
		if _, err := s.md.WriteAt(before, min(s.layout.Super, s.layout.Bitmap).Bytes()); err != nil {
			t.Fatal(err)
		}
	})
	o := d.run(path, p, "apply-al")
	if o.exit != 0 || strings.Contains(o.err, "corrupt") {
		t.Fatalf("drbdmeta apply-al: exit %d\n%s", o.exit, o.err)
	}
	if strings.Contains(o.err, "Marked") && !strings.Contains(o.err, message) {
		t.Errorf("we say %q, drbdmeta says %q", message, o.err)
	}
	theirs := imageMetadata(t, path, p)
	clearTails(t, path, p, ours, theirs)
	if !bytes.Equal(ours, theirs) {
		t.Errorf("applying the log gave other bytes than drbdmeta, from %d", firstDifference(ours, theirs))
	}
}

func clearTails(t *testing.T, path string, p Placement, areas ...[]byte) {
	t.Helper()
	onStore(t, path, p, func(s *Store) {
		super := int(s.layout.Super-min(s.layout.Super, s.layout.Bitmap)) * sectorSize
		for _, area := range areas {
			clear(area[super+offTail : super+sectorSize])
		}
	})
}

// TestRewriteByDrbdmetaIsNoDamage runs every verb of drbdmeta that writes the
// superblock on metadata with our checksum.
func TestRewriteByDrbdmetaIsNoDamage(t *testing.T) {
	d := oracle(t)
	p := Placement{Kind: Internal}
	for _, command := range []string{
		"set-gi 1111111111111111:2222222222222222:0:0:1:1", "outdate", "invalidate",
		"write-dev-uuid 1234567890ABCDEF", "create-md", "apply-al",
	} {
		t.Run(command, func(t *testing.T) {
			path := image(t, 64<<20)
			d.must(path, p, "create-md")
			d.must(path, p, "set-gi", "5:6:7:8:1:1:1")
			onStore(t, path, p, func(s *Store) {
				if err := s.Attach(); err != nil {
					t.Fatal(err)
				}
			})
			before := imageMetadata(t, path, p)
			d.must(path, p, strings.Fields(command)...)
			if bytes.Equal(before, imageMetadata(t, path, p)) {
				t.Fatal("the command wrote nothing, so it proves nothing")
			}
			onStore(t, path, p, func(s *Store) {
				if _, err := s.ApplyAL(); err != nil {
					t.Error(err)
				}
				if err := s.Attach(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestRestoreOfOurDump feeds our dump to the real restore-md.
func TestRestoreOfOurDump(t *testing.T) {
	d := oracle(t)
	p := Placement{Kind: Internal}
	path := image(t, 300<<20)
	d.must(path, p, "create-md")
	var text string
	onStore(t, path, p, func(s *Store) {
		use(t, s, rand.New(rand.NewPCG(5, 5)), 20)
	})
	onStore(t, path, p, func(s *Store) {
		if _, err := s.ApplyAL(); err != nil {
			t.Fatal(err)
		}
		text = dumpText(t, s, false)
	})
	dump := filepath.Join(t.TempDir(), "dump.txt")
	if err := os.WriteFile(dump, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	restored := image(t, 300<<20)
	d.must(restored, p, "restore-md", dump)
	onStore(t, restored, p, func(s *Store) {
		// Only al-extents, a comment in the format, is lost on the way; the
		// flags, which drbdmeta's own dumps lose, are not.
		if got := dumpText(t, s, true); strings.Replace(got, "# al-extents 257;", "# al-extents 61;", 1) != text {
			t.Errorf("restored metadata differs\n%s\nwant\n%s", clip(got), clip(text))
		}
	})
}

// TestShowGIOfAllFlags compares get-gi, show-gi and dstate for each of the 128
// combinations, with and without an agreed size and a clean log.
func TestShowGIOfAllFlags(t *testing.T) {
	d := oracle(t)
	p := Placement{Kind: Internal}
	path := image(t, 64<<20)
	d.must(path, p, "create-md")
	for n := range 128 {
		onStore(t, path, p, func(s *Store) {
			next := s.Super()
			next.Flags = Flags(n) | FlagALClean*Flags(n&1)
			next.Current, next.History[1] = UUID(n)<<56, 0xABCDEF
			next.LaSize = Sectors(n % 3 * 50000)
			next.PeerMaxBio = uint32(n) << 12
			next.Unclean = n&4 != 0
			if err := s.writeSuper(next); err != nil {
				t.Fatal(err)
			}
			if got := s.super.GI() + "\n"; got != d.must(path, p, "get-gi") {
				t.Errorf("flags %#x: get-gi %s", n, got)
			}
			if got, want := s.super.ShowGI(), d.must(path, p, "show-gi"); got != want {
				t.Errorf("flags %#x: show-gi\n%s\nwant\n%s", n, got, want)
			}
			if got, want := s.super.DiskState()+"\n", d.must(path, p, "dstate"); got != want {
				t.Errorf("flags %#x: dstate %s, want %s", n, got, want)
			}
		})
	}
}

func TestSetGIEqualsDrbdmeta(t *testing.T) {
	d := oracle(t)
	p := Placement{Kind: Internal}
	for _, spec := range []string{"", "1", "1:2:3:4:1:1:1:1:1:1:1", "::::0:1", "0x12:0XaB", "FFFFFFFFFFFFFFFF:::", ":::::::::::1", ":::::::::1"} {
		path := image(t, 64<<20)
		d.must(path, p, "create-md")
		var before Super
		onStore(t, path, p, func(s *Store) { before = s.Super() })
		d.must(path, p, "set-gi", spec)
		want := strings.TrimSpace(d.must(path, p, "get-gi"))
		err := before.SetGI(spec)
		if strings.Count(spec, ":") > 10 {
			if !errors.Is(err, ErrBadGI) {
				t.Errorf("%q: %v, want ErrBadGI", spec, err)
			}
			continue
		}
		if err != nil || before.GI() != want {
			t.Errorf("%q: %s, %v, want %s", spec, before.GI(), err, want)
		}
	}
}

// contents are first blocks of devices with something on them.
var contents = []struct {
	name string
	size int64
	put  func(p []byte)
}{
	{"swap", 64 << 20, func(p []byte) { copy(p[4096-10:], "SWAPSPACE2") }},
	{"old swap", 64 << 20, func(p []byte) { copy(p[8192-10:], "SWAP-SPACE") }},
	{"ext2 full", 64 << 20, func(p []byte) { putExt(p, 65536, 0, 0) }},
	{"ext4 full", 64 << 20, func(p []byte) { putExt(p, 16384, 2, 4) }},
	{"ext4 with room", 80 << 20, func(p []byte) { putExt(p, 16384, 2, 4) }},
	{"ext4 exactly", 64 << 20, func(p []byte) { putExt(p, 130992/8, 2, 4) }},
	{"xfs full", 64 << 20, func(p []byte) { putXFS(p, 16384) }},
	{"xfs with room", 64 << 20, func(p []byte) { putXFS(p, 1000) }},
	{"jfs", 64 << 20, func(p []byte) {
		copy(p[0x8000:], "JFS1")
		binary.LittleEndian.PutUint64(p[0x8008:], 131072)
		binary.LittleEndian.PutUint32(p[0x8018:], 512)
	}},
	{"reiserfs", 64 << 20, func(p []byte) {
		copy(p[0x10034:], "ReIsEr2Fs")
		binary.LittleEndian.PutUint32(p[0x10000:], 777)
		binary.LittleEndian.PutUint16(p[0x1002C:], 4096)
	}},
	{"unknown", 64 << 20, func(p []byte) { p[12345] = 1 }},
	{"nothing", 64 << 20, func([]byte) {}},
}

func putExt(p []byte, blocks, logSize uint32, compat byte) {
	le := binary.LittleEndian
	le.PutUint16(p[0x438:], 0xEF53)
	le.PutUint32(p[0x404:], blocks)
	le.PutUint32(p[0x418:], logSize)
	p[0x45C] = compat
}

func putXFS(p []byte, blocks uint64) {
	binary.BigEndian.PutUint32(p, 0x58465342)
	binary.BigEndian.PutUint32(p[4:], 4096)
	binary.BigEndian.PutUint64(p[8:], blocks)
}

// TestSurveyEqualsDrbdmeta compares verdict and words on existing content.
func TestSurveyEqualsDrbdmeta(t *testing.T) {
	d := oracle(t)
	for _, c := range contents {
		for _, p := range []Placement{{Kind: Internal}, {Kind: FlexExternal}} {
			t.Run(c.name+" "+p.String(), func(t *testing.T) {
				path := image(t, c.size)
				head := make([]byte, deviceMin)
				c.put(head)
				onImage(t, path, func(dev disk.Device) {
					if _, err := dev.WriteAt(head, 0); err != nil {
						t.Fatal(err)
					}
					text, refused := survey(t, dev, p)
					if !refused {
						text += "initializing activity log\nWriting meta data...\nNew drbd meta data block successfully created.\n"
					}
					o := d.run(path, p, "create-md")
					if (o.exit == 40) != refused || o.out != text {
						t.Errorf("refused %v with\n%s\ndrbdmeta: exit %d with\n%s", refused, text, o.exit, o.out)
					}
				})
			})
		}
	}
}

// survey returns what create-md --force would print before it starts.
func survey(t *testing.T, dev disk.Device, p Placement) (text string, refused bool) {
	t.Helper()
	questions, err := Survey(dev, p, CreateOptions{})
	var refusal *RefusedError
	if errors.As(err, &refusal) {
		return refusal.Text, true
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range questions {
		text += q.Out
	}
	return text, false
}

func TestOverwriteQuestionEqualsDrbdmeta(t *testing.T) {
	d := oracle(t)
	for _, p := range []Placement{{Kind: Internal}, {Kind: FlexExternal}} {
		path := image(t, 64<<20)
		d.must(path, p, "create-md")
		onImage(t, path, func(dev disk.Device) {
			questions, err := Survey(dev, p, CreateOptions{Name: path})
			if err != nil || len(questions) == 0 {
				t.Fatal(questions, err)
			}
			q := questions[0]
			want := q.Err + "\n" + q.Ask + "\n*** confirmation forced via --force option ***\n"
			if o := d.run(path, p, "create-md"); !strings.Contains(o.err, want) {
				t.Errorf("we ask\n%s\ndrbdmeta\n%s", want, o.err)
			}
		})
	}
}

// TestDumpOfBitmaps compares the run-length form of many patterns.
func TestDumpOfBitmaps(t *testing.T) {
	d := oracle(t)
	p := Placement{Kind: Internal}
	path := image(t, 40<<30)
	d.must(path, p, "create-md")
	rng := rand.New(rand.NewPCG(11, 12))
	for round := range 8 {
		onStore(t, path, p, func(s *Store) {
			super := s.Super()
			super.LaSize = s.Usable() - Sectors(rng.Uint64N(80000))*Sectors(round)
			if err := s.WriteSuper(&super); err != nil {
				t.Fatal(err)
			}
			var pages []Page
			for n := range s.layout.BitmapPages() {
				pages = append(pages, Page{Number: n, Data: patternPage(rng)})
			}
			if err := s.WriteBitmapPages(pages); err != nil {
				t.Fatal(err)
			}
		})
		checkSameDump(t, d, path, p)
	}
}

// patternPage mixes runs of equal bytes of all lengths.
func patternPage(rng *rand.Rand) []byte {
	page := newBlocks(1)
	for at := 0; at < len(page); {
		n := min(4<<rng.IntN(9)*(1+rng.IntN(3)), len(page)-at)
		value := byte(rng.IntN(3) * 0x7F)
		for i := range n {
			page[at+i] = value
		}
		at += n
	}
	return page
}

// TestDumpAcrossChunks has runs that meet the 32 MiB pieces in which drbdmeta
// reads a bitmap.
func TestDumpAcrossChunks(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 2 TiB worth of bitmap")
	}
	d := oracle(t)
	p := Placement{Kind: Internal}
	path := image(t, 2300<<30)
	d.must(path, p, "create-md")
	const chunk = 32 << 20
	for _, lines := range [][2]int{{3, 1}, {3, 2}, {1, 1}, {1, 5}, {0, 2}, {2, 3}} {
		onStore(t, path, p, func(s *Store) {
			super := s.Super()
			super.LaSize = s.Usable()
			if err := s.WriteSuper(&super); err != nil {
				t.Fatal(err)
			}
			border := newBlocks(2)
			for i := range border {
				border[i] = byte(i) | 1
			}
			middle := len(border) / 2
			fill(border[middle-lines[0]*dumpLine : middle+lines[1]*dumpLine])
			if _, err := s.md.WriteAt(border, s.layout.Bitmap.Bytes()+chunk-int64(middle)); err != nil {
				t.Fatal(err)
			}
		})
		checkSameDump(t, d, path, p)
	}
}
