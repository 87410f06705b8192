package core

// Mutant is a deliberate bug, planted behind the build tag "mutants", that the
// simulator must catch. Without the tag the switch is a constant and the
// compiler removes the bugs.
type Mutant int

// The planted bugs.
const (
	MutNone                   Mutant = iota
	MutSkipBit                       // a write that is not mirrored is not marked out of sync
	MutForgetSent                    // sent blocks are not remembered until their barrier is acked
	MutDropSentOnLoss                // ... or not turned into bits when the link dies
	MutCompleteBeforeRotation        // a write that lost its peer completes before the new generation id is durable
	MutNoRotation                    // a Primary that loses its peer keeps its generation id
	MutFlushWithoutBarrier           // a flush under protocol C does not wait for the peer's stable storage
	MutSkipDiskFlush                 // a flush does not reach the local disk
	MutNoActivityLog                 // writes go to cold extents without a transaction
	MutSkipBitmapWrite               // an extent cools without its bitmap page on disk
	MutAckBeforeWrite                // the Secondary acks a write before its disk did it
	MutAckBarrierUnflushed           // the Secondary acks a barrier without flushing
	MutTargetNotDurable              // the SyncTarget starts before Inconsistent is durable
	MutResyncRacesWrites             // the target does not line a resync block up with mirrored writes
	MutClearOnAck                    // the source clears bits on the target's ack, not after a barrier
	MutCoolUnflushed                 // an extent cools before the local disk was flushed
	MutEnd
)
