package main

import (
	"os"
	"testing"
)

// TestMain lets the test binary be the servers, as the program itself is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveVerb {
		os.Exit(command(os.Args[1:]))
	}
	os.Exit(m.Run())
}
