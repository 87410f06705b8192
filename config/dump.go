package config

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// dumper writes indented lines and keeps the first write error (bufio does).
type dumper struct {
	w      *bufio.Writer
	indent int
}

// line writes one line, indented by four spaces a level.
func (d *dumper) line(format string, args ...any) {
	fmt.Fprintf(d.w, "%*s", 4*d.indent, "")
	fmt.Fprintf(d.w, format+"\n", args...)
}

// block writes head "{", what body writes, and "}".
func (d *dumper) block(head string, body func()) {
	d.line("%s {", head)
	d.indent++
	body()
	d.indent--
	d.line("}")
}

// Dump writes the configuration in the layout of "drbdadm dump". With names it
// writes only those resources, as drbdadm does; without, everything. It prints
// what was written in the file: inherited volume statements are shown in every
// host section, options where they stand.
func (c *Config) Dump(w io.Writer, self Self, names ...string) error {
	d := &dumper{w: bufio.NewWriter(w)}
	if len(names) == 0 {
		d.line("# %s", c.Path)
		d.global(&c.Global)
		d.common(&c.Common)
	}
	for _, res := range c.Resources {
		if len(names) == 0 || slices.Contains(names, res.Name) {
			d.resource(c, res, self)
		}
	}
	if err := d.w.Flush(); err != nil {
		return fmt.Errorf("write configuration dump: %w", err)
	}
	return nil
}

func (d *dumper) global(g *Global) {
	if g.Pos.Line == 0 {
		return
	}
	d.block("global", func() {
		if g.DisableIPVerification {
			d.line("disable-ip-verification;")
		}
		d.globalLine("minor-count", g.MinorCount)
		d.globalLine("dialog-refresh", g.DialogRefresh)
		d.globalLine("usage-count", g.UsageCount)
		d.globalLine("status-file", g.StatusFile)
	})
	d.line("")
}

func (d *dumper) globalLine(name, value string) {
	if value != "" {
		d.line("%s %s;", name, quote(value))
	}
}

func (d *dumper) common(s *Sections) {
	if s.empty() {
		return
	}
	d.block("common", func() { d.sections(s) })
	d.line("")
}

func (s *Sections) empty() bool {
	for _, section := range []Section{s.Options, s.Net, s.Disk, s.Startup, s.Handlers} {
		if len(section.Settings) > 0 {
			return false
		}
	}
	return len(s.Proxy) == 0
}

// sections writes the option sections in drbdadm's order.
func (d *dumper) sections(s *Sections) {
	d.section("options", &s.Options)
	d.section("net", &s.Net)
	d.section("disk", &s.Disk)
	d.section("startup", &s.Startup)
	if len(s.Proxy) > 0 {
		d.block("proxy", func() { d.proxy(s.Proxy) })
	}
	d.section("handlers", &s.Handlers)
}

func (d *dumper) section(name string, s *Section) {
	if len(s.Settings) == 0 {
		return
	}
	d.block(name, func() {
		for _, set := range becomePrimaryLast(s.Settings) {
			d.setting(set)
		}
	})
}

// becomePrimaryLast moves become-primary-on behind the other startup options,
// where drbdadm prints it.
func becomePrimaryLast(settings []Setting) []Setting {
	isLast := func(s Setting) bool { return s.Name == "become-primary-on" }
	rest := slices.DeleteFunc(slices.Clone(settings), isLast)
	for _, s := range settings {
		if isLast(s) {
			rest = append(rest, s)
		}
	}
	return rest
}

func (d *dumper) setting(s Setting) {
	words := make([]string, len(s.Values))
	for i, value := range s.Values {
		words[i] = quote(value)
	}
	d.option(s.Name, strings.Join(words, " "))
}

// option writes "NAME  VALUE;" with the name padded and the value set right
// in a column of three, as drbdadm does at every depth.
func (d *dumper) option(name, value string) {
	if value == "" {
		d.line("%s;", name)
		return
	}
	d.line("%-*s %3s;", d.nameWidth(), name, value)
}

// nameWidth shrinks with depth, so that values stay in one column.
func (d *dumper) nameWidth() int { return max(0, 16-4*max(0, d.indent-2)) }

func (d *dumper) resource(c *Config, res *Resource, self Self) {
	ignored := "not ignored"
	if res.IgnoredOn(self) {
		ignored = "ignored"
	}
	stacked := "not stacked"
	if slices.ContainsFunc(res.Hosts, func(h *Host) bool { return h.Kind == HostStacked }) {
		stacked = "stacked"
	}
	d.line("# resource %s on %s: %s, %s", quote(res.Name), self.Node, ignored, stacked)
	d.line("# defined at %s", Pos{File: c.abs(res.Pos.File), Line: res.Pos.Line})
	d.block("resource "+quote(res.Name), func() {
		for _, h := range res.Hosts {
			d.host(res, h)
		}
		d.sections(&res.Sections)
		if res.Election != nil {
			d.block("election", func() { d.statements(res.Election.Statements) })
		}
	})
	d.line("")
}

func (d *dumper) host(res *Resource, h *Host) {
	d.block(hostHead(h), func() {
		d.section("options", &h.Options)
		for _, v := range res.volumesOn(h) {
			d.volume(res, h, &v)
		}
		if h.Kind != HostFloating {
			d.line("%-16s %s;", "address", h.Address)
		}
		d.hostProxy(h)
	})
}

func (d *dumper) hostProxy(h *Host) {
	if len(h.Proxy) > 0 {
		d.block("proxy on "+quoteAll(h.Names), func() { d.proxy(h.Proxy) })
	}
}

func hostHead(h *Host) string {
	switch h.Kind {
	case HostFloating:
		return "floating " + h.Address.String()
	case HostStacked:
		return "stacked-on-top-of " + quoteAll(h.Names)
	default:
		return "on " + quoteAll(h.Names)
	}
}

// volume writes a volume block, or the statements alone for the implicit
// volume of a resource without volume blocks.
func (d *dumper) volume(res *Resource, h *Host, v *Volume) {
	if _, implicit := res.numbers(h); implicit {
		d.volumeStatements(res, h, v, 16)
		return
	}
	d.block("volume "+strconv.Itoa(v.Number), func() { d.volumeStatements(res, h, v, 12) })
}

func (d *dumper) volumeStatements(res *Resource, h *Host, v *Volume, width int) {
	d.section("disk", res.tuning(h, v.Number))
	if v.Device != nil {
		d.line("%-*s %s;", width, "device", deviceText(v.Device))
	}
	if v.Disk != nil {
		d.line("%-*s %s;", width, "disk", quote(v.Disk.Value))
	}
	if v.MetaDisk != nil {
		d.metaDisk(v.MetaDisk, width)
	}
	for _, l := range v.NBDListen {
		d.line("%-*s %s;", width, "nbd-listen", quote(l.Value))
	}
}

// tuning returns the disk options given for one volume. drbdadm leaves out
// those of a volume block at resource level, although it applies them.
func (res *Resource) tuning(h *Host, number int) *Section {
	var all Section
	for _, level := range res.levels(h, number) {
		all.Settings = append(all.Settings, level.DiskTuning.Settings...)
	}
	return &all
}

func deviceText(dev *Device) string {
	if dev.Path == "" {
		return "minor " + strconv.Itoa(dev.Minor)
	}
	return fmt.Sprintf("%s minor %d", quote(dev.Path), dev.Minor)
}

// metaDisk keeps drbdadm's habit of padding external paths to column 17 also
// inside a volume block.
func (d *dumper) metaDisk(md *MetaDisk, width int) {
	switch md.Kind {
	case MetaInternal:
		d.line("%-*s internal;", width, "meta-disk")
	case MetaFlexibleExternal:
		d.line("%-16s %s;", "meta-disk", quote(md.Path))
	case MetaIndexed:
		d.line("%-16s %s [%d];", "meta-disk", quote(md.Path), md.Index)
	}
}

// proxy writes proxy options in columns and the words of plugin lines apart.
func (d *dumper) proxy(list []Statement) {
	for _, s := range list {
		if s.HasBlock || len(s.Words) < 2 {
			d.statements([]Statement{s})
			continue
		}
		d.option(s.Keyword(), wordsText(s.Words[1:]))
	}
}

// statements writes a section kept as a tree.
func (d *dumper) statements(list []Statement) {
	for _, s := range list {
		if s.HasBlock {
			d.block(wordsText(s.Words), func() { d.statements(s.Block) })
			continue
		}
		d.line("%s;", wordsText(s.Words))
	}
}

func wordsText(list []Word) string {
	texts := make([]string, len(list))
	for i, w := range list {
		texts[i] = w.Text
		if w.Quoted {
			texts[i] = quoteAlways(w.Text)
		}
	}
	return strings.Join(texts, " ")
}

func quoteAll(list []string) string {
	texts := make([]string, len(list))
	for i, text := range list {
		texts[i] = quote(text)
	}
	return strings.Join(texts, " ")
}

// quote returns text as it must stand in a configuration file.
func quote(text string) string {
	if isWord(text) {
		return text
	}
	return quoteAlways(text)
}

func quoteAlways(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}
