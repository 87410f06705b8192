package config

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// parseNumber reads digits with an optional suffix K, M, G or s (sectors) and
// returns the value in units of u, rounded up, as drbdadm does. A number too
// large for 64 bits saturates. ok is false when text is no number.
func parseNumber(text string, u unit) (value uint64, ok bool) {
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		high, low := bits.Mul64(value, 10)
		sum, carry := bits.Add64(low, uint64(text[end]-'0'), 0)
		if value = sum; high|carry != 0 {
			value = math.MaxUint64
		}
		end++
	}
	shift, known := suffixShift(text[end:], u)
	if end == 0 || !known {
		return 0, false
	}
	if value > math.MaxUint64>>shift {
		return math.MaxUint64, true
	}
	value <<= shift
	rest := value & (1<<unitShift(u) - 1)
	return value>>unitShift(u) + min(rest, 1), true
}

// suffixShift returns by which power of two a number with this suffix counts.
func suffixShift(suffix string, u unit) (shift int, ok bool) {
	switch suffix {
	case "":
		return unitShift(u), true
	case "s":
		return 9, true
	case "k", "K":
		return 10, true
	case "m", "M":
		return 20, true
	case "g", "G":
		return 30, true
	default:
		return 0, false
	}
}

func unitShift(u unit) int {
	switch u {
	case unitKiB:
		return 10
	case unitSector:
		return 9
	default:
		return 0
	}
}

// suffix is how drbdadm writes the unit behind a number.
func (u unit) suffix() string {
	if u == unitOne {
		return ""
	}
	return string(rune(u))
}

// value checks tok as the value of option o and returns its normal form.
func (p *parser) value(o *option, tok token) (string, bool) {
	switch o.kind {
	case kindNumber:
		return tok.text, p.checkNumber(o, tok)
	case kindEnum:
		return p.enumWord(o, tok)
	case kindPath:
		return tok.text, p.checkPath(o.name, tok)
	case kindDigest:
		return tok.text, p.checkDigest(tok)
	default:
		return tok.text, p.checkText(o, tok)
	}
}

func (p *parser) checkNumber(o *option, tok token) bool {
	return p.inRange(o.name, tok, o.min, o.max, o.unit)
}

// inRange reports a number that is none or that is out of [minimum..maximum].
func (p *parser) inRange(name string, tok token, minimum, maximum uint64, u unit) bool {
	magnitude, negative := strings.CutPrefix(tok.text, "-")
	value, ok := parseNumber(magnitude, u)
	if !ok {
		p.report.expected(p.pos(tok), "a number", printable(tok.text), nil)
		return false
	}
	if !negative && value >= minimum && value <= maximum {
		return true
	}
	sign := ""
	if negative {
		sign = "-"
	}
	s := u.suffix()
	p.report.errorf(p.pos(tok), "%s %s => %s%d%s out of range [%d..%d]%s.", name, shorten(tok.text), sign, value, s, minimum, maximum, s)
	return false
}

// enumWord checks tok against the option's words. Protocols may be written in
// lower case; discard-node-NAME is settled by Resolve, which knows the nodes.
func (p *parser) enumWord(o *option, tok token) (string, bool) {
	word := tok.text
	if o.name == "protocol" {
		word = strings.ToUpper(word)
		if !slices.Contains(o.words, word) {
			p.report.errorf(p.pos(tok), "unknown protocol '%s', should be one of A,B,C", shorten(printable(tok.text)))
			return "", false
		}
		return word, true
	}
	isNode := o.name == "after-sb-0pri" && strings.HasPrefix(word, discardNodePrefix)
	if !isNode && !slices.Contains(o.words, word) {
		p.report.expected(p.pos(tok), strings.Join(o.words, " | "), printable(word), o.words)
		return "", false
	}
	return word, true
}

func (p *parser) checkPath(name string, tok token) bool {
	if strings.HasPrefix(tok.text, "/") {
		return true
	}
	p.report.errorf(p.pos(tok), "%s '%s' is not an absolute path.", name, shorten(tok.text))
	return false
}

// checkDigest accepts the kernel's names, also those of one implementation of
// a digest ("sha1-generic"), and the empty string, which turns the option off.
func (p *parser) checkDigest(tok token) bool {
	name := strings.TrimSuffix(tok.text, "-generic")
	if name == "" || slices.Contains(digests, name) {
		return true
	}
	p.report.expected(p.pos(tok), "the name of a digest such as sha256", tok.text, digests)
	return false
}

func (p *parser) checkText(o *option, tok token) bool {
	if o.name == "shared-secret" && len(tok.text) > SecretBytesMax {
		p.report.errorf(p.pos(tok), "shared-secret is %d characters long, at most %d are allowed.", len(tok.text), SecretBytesMax)
		return false
	}
	return true
}

// unbuilt names the options whose other values this version takes without
// honouring them, with the value by which it goes. (Where that would break a
// promise silently, CheckBuilt refuses instead.)
var unbuilt = map[string]string{
	"after-sb-0pri": "disconnect", "after-sb-1pri": "disconnect", "after-sb-2pri": "disconnect",
	"fencing": "dont-care", "on-no-data-accessible": "io-error", "on-io-error": "detach", "on-congestion": "block",
	"read-balancing": "prefer-local", "resync-after": "none",
	"disk-flushes": "yes", "md-flushes": "yes", "data-integrity-alg": "none", "csums-alg": "none",
}

// optionWarning returns the remark an accepted setting earns, or "".
func optionWarning(section string, o *option, value string) string {
	switch {
	case o.inert:
		return fmt.Sprintf("'%s' in section %s has no meaning in replicad and is ignored.", o.name, section)
	case o.name == "cram-hmac-alg" && value != "" && value != "sha256":
		return fmt.Sprintf("cram-hmac-alg %s: replicad always authenticates with HMAC-SHA-256.", value)
	case unbuilt[o.name] != "" && value != unbuilt[o.name]:
		return fmt.Sprintf("'%s' is accepted, but not built yet: it works as %s.", o.name, unbuilt[o.name])
	default:
		return ""
	}
}
