package config

// TLSFiles are the files of a resource's TLS link, with the places in the
// configuration that name them, and the names that certificates must bear.
type TLSFiles struct {
	Cert, Key, CA Path
	OwnNames      []string // of this node, as certificates have them
	PeerNames     []string // of the peer
}

// TLSFiles returns what "tls yes" needs, nil where it is not set. A statement
// that is missing comes as Errors. The files themselves are not looked at.
func (r *LocalResource) TLSFiles() (*TLSFiles, error) {
	if !r.Net.TLS {
		return nil, nil
	}
	var rep report
	find := func(name, value string) Path {
		pos := r.netPos
		for _, s := range r.Explicit.Net.Settings {
			if s.Name == name || s.Name == "tls" && pos == r.netPos {
				pos = s.Pos
			}
		}
		if value == "" {
			rep.errorf(pos, "in resource %s: tls is set, but '%s' is missing.\n\t"+
				"The files, and the statements to paste, are made by: replicad tls init %s", r.Name, name, r.Name)
		}
		return Path{Value: value, Pos: pos}
	}
	f := &TLSFiles{
		Cert: find("tls-cert", r.Net.TLSCert), Key: find("tls-key", r.Net.TLSKey), CA: find("tls-ca", r.Net.TLSCA),
		OwnNames: r.Local.CertificateNames(), PeerNames: r.Peer.CertificateNames(),
	}
	return f, rep.err()
}

// CertificateNames are the names that the certificate of an end may bear: its
// node names, or its address where the section is floating.
func (e *Endpoint) CertificateNames() []string {
	if len(e.Names) > 0 {
		return e.Names
	}
	return []string{e.Address.AddrPort.Addr().WithZone("").String()}
}
