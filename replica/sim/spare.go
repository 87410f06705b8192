package sim

import "replicad/replica/sim/oracle"

// Runner simulates one seed after the other. Each uses the memory of those
// before it; nothing else of them is left. A Runner belongs to one goroutine.
type Runner struct{ spare spare }

// spare is memory of runs that are over. Asking for it anew, and collecting it,
// was half of the time of a run.
type spare struct {
	volumes []memory
	oracle  oracle.Oracle
	payload []byte
	headers [][]byte
}

// memory is what a node's volume is made of.
type memory struct {
	disk *disk
	meta *metaStore
}

// volume returns memory for a volume, which is to be reset.
func (s *spare) volume() memory {
	last := len(s.volumes) - 1
	if last < 0 {
		return memory{disk: &disk{}, meta: newMetaStore()}
	}
	m := s.volumes[last]
	s.volumes = s.volumes[:last]
	return m
}

// giveBack ends the use of a world. One that failed may have left its memory in
// any state.
func (w *World) giveBack() {
	s := w.spare
	if w.failure != nil {
		*s = spare{}
		return
	}
	for _, n := range w.nodes {
		for _, v := range n.vols {
			s.volumes = append(s.volumes, memory{v.disk, v.meta})
		}
	}
	s.payload, s.headers = w.net.payload, w.net.spare
}
