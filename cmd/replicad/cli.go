package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// globals are the flags that every verb takes, before or after it.
type globals struct {
	Config  string `short:"c" aliases:"config-file" placeholder:"FILE" help:"Configuration in drbd.conf's grammar (default /etc/replicad.conf, else /etc/drbd.conf)."`
	Node    string `placeholder:"NAME" help:"Which 'on NAME' section is this node (default: uname -n)."`
	Socket  string `short:"s" placeholder:"PATH" help:"Control socket of the daemon (default $REPLICAD_SOCKET, else RUNDIR/replicad.sock)."`
	DryRun  bool   `short:"d" help:"Show what would be done."`
	Verbose bool   `short:"v" help:"Be verbose."`
	Test    string `name:"config-to-test" short:"t" placeholder:"FILE" hidden:""`
}

// names are the resources a verb is about.
type names struct {
	Resources []string `arg:"" optional:"" name:"resource" help:"RESOURCE, RESOURCE/VOLUME, or all."`
}

// cli is the command line. Field order is the order of the help.
type cli struct {
	globals

	Run  runCmd  `cmd:"" help:"Run the daemon in the foreground."`
	Demo demoCmd `cmd:"" help:"Tell the whole story on this machine, without root and without configuration."`

	Status      statusCmd   `cmd:"" help:"Print the text of /proc/drbd (as drbdadm: the status tree)."`
	Role        questionCmd `cmd:"" help:"Print this node's role and the peer's."`
	Cstate      questionCmd `cmd:"" help:"Print the state of the connection."`
	Dstate      dstateCmd   `cmd:"" help:"Print the state of the disks."`
	ShowGi      giCmd       `cmd:"" name:"show-gi" help:"Explain the data generation identifiers."`
	GetGi       giCmd       `cmd:"" name:"get-gi" help:"Print the data generation identifiers."`
	WaitConnect waitCmd     `cmd:"" name:"wait-connect" help:"Wait until the peer is connected."`
	WaitSync    waitCmd     `cmd:"" name:"wait-sync" help:"Wait until no resync runs or is due."`

	Up               verbCmd        `cmd:"" help:"Attach the disks and look for the peer."`
	Down             verbCmd        `cmd:"" help:"Demote, disconnect and detach."`
	Adjust           verbCmd        `cmd:"" help:"Bring the resource in line with its configuration."`
	Attach           verbCmd        `cmd:"" help:"Attach the backing disk."`
	Detach           forceCmd       `cmd:"" help:"Detach the backing disk."`
	Connect          connectCmd     `cmd:"" help:"Look for the peer."`
	Disconnect       forceCmd       `cmd:"" help:"Leave the peer."`
	Primary          primaryCmd     `cmd:"" help:"Serve the device here."`
	Secondary        verbCmd        `cmd:"" help:"Stop serving the device here."`
	Invalidate       metaCmd        `cmd:"" help:"Copy everything from the peer."`
	InvalidateRemote verbCmd        `cmd:"" name:"invalidate-remote" help:"Copy everything to the peer."`
	Outdate          metaCmd        `cmd:"" help:"Mark the data here as older than the peer's."`
	DiskOptions      diskOptionsCmd `cmd:"" name:"disk-options" help:"Change options of the disk until the next adjust."`

	CreateMd metaCmd  `cmd:"" name:"create-md" help:"Write new metadata to the backing disk."`
	WipeMd   metaCmd  `cmd:"" name:"wipe-md" help:"Remove the metadata from the backing disk."`
	DumpMd   metaCmd  `cmd:"" name:"dump-md" help:"Print the metadata of the backing disk."`
	ApplyAl  metaCmd  `cmd:"" name:"apply-al" help:"Mark what was being written at the last crash as out of sync."`
	SetGi    setGiCmd `cmd:"" name:"set-gi" help:"Change the data generation identifiers on the backing disk."`

	TLS tlsCmd `cmd:"" name:"tls" help:"Make and show certificates for links with TLS."`

	Dump    dumpCmd `cmd:"" help:"Print the configuration."`
	DumpXML dumpCmd `cmd:"" name:"dump-xml" help:"Print the configuration as XML."`
	Check   dumpCmd `cmd:"" help:"Check the configuration."`

	ShNop       shCmd `cmd:"" name:"sh-nop" hidden:""`
	ShResources shCmd `cmd:"" name:"sh-resources" hidden:""`
	ShResource  shCmd `cmd:"" name:"sh-resource" hidden:""`
	ShModParms  shCmd `cmd:"" name:"sh-mod-parms" hidden:""`
	ShDev       shCmd `cmd:"" name:"sh-dev" hidden:""`
	ShMinor     shCmd `cmd:"" name:"sh-minor" hidden:""`
	ShLlDev     shCmd `cmd:"" name:"sh-ll-dev" hidden:""`
	ShMdDev     shCmd `cmd:"" name:"sh-md-dev" hidden:""`
	ShMdIdx     shCmd `cmd:"" name:"sh-md-idx" hidden:""`
	ShIP        shCmd `cmd:"" name:"sh-ip" hidden:""`
	ShStatus    shCmd `cmd:"" name:"sh-status" hidden:""`

	Version    versionCmd    `cmd:"" help:"Print the version."`
	Help       helpCmd       `cmd:"" help:"Print help, also for one verb."`
	Completion completionCmd `cmd:"" help:"Print a completion script for bash, zsh or fish."`
}

// notBuilt are the verbs that are promised and do not exist yet.
var notBuilt = []string{
	"verify", "pause-sync", "resume-sync", "suspend-io", "resume-io", "resize", "new-current-uuid",
	"events2", "net-options", "explain", "doctor", "election", "handover",
}

// helpDone ends a run inside kong, which would otherwise call os.Exit.
type helpDone struct{}

// main runs the program and returns its exit code.
func (a *app) main(args []string) int {
	args, err := a.reorder(args)
	if err != nil {
		return report(a.err, err, "")
	}
	if len(args) == 0 {
		fmt.Fprintf(a.err, "USAGE: %s VERB [OPTION...] {all|RESOURCE[/VOLUME]...}\nNo command specified; to see the verbs: %s help\n", a.name, a.name)
		return exitUsage
	}
	if code, done := a.special(args); done {
		return code
	}
	return a.parse(args)
}

// special handles what is no verb of the grammar.
func (a *app) special(args []string) (code int, done bool) {
	switch verb := args[0]; {
	case verb == "-h" || verb == "--help":
		return a.parse([]string{"--help"}), true
	case verb == "--version" || verb == "-V":
		a.printVersion()
		return 0, true
	case slices.Contains(notBuilt, verb):
		fmt.Fprintf(a.err, "not built yet: %s\n", verb)
		return exitExecution, true
	case !slices.Contains(verbs(), verb):
		fmt.Fprintf(a.err, "%s: Unknown command '%s'\n", a.name, verb)
		if near := nearest(verb, append(visibleVerbs(), notBuilt...)); near != "" {
			fmt.Fprintf(a.err, "did you mean: %s %s\n", a.name, near)
		} else {
			fmt.Fprintf(a.err, "to see the verbs: %s help\n", a.name)
		}
		return exitUsage, true
	}
	return 0, false
}

// parse has kong take the command line apart, and runs the verb.
func (a *app) parse(args []string) (code int) {
	var c cli
	parser, err := a.newParser(&c)
	if err != nil {
		return report(a.err, err, "")
	}
	defer func() {
		// kong prints help in the middle of parsing and then exits.
		if r := recover(); r != nil {
			if _, ok := r.(helpDone); !ok {
				panic(r)
			}
			code = 0
		}
	}()
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(a.err, "%s: %s\nto see what there is: %s help %s\n", a.name, parseFault(err), a.name, args[0])
		return exitUsage
	}
	a.global = c.globals
	if a.global.Test != "" && !slices.Contains([]string{"dump", "dump-xml", "sh-nop"}, args[0]) {
		fmt.Fprintln(a.err, "The --config-to-test (-t) option is only allowed with the dump and sh-nop commands")
		return exitUsage
	}
	return report(a.err, parsed.Run(a, verbName(args[0])), "")
}

func parseFault(err error) string {
	if e, ok := errors.AsType[*kong.ParseError](err); ok {
		return e.Error()
	}
	return err.Error()
}

// verbName is what the user called, for verbs that share a type.
type verbName string

func (a *app) newParser(c *cli) (*kong.Kong, error) {
	parser, err := kong.New(c,
		kong.Name(a.name),
		kong.Description("A replicated block device for two Linux machines. Exit codes and messages are DRBD's."),
		kong.Writers(a.out, a.err),
		kong.Exit(func(int) { panic(helpDone{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
	if err != nil {
		return nil, fmt.Errorf("set up the command line: %w", err)
	}
	return parser, nil
}

// verbs lists every verb of the grammar.
func verbs() []string { return listVerbs(true) }

// visibleVerbs lists those that help shows.
func visibleVerbs() []string { return listVerbs(false) }

func listVerbs(hidden bool) []string {
	parser, err := kong.New(&cli{}, kong.Name("replicad"), kong.NoDefaultHelp())
	if err != nil {
		panic("cmd/replicad: the grammar of the command line is broken: " + err.Error())
	}
	var all []string
	for _, node := range parser.Model.Children {
		if hidden || !node.Hidden {
			all = append(all, node.Name)
		}
	}
	return all
}

// nearest returns the word that is most like the given one, "" if none is.
func nearest(word string, known []string) string {
	best, distance := "", max(len(word)/3, 1)+1
	for _, k := range known {
		if d := editDistance(word, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the letters to insert, delete, replace or swap with
// their neighbour to get from a to b.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// usage is the answer to a verb without a resource.
func (a *app) usage(verb string) error {
	return &exitError{code: exitUsage, lines: []string{
		fmt.Sprintf("USAGE: %s %s [OPTION...] {all|RESOURCE[/VOLUME]...}", a.name, verb),
		"No resource names specified",
	}}
}

// commandLine is what messages say was run.
func (a *app) commandLine(verb string, words ...string) string {
	parts := append([]string{a.name, verb}, words...)
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}
