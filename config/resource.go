package config

import (
	"net/netip"
	"slices"
	"strings"
)

const resourceKeywords = "protocol | on | disk | net | syncer | startup | options | handlers | volume | device | meta-disk | " +
	"nbd-listen | election | floating | ignore-on | stacked-on-top-of"

var (
	volumeWords   = []string{"device", "disk", "meta-disk", "flexible-meta-disk", "nbd-listen"}
	resourceWords = slices.Concat(sectionWords, volumeWords,
		[]string{"on", "volume", "election", "floating", "ignore-on", "stacked-on-top-of"})
	hostWords = slices.Concat(volumeWords, []string{"volume", "address", "alternate-link-address", "options", "proxy"})
)

// resource reads a resource section after its keyword.
func (p *parser) resource(keyword token) bool {
	t, ok := p.valueToken("a resource name")
	if !ok {
		return false
	}
	p.resourceName(t)
	r := &Resource{Name: t.text, Pos: p.pos(keyword)}
	p.cfg.Resources = append(p.cfg.Resources, r)
	return p.block(func() bool { return p.resourceStatement(r) })
}

func (p *parser) resourceName(t token) {
	pos := p.pos(t)
	p.once(pos, "resource section", t.text)
	switch {
	case t.text == "" || len(t.text) > ResourceNameBytesMax:
		p.report.errorf(pos, "a resource name has 1 to %d characters.", ResourceNameBytesMax)
	case strings.Contains(t.text, "/") || strings.HasPrefix(t.text, ".") || strings.ContainsRune(t.text, '\t'):
		p.report.errorf(pos, "resource name '%s': no '/', tabulator or leading '.' is allowed, as RESOURCE/VOLUME and socket names are made of it.", shorten(printable(t.text)))
	case t.text == "all" || t.text == "common":
		p.report.errorf(pos, "resource name '%s' has a meaning of its own.", t.text)
	}
}

func (p *parser) resourceStatement(r *Resource) bool {
	t, ok := p.keyword(resourceKeywords, resourceWords)
	if !ok {
		return false
	}
	switch t.text {
	case "on":
		return p.onSection(t, r)
	case "floating":
		return p.floatingSection(t, r)
	case "stacked-on-top-of":
		return p.stackedSection(t, r)
	case "ignore-on":
		return p.ignoreOn(t, r)
	case "volume":
		return p.volumeBlock(t, r.Name, &r.volumeSet)
	case "election":
		return p.election(t, r)
	}
	if t.text == "disk" && p.peek().is("{") {
		_, ok := p.section(t, r.Name, &r.Sections)
		return ok
	}
	if slices.Contains(volumeWords, t.text) {
		return p.volumeStatement(t, r.Name, &r.direct)
	}
	if known, ok := p.section(t, r.Name, &r.Sections); known {
		return ok
	}
	p.at--
	return p.fail(resourceKeywords, resourceWords)
}

// ignoreOn takes one host name, as drbdadm does, or several.
func (p *parser) ignoreOn(keyword token, r *Resource) bool {
	p.report.warnf(p.pos(keyword), "in resource %s, WARN: The 'ignore-on' keyword is deprecated.", r.Name)
	if len(r.Hosts) > 0 {
		p.report.errorf(p.pos(keyword), "in resource %s, 'ignore-on' statement must precede any real host section (on ... { ... }).", r.Name)
	}
	names, ok := p.hostNames()
	r.IgnoreOn = append(r.IgnoreOn, names...)
	return ok && p.expect(";")
}

func (p *parser) hostNames() ([]string, bool) {
	t, ok := p.valueToken("a host name")
	if !ok {
		return nil, false
	}
	names := []string{t.text}
	for p.peek().isValue() {
		names = append(names, p.next().text)
	}
	return names, true
}

func (p *parser) onSection(keyword token, r *Resource) bool {
	names, ok := p.hostNames()
	if !ok {
		return false
	}
	h := &Host{Kind: HostOn, Names: names, Pos: p.pos(keyword)}
	for _, name := range names {
		p.once(h.Pos, "host section", r.Name+": on "+name)
	}
	r.Hosts = append(r.Hosts, h)
	return p.block(func() bool { return p.hostStatement(r, h) })
}

// floatingSection reads floating ADDRESS ( ";" | "{" host statements "}" ).
func (p *parser) floatingSection(keyword token, r *Resource) bool {
	h := &Host{Kind: HostFloating, Pos: p.pos(keyword)}
	if !p.address(&h.Address) {
		return false
	}
	r.Hosts = append(r.Hosts, h)
	if p.accept(";") {
		return true
	}
	if !p.peek().is("{") {
		return p.fail("{ | ;", nil)
	}
	return p.block(func() bool { return p.hostStatement(r, h) })
}

func (p *parser) stackedSection(keyword token, r *Resource) bool {
	t, ok := p.valueToken("a resource name")
	if !ok {
		return false
	}
	h := &Host{Kind: HostStacked, Names: []string{t.text}, Pos: p.pos(keyword)}
	p.report.warnf(h.Pos, "in resource %s: stacked resources are not supported; this one is ignored.", r.Name)
	r.Hosts = append(r.Hosts, h)
	return p.block(func() bool { return p.hostStatement(r, h) })
}

func (p *parser) hostStatement(r *Resource, h *Host) bool {
	what := strings.Join(hostWords, " | ")
	t, ok := p.keyword(what, hostWords)
	if !ok {
		return false
	}
	owner := r.Name + ":" + h.String()
	switch t.text {
	case "address":
		return p.hostAddress(t, owner, h)
	case "alternate-link-address":
		p.report.warnf(p.pos(t), "'%s' has no meaning in replicad and is ignored.", t.text)
		var unused Address
		return p.address(&unused) && p.expect(";")
	case "volume":
		return p.volumeBlock(t, owner, &h.volumeSet)
	case "options":
		return p.optionSection(p.pos(t), owner+":options", &optionsSpec, &h.Options)
	case "proxy":
		return p.hostProxy(t, h)
	}
	if slices.Contains(volumeWords, t.text) {
		return p.volumeStatement(t, owner, &h.direct)
	}
	p.at--
	return p.fail(what, hostWords)
}

func (p *parser) hostAddress(t token, owner string, h *Host) bool {
	if h.Kind == HostFloating {
		p.report.errorf(p.pos(t), "address statement not allowed for floating {} host sections")
	} else {
		p.once(p.pos(t), "address statement", owner+":address")
	}
	return p.address(&h.Address) && p.expect(";")
}

// hostProxy reads proxy on HOST... { ... }.
func (p *parser) hostProxy(t token, h *Host) bool {
	p.report.warnf(p.pos(t), "section 'proxy' has no meaning in replicad and is ignored.")
	if !p.expect("on") {
		return false
	}
	if _, ok := p.hostNames(); !ok {
		return false
	}
	return p.tree(hostProxyWords, &h.Proxy)
}

// family words of an address. sci is an old name of ssocks.
var families = []string{"ipv4", "ipv6", "ssocks", "sdp", "sci"}

// address reads [ family ] IP ":" port into a.
func (p *parser) address(a *Address) bool {
	first := p.peek()
	a.Pos, a.Family = p.pos(first), "ipv4"
	if first.kind == tokenWord && slices.Contains(families, first.text) {
		a.Family = p.next().text
	} else if first.is("[") {
		a.Family = "ipv6"
	}
	if a.Family == "sci" {
		a.Family = "ssocks"
	}
	if a.Family == "ssocks" || a.Family == "sdp" {
		p.report.warnf(a.Pos, "address family %s is treated as plain TCP over IPv4.", a.Family)
	}
	ip, ok := p.ip(a.Family)
	if !ok || !p.expect(":") {
		return false
	}
	port, ok := p.valueToken("port")
	if !ok {
		return false
	}
	if p.inRange("port", port, 1, 65535, unitOne) {
		n, _ := parseNumber(port.text, unitOne)
		a.AddrPort = netip.AddrPortFrom(ip, uint16(n))
	}
	return true
}

func (p *parser) ip(family string) (netip.Addr, bool) {
	if family == "ipv6" {
		return p.ipv6()
	}
	t := p.peek()
	ip, err := netip.ParseAddr(t.text)
	if t.kind != tokenWord || err != nil || !ip.Is4() {
		return netip.Addr{}, p.fail("ssocks | sdp | ipv4 | ipv6 | <ipv4 address> ", families)
	}
	p.at++
	return ip, true
}

// ipv6 reads "[" address "]" from the raw text, as its colons are tokens.
func (p *parser) ipv6() (netip.Addr, bool) {
	if !p.expect("[") {
		return netip.Addr{}, false
	}
	first := p.at
	for t := p.peek(); !t.is("]"); t = p.peek() {
		if t.kind == tokenEOF || t.line != p.toks[first].line {
			return netip.Addr{}, p.fail("]", nil)
		}
		p.at++
	}
	ip, err := netip.ParseAddr(p.src[p.toks[first].start:p.toks[p.at].start])
	if err != nil || !ip.Is6() {
		p.at = first
		return netip.Addr{}, p.fail("an ipv6 address", nil)
	}
	p.at++
	return ip, true
}
