package meta

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// giFlags are the flags of the get-gi format, in its order.
var giFlags = [...]Flags{
	FlagConsistent, FlagWasUpToDate, FlagPrimaryIndicator, FlagConnected,
	FlagFullSync, FlagPeerOutdated, FlagCrashedPrimary,
}

// ErrBadGI is returned for generation identifiers that SetGI cannot read
// (drbdmeta: exit 10).
var ErrBadGI = errors.New("bad generation identifier")

func (f Flags) has(flag Flags) bool { return f&flag != 0 }

// GI returns the identifiers as get-gi prints them: the four UUIDs in upper
// case hex, then seven flags as 0 or 1, separated by colons.
func (s Super) GI() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%016X:%016X:%016X:%016X", uint64(s.Current), uint64(s.Bitmap), uint64(s.History[0]), uint64(s.History[1]))
	for _, flag := range giFlags {
		b.WriteString(map[bool]string{false: ":0", true: ":1"}[s.Flags.has(flag)])
	}
	return b.String()
}

// SetGI changes the identifiers named by spec, which has get-gi's format. An
// empty or missing field stays as it is. On error s is unchanged.
func (s *Super) SetGI(spec string) error {
	next := *s
	uuids := [...]*UUID{&next.Current, &next.Bitmap, &next.History[0], &next.History[1]}
	fields := strings.Split(spec, ":")
	if len(fields) > len(uuids)+len(giFlags) {
		return fmt.Errorf("%w: %d fields, at most %d", ErrBadGI, len(fields), len(uuids)+len(giFlags))
	}
	for i, field := range fields {
		if field == "" {
			continue
		}
		var err error
		if i < len(uuids) {
			err = setUUID(uuids[i], field)
		} else {
			err = next.setFlag(giFlags[i-len(uuids)], field)
		}
		if err != nil {
			return err
		}
	}
	*s = next
	return nil
}

func setUUID(uuid *UUID, field string) error {
	digits := strings.TrimPrefix(strings.ToLower(field), "0x")
	n, err := strconv.ParseUint(digits, 16, 64)
	if err != nil {
		//lint:ignore ST1005 DRBD's words
		return fmt.Errorf("%w: '%s' is not a number.", ErrBadGI, field)
	}
	*uuid = UUID(n)
	return nil
}

func (s *Super) setFlag(flag Flags, field string) error {
	switch field {
	case "0":
		s.Flags &^= flag
	case "1":
		s.Flags |= flag
	default:
		//lint:ignore ST1005 DRBD's words
		return fmt.Errorf("%w: '%s' is not 0 or 1.", ErrBadGI, field)
	}
	return nil
}

// The legend of show-gi: what each column of the line between them means.
const (
	legendUUIDs = `
       +--<  Current data generation UUID  >-
       |               +--<  Bitmap's base data generation UUID  >-
       |               |                 +--<  younger history UUID  >-
       |               |                 |         +-<  older history  >-
       V               V                 V         V
`
	legendFlags = `                                                                    ^ ^ ^ ^ ^ ^ ^
                                      -<  Data consistency flag  >--+ | | | | | |
                             -<  Data was/is currently up-to-date  >--+ | | | | |
                                  -<  Node was/is currently primary  >--+ | | | |
                                  -<  Node was/is currently connected  >--+ | | |
         -<  Node was in the progress of setting all bits in the bitmap  >--+ | |
                        -<  The peer's disk was out-dated or inconsistent  >--+ |
      -<  This node was a crashed primary, and has not seen its peer since   >--+

`
)

// ShowGI returns the text of show-gi for a detached resource.
func (s Super) ShowGI() string {
	var b strings.Builder
	b.WriteString(legendUUIDs + s.GI() + "\n" + legendFlags)
	b.WriteString("flags: " + s.flagWords() + "\nmeta-data: ")
	if s.Flags.has(FlagALClean) {
		b.WriteString("clean\n")
	} else {
		b.WriteString("need apply-al\n")
	}
	if s.LaSize == 0 {
		b.WriteString("zero size device -- never seen peer yet?\n")
	} else {
		fmt.Fprintf(&b, "last agreed size: %s (%d sectors)\n", FormatKiB(uint64(s.LaSize)/2), uint64(s.LaSize))
		fmt.Fprintf(&b, "last agreed max bio size: %d Byte\n", s.PeerMaxBio)
	}
	return b.String()
}

func (s Super) flagWords() string {
	words := "Secondary"
	if s.Flags.has(FlagPrimaryIndicator) {
		words = "Primary"
	}
	if s.Flags.has(FlagCrashedPrimary) {
		words = "crashed " + words
	}
	if s.Flags.has(FlagConnected) {
		words += ", Connected, "
	} else {
		words += ", StandAlone, "
	}
	switch {
	case !s.Flags.has(FlagConsistent):
		words += "Inconsistent"
	case s.Flags.has(FlagWasUpToDate):
		words += "UpToDate"
	default:
		words += "Outdated"
	}
	if s.Flags.has(FlagFullSync) {
		words += ", need full sync"
	}
	if s.Flags.has(FlagPeerOutdated) {
		words += ", peer Outdated"
	}
	return words
}

// FormatKiB prints a size the way DRBD's tools do: the largest unit of which
// there are fewer than 10000.
func FormatKiB(kib uint64) string {
	units := "KMGTPE"
	for kib >= 10000 && len(units) > 1 {
		kib = kib>>10 + kib>>9&1 // rounded to nearest
		units = units[1:]
	}
	return fmt.Sprintf("%d %cB", kib, units[0])
}

// DiskState returns what dstate prints for a detached resource.
func (s Super) DiskState() string {
	switch {
	case !s.Flags.has(FlagConsistent):
		return "Inconsistent"
	case !s.Flags.has(FlagWasUpToDate):
		return "Outdated"
	case !s.Flags.has(FlagPeerOutdated):
		return "Consistent"
	}
	return "UpToDate"
}

// Outdate marks the data of a detached resource as known to be old. It returns
// ErrInconsistent (exit 5) for data that is worse already.
func (s *Store) Outdate() error {
	if s.attached {
		return ErrAttached
	}
	super := s.super
	if !super.Flags.has(FlagConsistent) {
		return ErrInconsistent
	}
	super.Flags &^= FlagWasUpToDate
	return s.WriteSuper(&super)
}

// Invalidate makes a detached resource need a full sync from its peer.
func (s *Store) Invalidate() error {
	if s.attached {
		return ErrAttached
	}
	super := s.super
	super.Flags &^= FlagConsistent | FlagWasUpToDate
	super.Flags |= FlagFullSync
	return s.WriteSuper(&super)
}
