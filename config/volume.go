package config

import (
	"strconv"
	"strings"
)

// Device names that carry their minor number.
var devicePrefixes = []string{"/dev/drbd", "/dev/nbd"}

// volumeBlock reads volume N { ... } into set.
func (p *parser) volumeBlock(keyword token, owner string, set *volumeSet) bool {
	t, ok := p.valueToken("a volume number")
	if !ok {
		return false
	}
	v := &Volume{Pos: p.pos(keyword)}
	if p.inRange("volume", t, 0, VolumeMax, unitOne) {
		n, _ := parseNumber(t.text, unitOne)
		v.Number = int(n)
		set.volumes = append(set.volumes, v)
	}
	owner = owner + ":volume " + strconv.Itoa(v.Number)
	p.once(v.Pos, "volume section", owner)
	what := strings.Join(volumeWords, " | ")
	return p.block(func() bool {
		t, ok := p.keyword(what, volumeWords)
		return ok && p.volumeStatement(t, owner, v)
	})
}

// volumeStatement reads the volume statement that begins with t. owner names
// the level it stands at.
func (p *parser) volumeStatement(t token, owner string, v *Volume) bool {
	pos := p.pos(t)
	switch t.text {
	case "device":
		p.once(pos, "device statement", owner+":device")
		return p.device(pos, v)
	case "disk":
		return p.diskStatement(pos, owner, v)
	case "meta-disk", "flexible-meta-disk":
		p.once(pos, "meta-disk statement", owner+":meta-disk")
		return p.metaDisk(pos, t.text == "meta-disk", v)
	case "nbd-listen":
		return p.nbdListen(pos, v)
	}
	p.at--
	return p.fail(strings.Join(volumeWords, " | "), volumeWords)
}

// diskStatement reads disk PATH; or, one level below the resource, disk { ... }.
func (p *parser) diskStatement(pos Pos, owner string, v *Volume) bool {
	if p.peek().is("{") {
		return p.optionSection(pos, owner+":disk options", &diskSpec, &v.DiskTuning)
	}
	p.once(pos, "disk statement", owner+":disk")
	t, ok := p.valueToken("a disk")
	if !ok {
		return false
	}
	v.Disk = &Path{Value: t.text, Pos: pos}
	if t.text != diskNone {
		p.checkPath("disk", t)
	}
	return p.expect(";")
}

// diskNone says that a host has no backing disk.
const diskNone = "none"

// metaDisk reads internal ";" | PATH [ "[" N "]" ] ";".
func (p *parser) metaDisk(pos Pos, mayIndex bool, v *Volume) bool {
	t, ok := p.valueToken("a meta-disk")
	if !ok {
		return false
	}
	md := &MetaDisk{Pos: pos}
	v.MetaDisk = md
	if t.is("internal") {
		return p.expect(";")
	}
	p.checkPath("meta-disk", t)
	md.Kind, md.Path = MetaFlexibleExternal, t.text
	if !mayIndex || !p.accept("[") {
		return p.expect(";")
	}
	return p.metaIndex(md)
}

func (p *parser) metaIndex(md *MetaDisk) bool {
	t, ok := p.valueToken("an index")
	if !ok {
		return false
	}
	const indexMax = 1 << 16 // 8 TiB of 128 MiB slots
	if p.inRange("meta-disk index", t, 0, indexMax, unitOne) {
		n, _ := parseNumber(t.text, unitOne)
		md.Kind, md.Index = MetaIndexed, int(n)
	}
	return p.expect("]") && p.expect(";")
}

// device reads ( PATH [ "minor" N ] | "minor" N ) ";".
func (p *parser) device(pos Pos, v *Volume) bool {
	t, ok := p.valueToken("/dev/drbdN | /dev/nbdN | minor")
	if !ok {
		return false
	}
	d := &Device{Pos: pos}
	v.Device = d
	if t.is("minor") {
		return p.deviceMinor(d) && p.expect(";")
	}
	named, hasNumber := p.deviceName(t, d)
	if !p.accept("minor") {
		if !hasNumber {
			p.report.errorf(pos, "no minor given nor device name contains a minor number")
		}
		d.Minor = named
		return p.expect(";")
	}
	if !p.deviceMinor(d) {
		return false
	}
	if hasNumber && named != d.Minor {
		p.report.errorf(pos, "explicit minor number must match with device name\n\tTry \"device %s%d minor %d;\",\n"+
			"\tor leave off either device name or explicit minor.", strings.TrimRight(d.Path, "0123456789"), d.Minor, d.Minor)
	}
	return p.expect(";")
}

func (p *parser) deviceMinor(d *Device) bool {
	t, ok := p.valueToken("a minor number")
	if ok && p.inRange("minor", t, 0, MinorMax, unitOne) {
		n, _ := parseNumber(t.text, unitOne)
		d.Minor = int(n)
	}
	return ok
}

// deviceName checks a device path, in which /dev/ may be left out, and returns
// the minor number it ends in. /dev/drbd_anything carries none.
func (p *parser) deviceName(t token, d *Device) (minor int, hasNumber bool) {
	d.Path = t.text
	if !strings.HasPrefix(d.Path, "/") {
		d.Path = "/dev/" + d.Path
	}
	if strings.HasPrefix(d.Path, "/dev/drbd_") {
		return 0, false
	}
	for _, prefix := range devicePrefixes {
		digits, found := strings.CutPrefix(d.Path, prefix)
		n, err := strconv.ParseUint(digits, 10, 20)
		if found && err == nil {
			return int(n), true
		}
	}
	p.report.errorf(p.pos(t), "device name must be /dev/drbdN, /dev/nbdN or start with /dev/drbd_\n"+
		"\t(/dev/ is optional), and N must be at most %d", MinorMax)
	return 0, true
}

func (p *parser) nbdListen(pos Pos, v *Volume) bool {
	t, ok := p.valueToken("\"unix:PATH\" | \"IP:PORT\"")
	if !ok {
		return false
	}
	listen, err := parseListen(t.text)
	switch {
	case err != nil:
		p.report.errorf(p.pos(t), "nbd-listen '%s': %v.", shorten(printable(t.text)), err)
	case listen.exposed():
		p.report.warnf(pos, "nbd-listen %s is not a loopback address: NBD is unauthenticated, anyone who reaches it can read and write the data.", t.text)
	}
	v.NBDListen = append(v.NBDListen, Path{Value: t.text, Pos: pos})
	return p.expect(";")
}
