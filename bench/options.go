package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mebibyte    = 1 << 20
	sizeDefault = 128 * mebibyte
	sizeMin     = 4 * mebibyte
	shm         = "/dev/shm" // a tmpfs on every usual Linux
)

// options are what the user asked for.
type options struct {
	dir       string        // folder of the images
	size      int64         // bytes of each image that are used
	cell      time.Duration // measured time of one workload on one server
	rounds    int
	limit     time.Duration // begin no round that would end later
	servers   []string
	workloads []workload
	transport string // unix or tcp, between client and servers
	replicad  string // the program; empty: build it
	csv, md   string // files to write
	profile   string // folder for CPU profiles of this program and its servers
}

var errOption = errors.New("wrong option")

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var opt options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&opt.dir, "dir", "", "`folder` for the images (default "+shm+" if there is room, else the temporary folder)")
	size := fs.Int64("size", sizeDefault/mebibyte, "size of each image in `MiB`")
	seconds := fs.Float64("seconds", 0.15, "measured `time` of each cell")
	fs.IntVar(&opt.rounds, "rounds", 10, "visits of each workload to each server")
	fs.DurationVar(&opt.limit, "limit", 170*time.Second, "begin no round that would end later than this after the start")
	servers := fs.String("servers", strings.Join(serverLabels(), ","), "`list` of servers")
	workloads := fs.String("workloads", strings.Join(workloadNames(), ","), "`list` of workloads")
	fs.StringVar(&opt.transport, "transport", "unix", "unix or tcp, between client and server")
	fs.StringVar(&opt.replicad, "replicad", "", "`path` of the replicad program (default: build it from ./cmd/replicad)")
	fs.StringVar(&opt.csv, "csv", "", "write every cell to this `file`")
	fs.StringVar(&opt.md, "md", "", "write the tables to this `file` too")
	fs.StringVar(&opt.profile, "profile", "", "`folder` for CPU profiles of go-nbd, nbd-file and the client")
	quick := fs.Bool("quick", false, "a first impression: 3 rounds of 0.08 s, begun within 35 s")
	if err := fs.Parse(args); err != nil {
		return opt, err
	}
	if fs.NArg() > 0 {
		return opt, fmt.Errorf("%w: unexpected %q", errOption, fs.Arg(0))
	}
	if *quick {
		err := setUnlessGiven(fs, map[string]string{"rounds": "3", "seconds": "0.08", "limit": "35s"})
		if err != nil {
			return opt, err
		}
	}
	opt.size, opt.cell = *size*mebibyte, time.Duration(*seconds*float64(time.Second))
	opt.servers = splitList(*servers)
	return opt, opt.complete(splitList(*workloads))
}

// setUnlessGiven gives flags that are not on the command line another value.
func setUnlessGiven(fs *flag.FlagSet, values map[string]string) error {
	fs.Visit(func(f *flag.Flag) { delete(values, f.Name) })
	for name, value := range values {
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("set -%s: %w", name, err)
		}
	}
	return nil
}

// complete checks the options and fills in what was left to us.
func (opt *options) complete(names []string) error {
	switch {
	case opt.size < sizeMin:
		return fmt.Errorf("%w: -size is at least %d", errOption, sizeMin/mebibyte)
	case opt.cell < time.Millisecond || opt.rounds < 1 || opt.limit <= 0:
		return fmt.Errorf("%w: -seconds, -rounds and -limit are positive", errOption)
	case opt.transport != "unix" && opt.transport != "tcp":
		return fmt.Errorf("%w: -transport is unix or tcp, not %q", errOption, opt.transport)
	case len(opt.servers) == 0 || len(names) == 0:
		return fmt.Errorf("%w: nothing to measure", errOption)
	}
	for _, label := range opt.servers {
		if !slices.Contains(serverLabels(), label) {
			return fmt.Errorf("%w: no server %q; there are %s", errOption, label, strings.Join(serverLabels(), ", "))
		}
	}
	for _, name := range names {
		w, ok := findWorkload(name)
		if !ok {
			return fmt.Errorf("%w: no workload %q; there are %s", errOption, name, strings.Join(workloadNames(), ", "))
		}
		opt.workloads = append(opt.workloads, w)
	}
	if opt.dir == "" {
		opt.dir = imageFolder(opt.size * imagesOf(opt.servers))
	}
	return nil
}

// imagesOf counts the images that the servers need.
func imagesOf(labels []string) (n int64) {
	for _, label := range labels {
		n++
		if protocolOf(label) != "" {
			n++
		}
	}
	return n
}

// imageFolder is shared memory if need bytes and half as much again fit there.
func imageFolder(need int64) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err == nil && int64(fs.Bavail)*fs.Bsize > need+need/2 {
		return shm
	}
	return os.TempDir()
}

func splitList(s string) []string {
	var out []string
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		if !slices.Contains(out, part) {
			out = append(out, part)
		}
	}
	return out
}
