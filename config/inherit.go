package config

import "slices"

// merged returns what levels say together about volume number: they are given
// outermost first and each statement of an inner level replaces the outer one.
// Disk options are not merged here, as they join those of other sections.
func merged(number int, levels ...*Volume) Volume {
	v := Volume{Number: number}
	for _, level := range levels {
		if level.Device != nil {
			v.Device = level.Device
		}
		if level.Disk != nil {
			v.Disk = level.Disk
		}
		if level.MetaDisk != nil {
			v.MetaDisk = level.MetaDisk
		}
		if len(level.NBDListen) > 0 {
			v.NBDListen = level.NBDListen
		}
	}
	return v
}

// find returns the block of volume number, or an empty one.
func (s *volumeSet) find(number int) *Volume {
	for _, v := range s.volumes {
		if v.Number == number {
			return v
		}
	}
	return &Volume{Number: number}
}

// levels lists what is said about volume number on host h, outermost first:
// resource, host section, volume block of the resource, volume block of the
// host section.
func (r *Resource) levels(h *Host, number int) []*Volume {
	return []*Volume{&r.direct, &h.direct, r.find(number), h.find(number)}
}

// numbers returns the volume numbers of the resource on host h, sorted.
// implicit is true when there is no volume block and hence one volume 0.
func (r *Resource) numbers(h *Host) (numbers []int, implicit bool) {
	for _, v := range slices.Concat(r.volumes, h.volumes) {
		numbers = append(numbers, v.Number)
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	if len(numbers) == 0 {
		return []int{0}, true
	}
	return numbers, false
}

// volumesOn returns the volumes of the resource on host h, sorted by number.
func (r *Resource) volumesOn(h *Host) []Volume {
	numbers, _ := r.numbers(h)
	list := make([]Volume, len(numbers))
	for i, number := range numbers {
		list[i] = merged(number, r.levels(h, number)...)
	}
	return list
}

// diskSections lists the disk options that apply to volume number on host h,
// outermost first.
func (c *Config) diskSections(r *Resource, h *Host, number int) []Section {
	sections := []Section{c.Common.Disk, r.Disk}
	for _, level := range r.levels(h, number) {
		sections = append(sections, level.DiskTuning)
	}
	return sections
}

// diskUnused reports a volume that has no backing disk on its host.
func (v *Volume) diskUnused() bool { return v.Disk != nil && v.Disk.Value == diskNone }
