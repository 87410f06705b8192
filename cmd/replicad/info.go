package main

import (
	"fmt"
	"strings"

	"replicad/replica/status"
)

type versionCmd struct{}

type helpCmd struct {
	Verb string `arg:"" optional:"" help:"The verb."`
}

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run is called by kong.
func (*versionCmd) Run(a *app) error {
	a.printVersion()
	return nil
}

// printVersion prints our version and that of the DRBD whose ways we have;
// as drbdadm in the form that scripts read.
func (a *app) printVersion() {
	if !a.asDrbdadm() {
		fmt.Fprintf(a.out, "replicad %s\nemulates %s\n", version, status.VersionLine)
		return
	}
	fmt.Fprintf(a.out, "DRBDADM_BUILDTAG=replicad:\\ %s\nDRBDADM_API_VERSION=1\nDRBD_KERNEL_VERSION_CODE=0x08040b\n"+
		"DRBDADM_VERSION_CODE=0x091600\nDRBDADM_VERSION=9.22.0\n", strings.ReplaceAll(version, " ", `\ `))
}

// Run is called by kong.
func (c *helpCmd) Run(a *app) error {
	args := []string{"--help"}
	if c.Verb != "" {
		args = []string{c.Verb, "--help"}
	}
	if code := a.main(args); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// Run is called by kong.
func (c *completionCmd) Run(a *app) error {
	words := strings.Join(visibleVerbs(), " ")
	scripts := map[string]string{
		"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion,
	}
	fmt.Fprint(a.out, strings.ReplaceAll(scripts[c.Shell], "VERBS", words))
	return nil
}

const bashCompletion = `_replicad() {
    local cur=${COMP_WORDS[COMP_CWORD]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "VERBS" -- "$cur"))
    else
        COMPREPLY=($(compgen -W "all $("${COMP_WORDS[0]}" sh-resources 2>/dev/null)" -- "$cur"))
    fi
}
complete -F _replicad replicad
`

const zshCompletion = `#compdef replicad
_replicad() {
    if (( CURRENT == 2 )); then
        compadd -- VERBS
    else
        compadd -- all $(replicad sh-resources 2>/dev/null)
    fi
}
_replicad "$@"
`

const fishCompletion = `complete -c replicad -f
complete -c replicad -n __fish_use_subcommand -a 'VERBS'
complete -c replicad -n 'not __fish_use_subcommand' -a 'all (replicad sh-resources 2>/dev/null | string split " ")'
`
