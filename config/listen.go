package config

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Listen is an address the NBD server listens on.
type Listen struct {
	Network string // "unix" or "tcp"
	Address string // an absolute path, or host:port with a numeric host, "localhost" or "" for all
}

// String returns the form nbd-listen has in the configuration.
func (l Listen) String() string {
	if l.Network == "unix" {
		return "unix:" + l.Address
	}
	return l.Address
}

// exposed reports whether other machines can reach the address.
func (l Listen) exposed() bool {
	if l.Network == "unix" {
		return false
	}
	host, _, err := net.SplitHostPort(l.Address)
	if err != nil || host == "localhost" {
		return err != nil
	}
	ip, err := netip.ParseAddr(host)
	return err != nil || !ip.Unmap().IsLoopback()
}

// parseListen reads unix:PATH or HOST:PORT.
func parseListen(text string) (Listen, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		return Listen{Network: "unix", Address: path}, checkUnixPath(path)
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return Listen{}, errors.New("neither unix:PATH nor IP:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Listen{}, errors.New("the port must be a number from 1 to 65535")
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return Listen{}, errors.New("the host must be a numeric address or localhost")
	}
	return Listen{Network: "tcp", Address: text}, nil
}

func checkUnixPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("the path of the socket must be absolute")
	case len(path) > unixPathBytesMax:
		return errors.New("the path of the socket is longer than " + strconv.Itoa(unixPathBytesMax) + " bytes")
	default:
		return nil
	}
}

// expandNode replaces %n in one of our path statements by the node name.
func expandNode(value, node string) string { return strings.ReplaceAll(value, "%n", node) }
