package replica

import (
	"context"
	"errors"
	"fmt"

	"replicad/bitmap"
	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/meta"
)

// openDevice opens a backing device.
type openDevice = func(path string, opts disk.Options) (disk.Device, error)

func openFile(path string, opts disk.Options) (disk.Device, error) { return disk.Open(path, opts) }

// Attach opens the backing disk of vol, applies the activity log if the node
// crashed as Primary, and gives the disk to the core. It returns a *Failure, a
// *StateError, ErrClosed, or the context's error; in the last case the attach
// goes on.
func (r *Resource) Attach(ctx context.Context, vol uint16) (AttachResult, error) {
	v := r.volume(vol)
	if v == nil {
		return AttachResult{}, &Failure{Code: FailMinorUnknown}
	}
	cfg, err := v.beginAttach()
	if err != nil {
		return AttachResult{}, err
	}
	defer v.endAttach()
	k, marked, err := openBacking(&cfg, r.open)
	if err != nil {
		return AttachResult{}, err
	}
	attachment, err := k.attachment(cfg)
	if err != nil {
		return AttachResult{}, errors.Join(err, k.close())
	}
	info, err := v.handOver(ctx, k, attachment)
	return AttachResult{MarkedKiB: marked, Info: info}, err
}

// beginAttach claims the volume's place for a disk.
func (v *Volume) beginAttach() (VolumeConfig, error) {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	switch {
	case v.r.closed || v.r.closing:
		return VolumeConfig{}, ErrClosed
	case v.back != nil || v.attaching:
		return VolumeConfig{}, &Failure{Code: FailAttached}
	}
	v.attaching = true
	return v.cfg, nil
}

func (v *Volume) endAttach() {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	v.attaching = false
}

// handOver gives the disk to the core and waits for its answer.
func (v *Volume) handOver(ctx context.Context, k *backing, a *core.Attachment) ([]string, error) {
	info, err := v.r.request(ctx, func(b *batch, id uint64) {
		a.Cmd = id
		v.back = k
		v.direct.Store(!k.buffered)
		v.failed.Store(false)
		v.full.Store(false)
		b.add(core.Event{Kind: core.EvAttach, Vol: v.number, Attach: a})
	})
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, v.reclaim(k))
	}
	return info, err
}

// reclaim closes a disk that the core did not take.
func (v *Volume) reclaim(k *backing) error {
	v.r.mu.Lock()
	mine := v.back == k && v.running == 0 && !v.detaching && v.r.diskState(v.number) == core.Diskless
	if mine {
		v.back = nil
	}
	v.r.mu.Unlock()
	if !mine {
		return nil
	}
	return k.close()
}

// openBacking opens a volume's devices and makes its metadata ready for use. It
// returns how many KiB apply-al marked out of sync.
func openBacking(cfg *VolumeConfig, open openDevice) (*backing, uint64, error) {
	k := &backing{internal: cfg.MetaKind == MetaInternal, path: cfg.Disk, metaPath: cfg.MetaPath}
	var err error
	if k.data, err = open(cfg.Disk, disk.Options{}); err != nil {
		return nil, 0, openFailure(err, FailOpenDisk, FailDiskClaimed)
	}
	if k.md, err = openMeta(cfg, k.data, open); err != nil {
		return nil, 0, errors.Join(openFailure(err, FailOpenMeta, FailMetaClaimed), k.data.Close())
	}
	marked, err := k.openStore(cfg)
	if err != nil {
		return nil, 0, errors.Join(metaFailure(err), k.close())
	}
	return k, marked, nil
}

func openMeta(cfg *VolumeConfig, data disk.Device, open openDevice) (disk.Device, error) {
	switch cfg.MetaKind {
	case MetaInternal:
		return data, nil
	case MetaFlexible:
		return open(cfg.MetaPath, disk.Options{})
	default:
		return open(cfg.MetaPath, disk.Options{Shared: true, Slot: uint8(cfg.MetaSlot)})
	}
}

func placement(cfg *VolumeConfig) meta.Placement {
	switch cfg.MetaKind {
	case MetaInternal:
		return meta.Placement{Kind: meta.Internal}
	case MetaFlexible:
		return meta.Placement{Kind: meta.FlexExternal}
	default:
		return meta.Placement{Kind: meta.Indexed, Index: uint8(cfg.MetaSlot)}
	}
}

// openStore reads the metadata, brings the bitmap up to date after a crash and
// takes the metadata into use.
func (k *backing) openStore(cfg *VolumeConfig) (marked uint64, err error) {
	if k.store, err = meta.Open(k.data, k.md, placement(cfg)); err != nil {
		return 0, err
	}
	block := blockSize(k.data)
	k.buffered = block == 1
	switch {
	case block > coreGranularity:
		return 0, fmt.Errorf("logical block size %d of the backing disk is larger than %d", block, coreGranularity)
	case block > sectorSize:
		k.data = &sectored{Device: k.data, block: int64(block)}
	}
	if err := k.store.Reserve(); err != nil {
		return 0, err
	}
	if marked, err = k.store.ApplyAL(); err != nil {
		return 0, err
	}
	return marked, nil
}

// blockSize returns the unit of a device's operations in bytes: 1 for what ends
// in the page cache, the logical block size of a block device, which is opened O_DIRECT.
func blockSize(d disk.Device) int {
	if b, ok := d.(interface{ BlockSize() int }); ok {
		return b.BlockSize()
	}
	return 1
}

// alNumberSpare keeps the number of an attach's first activity-log transaction
// well below the wrap. It is drawn, so that a record of an earlier life that a
// lying disk brings back does not continue the sequence by accident.
const alNumberSpare = 2

// attachment reads what the core has to know, and marks the metadata in use.
func (k *backing) attachment(cfg VolumeConfig) (*core.Attachment, error) {
	super := k.store.Super()
	a := &core.Attachment{
		Super: coreSuper(&super), Disk: uint64(k.store.Usable().Bytes()), User: cfg.Size, ALSlots: k.logSlots(cfg.ALExtents),
		ALNumber: uint32(randomBits()) >> alNumberSpare,
	}
	if err := k.store.CheckSize(); err != nil {
		return nil, metaFailure(err)
	}
	if a.Super.Size > 0 {
		a.Bitmap = bitmap.New((a.Super.Size + bitmap.BlockSize - 1) / bitmap.BlockSize)
		if err := k.store.ReadBitmap(a.Bitmap); err != nil {
			return nil, metaFailure(err)
		}
	}
	if err := k.store.Attach(); err != nil {
		return nil, metaFailure(err)
	}
	k.slots = a.ALSlots
	return a, nil
}

// alExtentsDefault is the number of hot extents unless al-extents says otherwise: 4.8 GiB.
const alExtentsDefault = 1237

// logSlots is the size of the activity log: as configured, as far as the ring
// can hold it. What the superblock says does not count (DRBD 8.4): create-md
// writes a placeholder.
func (k *backing) logSlots(configured int) int {
	if configured == 0 {
		configured = alExtentsDefault
	}
	return min(configured, k.store.Layout().Geometry.ExtentsMax())
}

// openFailure turns an error of opening into DRBD's codes.
func openFailure(err error, cannot, claimed FailureCode) error {
	if _, inUse := errors.AsType[*disk.InUseError](err); inUse {
		return &Failure{Code: claimed, Info: []string{err.Error()}, Err: err}
	}
	return &Failure{Code: cannot, Info: []string{err.Error()}, Err: err}
}

// metaFailure turns an error of the metadata into DRBD's codes.
func metaFailure(err error) error {
	f := &Failure{Code: FailMetaIO, Err: err}
	_, misfit := errors.AsType[*meta.MisfitError](err)
	switch {
	case errors.Is(err, meta.ErrNoMetadata):
		f.Code = FailMetaInvalid
		f.Info = []string{"", "\t==> Use 'drbdadm create-md res' to initialize meta-data area. <==", ""}
		return f
	case errors.Is(err, meta.ErrUnclean):
		f.Code = FailMetaUnclean
		f.Info = []string{"You need to 'drbdadm apply-al res'"}
		return f
	case errors.Is(err, meta.ErrTooSmall):
		f.Code = FailMetaTooSmall
	case misfit:
		f.Code = FailDiskTooSmall
	}
	f.Info = []string{err.Error()}
	return f
}

// detach closes the volume's disk once its running operations are answered.
// Called with the lock held.
func (v *Volume) detach() {
	if v.gate.maybeOpen() {
		panic(fmt.Sprintf("replica: volume %d is detached with local reads allowed", v.number))
	}
	v.detaching = true
	v.closeWhenIdle()
}

// closeWhenIdle is called with the lock held.
func (v *Volume) closeWhenIdle() {
	if v.running == 0 && v.r.closed {
		v.r.feed.notify()
	}
	if v.detaching && v.running == 0 {
		v.detaching = false
		v.work.push(diskOp{job: jobClose, vol: v})
	}
}

// closeBacking closes a detached disk, on a worker: closing may wait.
func (b *batch) closeBacking(v *Volume) {
	if k := v.back; k != nil {
		if err := k.close(); err != nil {
			b.r.log.Warn("closing the backing disk failed", "volume", v.number, "err", err)
		}
	}
	_ = b.stepAfter(func() error {
		v.back = nil
		b.add(core.Event{Kind: core.EvDetached, Vol: v.number})
		return nil
	})
	b.finish()
}
