package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// replyBytesMax bounds what a client reads of one answer.
const replyBytesMax = 64 << 20

// ErrNoDaemon means that nobody answers on the socket.
var ErrNoDaemon = errors.New("no daemon")

// Client asks the daemon on one socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the daemon on socket. It connects when asked.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	var dialer net.Dialer
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, // one question, usually
	}
	return c
}

// Socket returns the socket's path.
func (c *Client) Socket() string { return c.socket }

// Daemon asks who answers. Errors match ErrNoDaemon if nobody does.
func (c *Client) Daemon(ctx context.Context) (Daemon, error) {
	var d Daemon
	err := c.getJSON(ctx, "/v1/daemon", nil, &d)
	return d, err
}

// Resources asks for the state of every resource of the daemon's node.
func (c *Client) Resources(ctx context.Context) ([]Resource, error) {
	var all []Resource
	err := c.getJSON(ctx, "/v1/resources", nil, &all)
	return all, err
}

// Resource asks for the state of one resource.
func (c *Client) Resource(ctx context.Context, name string) (Resource, error) {
	var r Resource
	err := c.getJSON(ctx, "/v1/resources/"+url.PathEscape(name), nil, &r)
	return r, err
}

// Text gets a page of the daemon: /proc/drbd or /v1/status.
func (c *Client) Text(ctx context.Context, path string, resources []string) (string, error) {
	query := url.Values{"resource": resources}
	text, err := c.do(ctx, http.MethodGet, path, query)
	return string(text), err
}

// Ask puts a question about a resource.
func (c *Client) Ask(ctx context.Context, resource, question string, options url.Values) (Reply, error) {
	return c.reply(ctx, http.MethodGet, resource, question, options)
}

// Command has the daemon carry out a verb and waits for the outcome.
func (c *Client) Command(ctx context.Context, resource, verb string, options url.Values) (Reply, error) {
	return c.reply(ctx, http.MethodPost, resource, verb, options)
}

func (c *Client) reply(ctx context.Context, method, resource, verb string, options url.Values) (Reply, error) {
	var r Reply
	text, err := c.do(ctx, method, "/v1/resources/"+url.PathEscape(resource)+"/"+verb, options)
	if err != nil {
		return r, err
	}
	return r, decode(text, &r)
}

func (c *Client) getJSON(ctx context.Context, path string, query url.Values, into any) error {
	text, err := c.do(ctx, http.MethodGet, path, query)
	if err != nil {
		return err
	}
	return decode(text, into)
}

func decode(text []byte, into any) error {
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("understand the daemon's answer: %w", err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values) ([]byte, error) {
	target := url.URL{Scheme: "http", Host: "replicad", RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	req.URL.RawPath = path
	if req.URL.Path, err = url.PathUnescape(path); err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failure(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, replyBytesMax))
	if err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("daemon on %s answers %s: %s", c.socket, resp.Status, text)
	}
	return text, nil
}

// failure tells the absence of a daemon from other trouble.
func (c *Client) failure(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w on %s", ErrNoDaemon, c.socket)
	}
	return fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
}
