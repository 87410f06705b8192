package meta

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"replicad/internal/failpoint"
	"replicad/replica/disk"
)

// defaultALExtents is what create-md writes; the running resource replaces it
// by its configured number.
const defaultALExtents = 257

// CreateOptions are the choices of create-md. The zero value of a field means
// its default.
type CreateOptions struct {
	Name       string // of the metadata device, for messages
	AL         ALGeometry
	PeerMaxBio uint32
	DeviceUUID uint64 // default: random
	// Confirmed says that the operator, or --force, answered every question of
	// Survey with yes.
	Confirmed bool
	// Out and Err take drbdmeta's progress lines for standard output and
	// standard error.
	Out, Err io.Writer
}

func (o *CreateOptions) setDefaults() {
	if o.AL == (ALGeometry{}) {
		o.AL = DefaultALGeometry
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Err == nil {
		o.Err = io.Discard
	}
}

// Question is something create-md must not do without a yes. The caller prints
// Out and Err to the respective stream, then asks.
type Question struct {
	Out, Err string
	Ask      string
	// No is what drbdmeta prints to standard output when the answer is not
	// yes; it then exits with 1.
	No string
}

// RefusedError reports content that create-md does not overwrite, whatever the
// operator says (exit 40).
type RefusedError struct {
	Found string // for example "ext3 filesystem"
	Text  string // drbdmeta's words, for standard output
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("found %s: operation refused", e.Found)
}

// ErrUnconfirmed is returned by Create when Survey has questions and the
// options do not say that they were answered.
var ErrUnconfirmed = errors.New("existing content on the device and no confirmation")

// Survey looks at what create-md would overwrite, in the order in which
// drbdmeta asks. It writes nothing. It returns a *RefusedError if there is
// nothing to ask.
func Survey(md disk.Device, p Placement, opts CreateOptions) ([]Question, error) {
	opts.setDefaults()
	l, err := NewLayout(p, md.Size(), opts.AL)
	if err != nil {
		return nil, err
	}
	version, err := existing(md, l)
	if err != nil {
		return nil, err
	}
	var questions []Question
	if version != "" {
		questions = append(questions, overwriteQuestion(version, l, opts.Name))
	}
	head := disk.AlignedBuffer(deviceMin, blockSize)
	if _, err := md.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("look for existing data: %w", err)
	}
	c, found := recognise(head)
	if !found {
		return questions, nil
	}
	text, refuse := l.judge(c)
	if refuse {
		return nil, &RefusedError{Found: c.name, Text: text}
	}
	return append(questions, Question{
		Out: text, Ask: "Do you want to proceed?", No: "Operation canceled.",
	}), nil
}

// existing returns the format of the metadata at its place, "" if there is
// none. Damaged v08 metadata counts as such.
func existing(md disk.Device, l Layout) (version string, err error) {
	block := newBlocks(1)
	if _, err := md.ReadAt(block, l.Super.Bytes()); err != nil {
		return "", fmt.Errorf("look for meta data: %w", err)
	}
	const offMagicV07 = 28
	switch be := binary.BigEndian; {
	case be.Uint32(block[offMagicV07:]) == magicV07:
		return "v07", nil
	case be.Uint32(block[offMagic:]) == magicV09:
		return "v09", nil
	}
	if _, err := ParseSuper(block); errors.Is(err, ErrNoMetadata) {
		return "", nil
	}
	return "v08", nil
}

func overwriteQuestion(version string, l Layout, name string) Question {
	q := Question{Ask: "Do you really want to overwrite the existing meta-data?", No: "Operation cancelled."}
	if l.internal {
		q.Err = fmt.Sprintf("You want me to create a v08 style flexible-size internal meta data block.\n"+
			"There appears to be a %s flexible-size internal meta data block\n"+
			"already in place on %s at byte offset %d\n", version, name, l.Super.Bytes())
	}
	switch {
	case version != "v08":
		q.Ask = fmt.Sprintf("So you want me to replace the %s meta-data\nwith newly initialized v08 meta-data?", version)
	case !l.internal:
		q.Ask = "Valid meta data seems to be in place.\nDo you really want to overwrite?"
	}
	return q
}

// Create writes new metadata: no generation but UUIDJustCreated, an empty
// bitmap and an empty log. Until it returns nil there is no valid metadata on
// the device. Errors: *RefusedError, ErrUnconfirmed, ErrTooSmall, or the
// device's.
func Create(md disk.Device, p Placement, opts CreateOptions) error {
	opts.setDefaults()
	questions, err := Survey(md, p, opts)
	if err != nil {
		return err
	}
	if len(questions) > 0 && !opts.Confirmed {
		return ErrUnconfirmed
	}
	l, err := NewLayout(p, md.Size(), opts.AL)
	if err != nil {
		return err
	}
	if err := create(md, l, &opts); err != nil {
		return fmt.Errorf("create meta data: %w", err)
	}
	return nil
}

// create goes from no metadata to complete metadata: the superblock is the
// first to go and the last to come.
func create(md disk.Device, l Layout, opts *CreateOptions) error {
	if err := wipeSuper(md, l.Super); err != nil {
		return err
	}
	fmt.Fprintln(opts.Out, "initializing activity log")
	if err := initRing(md, l); err != nil {
		return err
	}
	fmt.Fprintf(opts.Err, "initializing bitmap (%d KB) to all zero\n", l.BitmapSize.Bytes()/1024)
	if err := zeroBitmap(md, l); err != nil {
		return err
	}
	super, err := newSuper(l, opts)
	if err != nil {
		return err
	}
	fmt.Fprintln(opts.Out, "Writing meta data...")
	block := newBlocks(1)
	putSuper(block, &super)
	h, err := failpoint.Begin(failpoint.MetaCreateSuper)
	if err == nil {
		_, err = md.WriteDurable(block, l.Super.Bytes())
		h.End()
	}
	if err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	fmt.Fprintln(opts.Out, "New drbd meta data block successfully created.")
	return nil
}

func newSuper(l Layout, opts *CreateOptions) (Super, error) {
	s := Super{
		Current: UUIDJustCreated, Flags: FlagALClean, Size: l.Size,
		ALExtents: defaultALExtents, BytesPerBit: bytesPerBit,
		DeviceUUID: opts.DeviceUUID, PeerMaxBio: opts.PeerMaxBio, AL: opts.AL,
	}
	s.ALOffset, s.BMOffset = l.offsets()
	var random [8]byte
	if _, err := rand.Read(s.Instance[:]); err != nil {
		return Super{}, fmt.Errorf("choose instance id: %w", err)
	}
	if _, err := rand.Read(random[:]); err != nil {
		return Super{}, fmt.Errorf("choose device uuid: %w", err)
	}
	if s.DeviceUUID == 0 {
		s.DeviceUUID = binary.BigEndian.Uint64(random[:])
	}
	return s, nil
}

// zeroBitmap zeroes the whole bitmap area, which also allocates it, so that
// marking a block out of sync cannot fail for want of space.
func zeroBitmap(md disk.Device, l Layout) error {
	h, err := failpoint.Begin(failpoint.MetaCreateBitmap)
	if err != nil {
		return fmt.Errorf("zero bitmap: %w", err)
	}
	defer h.End()
	if err := md.WriteZeroes(l.Bitmap.Bytes(), l.BitmapSize.Bytes(), true); err != nil {
		return fmt.Errorf("zero bitmap: %w", err)
	}
	if err := md.Sync(); err != nil {
		return fmt.Errorf("zero bitmap: %w", err)
	}
	return nil
}

// initRing fills the log with initialised blocks and makes that durable.
func initRing(md disk.Device, l Layout) error {
	h, err := failpoint.Begin(failpoint.MetaCreateLog)
	if err != nil {
		return fmt.Errorf("initialise activity log: %w", err)
	}
	defer h.End()
	area := newBlocks(l.Geometry.Blocks())
	for at := 0; at < len(area); at += blockSize {
		putInitialised(area[at : at+blockSize])
	}
	for at := 0; at < len(area); at += transferMax {
		part := area[at:min(at+transferMax, len(area))]
		if _, err := md.WriteAt(part, l.AL.Bytes()+int64(at)); err != nil {
			return fmt.Errorf("initialise activity log: %w", err)
		}
	}
	if err := md.Sync(); err != nil {
		return fmt.Errorf("initialise activity log: %w", err)
	}
	return nil
}

func wipeSuper(md disk.Device, at Sectors) error {
	h, err := failpoint.Begin(failpoint.MetaCreateWipe)
	if err == nil {
		_, err = md.WriteDurable(newBlocks(1), at.Bytes())
		h.End()
	}
	if err != nil {
		return fmt.Errorf("wipe superblock: %w", err)
	}
	return nil
}

// Wipe removes the metadata by zeroing its superblock, also a damaged one. It
// returns ErrNoMetadata, and changes nothing, if there is none.
func Wipe(md disk.Device, p Placement) error {
	at, err := superPosition(p, md.Size())
	if err != nil {
		return fmt.Errorf("locate meta data: %w", err)
	}
	block := newBlocks(1)
	if _, err := md.ReadAt(block, at.Bytes()); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	if _, err := ParseSuper(block); errors.Is(err, ErrNoMetadata) {
		return ErrNoMetadata
	}
	return wipeSuper(md, at)
}
