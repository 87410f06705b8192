package replica

import (
	"replicad/replica/disk"
)

// sectored lets requests of any multiple of 512 bytes reach a block device with
// larger logical blocks (4 KiB sectors), by reading the blocks around them. The
// core never lets two operations touch the same 4 KiB at once, so a block that
// is read, changed and written back changes under nobody's hands.
type sectored struct {
	disk.Device
	block int64
}

// coreGranularity is the unit in which the core keeps operations apart, bytes.
const coreGranularity = 4096

// span widens a range to whole blocks.
func (d *sectored) span(off int64, n int) (first, size int64) {
	first = off / d.block * d.block
	end := (off + int64(n) + d.block - 1) / d.block * d.block
	return first, end - first
}

func (d *sectored) whole(off, n int64) bool { return (off|n)%d.block == 0 }

// ReadAt implements disk.Device.
func (d *sectored) ReadAt(p []byte, off int64) (int, error) {
	if d.whole(off, int64(len(p))) {
		return d.Device.ReadAt(p, off)
	}
	first, size := d.span(off, len(p))
	buf := disk.AlignedBuffer(int(size), int(d.block))
	if _, err := d.Device.ReadAt(buf, first); err != nil {
		return 0, err
	}
	return copy(p, buf[off-first:]), nil
}

// WriteAt implements disk.Device.
func (d *sectored) WriteAt(p []byte, off int64) (int, error) {
	return d.write(p, off, d.Device.WriteAt)
}

// WriteDurable implements disk.Device.
func (d *sectored) WriteDurable(p []byte, off int64) (int, error) {
	return d.write(p, off, d.Device.WriteDurable)
}

func (d *sectored) write(p []byte, off int64, call func([]byte, int64) (int, error)) (int, error) {
	if d.whole(off, int64(len(p))) {
		return call(p, off)
	}
	first, size := d.span(off, len(p))
	buf := disk.AlignedBuffer(int(size), int(d.block))
	if _, err := d.Device.ReadAt(buf[:d.block], first); err != nil {
		return 0, err
	}
	if last := size - d.block; last > 0 {
		if _, err := d.Device.ReadAt(buf[last:], first+last); err != nil {
			return 0, err
		}
	}
	copy(buf[off-first:], p)
	if _, err := call(buf, first); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes implements disk.Device. The edges are written, whole blocks between
// them zeroed.
func (d *sectored) WriteZeroes(off, n int64, noHole bool) error {
	if d.whole(off, n) {
		return d.Device.WriteZeroes(off, n, noHole)
	}
	end := off + n
	head := min((off+d.block-1)/d.block*d.block, end)
	tail := max(end/d.block*d.block, head)
	for _, edge := range [][2]int64{{off, head}, {tail, end}} {
		if edge[1] == edge[0] {
			continue
		}
		if _, err := d.WriteAt(make([]byte, edge[1]-edge[0]), edge[0]); err != nil {
			return err
		}
	}
	if tail == head {
		return nil
	}
	return d.Device.WriteZeroes(head, tail-head, noHole)
}
