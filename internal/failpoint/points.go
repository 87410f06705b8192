package failpoint

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Point is a place in the program's I/O.
type Point uint8

// The places. What an operation moves by bytes is marked T in points: it can
// also be cut short.
const (
	DiskOpen Point = iota
	DiskRead
	DiskWrite
	DiskDurable
	DiskSync
	DiskDiscard
	DiskZero
	MetaSuper
	MetaAL
	MetaBitmap
	MetaBitmapSync
	MetaCreateWipe
	MetaCreateLog
	MetaCreateBitmap
	MetaCreateSuper
	StatusWrite
	StatusRename
	ControlListen
	LinkDial
	LinkAccept
	LinkSend
	LinkReceive
	NBDAccept
	NBDReceive
	NBDReply

	pointCount
)

// points are the names, what is done there, and whether it can be cut short.
var points = [pointCount]struct {
	name, does string
	transfers  bool
}{
	DiskOpen:         {"disk.open", "open(2) of a backing disk or metadata device", false},
	DiskRead:         {"disk.read", "pread(2) from a disk", false},
	DiskWrite:        {"disk.write", "pwrite(2) to a disk: data and bitmap pages", true},
	DiskDurable:      {"disk.durable", "durable write to a disk: FUA, superblock, activity log", true},
	DiskSync:         {"disk.sync", "fdatasync(2) of a disk", false},
	DiskDiscard:      {"disk.discard", "discard of a range of a disk", false},
	DiskZero:         {"disk.zero", "zeroing of a range of a disk", false},
	MetaSuper:        {"meta.super", "superblock write", false},
	MetaAL:           {"meta.al", "activity log transaction", false},
	MetaBitmap:       {"meta.bitmap", "write of one bitmap page", false},
	MetaBitmapSync:   {"meta.bitmap-sync", "making bitmap pages durable", false},
	MetaCreateWipe:   {"meta.create-wipe", "create-md and wipe-md: removing the old superblock", false},
	MetaCreateLog:    {"meta.create-log", "create-md and attach: initialising the activity log", false},
	MetaCreateBitmap: {"meta.create-bitmap", "create-md: zeroing the bitmap", false},
	MetaCreateSuper:  {"meta.create-super", "create-md: writing the new superblock", false},
	StatusWrite:      {"status.write", "writing the new status file", false},
	StatusRename:     {"status.rename", "putting the new status file in place", false},
	ControlListen:    {"control.listen", "putting the control socket in place", false},
	LinkDial:         {"link.dial", "connect(2) to the peer", false},
	LinkAccept:       {"link.accept", "a connection to the link's port was accepted", false},
	LinkSend:         {"link.send", "sending a batch of messages to the peer", false},
	LinkReceive:      {"link.receive", "receiving one message from the peer", false},
	NBDAccept:        {"nbd.accept", "an NBD client's connection was accepted", false},
	NBDReceive:       {"nbd.receive", "read(2) from an NBD client", false},
	NBDReply:         {"nbd.reply", "writev(2) of answers to an NBD client", false},
}

// String returns the point's name.
func (p Point) String() string { return points[p].name }

// Names lists the points in order.
func Names() []string {
	var names []string
	for _, p := range points {
		names = append(names, p.name)
	}
	return names
}

// action is what a rule does.
type action uint8

const (
	actKill action = iota
	actKillAfter
	actStop
	actStopAfter
	actEIO
	actENOSPC
	actShort
	actTorn
	actDelay
	actJitter

	actionCount
)

var actions = [actionCount]string{
	"kill", "kill-after", "stop", "stop-after", "eio", "enospc", "short", "torn", "delay", "jitter",
}

// String returns the action's name.
func (a action) String() string { return actions[a] }

// partial says that the action wants half of the bytes transferred.
func (a action) partial() bool { return a == actShort || a == actTorn }

// parse reads rules.
func parse(spec string) (*plan, error) {
	p := &plan{spec: spec}
	for text := range strings.SplitSeq(spec, ";") {
		r, err := parseRule(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		p.points[r.point].rules = append(p.points[r.point].rules, r)
	}
	return p, nil
}

// parseRule reads POINT=ACTION[:DURATION][@N[+]].
func parseRule(text string) (*rule, error) {
	name, rest, ok := strings.Cut(text, "=")
	if !ok {
		return nil, fmt.Errorf("a rule is POINT=ACTION[@N[+]]")
	}
	word, count, counted := strings.Cut(rest, "@")
	r := &rule{from: 1}
	var err error
	if r.point, err = parsePoint(name); err != nil {
		return nil, err
	}
	if err := r.parseAction(word); err != nil {
		return nil, err
	}
	if !counted {
		return r, nil
	}
	number, onward := strings.CutSuffix(count, "+")
	r.onward = onward
	if r.from, err = strconv.ParseUint(number, 10, 63); err != nil || r.from == 0 {
		return nil, fmt.Errorf("%q is not a number of times from 1 on", number)
	}
	return r, nil
}

func parsePoint(name string) (Point, error) {
	for p := range pointCount {
		if points[p].name == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown point %q; known are %s", name, strings.Join(Names(), ", "))
}

func (r *rule) parseAction(word string) error {
	word, duration, timed := strings.Cut(word, ":")
	for a := range actionCount {
		if actions[a] != word {
			continue
		}
		r.action = a
		if a.partial() && !points[r.point].transfers {
			return fmt.Errorf("%s cannot be cut short: use short and torn with disk.write and disk.durable", r.point)
		}
		if timed != (a == actDelay || a == actJitter) {
			return fmt.Errorf("delay and jitter take a duration, as in delay:5ms, and nothing else does")
		}
		if !timed {
			return nil
		}
		var err error
		if r.delay, err = time.ParseDuration(duration); err != nil || r.delay <= 0 {
			return fmt.Errorf("%q is not a duration", duration)
		}
		return nil
	}
	return fmt.Errorf("unknown action %q; known are %s", word, strings.Join(actions[:], ", "))
}
