package daemon

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"replicad/internal/ctl"
	"replicad/replica"
	"replicad/replica/core"
)

// diskTunings are the disk options that can change while the disk is in use.
// Values are DRBD's: rates in KiB/s, times in 0.1 s, both with K, M or G.
var diskTunings = map[string]struct {
	minimum, maximum uint64
	set              func(*core.VolumeConfig, uint64)
}{
	"resync-rate":  {1, 4 << 20, func(c *core.VolumeConfig, kib uint64) { c.ResyncRate = kib << 10 }},
	"c-max-rate":   {250, 4 << 20, func(c *core.VolumeConfig, kib uint64) { c.CMaxRate = kib << 10 }},
	"c-plan-ahead": {0, 300, func(c *core.VolumeConfig, tenths uint64) { c.CPlanAhead = core.Duration(tenths) * 1e8 }},
	"disk-timeout": {0, 6000, func(c *core.VolumeConfig, tenths uint64) { c.DiskTimeout = core.Duration(tenths) * 1e8 }},
}

// diskOptions changes options until the configuration is next put to work.
func diskOptions(ctx context.Context, u *unit, res *replica.Resource, o options) ctl.Reply {
	u.life.Lock()
	defer u.life.Unlock()
	cfg := u.resourceConfig(u.local.Load())
	for name, values := range o.values {
		if name == "volume" {
			continue
		}
		if err := tune(cfg.Core.Volumes, o.volume, name, values[len(values)-1]); err != nil {
			return ctl.Reply{Exit: exitExecution, Err: []string{"disk-options: " + err.Error()}}
		}
	}
	if err := res.Reconfigure(ctx, cfg); err != nil {
		return u.refusal(u.name, "disk-options", err)
	}
	return ctl.Reply{}
}

func tune(volumes []core.VolumeConfig, vol int, name, text string) error {
	tuning, ok := diskTunings[name]
	if !ok {
		known := make([]string, 0, len(diskTunings))
		for name := range diskTunings {
			known = append(known, "--"+name)
		}
		slices.Sort(known)
		return fmt.Errorf("--%s cannot be changed while the disk is in use, only %s", name, strings.Join(known, ", "))
	}
	n, err := parseNumber(text)
	if err != nil {
		return fmt.Errorf("--%s: %w", name, err)
	}
	if n < tuning.minimum || n > tuning.maximum {
		return fmt.Errorf("--%s: %d is out of range [%d..%d]", name, n, tuning.minimum, tuning.maximum)
	}
	for i := range volumes {
		if vol < 0 || int(volumes[i].Vol) == vol {
			tuning.set(&volumes[i], n)
		}
	}
	return nil
}

// parseNumber reads a number of KiB, or of ones, with DRBD's suffixes: K is the
// unit itself where the unit is KiB.
func parseNumber(text string) (uint64, error) {
	digits, factor := text, uint64(1)
	if text != "" {
		switch text[len(text)-1] {
		case 'k', 'K':
			digits = text[:len(text)-1]
		case 'm', 'M':
			digits, factor = text[:len(text)-1], 1<<10
		case 'g', 'G':
			digits, factor = text[:len(text)-1], 1<<20
		}
	}
	n, err := strconv.ParseUint(digits, 10, 40)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", text)
	}
	return n * factor, nil
}
