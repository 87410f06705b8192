package main

import (
	"strings"
)

// takesValue are the global flags, before the verb, whose value is the next word.
var takesValue = map[string]bool{
	"-c": true, "--config": true, "--config-file": true, "--node": true,
	"-s": true, "--socket": true, "-t": true, "--config-to-test": true,
	"--log-format": true, "--log-level": true, "--stop-timeout": true,
}

// reorder brings a command line into the order the grammar wants: the verb
// first. It also takes drbdadm's old form, where a verb's options stand before
// it, after a double dash: -- --overwrite-data-of-peer primary r0.
func (a *app) reorder(args []string) ([]string, error) {
	if a.asDrbdadm() {
		var err error
		if args, err = drbdadmFlags(args); err != nil {
			return nil, err
		}
	}
	var before, after []string
	verb := ""
	for i := 0; i < len(args); i++ {
		word := args[i]
		switch {
		case word == "--":
		case verb != "":
			after = append(after, word)
		case takesValue[word] && i+1 < len(args):
			before = append(before, word, args[i+1])
			i++
		case strings.HasPrefix(word, "-"):
			before = append(before, word)
		default:
			verb = word
		}
	}
	rest := joinOptional(append(before, after...))
	if verb == "" {
		return rest, nil
	}
	return append([]string{verb}, rest...), nil
}

// joinOptional ties the value of --watch, which may be left out, to its flag.
func joinOptional(args []string) []string {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		if args[i] != "--watch" {
			out = append(out, args[i])
			continue
		}
		if i+1 < len(args) && isNumber(args[i+1]) {
			out = append(out, "--watch="+args[i+1])
			i++
			continue
		}
		out = append(out, "--watch=2")
	}
	return out
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789.") == ""
}

// drbdadmFlags refuses and translates drbdadm's own flags.
func drbdadmFlags(args []string) ([]string, error) {
	var out []string
	for i := 0; i < len(args); i++ {
		word := args[i]
		switch {
		case word == "-S" || word == "--stacked" || word == "-P" || word == "--peer":
			return nil, fail(exitUsage, "drbdadm: %s: stacked resources are not supported", word)
		case word == "-s" || word == "--drbdsetup" || word == "-m" || word == "--drbdmeta" || strings.HasPrefix(word, "--drbdsetup=") || strings.HasPrefix(word, "--drbdmeta="):
			return nil, fail(exitUsage, "drbdadm: %s: there is no drbdsetup and no drbdmeta to choose", word)
		case (word == "-W" || word == "--setup-option") && i+1 < len(args):
			i++
			out = append(out, args[i])
		case strings.HasPrefix(word, "--setup-option="):
			out = append(out, strings.TrimPrefix(word, "--setup-option="))
		case strings.HasPrefix(word, "-W") && len(word) > 2:
			out = append(out, word[2:])
		default:
			out = append(out, word)
		}
	}
	return out, nil
}
