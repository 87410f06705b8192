package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

const defaultPort = "10809" // assigned by IANA

// target is where a URI points.
type target struct {
	network, address string
	export           string
}

// parseURI understands nbd+unix:///NAME?socket=PATH and nbd://HOST[:PORT]/NAME.
func parseURI(uri string) (target, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return target{}, fmt.Errorf("parse nbd address: %w", err)
	}
	t := target{export: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd+unix":
		t.network, t.address = "unix", u.Query().Get("socket")
		if t.address == "" {
			return target{}, fmt.Errorf("parse nbd address %q: no ?socket=PATH", uri)
		}
	case "nbd":
		t.network, t.address = "tcp", u.Host
		if u.Hostname() == "" {
			return target{}, fmt.Errorf("parse nbd address %q: no host", uri)
		}
		if u.Port() == "" {
			t.address = net.JoinHostPort(u.Hostname(), defaultPort)
		}
	default:
		return target{}, fmt.Errorf("parse nbd address %q: %w", uri, errScheme)
	}
	return t, nil
}

var errScheme = errors.New("the scheme is neither nbd nor nbd+unix")
