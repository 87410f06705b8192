package ctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// SocketEnv names the environment variable that says where the socket is.
const SocketEnv = "REPLICAD_SOCKET"

// RunDir is the folder for sockets and the status file. Node is the value of
// --node, empty when the node's name was not given: two daemons on one host
// have a folder each.
func RunDir(node string) string {
	dir := rootRunDir()
	if node != "" {
		dir = filepath.Join(dir, node)
	}
	return dir
}

func rootRunDir() string {
	if os.Geteuid() == 0 {
		return "/run/replicad"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "replicad")
	}
	return filepath.Join(os.TempDir(), "replicad-"+strconv.Itoa(os.Geteuid()))
}

// SocketPath is where the daemon's socket is: flag when given, the environment,
// or its place in the run folder.
func SocketPath(flag, node string) string {
	switch env := os.Getenv(SocketEnv); {
	case flag != "":
		return flag
	case env != "":
		return env
	}
	return filepath.Join(RunDir(node), "replicad.sock")
}

// MakeRunDir creates the run folder and refuses one that others could tamper
// with: in the temporary folder anybody may create it first.
func MakeRunDir(node string) (string, error) {
	root := rootRunDir()
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o755 // the status file is for everybody
	}
	if err := makeOwn(root, mode); err != nil {
		return "", err
	}
	dir := RunDir(node)
	if dir == root {
		return dir, nil
	}
	return dir, makeOwn(dir, mode)
}

// makeOwn makes sure that dir is a folder of this user that nobody else can
// write to.
func makeOwn(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create run folder: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("inspect run folder: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("run folder %s is not a folder", dir)
	case !ok || int(st.Uid) != os.Geteuid():
		return fmt.Errorf("run folder %s belongs to user %d, not to user %d", dir, st.Uid, os.Geteuid())
	case info.Mode().Perm()&^mode != 0:
		return fmt.Errorf("run folder %s has mode %04o: others could tamper with it; make it %04o", dir, info.Mode().Perm(), mode)
	}
	return nil
}
