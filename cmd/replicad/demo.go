package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"replicad/internal/demo"
)

// demoCmd tells the whole story.
type demoCmd struct {
	Dir  string `placeholder:"DIR" help:"An empty or new folder to work in (default: a temporary one)."`
	Size string `default:"64M" placeholder:"SIZE" help:"Size of each node's disk (64M)."`
	Keep bool   `help:"Keep the folder."`
}

// Run is called by kong.
func (c *demoCmd) Run(a *app) error {
	size, err := parseSize(c.Size)
	if err != nil {
		return fail(exitUsage, "--size: %s", err.Error())
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	err = demo.Run(a.ctx, demo.Options{Dir: c.Dir, Size: size, Keep: c.Keep, Exe: exe, Out: a.out})
	if err != nil {
		return fail(exitUsage, "%s", err.Error())
	}
	return nil
}

// parseSize reads a number of bytes with K, M or G.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "kKmMgG")
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || len(text)-len(digits) > 1 {
		return 0, fmt.Errorf("%q is not a size such as 64M", text)
	}
	switch strings.ToUpper(text[len(digits):]) {
	case "K":
		n <<= 10
	case "M":
		n <<= 20
	case "G":
		n <<= 30
	}
	return n, nil
}
