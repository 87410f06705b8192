package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"replicad/config"
)

// The verbs about the configuration.

type dumpCmd struct{ names }

type shCmd struct{ names }

// Run is called by kong.
func (c *dumpCmd) Run(a *app, verb verbName) error {
	if a.global.Test != "" {
		a.global.Config = a.global.Test
	}
	if verb == "check" {
		return a.check()
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	self, err := a.self()
	if err != nil {
		return err
	}
	only, err := a.dumpNames(c.Resources)
	if err != nil {
		return err
	}
	if verb == "dump-xml" {
		return cfg.DumpXML(a.out, only...)
	}
	return cfg.Dump(a.out, self, only...)
}

// dumpNames turns the names of resources into what package config takes: none
// for all.
func (a *app) dumpNames(words []string) ([]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	targets, err := a.targets("dump", words, true)
	if err != nil {
		return nil, err
	}
	var only []string
	for i, t := range targets {
		if words[0] != "all" && i < len(words) {
			only = append(only, t.local.Name)
		}
	}
	return only, nil
}

// check reads the configuration the way the daemon does, for this node.
func (a *app) check() error {
	cfg, locals, err := a.locals()
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintln(a.err, w)
	}
	return a.checkLinks(locals)
}

// checkLinks refuses links that would run without a secret over a network, or
// whose certificates are of no use.
func (a *app) checkLinks(locals []*config.LocalResource) error {
	var lines []string
	for _, lr := range locals {
		if err := lr.CheckAuthentication(); err != nil {
			lines = append(lines, strings.Split(err.Error(), "\n")...)
		}
		if err := lr.CheckBuilt(); err != nil {
			lines = append(lines, err.Error())
		}
		lines = append(lines, a.checkCertificates(lr)...)
	}
	if len(lines) == 0 {
		return nil
	}
	return &exitError{code: exitConfig, lines: lines}
}

// ofResources answers the sh- queries about resources, ofVolumes those about
// volumes, one line each.
var (
	ofResources = map[string]func(*config.LocalResource) string{
		"sh-resource": func(lr *config.LocalResource) string { return lr.Name },
		"sh-ip":       func(lr *config.LocalResource) string { return lr.Local.Address.AddrPort.Addr().String() },
	}
	ofVolumes = map[string]func(*config.LocalVolume) string{
		"sh-dev":    func(v *config.LocalVolume) string { return v.Device },
		"sh-minor":  func(v *config.LocalVolume) string { return strconv.Itoa(v.Minor) },
		"sh-ll-dev": func(v *config.LocalVolume) string { return v.Disk },
		"sh-md-dev": mdDevice,
		"sh-md-idx": mdIndex,
	}
)

// Run is called by kong.
func (c *shCmd) Run(a *app, verb verbName) error {
	switch verb {
	case "sh-nop":
		_, _, err := a.locals()
		return err
	case "sh-mod-parms":
		fmt.Fprintln(a.out, "minor_count=32")
		return nil
	case "sh-resources":
		return a.shResources()
	}
	targets, err := a.targets(string(verb), c.Resources, verb == "sh-status")
	if err != nil {
		return err
	}
	return a.eachTarget(string(verb), targets, func(t target) error {
		if verb == "sh-status" {
			return a.ask(string(verb), t, nil)
		}
		if of, ok := ofResources[string(verb)]; ok {
			fmt.Fprintln(a.out, of(t.local))
			return nil
		}
		for _, v := range t.volumes() {
			fmt.Fprintln(a.out, ofVolumes[string(verb)](v))
		}
		return nil
	})
}

func (a *app) shResources() error {
	_, locals, err := a.locals()
	if err != nil {
		return err
	}
	var all []string
	for _, lr := range locals {
		all = append(all, lr.Name)
	}
	fmt.Fprintln(a.out, strings.Join(all, " "))
	return nil
}

func mdDevice(v *config.LocalVolume) string {
	if v.MetaDisk.Kind == config.MetaInternal {
		return v.Disk
	}
	return v.MetaDisk.Path
}

func mdIndex(v *config.LocalVolume) string {
	switch v.MetaDisk.Kind {
	case config.MetaFlexibleExternal:
		return "flexible-external"
	case config.MetaIndexed:
		return strconv.Itoa(v.MetaDisk.Index)
	}
	return "internal"
}

// unauthenticated reports whether err is about a link without a secret.
func unauthenticated(err error) bool {
	_, ok := errors.AsType[*config.UnauthenticatedError](err)
	return ok
}
