package meta

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// DumpHeader is what the comment lines above a dump say about its making.
type DumpHeader struct {
	Time    time.Time
	Host    string
	Command []string
}

// Dump writes the metadata in drbdmeta's dump-md format. Unclean metadata is
// refused with ErrUnclean unless force is set, and then contains a line that
// restore-md does not accept. Unlike drbdmeta 9.22 it prints the real flags.
func (s *Store) Dump(w io.Writer, header DumpHeader, force bool) error {
	if !s.super.Clean() && !force {
		return ErrUnclean
	}
	out := bufio.NewWriter(w)
	size := s.super.LaSize
	// A dump describes what the bitmap area could hold, not the data device.
	if room := s.layout.Usable(math.MaxInt64); size > room {
		fmt.Fprintf(out, "# la-size-sect was too big (%d), truncated (%d)!\n", size, room)
		size = room
	}
	s.dumpHead(out, header)
	s.dumpSuper(out, size)
	if err := s.dumpBitmap(out, size); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write dump: %w", err)
	}
	return nil
}

func (s *Store) dumpHead(out io.Writer, h DumpHeader) {
	fmt.Fprintf(out, "# DRBD meta data dump\n# %s [%d]\n# %s> %s\n#\n\n",
		h.Time.Format("2006-01-02 15:04:05 -0700"), h.Time.Unix(), h.Host, strings.Join(h.Command, " "))
	fmt.Fprintf(out, "version \"v08\";\n\n")
	if !s.super.Clean() {
		fmt.Fprintf(out, "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.\n"+
			"# You should \"apply-al\" first, if you plan to restore this.\n\n")
	}
	fmt.Fprintf(out, "# md_size_sect %d\n# md_offset %d\n# al_offset %d\n# bm_offset %d\n\n",
		s.layout.Size, s.layout.Super.Bytes(), s.layout.AL.Bytes(), s.layout.Bitmap.Bytes())
}

func (s *Store) dumpSuper(out io.Writer, size Sectors) {
	super := &s.super
	fmt.Fprintf(out, "uuid {\n    0x%016X; 0x%016X; 0x%016X; 0x%016X;\n    flags 0x%08X;\n}\n",
		uint64(super.Current), uint64(super.Bitmap), uint64(super.History[0]), uint64(super.History[1]), uint32(super.Flags))
	fmt.Fprintf(out, "# al-extents %d;\nla-size-sect %d;\nbm-byte-per-bit %d;\ndevice-uuid 0x%016X;\n",
		super.ALExtents, size, super.BytesPerBit, super.DeviceUUID)
	fmt.Fprintf(out, "la-peer-max-bio-size %d;\nal-stripes %d;\nal-stripe-size-4k %d;\n",
		super.PeerMaxBio, super.AL.Stripes, super.AL.StripeSize)
}

func (s *Store) dumpBitmap(out io.Writer, size Sectors) error {
	room := bitmapSectors(size)
	fmt.Fprintf(out, "# bm-bytes %d;\nbm {", room.Bytes())
	d := bitmapDump{out: out}
	err := s.readPages(int(room/blockSectors), func(_ int, data []byte) error {
		for ; len(data) > 0; data = data[dumpLine:] {
			d.line(data[:dumpLine])
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.endRun()
	fmt.Fprintf(out, "\n}\n# bits-set %d;\n", d.bitsSet)
	return nil
}

const (
	dumpLine  = 32                  // bytes of bitmap in a line: four 64-bit words
	dumpChunk = 32 << 20 / dumpLine // lines that drbdmeta has in memory at once
)

// bitmapDump prints the bitmap as lines of four 64-bit words. Two or more
// equal lines whose 32-bit words are all alike become a run, "n times word".
type bitmapDump struct {
	out     io.Writer
	next    int // number of the next line
	bitsSet uint64

	// The run being collected: its word, its lines before and in the present
	// chunk. drbdmeta forgets a single line at the end of a chunk, and
	// continues a run into the next only if that adds two lines or more.
	word          uint32
	before, lines int
}

// line takes the next dumpLine bytes.
func (d *bitmapDump) line(p []byte) {
	le := binary.LittleEndian
	d.bitsSet += countBits(p)
	if d.next%dumpChunk == 0 {
		d.endChunk()
	}
	word, alike := le.Uint32(p), true
	for at := 4; at < dumpLine; at += 4 {
		alike = alike && le.Uint32(p[at:]) == word
	}
	if d.before+d.lines > 0 && (!alike || word != d.word) {
		d.endRun()
	}
	if alike {
		d.word = word
		d.lines++
	} else {
		d.indent(d.next)
		for at := 0; at < dumpLine; at += 8 {
			fmt.Fprintf(d.out, " 0x%016X;", le.Uint64(p[at:]))
		}
	}
	d.next++
}

func (d *bitmapDump) endChunk() {
	if d.lines < 2 {
		d.endRun()
		return
	}
	d.before += d.lines
	d.lines = 0
}

// endRun prints what was collected.
func (d *bitmapDump) endRun() {
	first := d.next - d.before - d.lines
	if d.lines >= 2 {
		d.before += d.lines
		d.lines = 0
	}
	if d.before > 0 {
		d.indent(first)
		fmt.Fprintf(d.out, " %d times 0x%08X%08X;", d.before*dumpLine/8, d.word, d.word)
	}
	if d.lines > 0 {
		d.indent(first + d.before)
		for range dumpLine / 8 {
			fmt.Fprintf(d.out, " 0x%08X%08X;", d.word, d.word)
		}
	}
	d.before, d.lines = 0, 0
}

// indent begins the output of a line of bitmap; each eighth line is preceded
// by its position on the device.
func (d *bitmapDump) indent(line int) {
	if words := line * dumpLine / 4; words%64 == 0 {
		fmt.Fprintf(d.out, "\n   # at %dkB", 128*words)
	}
	fmt.Fprint(d.out, "\n   ")
}
