package status

import (
	"fmt"
	"slices"
)

// VersionLine is the first line of /proc/drbd, the one of the DRBD release
// whose behaviour this program follows.
const VersionLine = "version: 8.4.11 (api:1/proto:86-101)"

// AppendProc appends the text of /proc/drbd: the two header lines and the
// devices in the order of their minors. version identifies the running program
// where the in-kernel module prints its srcversion, at least 24 columns wide.
func AppendProc(dst []byte, version string, devices []Device) []byte {
	dst = fmt.Appendf(dst, "%s\nsrcversion: %-24s\n", VersionLine, version)
	devices = slices.Clone(devices)
	slices.SortStableFunc(devices, func(a, b Device) int { return a.Minor - b.Minor })
	previous := -1
	for i := range devices {
		d := &devices[i]
		if d.Minor != previous+1 {
			dst = append(dst, '\n')
		}
		previous = d.Minor
		dst = appendDevice(dst, d)
	}
	return dst
}

func appendDevice(dst []byte, d *Device) []byte {
	if d.Unconfigured() {
		return fmt.Appendf(dst, "%2d: cs:Unconfigured\n", d.Minor)
	}
	protocol := d.Protocol
	if protocol == 0 {
		protocol = ' '
	}
	dst = fmt.Appendf(dst, "%2d: cs:%s ro:%s/%s ds:%s/%s %c %s\n",
		d.Minor, d.Conn, d.Role, d.PeerRole, d.Disk, d.PeerDisk, protocol, d.Flags.String())
	dst = appendCounters(dst, &d.Counters)
	if d.Sync != nil && d.Conn.showsProgress() {
		dst = appendProgress(dst, d.Conn, d.Sync)
	}
	return dst
}

func appendCounters(dst []byte, c *Counters) []byte {
	order := c.WO
	if order == 0 {
		order = 'n'
	}
	return fmt.Appendf(dst, "    ns:%d nr:%d dw:%d dr:%d al:%d bm:%d lo:%d pe:%d ua:%d ap:%d ep:%d wo:%c oos:%d\n",
		c.NS, c.NR, c.DW, c.DR, c.AL, c.BM, c.LO, c.PE, c.UA, c.AP, c.EP, order, c.OOS)
}

// String renders the six flag characters of /proc/drbd.
func (f *Flags) String() string {
	text := []byte("r-----")
	mark := func(at int, on bool, with byte) {
		if on {
			text[at] = with
		}
	}
	mark(0, f.suspended(), 's')
	mark(1, f.AfterPaused, 'a')
	mark(2, f.PeerPaused, 'p')
	mark(3, f.UserPaused, 'u')
	mark(4, f.Blocked != 0, byte(f.Blocked))
	mark(5, f.ALSuspended, 's')
	return string(text)
}
