package main

// demoCmd tells the whole story.
type demoCmd struct {
	Dir  string `placeholder:"DIR" help:"Where to work (default: a new temporary folder)."`
	Size string `default:"64M" placeholder:"SIZE" help:"Size of each node's disk."`
	Keep bool   `help:"Keep the folder."`
}

// Run is called by kong.
func (c *demoCmd) Run(a *app) error { return fail(exitExecution, "not built yet: demo") }
