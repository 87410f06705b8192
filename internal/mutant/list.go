package mutant

// The planted bugs; what each does is said in all.
const (
	None Mutant = iota

	SkipBit
	ForgetSent
	DropSentOnLoss
	CompleteBeforeRotation
	WriteBeforeRotation
	NoRotation
	FlushWithoutBarrier
	FlushOwnEpochOnly
	FlushJoinsRunning
	SkipDiskFlush
	FUAWithoutBarrier
	NoActivityLog
	SkipBitmapWrite
	PageCleanTooLate
	CoolUnflushed
	CoolBeforeBarrier
	AckBeforeWrite
	AckBarrierUnflushed
	EpochOvertakes
	ReceivedWriteDropped
	PromoteBeforeDrain
	TargetNotDurable
	InconsistentLooksConsistent
	ResyncRacesWrites
	ResyncOvertakesWrite
	ClearOnAck
	ClearOnStaleAck
	TargetClearsUnflushed
	SyncUUIDNotDurable
	FullSyncFlagEarly
	FullSyncDroppedAtAttach
	IndicatorBeforeBitmap
	IndicatorBeforeData
	AttachCountsAsFlushed
	AttachWithoutIndicator
	CrashedNotNoted
	AloneWithoutLog
	LateWritesUnmarked
	SharedNotLeft
	ReadInconsistent
	GateLeftOpen
	ConflictMissesEqualEnds
	UnalignedLastBlock
	StaleSeqAccepted
	StaleSessionAccepted

	Compare10
	Compare20
	Compare30
	Compare34
	Compare35
	Compare36
	Compare37
	Compare40
	Compare40Crashed
	Compare41
	Compare50
	Compare51
	Compare60
	Compare70
	Compare71
	Compare80
	Compare90
	Compare100

	RLELastRun
	CountWordBorder
	OrKeepsPageClean
	LoadShortPage
	ResizeClean
	EvictPinned
	ContextSkipsSlot
	NumberStands

	ReplaySkipsNewest
	ReplayNewestByValue
	TornBlockAccepted
	RingPosition
	NumberUnchecked
	SuperBeforeBitmap
	MarksUnsynced
	SuperUnsynced
	PagesUnsynced
	LogUnsynced
	RingNotCleared
	CleanWhileAttached
	SuperUnchecked
	CacheBelieved

	PayloadUnchecked
	HeaderUnchecked
	BodyUnchecked
	SizeUnchecked
	SessionUnproved
	ProofWithoutRole
	ShortBitmapAccepted
	ChannelUnchecked
	ArgTruncated
	FlagsTruncated

	BitmapAnsweredEarly
	SuperJoinedByID
	FlushKeepsEpochOpen
	ExchangeWritesUnannounced
	PromotionBesideDiskless
	ReconnectFlushUnasked
	LoadBeyondEnd
	TailExtentUnmarked
	BitmapSyncErrorLost
	BitmapWordsReused
)

var all = []Info{
	{SkipBit, "skip-bit", Core, "a write that is not mirrored is not marked: the blocks differ and nothing says so"},
	{ForgetSent, "forget-sent", Core, "what was sent is not remembered until its barrier: a power cut of the peer loses blocks that nothing marks"},
	{DropSentOnLoss, "bit-not-set-on-link-loss", Core, "what was sent and not confirmed does not become bits when the link dies: the resync misses it"},
	{CompleteBeforeRotation, "complete-before-rotation", Core, "a write that lost its peer completes before the new generation id is durable: a promoted peer discards it without a split brain"},
	{WriteBeforeRotation, "write-before-rotation", Core, "new writes do not wait for the new generation id: a promoted peer discards them without a split brain"},
	{NoRotation, "no-rotation", Core, "a Primary that loses its peer keeps its generation id: both write on in one generation"},
	{FlushWithoutBarrier, "flush-without-barrier", Core, "a flush under protocol C does not wait for the peer's stable storage"},
	{FlushOwnEpochOnly, "flush-own-epoch-only", Core, "a flush waits only for a barrier of its own: what a flush of another client has just sent is not covered (P5)"},
	{FlushJoinsRunning, "flush-joins-running", Core, "a flush joins an fdatasync that began before it: writes of other clients completed since are not covered (P5)"},
	{SkipDiskFlush, "skip-disk-flush", Core, "a flush does not reach the local disk"},
	{FUAWithoutBarrier, "fua-without-barrier", Core, "a FUA write completes when it is in the peer's page cache"},
	{NoActivityLog, "no-activity-log", Core, "writes go to cold extents without a transaction: a crash leaves blocks different and unmarked"},
	{SkipBitmapWrite, "skip-bitmap-write", Core, "an extent cools without its bitmap page on disk: a crash forgets the bits"},
	{PageCleanTooLate, "page-dirty-flag-lost", Core, "a page is marked clean when its write ends: bits set meanwhile never reach the disk"},
	{CoolUnflushed, "cool-unflushed", Core, "an extent cools before the local disk was flushed: a power cut brings back old blocks that nothing marks"},
	{CoolBeforeBarrier, "cool-before-barrier", Core, "blocks sent and not confirmed do not hold their extents: one cools before its barrier"},
	{AckBeforeWrite, "ack-before-write", Core, "the Secondary acks a write before its disk did it"},
	{AckBarrierUnflushed, "ack-barrier-unflushed", Core, "the Secondary acks a barrier without flushing"},
	{EpochOvertakes, "epoch-overtakes", Core, "a mirrored write does not wait for the barrier before it: after a power cut the peer may have it and lack what completed before"},
	{ReceivedWriteDropped, "received-write-dropped", Core, "what was received when the link died, and acked under protocol B, does not reach the disk"},
	{PromoteBeforeDrain, "promote-before-drain", Core, "a promotion does not wait for what the old Primary sent: clients see the block change under them"},
	{TargetNotDurable, "target-not-durable", Core, "the SyncTarget starts before Inconsistent and the sync UUID are durable: after a crash half a copy counts as good"},
	{InconsistentLooksConsistent, "inconsistent-looks-consistent", Core, "an Inconsistent disk gets the flag of a consistent one: after a crash half a copy counts as good"},
	{ResyncRacesWrites, "resync-races-writes", Core, "the target does not line a resync block up with mirrored writes: an old block lands on a new one"},
	{ResyncOvertakesWrite, "resync-overtakes-write", Core, "the source reads a resync block while a write of it is under way: the old content is sent after the new"},
	{ClearOnAck, "clear-on-ack", Core, "the source clears bits on the target's ack, not after a barrier: a power cut of the target loses the block"},
	{ClearOnStaleAck, "clear-on-stale-ack", Core, "a barrier's ack clears also what the target wrote after that barrier: a power cut of the target loses the block"},
	{TargetClearsUnflushed, "target-clears-unflushed", Core, "the target clears bits when the block is in its page cache"},
	{SyncUUIDNotDurable, "sync-uuid-not-durable", Core, "the source announces a sync UUID that is not on its disk: after its crash the target's data looks unrelated"},
	{FullSyncFlagEarly, "full-sync-flag-early", Core, "the superblock drops the full-sync flag before the bitmap is on disk: a crash leaves too few bits"},
	{FullSyncDroppedAtAttach, "full-sync-dropped-at-attach", Core, "an attach ignores the full-sync flag: a crash while all bits were being set leaves too few"},
	{IndicatorBeforeBitmap, "indicator-before-bitmap", Core, "a demotion clears the primary indicator while bitmap pages are unwritten: a crash then forgets the bits"},
	{IndicatorBeforeData, "indicator-before-data", Core, "the indicator of a node that served goes before its data and bitmap are stable"},
	{AttachCountsAsFlushed, "attach-counts-as-flushed", Core, "a disk counts as flushed at attach: what a killed predecessor left in the page cache is lost by a power cut after a flush"},
	{AttachWithoutIndicator, "attach-without-indicator", Core, "a Primary attaches a disk without the indicator: writes before the end of the handshake are not replayed after a crash"},
	{CrashedNotNoted, "crashed-primary-not-noted", Core, "a Primary that crashed does not say so: the peer may become the source over its flushed writes"},
	{AloneWithoutLog, "alone-without-log", Core, "writes taken for a Primary without a disk are not covered by the activity log"},
	{LateWritesUnmarked, "late-writes-unmarked", Core, "the peer's last writes, drained after it lost disk and link, are not marked"},
	{SharedNotLeft, "shared-generation-not-left", Core, "a source that misses the end of a resync goes on in a generation that the target has reached as well"},
	{ReadInconsistent, "read-inconsistent", Core, "a SyncTarget serves reads of blocks that it does not have yet"},
	{GateLeftOpen, "gate-left-open", Core, "reads still bypass the core when the disk is not UpToDate"},
	{ConflictMissesEqualEnds, "conflict-misses-touching-ends", Core, "two operations that share only one block at their ends run at once: the disks end different"},
	{UnalignedLastBlock, "unaligned-last-block", Core, "the last block of an unaligned write is not counted as touched"},
	{StaleSeqAccepted, "stale-seq-accepted", Core, "an answer is matched by its slot and not by its number: a late ack completes another write"},
	{StaleSessionAccepted, "stale-session-accepted", Core, "a message of an earlier session is taken for one of this"},

	{Compare10, "compare-10", Core, "one new disk is enough for \"nothing to do\": an empty disk counts as synchronised"},
	{Compare20, "compare-20", Core, "a new disk is synced by bitmap: blocks that no bit marks stay empty"},
	{Compare30, "compare-30", Core, "the new disk is the source: nothing is copied over good data only because disk states have the last word"},
	{Compare34, "compare-34", Core, "the end of a resync that its source missed is nothing to do: what it wrote since stays different"},
	{Compare35, "compare-35", Core, "after a resync whose source missed the end the target is the source: what the other wrote since is discarded"},
	{Compare36, "compare-36", Core, "one node wrote alone, and there is nothing to do: the blocks stay different"},
	{Compare37, "compare-37", Core, "the node that wrote alone is the target: its writes are discarded"},
	{Compare40, "compare-40", Core, "equal data is resynced, and both nodes want to be the source"},
	{Compare40Crashed, "compare-40-crashed", Core, "a crashed Primary becomes the target: its flushed writes are discarded"},
	{Compare41, "compare-41", Core, "a Primary becomes the target of the node that crashed"},
	{Compare50, "compare-50", Core, "the older node takes itself for the source, and so do both"},
	{Compare51, "compare-51", Core, "after a lost sync UUID the tuple that the target never saw stays: later comparisons start from it"},
	{Compare60, "compare-60", Core, "data two generations back is synced by bitmap: what older bitmaps marked is missed"},
	{Compare70, "compare-70", Core, "the newer data is the target: its writes are discarded"},
	{Compare71, "compare-71", Core, "after a lost sync UUID the older data is the source"},
	{Compare80, "compare-80", Core, "data two generations back is the source"},
	{Compare90, "compare-90", Core, "a split brain is won by the larger id: the writes of the other are discarded without a command"},
	{Compare100, "compare-100", Core, "a split brain without a common base is won by the larger id"},

	{RLELastRun, "rle-last-run", Bitmap, "the decoder drops the last run of set bits: the exchange forgets blocks"},
	{CountWordBorder, "count-word-border", Bitmap, "a bit at the end of a word is set and not counted: the resync ends before it is copied"},
	{OrKeepsPageClean, "or-keeps-page-clean", Bitmap, "bits that come word by word leave their page clean: they never reach the disk"},
	{LoadShortPage, "load-short-page", Bitmap, "the last word of a page is not loaded: its bits are forgotten at attach"},
	{ResizeClean, "resize-clean", Bitmap, "blocks that come in are not marked, though the peer's hold something else"},
	{EvictPinned, "evict-pinned", Bitmap, "an extent with a write in flight may lose its slot: after a crash nothing marks the block"},
	{ContextSkipsSlot, "context-skips-slot", Bitmap, "the piece of the table in a transaction moves on by one slot too many: a slot is never repeated"},
	{NumberStands, "number-stands", Bitmap, "a transaction reuses the number of the one before, and so overwrites it in the ring"},

	{ReplaySkipsNewest, "replay-skips-newest", Meta, "the newest transaction is not applied: what it made hot is not marked after a crash"},
	{ReplayNewestByValue, "replay-newest-by-value", Meta, "transaction numbers that wrapped count as old: the ring looks damaged, or is applied in the wrong order"},
	{TornBlockAccepted, "torn-block-accepted", Meta, "a torn log block is taken for a whole one: extents that were hot are forgotten"},
	{RingPosition, "ring-position", Meta, "a transaction is written one block too far: the ring cannot be read after a crash"},
	{NumberUnchecked, "number-unchecked", Meta, "a lost log write goes unnoticed: extents that were hot are forgotten"},
	{SuperBeforeBitmap, "super-before-bitmap", Meta, "the superblock turns clean before the marks are on disk: a crash between forgets them"},
	{MarksUnsynced, "marks-unsynced", Meta, "the marks of an applied log are not synced before the superblock turns clean"},
	{SuperUnsynced, "super-unsynced", Meta, "a superblock is answered before it is durable"},
	{PagesUnsynced, "pages-unsynced", Meta, "bitmap pages are answered before they are durable"},
	{LogUnsynced, "log-unsynced", Meta, "a transaction is answered before it is durable"},
	{RingNotCleared, "ring-not-cleared", Meta, "stale records stay in the ring at attach and are taken for those of the life that begins"},
	{CleanWhileAttached, "clean-while-attached", Meta, "the superblock stays clean while in use: after a crash nobody applies the log"},
	{CacheBelieved, "cache-believed", Meta, "what a killed process left in the cache is believed before it is durable: a power cut takes back what was decided by it"},
	{SuperUnchecked, "super-unchecked", Meta, "the superblock's checksum is not checked: damaged ids decide what is copied where"},

	{PayloadUnchecked, "payload-unchecked", Wire, "a payload that changed on its way reaches the disk"},
	{HeaderUnchecked, "header-unchecked", Wire, "a header that changed on its way names another place"},
	{BodyUnchecked, "body-unchecked", Wire, "generation ids or bits that changed on their way are believed"},
	{SizeUnchecked, "size-unchecked", Wire, "the announced size is believed over the message's length: the stream gets out of step"},
	{SessionUnproved, "session-unproved", Wire, "the proof does not cover the session id: a control connection of one session is spliced into another"},
	{ProofWithoutRole, "proof-without-role", Wire, "a proof can be reflected to its sender: a stranger is let in"},
	{ShortBitmapAccepted, "short-bitmap-accepted", Wire, "a bitmap with too few words is accepted, the rest as clear"},
	{ChannelUnchecked, "channel-unchecked", Wire, "a data message on the control connection overtakes the writes before it"},
	{ArgTruncated, "arg-truncated", Wire, "the argument loses its upper half: a sync UUID arrives as another"},
	{FlagsTruncated, "flags-truncated", Wire, "the upper flags are lost: acks that were asked for never come"},
}

// heldOut are bugs chosen after the simulator was frozen, from the engine's
// code alone, by somebody who did not write the simulator and had not read it.
// How many of them it caught says more about it than the list above, beside
// which it grew up.
var heldOut = []Info{
	{BitmapAnsweredEarly, "bitmap-answered-early", Core, "a bitmap page whose write is under way counts as written: its extent cools before the bits are durable, and a crash forgets them"},
	{SuperJoinedByID, "super-joined-by-id", Core, "a superblock with other flags counts as saved by the write in flight, because the ids are the same: an Inconsistent disk, or the full-sync flag, is not durable when it should be"},
	{FlushKeepsEpochOpen, "flush-keeps-epoch-open", Core, "a flush under protocol A or B does not wait until its epoch is closed: after a power cut the peer may have what was written later, and not what was flushed"},
	{ExchangeWritesUnannounced, "exchange-writes-unannounced", Core, "what is written while bitmaps are exchanged is marked on the source alone: the target never asks for it, and calls itself UpToDate"},
	{PromotionBesideDiskless, "promotion-beside-diskless", Core, "a promotion beside a peer without a disk keeps the generation id that the peer's disk has too: that disk comes back elsewhere, and the writes are discarded without a split brain"},
	{ReconnectFlushUnasked, "reconnect-flush-unasked", Core, "a Primary without a good disk does not ask the peer for stable storage of what was acked before a reconnect: flushed writes go with the peer's power (P5)"},

	{LoadBeyondEnd, "load-beyond-end", Bitmap, "bits past the end are loaded, which an applied log sets for the last extent: they are never copied, and the resync never ends"},

	{TailExtentUnmarked, "tail-extent-unmarked", Meta, "the last, partial extent is not marked when the log is applied: blocks at the end differ after a crash and nothing says so"},
	{BitmapSyncErrorLost, "bitmap-sync-error-lost", Meta, "a failed sync of bitmap pages is not reported: bits count as durable that the kernel has dropped"},

	{BitmapWordsReused, "bitmap-words-reused", Wire, "all bitmap messages are decoded into one buffer: those that wait in the queue get the bits of the last, and blocks are forgotten"},
}
