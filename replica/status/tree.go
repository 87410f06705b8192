package status

import (
	"fmt"
	"strings"
)

// TreeOptions say how much the status tree tells.
type TreeOptions struct {
	Verbose    bool
	Statistics bool
	Width      int // columns of the terminal; 0 means 80
}

const treeWidth = 80 // where the output is no terminal

// AppendTree appends what `drbdadm status` prints about one resource with
// DRBD 8.4: its role, its volumes, and what is known of the peer, in the words
// of DRBD 9. An empty line ends it.
func AppendTree(dst []byte, r *Resource, o TreeOptions) []byte {
	if o.Width <= 0 {
		o.Width = treeWidth
	}
	t := tree{dst: dst, r: r, TreeOptions: o}
	t.resource()
	for i := range r.Devices {
		t.device(&r.Devices[i])
	}
	if r.hasNet() {
		t.connection()
	}
	return append(t.dst, '\n')
}

type tree struct {
	TreeOptions
	dst []byte
	r   *Resource
	col int // columns used in this line
}

// item prints one item. It goes to a new line, indented, when this one is full
// or has not begun; then its leading blank is dropped.
func (t *tree) item(indent int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if t.col > 0 && t.col+len(text) > t.Width {
		t.newline()
	}
	if t.col == 0 {
		text = strings.Repeat(" ", indent) + strings.TrimLeft(text, " ")
	}
	t.dst = append(t.dst, text...)
	t.col += len(text)
}

func (t *tree) newline() {
	t.dst = append(t.dst, '\n')
	t.col = 0
}

// single reports whether the volume goes without saying.
func (t *tree) single(d *Device) bool {
	return !t.Verbose && len(t.r.Devices) == 1 && d.Volume == 0
}

func (t *tree) resource() {
	flags := t.r.flags()
	t.item(0, "%s", t.r.Name)
	t.item(4, " role:%s", t.r.role())
	if t.Verbose || flags.suspended() {
		t.item(4, " suspended:%s", flags.suspendedList())
	}
	t.newline()
	if t.Verbose && t.Statistics {
		t.item(4, " write-ordering:%s", t.r.writeOrdering())
		t.newline()
	}
}

func (t *tree) device(d *Device) {
	indent := 2
	if !t.single(d) {
		t.item(indent, "volume:%d", d.Volume)
		indent = 6
	}
	if t.Verbose {
		t.item(indent, " minor:%d", d.Minor)
	}
	t.item(indent, " disk:%s", d.Disk)
	if t.Statistics {
		t.newline()
		t.deviceStatistics(d)
	}
	if blocked := d.Flags.blockedList(); t.Verbose || blocked != "no" {
		t.item(6, " blocked:%s", blocked)
	}
	t.newline()
}

func (t *tree) deviceStatistics(d *Device) {
	for _, c := range deviceCounters(d) {
		if t.Verbose || c.always {
			t.item(6, " %s:%v", c.name, c.value)
		}
	}
}

func (t *tree) connection() {
	conn := t.r.conn()
	t.item(2, "peer")
	if t.Verbose || !conn.HasSocket() {
		t.item(6, " connection:%s", conn.connection())
	}
	if t.Verbose || conn.HasSocket() {
		t.item(6, " role:%s", t.r.peerRole())
	}
	if congested := t.r.congested(); t.Verbose || congested {
		t.item(6, " congested:%s", yesNo(congested))
	}
	t.newline()
	if !t.Verbose && !t.Statistics && !conn.HasSocket() {
		return
	}
	for i := range t.r.Devices {
		t.peerDevice(&t.r.Devices[i])
	}
}

func (t *tree) peerDevice(d *Device) {
	indent := 4
	if !t.single(d) {
		t.item(indent, "volume:%d", d.Volume)
		indent = 8
	}
	replication := d.Conn.replication()
	if t.Verbose || replication != "Off" {
		t.item(indent, " replication:%s", replication)
		indent = 8
	}
	if t.Verbose || t.Statistics || replication != "Off" || d.PeerDisk != DUnknown {
		t.item(indent, " peer-disk:%s", d.PeerDisk)
		t.peerDetails(d)
	}
	t.newline()
}

func (t *tree) peerDetails(d *Device) {
	if d.Conn.resyncs() {
		t.item(8, " done:%.2f", d.percentInSync())
	}
	if paused := d.Flags.resyncSuspendedList(); t.Verbose || paused != "no" {
		t.item(8, " resync-suspended:%s", paused)
	}
	if !t.Statistics {
		return
	}
	t.newline()
	for _, c := range peerCounters(d) {
		if t.Verbose || c.always {
			t.item(8, " %s:%v", c.name, c.value)
		}
	}
}

// resyncs reports whether the tree tells how much is in sync; as in DRBD 8.4
// also while a verify runs or a resync is paused.
func (c Conn) resyncs() bool {
	return c.showsProgress() || c == PausedSyncS || c == PausedSyncT
}

// percentInSync is how much of the volume is in sync.
func (d *Device) percentInSync() float64 {
	if d.Size == 0 {
		return 100
	}
	return 100 * (1 - float64(d.OOS)/float64(d.Size))
}

// counter is one counter by drbdsetup's name. always marks those that are told
// without --verbose.
type counter struct {
	name   string
	value  any
	always bool
}

func deviceCounters(d *Device) []counter {
	return []counter{
		{"size", d.Size, false},
		{"read", d.DR, true},
		{"written", d.DW, true},
		{"al-writes", d.AL, false},
		{"bm-writes", d.BM, false},
		{"upper-pending", d.AP, false},
		{"lower-pending", d.LO, false},
		{"al-suspended", yesNo(d.Flags.ALSuspended), false},
	}
}

func peerCounters(d *Device) []counter {
	return []counter{
		{"received", d.NR, true},
		{"sent", d.NS, true},
		{"out-of-sync", d.OOS, d.OOS != 0},
		{"pending", d.PE, false},
		{"unacked", d.UA, false},
	}
}
