package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"replicad/bitmap"
	"replicad/internal/mutant"
)

// Offsets in an activity-log block (DRBD 8.4, big-endian).
const (
	alMagic = 0x69CB65A2

	offTxNumber    = 4
	offTxChecksum  = 8
	offTxType      = 12
	offTxUpdates   = 14
	offTxSize      = 16
	offTxFirst     = 18
	offTxSlots     = 36  // 16 bits each
	offTxExtents   = 164 // 32 bits each
	offTxContext   = 420 // 32 bits each
	txUpdate       = 0
	txInitialised  = 0xFFFF
	unusedSlot     = 0xFFFF
	txUpdatesMax   = bitmap.TransactionUpdatesMax
	txContextSlots = bitmap.ContextSlots
)

// errALBlock is why a block is not a valid record; a torn write is the usual
// cause.
var errALBlock = errors.New("not a valid activity-log block")

// PutALBlock encodes a transaction into the 4096 bytes of p. It panics when
// the transaction exceeds the format's fixed numbers of updates and context
// slots, which no activity log of package bitmap does.
func PutALBlock(p []byte, tx *bitmap.Transaction) {
	if len(tx.Updates) > txUpdatesMax || len(tx.Context) > txContextSlots {
		panic(fmt.Sprintf("meta: transaction with %d updates and %d context slots", len(tx.Updates), len(tx.Context)))
	}
	be := binary.BigEndian
	p = p[:blockSize]
	clear(p[:offTxSlots])
	fill(p[offTxSlots:]) // unused slots and free extents are all ones
	be.PutUint32(p, alMagic)
	be.PutUint32(p[offTxNumber:], tx.Number)
	be.PutUint16(p[offTxType:], txUpdate)
	be.PutUint16(p[offTxUpdates:], uint16(len(tx.Updates)))
	be.PutUint16(p[offTxSize:], tx.ContextSize)
	be.PutUint16(p[offTxFirst:], tx.ContextFirst)
	for i, u := range tx.Updates {
		be.PutUint16(p[offTxSlots+2*i:], u.Slot)
		be.PutUint32(p[offTxExtents+4*i:], uint32(u.Extent))
	}
	for i, extent := range tx.Context {
		be.PutUint32(p[offTxContext+4*i:], uint32(extent))
	}
	be.PutUint32(p[offTxChecksum:], alChecksum(p))
}

func fill(p []byte) {
	for i := range p {
		p[i] = 0xFF
	}
}

// putInitialised encodes the record of an unused ring block.
func putInitialised(p []byte) {
	clear(p)
	binary.BigEndian.PutUint32(p, alMagic)
	binary.BigEndian.PutUint16(p[offTxType:], txInitialised)
	binary.BigEndian.PutUint32(p[offTxChecksum:], alChecksum(p))
}

// ParseALBlock decodes a block. It returns nil, nil for a block that holds no
// transaction yet, and an error for one that is torn or never was valid.
func ParseALBlock(p []byte) (*bitmap.Transaction, error) {
	be := binary.BigEndian
	if len(p) != blockSize || be.Uint32(p) != alMagic ||
		(be.Uint32(p[offTxChecksum:]) != alChecksum(p) && !mutant.On(mutant.TornBlockAccepted)) {
		return nil, errALBlock
	}
	switch be.Uint16(p[offTxType:]) {
	case txInitialised:
		return nil, nil
	case txUpdate:
	default:
		return nil, fmt.Errorf("%w: unknown type %d", errALBlock, be.Uint16(p[offTxType:]))
	}
	tx := &bitmap.Transaction{
		Number:       be.Uint32(p[offTxNumber:]),
		ContextSize:  be.Uint16(p[offTxSize:]),
		ContextFirst: be.Uint16(p[offTxFirst:]),
	}
	if err := parseUpdates(p, tx); err != nil {
		return nil, err
	}
	if err := parseContext(p, tx); err != nil {
		return nil, err
	}
	return tx, nil
}

func parseUpdates(p []byte, tx *bitmap.Transaction) error {
	be := binary.BigEndian
	n := int(be.Uint16(p[offTxUpdates:]))
	if n > txUpdatesMax {
		return fmt.Errorf("%w: %d updates", errALBlock, n)
	}
	for i := range txUpdatesMax {
		slot := be.Uint16(p[offTxSlots+2*i:])
		if slot == unusedSlot && i >= n {
			continue
		}
		if i >= n || slot >= tx.ContextSize {
			return fmt.Errorf("%w: update %d of %d is for slot %d of %d", errALBlock, i, n, slot, tx.ContextSize)
		}
		extent := bitmap.Extent(be.Uint32(p[offTxExtents+4*i:]))
		tx.Updates = append(tx.Updates, bitmap.SlotUpdate{Slot: slot, Extent: extent})
	}
	return nil
}

// parseContext reads the context slots that exist; what follows must be free.
func parseContext(p []byte, tx *bitmap.Transaction) error {
	for i := range txContextSlots {
		extent := bitmap.Extent(binary.BigEndian.Uint32(p[offTxContext+4*i:]))
		if int(tx.ContextFirst)+i < int(tx.ContextSize) {
			tx.Context = append(tx.Context, extent)
		} else if extent != bitmap.NoExtent {
			return fmt.Errorf("%w: context reaches past the last slot", errALBlock)
		}
	}
	return nil
}

// zeroChecksum stands for the checksum field. It is a variable because a local
// array would be allocated on every call.
var zeroChecksum = make([]byte, 4)

// alChecksum is CRC-32C with seed 0 and without the final inversion, over the
// block with the checksum field taken as zero. The library inverts before and
// after, which is undone here.
func alChecksum(p []byte) uint32 {
	crc := ^crc32.Update(^uint32(0), castagnoli, p[:offTxChecksum])
	crc = ^crc32.Update(^crc, castagnoli, zeroChecksum)
	return ^crc32.Update(^crc, castagnoli, p[offTxChecksum+4:blockSize])
}
