package config

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

var xmlEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;")

// attr returns name="value", escaped.
func attr(name, value string) string { return fmt.Sprintf(`%s="%s"`, name, xmlEscaper.Replace(value)) }

// element writes <name attributes>, what body writes, and the closing tag.
func (d *dumper) element(name string, body func(), attrs ...string) {
	d.line("<%s>", strings.Join(append([]string{name}, attrs...), " "))
	d.indent++
	body()
	d.indent--
	d.line("</%s>", name)
}

// leaf writes <name attributes>text</name>.
func (d *dumper) leaf(name, text string, attrs ...string) {
	d.line("<%s>%s</%s>", strings.Join(append([]string{name}, attrs...), " "), xmlEscaper.Replace(text), name)
}

// DumpXML writes the configuration in the layout of "drbdadm dump-xml"; with
// names only those resources. Election sections are not part of that format.
func (c *Config) DumpXML(w io.Writer, names ...string) error {
	d := &dumper{w: bufio.NewWriter(w)}
	d.element("config", func() {
		d.globalXML(&c.Global)
		if !c.Common.empty() {
			d.element("common", func() { d.sectionsXML(&c.Common) })
		}
		for _, res := range c.Resources {
			if len(names) == 0 || slices.Contains(names, res.Name) {
				d.resourceXML(c, res)
			}
		}
	}, attr("file", c.Path))
	if err := d.w.Flush(); err != nil {
		return fmt.Errorf("write configuration dump: %w", err)
	}
	return nil
}

func (d *dumper) globalXML(g *Global) {
	if g.Pos.Line == 0 {
		return
	}
	d.element("global", func() {
		if g.DisableIPVerification {
			d.line("<disable-ip-verification/>")
		}
		d.globalNumberXML("minor-count", g.MinorCount)
		d.globalNumberXML("dialog-refresh", g.DialogRefresh)
	})
}

func (d *dumper) globalNumberXML(name, value string) {
	if value != "" {
		d.line("<%s %s/>", name, attr("count", value))
	}
}

func (d *dumper) sectionsXML(s *Sections) {
	d.sectionXML("options", &s.Options)
	d.sectionXML("net", &s.Net)
	d.sectionXML("disk", &s.Disk)
	d.sectionXML("startup", &s.Startup)
	d.sectionXML("handlers", &s.Handlers)
}

func (d *dumper) sectionXML(name string, s *Section) {
	if len(s.Settings) == 0 {
		return
	}
	d.element("section", func() {
		for _, set := range becomePrimaryLast(s.Settings) {
			attrs := attr("name", set.Name)
			if len(set.Values) > 0 {
				attrs += " " + attr("value", strings.Join(set.Values, " "))
			}
			d.line("<option %s/>", attrs)
		}
	}, attr("name", name))
}

func (d *dumper) resourceXML(c *Config, res *Resource) {
	place := Pos{File: c.abs(res.Pos.File), Line: res.Pos.Line}
	d.element("resource", func() {
		for _, h := range res.Hosts {
			d.hostXML(res, h)
		}
		d.sectionsXML(&res.Sections)
	}, attr("name", res.Name), attr("conf-file-line", place.String()))
}

func (d *dumper) hostXML(res *Resource, h *Host) {
	body := func() {
		d.sectionXML("options", &h.Options)
		for _, v := range res.volumesOn(h) {
			d.element("volume", func() { d.volumeXML(res, h, &v) }, fmt.Sprintf(`vnr="%d"`, v.Number))
		}
		a := h.Address
		d.leaf("address", a.AddrPort.Addr().String(), attr("family", a.Family), fmt.Sprintf(`port="%d"`, a.AddrPort.Port()))
	}
	switch h.Kind {
	case HostFloating:
		d.element("host", body, `floating="1"`)
	case HostStacked:
		d.element("stacked-on-top-of", body, attr("name", strings.Join(h.Names, " ")))
	default:
		d.element("host", body, attr("name", strings.Join(h.Names, " ")))
	}
}

func (d *dumper) volumeXML(res *Resource, h *Host, v *Volume) {
	d.sectionXML("disk", res.tuning(h, v.Number))
	if v.Device != nil {
		d.leaf("device", v.Device.Path, fmt.Sprintf(`minor="%d"`, v.Device.Minor))
	}
	if v.Disk != nil {
		d.leaf("disk", v.Disk.Value)
	}
	if v.MetaDisk == nil {
		return
	}
	switch v.MetaDisk.Kind {
	case MetaInternal:
		d.leaf("meta-disk", "internal")
	case MetaFlexibleExternal:
		d.leaf("meta-disk", v.MetaDisk.Path)
	case MetaIndexed:
		d.leaf("meta-disk", v.MetaDisk.Path, fmt.Sprintf(`index="%d"`, v.MetaDisk.Index))
	}
}
