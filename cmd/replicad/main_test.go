package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"replicad/internal/reqtool"
)

// TestMain lets the test binary pose as the program, under both its names:
// tests run real daemons.
func TestMain(m *testing.M) {
	pose := func() { os.Exit(mainCode()) }
	testscript.Main(m, map[string]func(){"replicad": pose, "drbdadm": pose})
}

// TestScript plays the scripts of testdata/script: what an administrator
// types, and every word and exit code of the answer.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setUpScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"pair": scriptPair, "be1": onNode("be1"), "be2": onNode("be2"),
			"start": scriptStart, "halt": scriptStop, "kill9": scriptKill, "hangup": scriptHangUp,
			"await": scriptAwait, "hold": scriptHold, "release": scriptRelease, "shut": scriptShut, "exits": scriptExits,
			"put": scriptPut, "has": scriptHas, "sameas": scriptSameAs, "append": scriptAppend, "subst": scriptSubst, "ext4": scriptExt4,
		},
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("REPLICAD_UPDATE_SCRIPTS") != "",
	})
}

// scriptTool finds an outside program for a script.
func scriptTool(ts *testscript.TestScript, name string) string {
	return reqtool.Path(ts.Value(pairKey{}).(*pair).t, name)
}
