package meta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// content is what the first deviceMin bytes of a device look like.
type content struct {
	name    string
	usedKiB uint64 // how much of the device it uses; 0 when it is not known
	whole   bool   // it may use all of the device, so there is never room
}

// probes recognise content. The first six are drbdmeta's, in its order and with
// its names; it takes the others for "some data" and only asks.
var probes = []func(p []byte) (content, bool){
	probeSwap, probeLVM, probeExt, probeXFS, probeJFS, probeReiser,
	probeBtrfs, probeLUKS, probeGPT, probeMBR,
}

// recognise returns what p, deviceMin bytes from offset 0, looks like; ok is
// false when it is all zero.
func recognise(p []byte) (c content, ok bool) {
	if bytes.Count(p, []byte{0}) == len(p) {
		return content{}, false
	}
	for _, probe := range probes {
		if c, ok := probe(p); ok {
			return c, true
		}
	}
	return content{name: "some data"}, true
}

func sized(name string, blocks, blockBytes uint64) (content, bool) {
	high, low := bits.Mul64(blocks, blockBytes)
	kib := low/1024 + min(low%1024, 1)
	if high != 0 {
		kib = math.MaxUint64
	}
	return content{name: name, usedKiB: kib}, true
}

func probeSwap(p []byte) (content, bool) {
	for _, page := range []int{4096, 8192} {
		magic := string(p[page-10 : page])
		if magic == "SWAP-SPACE" || magic == "SWAPSPACE2" {
			return content{name: "swap space signature", whole: true}, true
		}
	}
	return content{}, false
}

// probeLVM reads the device size behind the label in sector 1.
func probeLVM(p []byte) (content, bool) {
	if string(p[0x218:0x21C]) != "LVM2" {
		return content{}, false
	}
	const name = "LVM2 physical volume signature"
	header := 0x200 + int(binary.LittleEndian.Uint32(p[0x214:]))
	if header < 0x200 || header+40 > 0x400 {
		return content{name: name, whole: true}, true
	}
	size := binary.LittleEndian.Uint64(p[header+32:])
	if size == 0 {
		return content{name: name, whole: true}, true
	}
	return sized(name, size/sectorSize, sectorSize)
}

// probeExt calls ext4 "ext3", as drbdmeta does: what it looks at is the
// journal.
func probeExt(p []byte) (content, bool) {
	le := binary.LittleEndian
	if le.Uint16(p[0x438:]) != 0xEF53 {
		return content{}, false
	}
	name := "ext2 filesystem"
	if p[0x45C]&4 != 0 {
		name = "ext3 filesystem"
	}
	blocks := uint64(le.Uint32(p[0x404:]))
	if le.Uint32(p[0x460:])&0x80 != 0 { // 64-bit block numbers
		blocks |= uint64(le.Uint32(p[0x550:])) << 32
	}
	return sized(name, blocks, 1024<<min(le.Uint32(p[0x418:]), 6))
}

func probeXFS(p []byte) (content, bool) {
	be := binary.BigEndian
	if be.Uint32(p) != 0x58465342 { // XFSB
		return content{}, false
	}
	return sized("xfs filesystem", be.Uint64(p[8:]), uint64(be.Uint32(p[4:])))
}

func probeJFS(p []byte) (content, bool) {
	if string(p[0x8000:0x8004]) != "JFS1" {
		return content{}, false
	}
	le := binary.LittleEndian
	return sized("JFS filesystem", le.Uint64(p[0x8008:]), uint64(le.Uint32(p[0x8018:])))
}

func probeReiser(p []byte) (content, bool) {
	magic := p[0x10034:]
	if !bytes.HasPrefix(magic, []byte("ReIsErFs")) && !bytes.HasPrefix(magic, []byte("ReIsEr2Fs")) {
		return content{}, false
	}
	le := binary.LittleEndian
	return sized("reiser filesystem", uint64(le.Uint32(p[0x10000:])), uint64(le.Uint16(p[0x1002C:])))
}

func probeBtrfs(p []byte) (content, bool) {
	if string(p[0x10040:0x10048]) != "_BHRfS_M" {
		return content{}, false
	}
	return sized("btrfs filesystem", binary.LittleEndian.Uint64(p[0x10070:]), 1)
}

func probeLUKS(p []byte) (content, bool) {
	return content{name: "LUKS encrypted volume", whole: true}, bytes.HasPrefix(p, []byte("LUKS\xba\xbe"))
}

// probeGPT finds a partition table at either common sector size. Its second
// copy lies at the end of the device, where internal metadata would go.
func probeGPT(p []byte) (content, bool) {
	const magic = "EFI PART"
	found := string(p[512:520]) == magic || string(p[4096:4104]) == magic
	return content{name: "GPT partition table", whole: true}, found
}

// probeMBR wants more than the two signature bytes, which boot sectors of file
// systems have as well: every entry must make sense, and one be in use.
func probeMBR(p []byte) (content, bool) {
	if p[510] != 0x55 || p[511] != 0xAA {
		return content{}, false
	}
	var end uint64
	for entry := p[446:510]; len(entry) > 0; entry = entry[16:] {
		first := uint64(binary.LittleEndian.Uint32(entry[8:]))
		n := uint64(binary.LittleEndian.Uint32(entry[12:]))
		used := entry[4] != 0
		if entry[0]&0x7F != 0 || used && (first == 0 || n == 0) {
			return content{}, false
		}
		if used {
			end = max(end, first+n)
		}
	}
	if end == 0 {
		return content{}, false
	}
	return sized("MBR partition table", end, sectorSize)
}

// Texts of drbdmeta's verdicts on existing content, on standard output.
const (
	textTruncated = "Device size would be truncated, which\n" +
		"would corrupt data and result in\n" +
		"'access beyond end of device' errors.\n"
	textZeroFirst = "If you want me to do this, you need to zero out the first part\n" +
		"of the device (destroy the content).\n" +
		"You should be very sure that you mean it.\n" +
		"Operation refused.\n\n"
	textAlternatives = "You need to either\n" +
		"   * use external meta data (recommended)\n" +
		"   * shrink that filesystem first\n" +
		"   * zero out the device (destroy the filesystem)\n" +
		"Operation refused.\n\n"
	textOnlyAGuess = "\nEven though it looks like this would place the new meta data into\n" +
		"unused space, you still need to confirm, as this is only a guess.\n"
	textUnknown = "\n ==> This might destroy existing data! <==\n"
)

// judge says what drbdmeta would print about content on a metadata device, and
// whether it would refuse.
func (l Layout) judge(c content) (text string, refuse bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "md_offset %d\nal_offset %d\nbm_offset %d\n\nFound %s\n",
		l.Super.Bytes(), l.AL.Bytes(), l.Bitmap.Bytes(), c.name)
	known := c.whole || c.usedKiB > 0
	switch {
	case !known:
		b.WriteString(textUnknown)
	case !l.internal:
		b.WriteString("\nThis would corrupt existing data.\n" + textZeroFirst)
		refuse = true
	default:
		refuse = l.judgeInternal(c, &b)
	}
	return b.String(), refuse
}

func (l Layout) judgeInternal(c content, b *strings.Builder) (refuse bool) {
	usableKiB := uint64(l.Bitmap) / 2
	if !c.whole {
		fmt.Fprintf(b, "%12d kB data area apparently used\n", c.usedKiB)
	}
	fmt.Fprintf(b, "%12d kB left usable by current configuration\n", usableKiB)
	switch {
	case c.whole:
		b.WriteString(textTruncated + textZeroFirst)
	case c.usedKiB > usableKiB:
		b.WriteString("\n" + textTruncated + textAlternatives)
	default:
		b.WriteString(textOnlyAGuess)
		return false
	}
	return true
}
