package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"replicad/config"
	"replicad/internal/ctl"
)

// defaultConfigs are where the configuration is when nobody says.
var defaultConfigs = []string{"/etc/replicad.conf", "/etc/drbd.conf"}

// target is what a verb is to work on: a resource, or one volume of it.
type target struct {
	local  *config.LocalResource
	volume int // -1: all
}

// String returns the name as the user would give it.
func (t target) String() string {
	if t.volume < 0 {
		return t.local.Name
	}
	return t.local.Name + "/" + strconv.Itoa(t.volume)
}

// volumes returns the volumes the target means.
func (t target) volumes() []*config.LocalVolume {
	if t.volume < 0 {
		return t.local.Volumes
	}
	i := slices.IndexFunc(t.local.Volumes, func(v *config.LocalVolume) bool { return v.Number == t.volume })
	return t.local.Volumes[i : i+1]
}

// client returns a client of the daemon.
func (a *app) client() *ctl.Client {
	return ctl.NewClient(ctl.SocketPath(a.global.Socket, a.global.Node))
}

// node is this node's name.
func (a *app) node() (string, error) {
	if a.global.Node != "" {
		return a.global.Node, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find out this node's name: %w", err)
	}
	return name, nil
}

// self says to package config which node this is.
func (a *app) self() (config.Self, error) {
	node, err := a.node()
	if err != nil {
		return config.Self{}, err
	}
	dir, err := filepath.Abs(ctl.RunDir(a.global.Node))
	if err != nil {
		return config.Self{}, fmt.Errorf("find the run folder: %w", err)
	}
	return config.Self{Node: node, Addrs: ownAddresses(), RunDir: dir}, nil
}

// ownAddresses lists this machine's addresses. Without them their check is
// left out, no more.
func ownAddresses() []netip.Addr {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, f := range found {
		if p, err := netip.ParsePrefix(f.String()); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs
}

// loadConfig reads the configuration. A faulty one is reported with its faults
// and exit code 10.
func (a *app) loadConfig() (*config.Config, error) {
	path, err := a.configPath()
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return nil, configError(path, err)
	}
	return cfg, nil
}

func configError(path string, err error) error {
	if _, ok := errors.AsType[config.Errors](err); ok {
		return &exitError{code: exitConfig, lines: strings.Split(strings.TrimRight(err.Error(), "\n"), "\n")}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return &exitError{
			code: exitExecution, lines: []string{fmt.Sprintf("Can not open '%s'.", path)},
			hint: "name the configuration with -c FILE",
		}
	}
	return fail(exitConfig, "%s", err.Error())
}

// configPath is the file given, or the daemon's when the daemon was given, or
// the one in its usual place, or again the daemon's.
func (a *app) configPath() (string, error) {
	if a.global.Config != "" {
		return a.global.Config, nil
	}
	chosen := a.global.Socket != "" || os.Getenv(ctl.SocketEnv) != ""
	if path := a.daemonConfig(); chosen && path != "" {
		return path, nil
	}
	for _, path := range defaultConfigs {
		if unix.Access(path, unix.F_OK) == nil {
			return path, nil
		}
	}
	if path := a.daemonConfig(); path != "" {
		return path, nil
	}
	return "", &exitError{
		code: exitExecution, lines: []string{fmt.Sprintf("Can not open '%s'.", defaultConfigs[0])},
		hint: "write the configuration there, or name another with -c FILE",
	}
}

// daemonConfig asks a running daemon for its configuration, and for the node it
// is when the user did not say.
func (a *app) daemonConfig() string {
	d, err := a.client().Daemon(a.ctx)
	if err != nil {
		return ""
	}
	if a.global.Node == "" {
		a.global.Socket = a.client().Socket()
		a.global.Node = d.Node
	}
	return d.Config
}

// locals returns the resources of this node.
func (a *app) locals() (*config.Config, []*config.LocalResource, error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return nil, nil, err
	}
	self, err := a.self()
	if err != nil {
		return nil, nil, err
	}
	locals, err := cfg.Resolve(self)
	if err != nil {
		return nil, nil, configError(cfg.Path, err)
	}
	return cfg, locals, nil
}

// targets finds what the names of a command line mean. Without names it is a
// usage error unless all is the default.
func (a *app) targets(verb string, words []string, allByDefault bool) ([]target, error) {
	if len(words) == 0 && !allByDefault {
		return nil, a.usage(verb)
	}
	_, locals, err := a.locals()
	if err != nil {
		return nil, err
	}
	var found []target
	for _, word := range words {
		if word == "all" {
			words = nil
			break
		}
		t, err := findTarget(locals, word)
		if err != nil {
			return nil, err
		}
		found = append(found, t)
	}
	if len(words) > 0 {
		return found, nil
	}
	found = nil
	for _, lr := range locals {
		found = append(found, target{local: lr, volume: -1})
	}
	return found, nil
}

func findTarget(locals []*config.LocalResource, word string) (target, error) {
	name, number, hasVolume := strings.Cut(word, "/")
	i := slices.IndexFunc(locals, func(lr *config.LocalResource) bool { return lr.Name == name })
	if i < 0 {
		return target{}, withHint(fail(exitUsage, "'%s' not defined in your config (for this host).", name), knownResources(locals, name))
	}
	t := target{local: locals[i], volume: -1}
	if !hasVolume {
		return t, nil
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || !slices.ContainsFunc(t.local.Volumes, func(v *config.LocalVolume) bool { return v.Number == int(n) }) {
		return target{}, fail(exitUsage, "Resource '%s' has no volume %s", name, number)
	}
	t.volume = int(n)
	return t, nil
}

func knownResources(locals []*config.LocalResource, wrong string) string {
	var known []string
	for _, lr := range locals {
		known = append(known, lr.Name)
	}
	switch near := nearest(wrong, known); {
	case len(known) == 0:
		return "no resource is configured for this node: is --node right?"
	case near != "":
		return "did you mean: " + near
	}
	return "there are: " + strings.Join(known, ", ")
}
