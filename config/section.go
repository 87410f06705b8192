package config

import "strings"

const sectionKeywords = "protocol | disk | net | syncer | startup | options | handlers | proxy"

var sectionWords = strings.Split(sectionKeywords, " | ")

// section reads the section or protocol statement whose keyword t is, if it is
// one that both common and resource may hold. owner is the resource's name.
func (p *parser) section(t token, owner string, into *Sections) (known, ok bool) {
	pos := p.pos(t)
	switch t.text {
	case "protocol":
		p.once(pos, "protocol statement", owner+": protocol")
		return true, p.optionValue(netSpec.find("protocol"), t, &netSpec, &into.Net)
	case "net":
		return true, p.optionSection(pos, owner+":net", &netSpec, &into.Net)
	case "disk":
		return true, p.optionSection(pos, owner+":disk", &diskSpec, &into.Disk)
	case "startup":
		return true, p.optionSection(pos, owner+":startup", &startupSpec, &into.Startup)
	case "options":
		return true, p.optionSection(pos, owner+":options", &optionsSpec, &into.Options)
	case "handlers":
		return true, p.optionSection(pos, owner+":handlers", &handlersSpec, &into.Handlers)
	case "syncer":
		p.once(pos, "syncer section", owner+":syncer")
		return true, p.block(func() bool { return p.syncerStatement(into) })
	case "proxy":
		p.once(pos, "proxy section", owner+":proxy")
		p.report.warnf(pos, "section 'proxy' has no meaning in replicad and is ignored.")
		return true, p.tree(proxyWords, &into.Proxy)
	default:
		return false, false
	}
}

// optionSection reads the block of one option section. Its settings join those
// a syncer section or a protocol statement left there.
func (p *parser) optionSection(pos Pos, key string, spec *sectionSpec, into *Section) bool {
	p.once(pos, spec.name+" section", key)
	if into.Pos.Line == 0 {
		into.Pos = pos
	}
	return p.block(func() bool {
		t, ok := p.keyword("an option keyword", spec.keywords())
		return ok && p.option(t, spec, into)
	})
}

// option reads the rest of an option statement that begins with t.
func (p *parser) option(t token, spec *sectionSpec, into *Section) bool {
	o := spec.find(t.text)
	if o == nil {
		if o = spec.find(strings.TrimPrefix(t.text, "no-")); o != nil && o.kind == kindFlag {
			p.keep(o, t, spec, into, "no")
			return p.expect(";")
		}
		p.at--
		return p.fail("an option keyword", spec.keywords())
	}
	switch o.kind {
	case kindFlag:
		return p.optionFlag(o, t, spec, into)
	case kindMark:
		p.keep(o, t, spec, into)
		return p.expect(";")
	case kindNames:
		return p.optionNames(o, t, spec, into)
	default:
		return p.optionValue(o, t, spec, into)
	}
}

func (p *parser) optionFlag(o *option, t token, spec *sectionSpec, into *Section) bool {
	value := "yes"
	switch {
	case p.accept("yes"):
	case p.accept("no"):
		value = "no"
	case !p.peek().is(";"):
		return p.fail("yes | no | ;", []string{"yes", "no"})
	}
	p.keep(o, t, spec, into, value)
	return p.expect(";")
}

func (p *parser) optionNames(o *option, t token, spec *sectionSpec, into *Section) bool {
	var names []string
	for p.peek().isValue() {
		names = append(names, p.next().text)
	}
	if len(names) == 0 {
		return p.fail("a host name", nil)
	}
	p.keep(o, t, spec, into, names...)
	return p.expect(";")
}

func (p *parser) optionValue(o *option, t token, spec *sectionSpec, into *Section) bool {
	v, ok := p.valueToken("a value of " + o.name)
	if !ok {
		return false
	}
	if value, ok := p.value(o, v); ok {
		p.keep(o, t, spec, into, value)
	}
	return p.expect(";")
}

// keep adds a setting and the remarks it earns.
func (p *parser) keep(o *option, t token, spec *sectionSpec, into *Section, values ...string) {
	s := Setting{Name: o.name, Values: values, Pos: p.pos(t)}
	if remark := optionWarning(spec.name, o, s.Value()); remark != "" {
		p.report.warnf(s.Pos, "%s", remark)
	}
	for _, earlier := range into.Settings {
		if earlier.Name == o.name {
			p.report.warnf(s.Pos, "%s was already given at %s; the later one counts.", o.name, earlier.Pos)
			break
		}
	}
	into.Settings = append(into.Settings, s)
	if into.Pos.Line == 0 {
		into.Pos = s.Pos
	}
}

// syncerStatement reads one option of DRBD 8.3's syncer section and keeps it
// where 8.4 looks for it.
func (p *parser) syncerStatement(into *Sections) bool {
	targets := map[*sectionSpec]*Section{&netSpec: &into.Net, &diskSpec: &into.Disk, &optionsSpec: &into.Options}
	t, ok := p.keyword("a syncer option keyword", syncerWords())
	if !ok {
		return false
	}
	for _, group := range syncerNames {
		for _, name := range group.names {
			if t.text == name || t.text == "no-"+name {
				return p.option(t, group.spec, targets[group.spec])
			}
		}
	}
	p.at--
	return p.fail("a syncer option keyword", syncerWords())
}

func syncerWords() []string {
	var words []string
	for _, group := range syncerNames {
		words = append(words, group.names...)
	}
	return words
}

// global reads the global section.
func (p *parser) global(keyword token) bool {
	g := &p.cfg.Global
	if p.once(p.pos(keyword), "global section", "global") {
		g.Pos = p.pos(keyword)
	}
	if len(p.cfg.Resources) > 0 {
		p.report.warnf(p.pos(keyword), "You should put the global {} section\n\tin front of any resource {} section")
	}
	return p.block(p.globalStatement)
}

var globalWords = []string{
	"usage-count", "minor-count", "dialog-refresh", "disable-ip-verification", "udev-always-use-vnr",
	"cmd-timeout-short", "cmd-timeout-medium", "cmd-timeout-long", "status-file",
}

func (p *parser) globalStatement() bool {
	what := strings.Join(globalWords, " | ")
	t, ok := p.keyword(what, globalWords)
	if !ok {
		return false
	}
	g := &p.cfg.Global
	switch t.text {
	case "status-file":
		return p.statusFile(t)
	case "disable-ip-verification":
		g.DisableIPVerification = true
		return p.expect(";")
	case "udev-always-use-vnr":
		p.inertGlobal(t)
		return p.expect(";")
	case "usage-count":
		p.inertGlobal(t)
		return p.usageCount()
	case "minor-count":
		return p.globalNumber(t, &g.MinorCount, 1, 255)
	case "dialog-refresh":
		return p.globalNumber(t, &g.DialogRefresh, 0, 600)
	case "cmd-timeout-short", "cmd-timeout-medium", "cmd-timeout-long":
		var ignored string
		return p.globalNumber(t, &ignored, 0, 900)
	}
	p.at--
	return p.fail(what, globalWords)
}

func (p *parser) inertGlobal(t token) {
	p.report.warnf(p.pos(t), "'%s' has no meaning in replicad and is ignored.", t.text)
}

func (p *parser) usageCount() bool {
	t := p.peek()
	if !t.is("yes") && !t.is("no") && !t.is("ask") {
		return p.fail("yes | no | ask", []string{"yes", "no", "ask"})
	}
	p.cfg.Global.UsageCount = p.next().text
	return p.expect(";")
}

func (p *parser) globalNumber(keyword token, into *string, minimum, maximum uint64) bool {
	p.inertGlobal(keyword)
	t, ok := p.valueStatement("a number")
	if ok && p.inRange(keyword.text, t, minimum, maximum, unitOne) {
		*into = t.text
	}
	return ok
}

func (p *parser) statusFile(keyword token) bool {
	p.once(p.pos(keyword), "global statement", keyword.text)
	t, ok := p.valueStatement("a path")
	if ok && p.checkPath(keyword.text, t) {
		p.cfg.Global.StatusFile = t.text
	}
	return ok
}
