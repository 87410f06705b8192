package config

import (
	"strings"
	"unicode/utf8"
)

// Lengths of one token (drbdadm 8.4's scanner has the same).
const (
	wordBytesMax   = 128
	stringBytesMax = 255
)

// endOfFile is how the end of a file reads in a message.
const endOfFile = "<end of file>"

type tokenKind uint8

const (
	tokenEOF    tokenKind = iota
	tokenWord             // letters, digits and / . _ -
	tokenString           // a double-quoted string; text is the unescaped content
	tokenPunct            // one of { } ; : [ ]
	tokenOther            // any other character; never right
	tokenBad              // unreadable; text is the message
)

// token is one lexical unit. Its raw text is src[start:end].
type token struct {
	kind       tokenKind
	text       string
	line       int
	start, end int
}

// isValue reports whether the token may stand where a value is due.
func (t token) isValue() bool { return t.kind == tokenWord || t.kind == tokenString }

// is reports whether the token is the punctuation or keyword text.
func (t token) is(text string) bool {
	return (t.kind == tokenPunct || t.kind == tokenWord) && t.text == text
}

// lexer cuts one file into tokens. Faults become tokens of their own, so that
// unreadable text inside a skipped block does no harm.
type lexer struct {
	src  string
	at   int
	line int
}

// tokenize returns all tokens of src, the last of which is tokenEOF.
func tokenize(src string) []token {
	l := lexer{src: src, line: 1}
	l.at = len(src) - len(strings.TrimPrefix(src, "\ufeff"))
	tokens := make([]token, 0, len(src)/6+1)
	for {
		t := l.next()
		tokens = append(tokens, t)
		if t.kind == tokenEOF {
			return tokens
		}
	}
}

func (l *lexer) next() token {
	l.skipBlank()
	start := l.at
	if start == len(l.src) {
		return token{kind: tokenEOF, text: endOfFile, line: l.line, start: start, end: start}
	}
	switch c := l.src[start]; {
	case isWordByte(c):
		return l.word(start)
	case c == '"':
		return l.quoted(start)
	case strings.IndexByte("{};:[]", c) >= 0:
		l.at++
		return l.token(tokenPunct, start, l.src[start:l.at])
	default:
		_, size := utf8.DecodeRuneInString(l.src[start:])
		l.at += size
		return l.token(tokenOther, start, l.src[start:l.at])
	}
}

func (l *lexer) token(kind tokenKind, start int, text string) token {
	return token{kind: kind, text: text, line: l.line, start: start, end: l.at}
}

// skipBlank moves past white space and comments.
func (l *lexer) skipBlank() {
	for l.at < len(l.src) {
		switch l.src[l.at] {
		case '\n':
			l.line++
		case ' ', '\t', '\r', '\v', '\f':
		case '#':
			for l.at+1 < len(l.src) && l.src[l.at+1] != '\n' {
				l.at++
			}
		default:
			return
		}
		l.at++
	}
}

func (l *lexer) word(start int) token {
	for l.at < len(l.src) && isWordByte(l.src[l.at]) {
		l.at++
	}
	if l.at-start > wordBytesMax {
		return l.token(tokenBad, start, "Token too long >>>"+shorten(l.src[start:l.at])+"<<<")
	}
	return l.token(tokenWord, start, l.src[start:l.at])
}

// quoted reads a string: a backslash makes the next character ordinary, and
// the string must end on its line.
func (l *lexer) quoted(start int) token {
	var text strings.Builder
	for l.at++; l.at < len(l.src) && l.src[l.at] != '\n'; l.at++ {
		c := l.src[l.at]
		if c == '"' {
			l.at++
			return l.checkedString(start, text.String())
		}
		if c == '\\' && l.at+1 < len(l.src) && l.src[l.at+1] != '\n' {
			l.at++
			c = l.src[l.at]
		}
		text.WriteByte(c)
	}
	return l.token(tokenBad, start, "Unterminated double quoted string\n  we don't allow embedded newlines\n  >>>"+
		shorten(printable(l.src[start:l.at]))+"<<<")
}

func (l *lexer) checkedString(start int, text string) token {
	switch {
	case len(text) > stringBytesMax:
		return l.token(tokenBad, start, "Double quoted string too long >>>"+shorten(printable(text))+"<<<")
	case strings.IndexFunc(text, isControl) >= 0:
		return l.token(tokenBad, start, "Control character in double quoted string >>>"+shorten(printable(text))+"<<<")
	default:
		return l.token(tokenString, start, text)
	}
}

func isWordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/._-", c) >= 0
}

// isWord reports whether text can be written without quotes.
func isWord(text string) bool {
	for i := range len(text) {
		if !isWordByte(text[i]) {
			return false
		}
	}
	return text != ""
}

// isControl reports characters that may not stand in a value: they would
// forge lines in messages and in the text a dump prints.
func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// printable replaces what would disturb a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}
