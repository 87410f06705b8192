package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"replicad/config"
	"replicad/internal/pki"
	"replicad/nbd"
	"replicad/replica"
	"replicad/replica/link"
)

// unit is one resource of the configuration, up or down.
type unit struct {
	d    *Daemon
	name string

	// life is held by whatever brings the resource up or down or replaces its
	// configuration. Commands about a running resource do without.
	life sync.Mutex
	// local is what the configuration says, res the running resource, nil
	// while it is down. Both are replaced only with life held.
	local atomic.Pointer[config.LocalResource]
	res   atomic.Pointer[replica.Resource]

	// credentials are what links are made with: one holder for the unit's
	// life, nil until TLS is configured. Guarded by life.
	credentials *link.Credentials
	// certificates are those of local; nil without TLS.
	certificates atomic.Pointer[pki.Node]

	// exports are the volumes offered to clients; guarded by d.mu.
	exports []*export
	// watchEnd ends the goroutine that watches res; guarded by life.
	watchEnd context.CancelFunc
}

// ensure returns the running resource, made according to the configuration if
// it is down. problem says which volumes are not offered to clients. Called with
// life held.
func (u *unit) ensure() (res *replica.Resource, problem, err error) {
	if res := u.res.Load(); res != nil {
		return res, nil, nil
	}
	res, err = replica.New(u.resourceConfig(u.local.Load()))
	if err != nil {
		return nil, nil, fmt.Errorf("set up resource %s: %w", u.name, err)
	}
	u.res.Store(res)
	u.watch(res)
	return res, u.offer(res), nil
}

// offer opens the volumes' addresses for clients. A volume that cannot be
// offered is still replicated.
func (u *unit) offer(res *replica.Resource) error {
	lr := u.local.Load()
	var errs []error
	for _, v := range lr.Volumes {
		e := &export{
			unit: u, res: res, vol: res.Volume(uint16(v.Number)),
			name: exportName(u.name, v.Number, len(lr.Volumes) == 1),
		}
		for _, l := range v.NBDListen {
			if err := u.d.endpoints.add(l.String(), e); err != nil {
				errs = append(errs, err)
				continue
			}
			e.addresses = append(e.addresses, l.String())
		}
		u.d.mu.Lock()
		u.exports = append(u.exports, e)
		u.d.mu.Unlock()
	}
	return errors.Join(errs...)
}

// withdraw ends the offers and waits until clients are gone.
func (u *unit) withdraw(ctx context.Context) error {
	u.d.mu.Lock()
	exports := u.exports
	u.exports = nil
	u.d.mu.Unlock()
	var errs []error
	for _, e := range exports {
		for _, address := range e.addresses {
			errs = append(errs, u.d.endpoints.remove(ctx, address, e.name))
		}
	}
	return errors.Join(errs...)
}

// exportsOf returns the exports of a volume; -1 means of all.
func (u *unit) exportsOf(vol int) []*export {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	var found []*export
	for _, e := range u.exports {
		if vol < 0 || int(e.vol.Number()) == vol {
			found = append(found, e)
		}
	}
	return found
}

// sendAway disconnects the clients of a volume.
func (u *unit) sendAway(ctx context.Context, vol uint16) error {
	var errs []error
	for _, e := range u.exportsOf(int(vol)) {
		for _, address := range e.addresses {
			errs = append(errs, u.d.endpoints.disconnect(ctx, address, e.name))
		}
	}
	return errors.Join(errs...)
}

// clients lists who holds volumes of the resource open.
func (u *unit) clients() []nbd.ClientInfo {
	var all []nbd.ClientInfo
	for _, e := range u.exportsOf(-1) {
		for _, address := range e.addresses {
			all = append(all, u.d.endpoints.clients(address, e.name)...)
		}
	}
	return all
}

// close ends the resource. Called with life held.
func (u *unit) close(ctx context.Context) error {
	res := u.res.Load()
	if res == nil {
		return nil
	}
	err := res.Close(ctx)
	u.watchEnd()
	err = errors.Join(err, u.withdraw(ctx))
	u.res.Store(nil)
	u.d.changed()
	if err != nil {
		return fmt.Errorf("close resource %s: %w", u.name, err)
	}
	return nil
}

// watch makes every change of the resource reach the status file at once.
func (u *unit) watch(res *replica.Resource) {
	ctx, cancel := context.WithCancel(u.d.ctx)
	u.watchEnd = cancel
	u.d.wg.Go(func() {
		for {
			changed := res.Changed()
			u.d.changed()
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
}

// volumes returns the numbers of the volumes that a command means: one, or all
// for a negative number.
func (u *unit) volumes(vol int) []int {
	var numbers []int
	for _, v := range u.local.Load().Volumes {
		if vol < 0 || v.Number == vol {
			numbers = append(numbers, v.Number)
		}
	}
	return numbers
}

// diskless reports whether a volume has no disk on this node by configuration.
func (u *unit) diskless(vol int) bool {
	return slices.ContainsFunc(u.local.Load().Volumes, func(v *config.LocalVolume) bool {
		return v.Number == vol && v.Disk == ""
	})
}

// minor returns the minor number of a volume.
func (u *unit) minor(vol int) int {
	for _, v := range u.local.Load().Volumes {
		if v.Number == vol {
			return v.Minor
		}
	}
	return -1
}
