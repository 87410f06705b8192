package config

// parser reads the tokens of one file. Every parse method that returns false
// has reported why and stands somewhere inside the statement it gave up;
// statements() then skips to the statement's end, so that one run finds the
// faults of several statements.
type parser struct {
	*loader
	file string
	src  string
	toks []token // ends with tokenEOF
	at   int

	gaveUp bool // at an unreadable token: what follows it is guesswork
}

func (p *parser) peek() token { return p.toks[p.at] }

// next returns the current token and moves past it; the end of the file stays.
func (p *parser) next() token {
	t := p.toks[p.at]
	if t.kind != tokenEOF {
		p.at++
	}
	return t
}

// accept moves past the punctuation or keyword text if it is next.
func (p *parser) accept(text string) bool {
	if p.peek().is(text) {
		p.at++
		return true
	}
	return false
}

func (p *parser) pos(t token) Pos { return Pos{File: p.file, Line: t.line} }

// fail reports that what should stand where the current token is.
func (p *parser) fail(what string, known []string) bool {
	t := p.peek()
	p.broken = true
	if p.gaveUp {
		return false
	}
	if t.kind == tokenBad {
		p.report.errorf(p.pos(t), "%s", t.text)
		p.gaveUp, p.at = true, len(p.toks)-1
		return false
	}
	p.report.expected(p.pos(t), what, printable(t.text), known)
	return false
}

// expect moves past the punctuation text or reports its absence.
func (p *parser) expect(text string) bool {
	if p.accept(text) {
		return true
	}
	return p.fail(text, nil)
}

// keyword takes the word that begins a statement; a string is none.
func (p *parser) keyword(what string, known []string) (token, bool) {
	if p.peek().kind != tokenWord {
		return token{}, p.fail(what, known)
	}
	return p.next(), true
}

// valueToken takes a word or a string.
func (p *parser) valueToken(what string) (token, bool) {
	if !p.peek().isValue() {
		return token{}, p.fail(what, nil)
	}
	return p.next(), true
}

// valueStatement takes VALUE ";".
func (p *parser) valueStatement(what string) (token, bool) {
	t, ok := p.valueToken(what)
	return t, ok && p.expect(";")
}

// block reads "{" statement... "}".
func (p *parser) block(statement func() bool) bool {
	if !p.expect("{") {
		return false
	}
	for {
		switch t := p.peek(); {
		case t.kind == tokenEOF:
			return p.fail("}", nil)
		case p.accept("}"):
			return true
		default:
			p.statement(statement)
		}
	}
}

// statement runs parse on one statement and skips what it left on failure.
func (p *parser) statement(parse func() bool) {
	start := p.at
	if parse() {
		return
	}
	p.skipStatement(start)
}

// skipStatement moves to the end of a statement that began at token start and
// could not be read: past its ";" or its block, but not past the "}" that
// closes the block around it.
func (p *parser) skipStatement(start int) {
	if p.at > start && p.toks[p.at-1].is(";") {
		return
	}
	for {
		switch t := p.peek(); {
		case t.kind == tokenEOF:
			return
		case t.is("}"):
			return
		case t.is("{"):
			p.skipBalanced()
			return
		case t.is(";"):
			p.at++
			return
		default:
			p.at++
		}
	}
}

// skipBalanced moves past "{" and everything up to its "}". It reports whether
// that was there.
func (p *parser) skipBalanced() bool {
	depth := 0
	for {
		switch t := p.next(); {
		case t.kind == tokenEOF:
			return false
		case t.is("{"):
			depth++
		case t.is("}"):
			depth--
		}
		if depth == 0 {
			return true
		}
	}
}

// once reports a second use of something that may be given once, in drbdadm's
// words. key must name it uniquely.
func (l *loader) once(pos Pos, what, key string) bool {
	if first, used := l.first[what+" "+key]; used {
		l.conflict(pos, first, what, key)
		return false
	}
	l.first[what+" "+key] = pos
	return true
}

func (l *loader) conflict(pos, first Pos, what, key string) { l.report.conflict(pos, first, what, key) }

// conflict reports two uses of one thing.
func (r *report) conflict(pos, first Pos, what, key string) {
	r.errorf(pos, "conflicting use of %s '%s' ...\n%s: %s '%s' first used here.", what, key, first, what, key)
}

var topKeywords = []string{"global", "common", "resource", "skip", "include"}

func (p *parser) parseFile() {
	for p.peek().kind != tokenEOF {
		start := p.at
		p.statement(p.topStatement)
		if p.at == start { // a stray "}": nothing encloses us that could take it
			p.at++
		}
	}
}

func (p *parser) topStatement() bool {
	switch t := p.peek(); {
	case p.accept("global"):
		return p.global(t)
	case p.accept("common"):
		return p.common(t)
	case p.accept("resource"):
		return p.resource(t)
	case p.accept("include"):
		return p.includeStatement(t)
	case p.accept("skip"):
		return p.skip(t)
	default:
		return p.fail("global | common | resource | skip | include", topKeywords)
	}
}

func (p *parser) includeStatement(keyword token) bool {
	t, ok := p.valueStatement("a file name")
	if !ok {
		return false
	}
	p.loader.include(p.pos(keyword), t.text)
	return true
}

// skip reads "skip" [ one word or string ] "{" anything balanced "}".
func (p *parser) skip(keyword token) bool {
	t := p.peek()
	isTop := false
	for _, word := range topKeywords {
		isTop = isTop || t.is(word)
	}
	if t.isValue() && !isTop {
		p.at++
	}
	if !p.peek().is("{") {
		return p.fail("[ some_text ] {", nil)
	}
	if !p.skipBalanced() {
		p.broken = true
		p.report.errorf(p.pos(keyword), "reached eof while parsing this skip block.")
	}
	return true
}

func (p *parser) common(keyword token) bool {
	p.once(p.pos(keyword), "resource section", "common")
	sections := &p.cfg.Common
	return p.block(func() bool {
		t, ok := p.keyword(sectionKeywords, sectionWords)
		if !ok {
			return false
		}
		if known, ok := p.section(t, "common", sections); known {
			return ok
		}
		p.at--
		if t.text == "on" || t.text == "floating" {
			p.broken = true
			p.report.errorf(p.pos(t), "in the common section, there are no host sections allowed.")
			return false
		}
		return p.fail(sectionKeywords, sectionWords)
	})
}
