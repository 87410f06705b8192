package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	metadataRoom = 4 * mebibyte // behind the data, for DRBD's internal metadata
	verbPatience = 60 * time.Second
	resourceName = "r0"
)

// protocolOf is the replication protocol of a label that is a pair.
func protocolOf(label string) string {
	if slices.Contains([]string{"A", "B", "C"}, label) {
		return label
	}
	return ""
}

func isReplicad(label string) bool { return label == labelStandalone || protocolOf(label) != "" }

// node is one replicad daemon.
type node struct {
	name    string // of the host section
	image   string
	at      endpoint // of its NBD server
	address string   // of the link
	control string   // socket
}

// pair is a resource on two nodes of this machine; a standalone server uses
// only the first.
type pair struct {
	program string
	config  string
	nodes   [2]node
}

// startReplicad brings up one node alone or two nodes in sync, the first of
// them Primary.
func (l *lab) startReplicad(ctx context.Context, s *server) error {
	program, err := l.findReplicad(ctx)
	if err != nil {
		return err
	}
	s.version = versionOf(s.label, program)
	p, err := l.newPair(s.label, program)
	if err != nil {
		return err
	}
	used := p.nodes[:1]
	if protocolOf(s.label) != "" {
		used = p.nodes[:]
		s.twin = p.nodes[1].image
	}
	s.image, s.uri = p.nodes[0].image, p.nodes[0].at.uri(resourceName)
	for i := range used {
		if err := l.startNode(ctx, s, p, &used[i]); err != nil {
			return err
		}
	}
	if err := p.promote(ctx, len(used) == 2); err != nil {
		return fmt.Errorf("%w: %s", err, s.procs[0].tail())
	}
	return s.awaitReady(ctx)
}

// newPair writes the configuration of a label.
func (l *lab) newPair(label, program string) (*pair, error) {
	p := &pair{program: program, config: filepath.Join(l.run, label+".conf")}
	for i := range p.nodes {
		name := fmt.Sprintf("%s%d", strings.ToLower(label[:1]), i+1)
		at, err := l.endpoint(label + name)
		if err != nil {
			return nil, err
		}
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		p.nodes[i] = node{
			name: name, at: at, address: address,
			image:   filepath.Join(l.images, label+"-"+name+".img"),
			control: filepath.Join(l.run, name+".ctl"),
		}
	}
	text := p.configuration(protocolOf(label), l.run)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return p, nil
}

// configuration is a drbd.conf. The minor is one that no kernel device of this
// machine is likely to have.
func (p *pair) configuration(protocol, run string) string {
	if protocol == "" {
		protocol = "C"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "global { status-file %q; }\n", filepath.Join(run, "status-%n"))
	fmt.Fprintf(&b, "resource %s {\n  protocol %s;\n  device /dev/drbd977;\n  meta-disk internal;\n", resourceName, protocol)
	fmt.Fprintf(&b, "  net { shared-secret \"bench\"; cram-hmac-alg sha256; }\n")
	for _, n := range p.nodes {
		fmt.Fprintf(&b, "  on %s { disk %q; address %s; nbd-listen %q; }\n", n.name, n.image, n.address, n.at.listen())
	}
	b.WriteString("}\n")
	return b.String()
}

// startNode makes the node's image and metadata and runs its daemon.
func (l *lab) startNode(ctx context.Context, s *server, p *pair, n *node) error {
	if err := createImage(n.image, l.opt.size, metadataRoom); err != nil {
		return err
	}
	if err := p.do(ctx, n, "create-md", "--force", resourceName); err != nil {
		return err
	}
	proc, err := startProcess(filepath.Join(l.run, n.name+".log"), p.program, p.arguments(n, "run")...)
	if err != nil {
		return err
	}
	s.procs = append(s.procs, proc)
	return p.awaitControl(ctx, n, proc)
}

func (p *pair) arguments(n *node, verb ...string) []string {
	return append([]string{"-c", p.config, "--node", n.name, "-s", n.control}, verb...)
}

// awaitControl waits until the daemon answers.
func (p *pair) awaitControl(ctx context.Context, n *node, proc *process) error {
	limit := time.Now().Add(readyPatience)
	for {
		err := p.do(ctx, n, "role", resourceName)
		if err == nil {
			return nil
		}
		if gone := proc.ended(); gone != nil {
			return gone
		}
		if time.Now().After(limit) || ctx.Err() != nil {
			return fmt.Errorf("wait for the daemon: %w: %s", err, proc.tail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// promote makes the first node Primary and waits until it is what the label
// says: alone, or in sync with its peer.
func (p *pair) promote(ctx context.Context, peer bool) error {
	first := &p.nodes[0]
	steps := [][]string{{"disconnect", resourceName}, {"primary", "--force", resourceName}}
	if peer {
		steps = [][]string{
			{"wait-connect", resourceName, "--timeout", "20"},
			{"primary", "--force", resourceName},
			{"wait-sync", resourceName, "--timeout", "50"},
		}
	}
	for _, verb := range steps {
		if err := p.do(ctx, first, verb...); err != nil {
			return err
		}
	}
	if !peer {
		return nil
	}
	state, err := p.ask(ctx, first, "dstate", resourceName)
	if err == nil && strings.TrimSpace(state) != "UpToDate/UpToDate" {
		err = fmt.Errorf("after the first synchronisation the disks are %s", strings.TrimSpace(state))
	}
	return err
}

func (p *pair) do(ctx context.Context, n *node, verb ...string) error {
	_, err := p.ask(ctx, n, verb...)
	return err
}

// ask runs one verb and returns what it printed.
func (p *pair) ask(ctx context.Context, n *node, verb ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, verbPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.program, p.arguments(n, verb...)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("replicad %s on %s: %w: %s", strings.Join(verb, " "), n.name, err, strings.TrimSpace(complaint.String()))
	}
	return string(out), nil
}

// findReplicad returns the program, which it builds the first time if none was
// named: a stale one must not be measured by mistake.
func (l *lab) findReplicad(ctx context.Context) (string, error) {
	if l.program == "" && l.absent == nil {
		l.program, l.absent = l.opt.replicad, nil
		if l.program == "" {
			l.program, l.absent = buildReplicad(ctx, l.run)
		}
	}
	return l.program, l.absent
}

func buildReplicad(ctx context.Context, folder string) (string, error) {
	program := filepath.Join(folder, "replicad")
	version, _ := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output() // none outside a clone
	flags := "-X main.version=" + cmp.Or(strings.TrimSpace(string(version)), "unknown")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", program, "replicad/cmd/replicad")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("%w: replicad cannot be built: %w: %s", errAbsent, err, first)
	}
	return program, nil
}
