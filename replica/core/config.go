package core

// Config is what one resource's core needs to know. Durations are in nanoseconds.
type Config struct {
	Net     NetConfig
	Volumes []VolumeConfig // ascending by Vol
}

// NetConfig holds the link settings (DRBD 8.4 net section).
type NetConfig struct {
	Protocol          byte // 'A', 'B' or 'C'
	AllowTwoPrimaries bool
	AfterSB0          string
	AfterSB1          string
	AfterSB2          string
	AlwaysASBP        bool
	RRConflict        string // disconnect, call-pri-lost, violently
	IntegrityAlg      string
	PingInt           Duration // idle time before a ping (10 s)
	PingTimeout       Duration // time for its answer (500 ms)
	Timeout           Duration // 6 s; times KoCount = how long the oldest request may stay unanswered
	KoCount           int      // 7; 0 = no limit
	BarrierBytes      uint64   // mirrored bytes after which a barrier closes the epoch
	BarrierAge        Duration // age of the open epoch after which a barrier closes it
}

// VolumeConfig holds one volume's settings (DRBD 8.4 disk section).
type VolumeConfig struct {
	Vol         uint16
	Fencing     Fencing
	OnNoData    NoDataPolicy
	ResyncRate  uint64 // bytes per second when CPlanAhead is 0
	CMaxRate    uint64 // bytes per second ceiling otherwise
	CPlanAhead  Duration
	ALUpdates   bool
	ResyncDepth uint64   // bytes of resync in flight at most
	DiskTimeout Duration // how long the local disk may leave an operation unanswered; 0 = for ever
}

// Defaults returns the settings DRBD 8.4 uses when nothing is configured.
func Defaults() NetConfig {
	const second = Duration(1e9)
	return NetConfig{
		Protocol: 'C', AfterSB0: "disconnect", AfterSB1: "disconnect", AfterSB2: "disconnect", RRConflict: "disconnect",
		PingInt: 10 * second, PingTimeout: second / 2, Timeout: 6 * second, KoCount: 7,
		BarrierBytes: 32 << 20, BarrierAge: second,
	}
}

// DefaultVolume returns the settings of volume vol when nothing is configured.
func DefaultVolume(vol uint16) VolumeConfig {
	return VolumeConfig{
		Vol: vol, ResyncRate: 250 << 10, CMaxRate: 100 << 20, CPlanAhead: 2e9, ALUpdates: true, ResyncDepth: 8 << 20,
	}
}
