package config

import (
	"slices"
	"strings"
)

// words lists the keywords a tree section knows, and those whose block has
// words of its own. A nil *words takes any keyword.
type words struct {
	plain  []string
	blocks map[string]*words
}

func (w *words) all() []string {
	all := slices.Clone(w.plain)
	for name := range w.blocks {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// electionWords are the statements of an election section.
var electionWords = &words{
	plain: []string{"vrid", "version", "advert", "secret", "virtual-ip", "takeover-when"},
	blocks: map[string]*words{
		"takeover": {plain: []string{"order", "mount", "services"}},
		"on":       {plain: []string{"source", "priority"}},
	},
}

// proxyWords and hostProxyWords are the statements DRBD Proxy knows.
var (
	proxyWords = &words{
		plain:  []string{"memlimit", "read-loops", "compression", "bwlimit"},
		blocks: map[string]*words{"plugin": nil},
	}
	hostProxyWords = &words{
		plain:  []string{"inside", "outside"},
		blocks: map[string]*words{"options": proxyWords},
	}
)

func (p *parser) election(t token, r *Resource) bool {
	p.once(p.pos(t), "election section", r.Name+":election")
	e := &Election{Pos: p.pos(t)}
	r.Election = e
	return p.tree(electionWords, &e.Statements)
}

// tree reads a block of statements whose keywords known lists.
func (p *parser) tree(known *words, into *[]Statement) bool {
	return p.block(func() bool { return p.treeStatement(known, into) })
}

// treeStatement reads KEYWORD value... ";" or, for a keyword that has a block,
// KEYWORD value... "{" ... "}".
func (p *parser) treeStatement(known *words, into *[]Statement) bool {
	what := "a statement"
	var all []string
	if known != nil {
		all = known.all()
		what = strings.Join(all, " | ")
	}
	t, ok := p.keyword(what, all)
	if !ok {
		return false
	}
	if known != nil && !slices.Contains(all, t.text) {
		p.at--
		return p.fail(what, all)
	}
	s := Statement{Pos: p.pos(t), Words: append([]Word{p.treeWord(t)}, p.treeWords()...)}
	inner, hasBlock := known.block(t.text)
	if hasBlock {
		s.HasBlock = true
		ok = p.tree(inner, &s.Block)
	} else {
		ok = p.treeEnd(known, len(s.Words))
	}
	*into = append(*into, s)
	return ok
}

func (w *words) block(keyword string) (inner *words, ok bool) {
	if w == nil {
		return nil, false
	}
	inner, ok = w.blocks[keyword]
	return inner, ok
}

// treeWords reads values up to the statement's end. An address such as
// 127.0.0.1:7 or [::1]:7 is several tokens but one word.
func (p *parser) treeWords() []Word {
	var list []Word
	for {
		t := p.peek()
		joins := t.is(":") || t.is("[") || t.is("]")
		if !t.isValue() && !joins {
			return list
		}
		p.at++
		if touching := p.toks[p.at-2].end == t.start; touching && len(list) > 0 && (joins || p.toks[p.at-2].kind == tokenPunct) {
			list[len(list)-1].Text += t.text
			continue
		}
		list = append(list, p.treeWord(t))
	}
}

func (p *parser) treeWord(t token) Word {
	return Word{Text: t.text, Quoted: t.kind == tokenString, Pos: p.pos(t)}
}

// treeEnd takes the ";" of a plain statement, which has a value wherever its
// keyword is one we know.
func (p *parser) treeEnd(known *words, count int) bool {
	if known != nil && count < 2 {
		return p.fail("a value", nil)
	}
	return p.expect(";")
}
