package sim

import (
	"math/rand/v2"

	"replicad/replica/core"
)

// Options are the knobs of one run. OptionsOf draws them from the seed; many
// rates are zero in many runs, so that one trouble does not hide another.
type Options struct {
	Seed     uint64
	Protocol byte
	Volumes  int
	Blocks   uint64    // blocks of 4 KiB per volume, of the smaller disk
	Spare    [2]uint64 // blocks each node's disk has beyond that
	Slots    int       // activity-log slots
	Fresh    bool      // start from create-md instead of from a synchronised pair
	Slow     bool      // resync is slow, so that accidents hit it

	Clients int
	Think   core.Duration // longest pause of a client between requests
	Depth   int           // requests of one client in flight
	Hot     int           // places where clients write
	Mix     mix           // what clients ask for

	Accidents     int              // of phase one
	Pause         core.Duration    // longest pause between accidents
	Weights       [faultEnd]int    // how often each accident is chosen
	LinkDelay     core.Duration    // longest delay of a message
	DiskDelay     core.Duration    // longest common delay of a disk action
	Spike         float64          // chance that one takes 50 times longer
	LinkSpike     float64          // chance that a frame takes 50 times longer
	Skew          float64          // chance that one connection of a link lags behind the other
	Crossing      float64          // chance that the nodes settle on two different sessions
	EarlyReset    float64          // chance that a session dies after a few frames
	Silence       float64          // chance that nobody tells a node for long that its peer is gone
	RecoveryCrash float64          // chance that an attach is cut short by a crash
	Late          float64          // chance that frames arrive after the end of their session
	StepCrash     int              // a node dies right after the event of this number, 0 = none
	Drift         [2]int64         // how much too fast each clock runs, in millionths
	TickLate      [2]core.Duration // how late each process gets its ticks
	Window        int              // payload buffers after which a node stops reading its data channel
	Net           core.NetConfig   // settings of both nodes
	Rate          uint64           // resync bytes per second
	ResyncMax     uint64           // resync bytes in flight
	DiskTimeout   core.Duration    // 0 = a disk may hang for ever
	Ills          [illEnd]bool
	Hang          float64 // chance that a disk error is a disk that hangs
}

// mix are the weights of client requests.
type mix struct {
	Write, Read, Trim, Zero, Flush int
	FUA                            float64 // share of writes
	Unaligned                      float64 // share of writes that are not whole blocks
	Big                            float64 // share of writes of more than 16 blocks
	Huge                           float64 // share of trims and zeroes that reach across extents
}

// OptionsOf draws the options of a seed.
func OptionsOf(seed uint64) Options {
	r := rand.New(rand.NewPCG(seed, 0x6f7074696f6e73))
	o := Options{
		Seed:      seed,
		Protocol:  pick(r, byte('C'), 'C', 'C', 'B', 'A'),
		Volumes:   pick(r, 1, 1, 1, 2),
		Fresh:     r.IntN(5) == 0,
		Slow:      r.IntN(2) == 0,
		Clients:   1 + r.IntN(4),
		Think:     pick(r, 200*microsecond, millisecond, 5*millisecond),
		Depth:     pick(r, 1, 1, 2, 4),
		Hot:       1 + r.IntN(6),
		Accidents: 8 + r.IntN(20),
		Pause:     pick(r, 10*millisecond, 40*millisecond, 150*millisecond),
		LinkDelay: pick(r, 50*microsecond, 300*microsecond, 3*millisecond),
		DiskDelay: pick(r, 50*microsecond, 300*microsecond, 3*millisecond),
		Spike:     pick(r, 0, 0, 0.01, 0.05),
		Window:    pick(r, 4, 16, 256),

		RecoveryCrash: pick(r, 0, 0.1, 0.5),
	}
	o.drawDevice(r)
	o.drawMix(r)
	o.drawWeights(r)
	o.drawNet(r)
	o.drawTrouble(r)
	o.drawDiskTimeout(r)
	return o
}

// drawDiskTimeout gives most runs in which disks may hang a limit for that, and
// a few others. A process whose ticks come late by half of it blames itself
// and not the disk.
func (o *Options) drawDiskTimeout(r *rand.Rand) {
	switch {
	case o.Weights[faultDiskError] == 0 && r.IntN(8) == 0:
		o.DiskTimeout = second
	case o.Weights[faultDiskError] > 0 && r.IntN(4) != 0:
		o.DiskTimeout = pick(r, 100*millisecond, 300*millisecond, second)
		o.Weights[faultDiskError] *= 1 + r.IntN(4)
		o.Hang = pick(r, 0, 0.5, 0.8)
	default:
		return
	}
	for _, late := range o.TickLate {
		o.DiskTimeout = max(o.DiskTimeout, 3*late)
	}
}

func (o *Options) drawDevice(r *rand.Rand) {
	o.Slots = 16
	switch r.IntN(5) {
	case 0:
		o.Blocks = pick(r, uint64(16), 64, 96)
	case 1:
		o.Blocks = pick(r, uint64(200), 500)
	default:
		o.Blocks = pick(r, uint64(1100), 2048, 2100, 3100)
		o.Slots = pick(r, 1, 2, 2, 3, 16)
	}
	if r.IntN(4) == 0 {
		o.Spare[r.IntN(2)] = uint64(r.IntN(64))
	}
}

func (o *Options) drawMix(r *rand.Rand) {
	o.Mix = mix{Write: 60, Read: 25, Flush: pick(r, 0, 2, 8), FUA: pick(r, 0, 0.02, 0.2)}
	if r.IntN(2) == 0 {
		o.Mix.Trim, o.Mix.Zero = r.IntN(8), r.IntN(8)
	}
	o.Mix.Unaligned = pick(r, 0, 0.3, 0.9)
	o.Mix.Big = pick(r, 0, 0, 0.02, 0.05)
	o.Mix.Huge = pick(r, 0, 0, 0.1)
}

func (o *Options) drawWeights(r *rand.Rand) {
	for f := range o.Weights {
		o.Weights[f] = faultWeights[f]
		if f != int(faultHeal) && f != int(faultStart) && r.IntN(3) == 0 {
			o.Weights[f] = 0
		}
	}
	for _, family := range families {
		if r.IntN(2) != 0 {
			continue
		}
		for _, f := range family {
			o.Weights[f] = 0
		}
	}
	if r.IntN(3) != 0 { // a disk that fails ends most of the story: keep it rare
		o.Weights[faultDiskError] = 0
	}
	for i := range o.Ills {
		o.Ills[i] = r.IntN(3) == 0
	}
	if r.IntN(4) != 0 {
		o.Weights[faultNewDisk] = 0
	}
	if r.IntN(6) != 0 {
		o.Weights[faultForce] = 0
	}
}

// drawTrouble draws the rates of what happens without an accident.
func (o *Options) drawTrouble(r *rand.Rand) {
	o.LinkSpike = pick(r, 0, 0, 0, 0.01)
	o.Skew = pick(r, 0, 0, 0.3)
	o.Crossing = pick(r, 0, 0, 0.1)
	o.EarlyReset = pick(r, 0, 0, 0.3)
	o.Silence = pick(r, 0, 0.5)
	o.Late = pick(r, 0, 0.5)
	if r.IntN(3) == 0 {
		o.StepCrash = 1 + r.IntN(1200)
	}
	for i := range o.Drift {
		o.Drift[i] = pick(r, int64(0), 0, 100, -100, 50_000, -50_000)
		o.TickLate[i] = pick(r, core.Duration(0), 0, 0, 0, 0, millisecond, 50*millisecond, 2*second)
	}
}

func (o *Options) drawNet(r *rand.Rand) {
	o.Net = core.Defaults()
	o.Net.Protocol = o.Protocol
	o.Net.PingInt = pick(r, 100*millisecond, 400*millisecond)
	o.Net.PingTimeout = pick(r, 40*millisecond, 100*millisecond)
	o.Net.Timeout = pick(r, 100*millisecond, 300*millisecond)
	o.Net.KoCount = pick(r, 0, 2, 7)
	o.Net.BarrierBytes = pick(r, uint64(64<<10), 1<<20, 32<<20)
	o.Net.BarrierAge = pick(r, 5*millisecond, 50*millisecond, second)
	o.Rate, o.ResyncMax = 200<<20, 8<<20
	if o.Slow {
		o.Rate, o.ResyncMax = pick(r, uint64(4<<20), 20<<20), pick(r, uint64(64<<10), 1<<20)
	}
}

// config returns the configuration of both cores.
func (o *Options) config() core.Config {
	c := core.Config{Net: o.Net}
	for i := range o.Volumes {
		v := core.DefaultVolume(uint16(i))
		v.CPlanAhead, v.ResyncRate, v.CMaxRate, v.ResyncDepth = 0, o.Rate, o.Rate, o.ResyncMax
		v.DiskTimeout = o.DiskTimeout
		c.Volumes = append(c.Volumes, v)
	}
	return c
}

func pick[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }
