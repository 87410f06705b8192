package crashtest

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// network is two nodes' way to each other. Either node, or the cable between
// them, can die: what was on the way is lost, and nothing more arrives.
type network struct {
	mu     sync.Mutex
	pipes  map[*pipe]struct{}
	cut    bool
	dead   [2]bool
	ended  bool
	listen [2]net.Listener // where node i reaches the other
	wg     sync.WaitGroup
}

// pipe is one connection through the network.
type pipe struct {
	ends    [2]net.Conn // by node
	stopped atomic.Bool
	over    chan struct{} // closed with the connection
	once    sync.Once
}

func (p *pipe) close() {
	p.once.Do(func() {
		_ = p.ends[0].Close()
		_ = p.ends[1].Close()
		close(p.over)
	})
}

var lastPort atomic.Uint32

// ownAddr returns a loopback address that nobody else listens on: each process
// has an address of its own, where the kernel picks no ports for others.
func ownAddr() netip.AddrPort {
	pid := os.Getpid()
	ip := netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
	return netip.AddrPortFrom(ip, uint16(20000+lastPort.Add(1)%40000))
}

// newNetwork joins two nodes that listen on local.
func newNetwork(t testing.TB, local [2]netip.AddrPort) *network {
	t.Helper()
	n := &network{pipes: map[*pipe]struct{}{}}
	for i := range n.listen {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n.listen[i] = l
		n.wg.Go(func() { n.accept(i, local[1-i].String()) })
	}
	t.Cleanup(n.close)
	return n
}

// from is where node i dials to reach the other.
func (n *network) from(i int) netip.AddrPort { return n.listen[i].Addr().(*net.TCPAddr).AddrPort() }

func (n *network) accept(from int, target string) {
	for {
		near, err := n.listen[from].Accept()
		if err != nil {
			return // closed
		}
		n.wg.Go(func() { n.carry(from, near, target) })
	}
}

func (n *network) carry(from int, near net.Conn, target string) {
	far, err := net.Dial("tcp", target)
	if err != nil {
		_ = near.Close()
		return
	}
	p := &pipe{over: make(chan struct{})}
	p.ends[from], p.ends[1-from] = near, far
	if !n.add(p) {
		p.close()
		return
	}
	defer n.drop(p)
	var both sync.WaitGroup
	both.Go(func() { p.pump(far, near) })
	both.Go(func() { p.pump(near, far) })
	both.Wait()
}

func (n *network) add(p *pipe) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended || n.cut || n.dead[0] || n.dead[1] {
		return false
	}
	n.pipes[p] = struct{}{}
	return true
}

func (n *network) drop(p *pipe) {
	p.close()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pipes, p)
}

// pump moves bytes one way until the pipe is stopped or an end closes.
func (p *pipe) pump(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		k, err := from.Read(buf)
		if p.stopped.Load() {
			<-p.over
			return
		}
		if err == nil {
			_, err = to.Write(buf[:k])
		}
		if err != nil && !p.stopped.Load() {
			p.close()
		}
		if err != nil {
			<-p.over
			return
		}
	}
}

// stop stops every connection. The nodes in silent do not notice.
func (n *network) stop(silent [2]bool) {
	for p := range n.pipes {
		p.stopped.Store(true)
		if !silent[0] && !silent[1] {
			p.close()
			continue
		}
		for i, end := range p.ends {
			if !silent[i] {
				_ = end.Close()
			}
		}
	}
}

// setCut cuts the cable, or heals it: then the connections of before break.
func (n *network) setCut(cut, silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	n.stop([2]bool{cut && silent, cut && silent})
}

// kill takes a node off the network. silent keeps its peer from noticing.
func (n *network) kill(node int, silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead[node] = true
	var deaf [2]bool
	deaf[1-node] = silent
	n.stop(deaf)
}

// revive brings a node back.
func (n *network) revive(node int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead[node] = false
	n.stop([2]bool{})
}

func (n *network) close() {
	n.mu.Lock()
	n.ended = true
	n.stop([2]bool{})
	n.mu.Unlock()
	for _, l := range n.listen {
		_ = l.Close()
	}
	n.wg.Wait()
}
