package daemon

import (
	"log/slog"
	"time"

	"replicad/config"
	"replicad/internal/pki"
	"replicad/replica/link"
)

// certificatesEvery is how often certificates are looked at for their end.
const certificatesEvery = 24 * time.Hour

// wanted is a resource as its configuration and its key files describe it.
type wanted struct {
	*config.LocalResource
	tls *pki.Node // nil without TLS
}

// prepare checks what must not run, and reads the key files.
func prepare(lr *config.LocalResource) (wanted, error) {
	if err := lr.CheckAuthentication(); err != nil {
		return wanted{}, err
	}
	if err := lr.CheckBuilt(); err != nil {
		return wanted{}, err
	}
	node, err := pki.Load(lr)
	return wanted{lr, node}, err
}

// take makes a configuration the unit's. Its certificates serve every
// handshake from now on; a session that is up goes on with the old ones. Called
// with life held, or before anybody else knows the unit.
func (u *unit) take(w wanted) {
	if w.tls != nil && u.credentials == nil {
		u.credentials = link.NewCredentials(w.tls.Identity)
	} else if w.tls != nil {
		u.credentials.Set(w.tls.Identity)
	}
	u.certificates.Store(w.tls)
	u.local.Store(w.LocalResource)
}

// tlsSettings are the credentials of a link, nil for a plain one. Called with
// life held.
func (u *unit) tlsSettings(lr *config.LocalResource) *link.Credentials {
	if !lr.Net.TLS {
		return nil
	}
	return u.credentials
}

// watchCertificates warns once a day of certificates that end.
func (d *Daemon) watchCertificates() {
	tick := time.NewTicker(certificatesEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, u := range d.allUnits() {
				d.logNotes(u.name, u.certificates.Load(), now)
			}
		case <-d.ctx.Done():
			return
		}
	}
}

// logNotes says which certificates of a resource are out of their time, or
// soon will be.
func (d *Daemon) logNotes(resource string, node *pki.Node, now time.Time) {
	if node == nil {
		return
	}
	for _, n := range node.Notes(now) {
		level := slog.LevelWarn
		if n.Bad {
			level = slog.LevelError
		}
		d.log.Log(d.ctx, level, n.Msg, "resource", resource, "at", n.At.Pos.String())
	}
}
