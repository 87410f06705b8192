package replica

import (
	"fmt"

	"replicad/replica/core"
	"replicad/replica/meta"
)

// sectorSize is the unit of sizes in the superblock.
const sectorSize = 512

// queueMeta hands a metadata action to the volume's metadata writer, in the
// order the core emitted them. Called with the resource's lock held.
func (v *Volume) queueMeta(a *core.Action) {
	v.running++
	v.metaMu.Lock()
	defer v.metaMu.Unlock()
	v.metaQueue = append(v.metaQueue, *a)
	v.metaReady.Signal()
}

// endMeta lets the metadata writer end once its queue is empty.
func (v *Volume) endMeta() {
	v.metaMu.Lock()
	defer v.metaMu.Unlock()
	v.metaEnd = true
	v.metaReady.Broadcast()
}

// takeMeta waits for queued actions and swaps the queue for done, emptied.
func (v *Volume) takeMeta(done []core.Action) []core.Action {
	clear(done)
	v.metaMu.Lock()
	defer v.metaMu.Unlock()
	for len(v.metaQueue) == 0 && !v.metaEnd {
		v.metaReady.Wait()
	}
	todo := v.metaQueue
	v.metaQueue = done[:0]
	return todo
}

// metaWriter is the body of the volume's metadata goroutine, the only user of
// the metadata store while the disk is attached.
func (v *Volume) metaWriter() {
	b := batch{r: v.r, inline: true}
	var todo []core.Action
	for {
		todo = v.takeMeta(todo)
		if len(todo) == 0 {
			return
		}
		for i := range todo {
			a := &todo[i]
			result := v.writeMeta(a)
			b.add(core.Event{Kind: core.EvMetaDone, Vol: v.number, Op: a.Op, Result: result})
			b.run()
		}
	}
}

// writeMeta performs one metadata action; it is durable when it succeeds.
func (v *Volume) writeMeta(a *core.Action) core.IOResult {
	k := v.back
	if k == nil {
		return core.IOError
	}
	var err error
	switch a.Kind {
	case core.ActMetaSuper:
		err = k.writeSuper(a.Super)
	case core.ActMetaAL:
		err = k.store.WriteAL(a.Tx)
	case core.ActMetaBitmap:
		err = k.writePages(a.Pages)
	}
	if err != nil {
		v.failed.Store(true)
		v.r.log.Error("metadata write failed, the disk is detached", "volume", v.number, "err", err)
	}
	return resultOf(err)
}

// writeSuper merges what the core decides into what only the disk knows
// (device id, geometry).
func (k *backing) writeSuper(s *core.Super) error {
	if s.Size%sectorSize != 0 {
		return fmt.Errorf("size %d is not a whole number of sectors", s.Size)
	}
	next := k.store.Super()
	next.Current, next.Bitmap = meta.UUID(s.Gen.Current), meta.UUID(s.Gen.Bitmap)
	next.History = [2]meta.UUID{meta.UUID(s.Gen.H1), meta.UUID(s.Gen.H2)}
	next.Flags = meta.Flags(s.Flags)
	next.LaSize = meta.Sectors(s.Size / sectorSize)
	next.PeerMaxBio = s.PeerMaxIO
	next.ALExtents = uint32(k.slots)
	return k.store.WriteSuper(&next)
}

// coreSuper is the core's part of a superblock.
func coreSuper(s *meta.Super) core.Super {
	return core.Super{
		Gen: core.Generation{
			Current: uint64(s.Current), Bitmap: uint64(s.Bitmap),
			H1: uint64(s.History[0]), H2: uint64(s.History[1]),
		},
		Flags:     core.MetaFlags(s.Flags &^ meta.FlagALClean),
		Size:      uint64(s.LaSize.Bytes()),
		PeerMaxIO: s.PeerMaxBio,
	}
}

func (k *backing) writePages(pages []core.PageImage) error {
	out := make([]meta.Page, len(pages))
	for i, p := range pages {
		out[i] = meta.Page{Number: p.Page, Data: p.Data}
	}
	return k.store.WriteBitmapPages(out)
}
