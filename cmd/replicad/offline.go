package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"replicad/config"
	"replicad/replica/disk"
	"replicad/replica/meta"
)

// The verbs that work on the backing disk while nobody else does.

type metaCmd struct {
	names
	Force      bool   `help:"Do not ask."`
	PeerMaxBio string `name:"peer-max-bio-size" hidden:""`
}

type setGiCmd struct {
	Words []string `arg:"" optional:"" name:"gi-and-resource" help:"The identifiers, as get-gi prints them, and the resource."`
	Force bool     `help:"Do not ask."`
}

// access says what for a disk is opened.
type access bool

const (
	readOnly  access = true
	readWrite access = false
)

// offlineVerbs do one volume each.
var offlineVerbs = map[string]func(a *app, t target, v *config.LocalVolume, force bool) error{
	"create-md":  (*app).createMD,
	"wipe-md":    (*app).wipeMD,
	"dump-md":    (*app).dumpMD,
	"apply-al":   (*app).applyAL,
	"outdate":    (*app).outdateMD,
	"invalidate": (*app).invalidateMD,
}

// Run is called by kong. outdate and invalidate are for the daemon while the
// disk is attached.
func (c *metaCmd) Run(a *app, verb verbName) error {
	targets, err := a.targets(string(verb), c.Resources, false)
	if err != nil {
		return err
	}
	return a.eachTarget(string(verb), targets, func(t target) error {
		if a.global.DryRun {
			fmt.Fprintln(a.out, a.commandLine(string(verb), t.String()))
			return nil
		}
		switch online := verb == "outdate" || verb == "invalidate"; {
		case online && a.running(t):
			return a.commandOne(string(verb), t, url.Values{})
		case a.attached(t):
			return attachedError(t)
		}
		for _, v := range t.volumes() {
			if err := offlineVerbs[string(verb)](a, t, v, c.Force); err != nil {
				return err
			}
		}
		return nil
	})
}

// attachedError refuses to touch a disk that a daemon uses.
func attachedError(t target) error {
	minor := t.volumes()[0].Minor
	return &exitError{
		code: exitExecution, lines: []string{fmt.Sprintf("Device '%d' is configured!", minor)},
		hint: "first: replicad down " + t.local.Name,
	}
}

// diskError words a failure to open a disk.
func diskError(t target, err error) error {
	if inUse, ok := errors.AsType[*disk.InUseError](err); ok {
		return &exitError{code: exitExecution, lines: []string{inUse.Error()}, hint: "first: replicad down " + t.local.Name}
	}
	return metaError(t, err)
}

// metaError words a failure of the metadata.
func metaError(t target, err error) error {
	_, misfit := errors.AsType[*meta.MisfitError](err)
	switch {
	case errors.Is(err, meta.ErrNoMetadata):
		return &exitError{code: exitUsage, lines: []string{meta.ErrNoMetadata.Error()}, hint: "make some with: replicad create-md " + t.local.Name}
	case errors.Is(err, meta.ErrUnclean):
		return &exitError{code: exitUsage, lines: []string{meta.ErrUnclean.Error()}, hint: "run: replicad apply-al " + t.local.Name}
	case errors.Is(err, meta.ErrInconsistent):
		return fail(exitTimeout, "%s", meta.ErrInconsistent.Error())
	case errors.Is(err, meta.ErrTooSmall), errors.Is(err, meta.ErrBadGI):
		return fail(exitConfig, "%s", err.Error())
	case misfit:
		return &exitError{
			code: exitUsage, lines: []string{meta.ErrNoMetadata.Error(), err.Error()},
			hint: "the disk has another size than when its metadata was made: give it its size back, or: replicad create-md " + t.local.Name,
		}
	}
	return fail(exitExecution, "%s", err.Error())
}

// mdPath is the device that holds a volume's metadata.
func mdPath(v *config.LocalVolume) string { return mdDevice(v) }

func placementOf(v *config.LocalVolume) meta.Placement {
	switch v.MetaDisk.Kind {
	case config.MetaFlexibleExternal:
		return meta.Placement{Kind: meta.FlexExternal}
	case config.MetaIndexed:
		return meta.Placement{Kind: meta.Indexed, Index: uint8(v.MetaDisk.Index)}
	}
	return meta.Placement{Kind: meta.Internal}
}

// openMD opens the device that holds a volume's metadata.
func openMD(v *config.LocalVolume, mode access) (*disk.File, error) {
	o := disk.Options{ReadOnly: bool(mode)}
	if v.MetaDisk.Kind == config.MetaIndexed {
		o.Shared, o.Slot = true, uint8(v.MetaDisk.Index)
	}
	return disk.Open(mdPath(v), o)
}

// eachStore opens the metadata of each of the target's volumes for use.
func (a *app) eachStore(t target, mode access, use func(*meta.Store) error) error {
	for _, v := range t.volumes() {
		if err := a.withStore(t, v, mode, use); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) withStore(t target, v *config.LocalVolume, mode access, use func(*meta.Store) error) (err error) {
	md, err := openMD(v, mode)
	if err != nil {
		return diskError(t, err)
	}
	defer func() { err = errors.Join(err, md.Close()) }()
	data := md
	if v.MetaDisk.Kind != config.MetaInternal {
		if data, err = disk.Open(v.Disk, disk.Options{ReadOnly: bool(mode)}); err != nil {
			return diskError(t, err)
		}
		defer func() { err = errors.Join(err, data.Close()) }()
	}
	s, err := meta.Open(data, md, placementOf(v))
	if err != nil {
		return metaError(t, err)
	}
	if err := use(s); err != nil {
		if _, ok := errors.AsType[*exitError](err); ok {
			return err
		}
		return metaError(t, err)
	}
	return nil
}

func (a *app) createMD(t target, v *config.LocalVolume, force bool) (err error) {
	md, err := openMD(v, readWrite)
	if err != nil {
		return diskError(t, err)
	}
	defer func() { err = errors.Join(err, md.Close()) }()
	o := meta.CreateOptions{Name: mdPath(v), Out: a.out, Err: a.err, Confirmed: true}
	questions, err := meta.Survey(md, placementOf(v), o)
	if refused, ok := errors.AsType[*meta.RefusedError](err); ok {
		fmt.Fprintln(a.out, strings.TrimRight(refused.Text, "\n"))
		return &exitError{
			code: exitFileSystem, lines: []string{refused.Error()},
			hint: fmt.Sprintf("use another disk or an external meta-disk; or, if the data may go: wipefs -a %s", mdPath(v)),
		}
	}
	if err != nil {
		return metaError(t, err)
	}
	for _, q := range questions {
		fmt.Fprint(a.out, q.Out)
		fmt.Fprint(a.err, q.Err)
		if !a.confirmed(q.Ask, force) {
			return a.notConfirmed(q.No)
		}
	}
	if err := meta.Create(md, placementOf(v), o); err != nil {
		return metaError(t, err)
	}
	return nil
}

func (a *app) wipeMD(t target, v *config.LocalVolume, force bool) (err error) {
	md, err := openMD(v, readWrite)
	if err != nil {
		return diskError(t, err)
	}
	defer func() { err = errors.Join(err, md.Close()) }()
	if !a.confirmed("Do you really want to wipe out the DRBD meta data?", force) {
		return a.notConfirmed("Operation cancelled.")
	}
	if err := meta.Wipe(md, placementOf(v)); err != nil {
		return metaError(t, err)
	}
	fmt.Fprintln(a.out, "Wiping meta data...\nDRBD meta data block successfully wiped out.")
	return nil
}

// notConfirmed ends a verb that was not confirmed, with exit code 1.
func (a *app) notConfirmed(text string) error {
	fmt.Fprintln(a.out, text)
	return &exitError{code: exitUsage}
}

// confirmed asks a question on a terminal. Nobody there means no.
func (a *app) confirmed(question string, force bool) bool {
	fmt.Fprintf(a.err, "\n%s\n", question)
	if force {
		fmt.Fprintln(a.err, "*** confirmation forced via --force option ***")
		return true
	}
	if !isTerminal(a.in) {
		fmt.Fprintln(a.err, "stdin not a TTY, not waiting for confirmation")
		return false
	}
	fmt.Fprint(a.err, "[need to type 'yes' to confirm] ")
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	return err == nil && strings.TrimSpace(answer) == "yes"
}

func (a *app) dumpMD(t target, v *config.LocalVolume, force bool) error {
	return a.withStore(t, v, readOnly, func(s *meta.Store) error {
		host, err := a.node()
		if err != nil {
			return err
		}
		header := meta.DumpHeader{Time: time.Now(), Host: host, Command: []string{a.name, "dump-md", t.String()}}
		return s.Dump(a.out, header, force)
	})
}

func (a *app) applyAL(t target, v *config.LocalVolume, force bool) error {
	return a.withStore(t, v, readWrite, func(s *meta.Store) error {
		marked, err := s.ApplyAL()
		if _, damaged := errors.AsType[*meta.ALDamagedError](err); damaged && force {
			fmt.Fprintln(a.err, err)
			return s.AbandonAL()
		}
		if err != nil {
			return err
		}
		if marked > 0 {
			fmt.Fprintf(a.err, "Marked additional %s as out-of-sync based on AL.\n", meta.FormatKiB(marked))
		}
		return nil
	})
}

func (a *app) outdateMD(t target, v *config.LocalVolume, _ bool) error {
	return a.withStore(t, v, readWrite, (*meta.Store).Outdate)
}

func (a *app) invalidateMD(t target, v *config.LocalVolume, _ bool) error {
	return a.withStore(t, v, readWrite, (*meta.Store).Invalidate)
}

// Run is called by kong. Either order of identifiers and resource is taken.
func (c *setGiCmd) Run(a *app, _ verbName) error {
	if len(c.Words) != 2 {
		return fail(exitUsage, "USAGE: %s set-gi GI RESOURCE[/VOLUME]", a.name)
	}
	gi, name := c.Words[0], c.Words[1]
	if looksLikeGI(name) && !looksLikeGI(gi) {
		gi, name = name, gi
	}
	targets, err := a.targets("set-gi", []string{name}, false)
	if err != nil {
		return err
	}
	return a.eachTarget("set-gi", targets, func(t target) error {
		if a.attached(t) {
			return attachedError(t)
		}
		return a.eachStore(t, readWrite, func(s *meta.Store) error { return a.setGI(s, gi, c.Force) })
	})
}

// looksLikeGI tells identifiers from the name of a resource.
func looksLikeGI(word string) bool {
	return strings.Trim(word, "0123456789abcdefABCDEFx:") == ""
}

func (a *app) setGI(s *meta.Store, gi string, force bool) error {
	super := s.Super()
	fmt.Fprintf(a.out, "previously %s\n", super.GI())
	if err := super.SetGI(gi); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "set GI to  %s\n", super.GI())
	if !a.confirmed("Write new GI to disk?", force) {
		return a.notConfirmed("Operation cancelled.")
	}
	return s.WriteSuper(&super)
}
