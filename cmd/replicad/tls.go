package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"replicad/config"
	"replicad/internal/pki"
)

// tlsCmd makes and shows the certificates of TLS links.
type tlsCmd struct {
	Init  tlsInitCmd  `cmd:"" help:"Make a CA, and a certificate and key for each of the two nodes."`
	Renew tlsRenewCmd `cmd:"" help:"Make new certificates and keys with the CA that is there."`
	Show  tlsShowCmd  `cmd:"" help:"Say what is in certificate files."`
}

// tlsTarget says for whom to make certificates, and where.
type tlsTarget struct {
	Dir  string   `default:"replicad-tls" placeholder:"DIR" help:"Folder with the CA and the files made (replicad-tls)."`
	Days int      `default:"730" placeholder:"N" help:"How long a node's certificate is good (730)."`
	Who  []string `arg:"" name:"who" help:"A RESOURCE of the configuration, or the names of its nodes as in 'on NAME'."`
}

type tlsInitCmd struct{ tlsTarget }

type tlsRenewCmd struct{ tlsTarget }

type tlsShowCmd struct {
	Files []string `arg:"" name:"file" help:"Files in PEM."`
}

// tlsPlace is where the lines printed assume the files to go.
const tlsPlace = "/etc/replicad/tls"

// Run is called by kong.
func (c *tlsInitCmd) Run(a *app) error {
	nodes, err := a.tlsNodes(c.Who)
	if err != nil {
		return err
	}
	if len(nodes) != 2 {
		return fail(exitUsage, "USAGE: %s tls init [--dir DIR] [--days N] {RESOURCE | NODE-A NODE-B}", a.name)
	}
	if err := pki.Init(c.Dir, nodes, c.Days, time.Now()); err != nil {
		return c.explain(a, err)
	}
	caKey := filepath.Join(c.Dir, pki.CAKeyFile)
	fmt.Fprintf(a.out, "made in %s: a CA, and a certificate and a key for %s and %s\n\n", c.Dir, nodes[0][0], nodes[1][0])
	a.printPlaces(c.Dir, nodes)
	fmt.Fprintf(a.out, "\n%s is needed by no node. Keep it offline: whoever has it can pose as either node.\n"+
		"It is used again by: %s tls renew --dir %s\n\n", caKey, a.name, c.Dir)
	fmt.Fprintf(a.out, "On both nodes, in the resource's net section:\n"+
		"\ttls yes;\n\ttls-cert \"%[1]s/%%n.crt\";\n\ttls-key \"%[1]s/%%n.key\";\n\ttls-ca \"%[1]s/%[2]s\";\n"+
		"Keep 'shared-secret' as well: it guards against a stolen CA.\n"+
		"Then on both nodes: replicad check, and replicad adjust RESOURCE\n", tlsPlace, pki.CAFile)
	return nil
}

// printPlaces says which file goes where.
func (a *app) printPlaces(dir string, nodes []pki.Subject) {
	for _, n := range nodes {
		fmt.Fprintf(a.out, "to %s, into %s (owner: who runs the daemon, mode 0600):\n", n[0], tlsPlace)
		for _, name := range []string{n.Cert(), n.Key(), pki.CAFile} {
			fmt.Fprintf(a.out, "\t%s\n", filepath.Join(dir, name))
		}
	}
}

// Run is called by kong.
func (c *tlsRenewCmd) Run(a *app) error {
	nodes, err := a.tlsNodes(c.Who)
	if err != nil {
		return err
	}
	if err := pki.Renew(c.Dir, nodes, c.Days, time.Now()); err != nil {
		return c.explain(a, err)
	}
	fmt.Fprintf(a.out, "made in %s; what was there before ends in .old\n\n", c.Dir)
	a.printPlaces(c.Dir, nodes)
	fmt.Fprintln(a.out, "\nThen, one node after the other: replicad adjust RESOURCE, or SIGHUP to the daemon. The session that is\nup goes on; new connections use the new files.")
	return nil
}

// explain adds what to do.
func (c *tlsTarget) explain(a *app, err error) error {
	hint := ""
	if errors.Is(err, pki.ErrExists) {
		hint = fmt.Sprintf("take another folder with --dir, or renew the nodes' certificates: %s tls renew --dir %s %s", a.name, c.Dir, strings.Join(c.Who, " "))
	}
	return withHint(fail(exitExecution, "%s", err.Error()), hint)
}

// tlsNodes finds who is meant: one word is a resource, more are nodes.
func (a *app) tlsNodes(words []string) ([]pki.Subject, error) {
	if len(words) != 1 {
		var nodes []pki.Subject
		for _, w := range words {
			nodes = append(nodes, pki.Subject{w})
		}
		return nodes, nil
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(cfg.Resources, func(r *config.Resource) bool { return r.Name == words[0] })
	if at < 0 {
		return nil, withHint(fail(exitUsage, "'%s' not defined in your config.", words[0]),
			"name a resource, or both nodes as in 'on NAME'")
	}
	var nodes []pki.Subject
	for _, h := range cfg.Resources[at].Hosts {
		end := config.Endpoint{Address: h.Address}
		if h.Kind == config.HostOn {
			end.Names = h.Names
		}
		nodes = append(nodes, pki.Subject(end.CertificateNames()))
	}
	return nodes, nil
}

// Run is called by kong.
func (c *tlsShowCmd) Run(a *app) error {
	for _, path := range c.Files {
		certs, err := pki.ReadCertificates(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, pki.ErrNoCertificate) {
			return fail(exitUsage, "%s", err.Error())
		}
		if err != nil {
			return fail(exitExecution, "%s", err.Error())
		}
		for _, cert := range certs {
			kind, names := "node", strings.Join(pki.Names(cert), ", ")
			if cert.IsCA {
				kind, names = "CA", cert.Subject.CommonName
			}
			text, _, _ := pki.Validity(cert, time.Now())
			fmt.Fprintf(a.out, "%s: %s %s\n\t%s\n\tissued by %s\n\tSHA-256 %s\n", path, kind, names, text, cert.Issuer.CommonName, pki.Fingerprint(cert))
		}
	}
	return nil
}

// checkCertificates prints warnings about a resource's certificates and
// returns what is wrong with them.
func (a *app) checkCertificates(lr *config.LocalResource) []string {
	node, err := pki.Load(lr)
	if err != nil {
		return strings.Split(err.Error(), "\n")
	}
	if node == nil {
		return nil
	}
	var lines []string
	for _, n := range node.Notes(time.Now()) {
		if n.Bad {
			lines = append(lines, n.String())
			continue
		}
		fmt.Fprintln(a.err, n)
	}
	return lines
}
