//go:build mutants

package sim

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"replicad/internal/figure"
	"replicad/internal/mutant"
	"replicad/internal/mutant/plant"
)

// mutantSeeds is how many seeds a planted bug may survive.
var mutantSeeds = flag.Int("mutant-seeds", 3000, "number of seeds that a planted bug may survive")

const (
	huntTime = 4 * time.Minute // for all seeds of one mutant
	unitTime = time.Minute     // for the tests of one package
)

// unitTests are the mutants that no simulated pair can show, and the tests
// that must fail instead.
var unitTests = map[mutant.Mutant]string{
	// Disk states have the last word over these verdicts, or a new disk has all
	// its bits set anyway.
	mutant.Compare10: "^TestCompareRules$",
	mutant.Compare20: "^TestCompareRules$",
	mutant.Compare30: "^TestCompareRules$",
	// Under protocol C the peer has what a crashed Primary completed.
	mutant.Compare40Crashed: "^TestScripts$",
	mutant.Compare41:        "^TestCompareRules$",
	// Rare: the resyncs that end so leave the ids that rules 34, 35, 50 and 70 know.
	mutant.Compare35:  "^TestCompareRules$",
	mutant.Compare36:  "^TestCompareRules$",
	mutant.Compare37:  "^TestCompareRules$",
	mutant.Compare51:  "^TestCompareCorrections$",
	mutant.Compare60:  "^TestCompareRules$",
	mutant.Compare80:  "^TestCompareRules$",
	mutant.Compare100: "^TestCompareStrangersNeverSync$",

	// The other node's copy of the bit, or the barrier that fails next, makes up
	// for it but for crashes of both at one moment.
	mutant.ClearOnStaleAck:       "^TestSourceKeepsBitsOfLaterAcks$",
	mutant.TargetClearsUnflushed: "^TestTargetKeepsBitsUntilFlushed$",
	// States that simulated pairs reach in few seeds: a crash while all bits are
	// being set, a Primary without a disk, or as the target of a resync.
	mutant.FullSyncFlagEarly:       "^TestFullSyncFlagOutlivesTheBitmapWrite$",
	mutant.FullSyncDroppedAtAttach: "^TestAttachFinishesAFullSync$",
	mutant.AttachWithoutIndicator:  "^TestAttachUnderAPrimaryIndicates$",
	mutant.CrashedNotNoted:         "^TestAttachNotesACrashedPrimary$",
	mutant.AloneWithoutLog:         "^TestServedWriteIsLogged$",
	mutant.LateWritesUnmarked:      "^TestLateWritesAreMarked$",
	mutant.ReadInconsistent:        "^TestPrimaryTargetReadsMarkedBlocksRemotely$",
	mutant.GateLeftOpen:            "^TestPrimaryTargetReadsMarkedBlocksRemotely$",
	mutant.ReceivedWriteDropped:    "^TestReviewPeerWriteDrainedAfterLossIsMarked$",
	mutant.ResizeClean:             "^TestBitmapAgainstModel$",

	// The simulator needs some 2900 seeds for each of these.
	mutant.ResyncRacesWrites:  "^TestResyncBlockWaitsForMirroredWrite$",
	mutant.SyncUUIDNotDurable: "^TestSyncUUIDIsDurableFirst$",

	// Simulated logs have 16 slots at most, and few transactions.
	mutant.ContextSkipsSlot:    "^TestReplayOfAnyRingRebuildsHotSet$",
	mutant.ReplayNewestByValue: "^TestReplayFindsTheHotExtents$",
	// A disk that lies, or whose content rots.
	mutant.TornBlockAccepted: "^TestReplayFindsTheHotExtents$",
	mutant.NumberUnchecked:   "^TestLostWriteIsRefused$",
	mutant.SuperUnchecked:    "^TestAnyFlippedBitIsFound$",
	mutant.CacheBelieved:     "^TestKilledWhileTheLogIsEmptied$",

	// A network, or a peer, that lies.
	mutant.StaleSeqAccepted:     "^TestStaleAnswersCompleteNothing$",
	mutant.StaleSessionAccepted: "^TestStaleAnswersCompleteNothing$",
	mutant.PayloadUnchecked:     "^TestEveryBitFlipIsNoticed$",
	mutant.HeaderUnchecked:      "^TestEveryBitFlipIsNoticed$",
	mutant.BodyUnchecked:        "^TestEveryBitFlipIsNoticed$",
	mutant.SizeUnchecked:        "^TestRefusedHeaders$",
	mutant.SessionUnproved:      "^TestSplice$",
	mutant.ProofWithoutRole:     "^TestReflection$",
	mutant.ShortBitmapAccepted:  "^TestBitmapShorterThanAnnounced$",
	mutant.ChannelUnchecked:     "^TestWrongChannel$",

	// Of those held out: this one survived 3000 seeds.
	mutant.FlushKeepsEpochOpen: "^TestFlushOrdersThePeersDisk$",
	// So did this one and the tests that there were.
	mutant.ReconnectFlushUnasked: "^TestFlushAfterReconnectAsksThePeer$",
	// And this one: after a sync that failed every later one of the device fails
	// too, so the disk is given up a moment later.
	mutant.BitmapSyncErrorLost: "^TestDeviceErrorsAreReported$",
	// This one was caught at seed 2970, too late to rely on.
	mutant.SuperJoinedByID: "^TestFullSyncFlagOutlivesTheBitmapWrite$",
}

// simulator is the checker of mutants that no unit test is named for.
const simulator = "simulator"

// caught says who noticed a mutant.
type caught struct {
	m       mutant.Info
	checker string // simulator, or the failing test
	seeds   int
	how     string
}

// TestMutants plants every bug in turn, each in processes of its own, and
// demands that the simulator breaks a promise, or that the unit tests which
// are named for it fail.
func TestMutants(t *testing.T) {
	var mu sync.Mutex
	var found []caught
	planted, heldOut := 0, 0
	t.Run("all", func(t *testing.T) {
		for _, m := range mutant.All() {
			t.Run(m.Name, func(t *testing.T) {
				t.Parallel()
				c := hunt(t, m)
				mu.Lock()
				defer mu.Unlock()
				planted++
				if isHeldOut(m) {
					heldOut++
				}
				if c != nil {
					found = append(found, *c)
				}
			})
		}
	})
	report(t, planted, found)
	reportHeldOut(heldOut, found)
}

// isHeldOut reports whether a mutant was chosen after the simulator was frozen.
func isHeldOut(m mutant.Info) bool {
	return slices.ContainsFunc(mutant.HeldOut(), func(h mutant.Info) bool { return h.ID == m.ID })
}

// hunt looks for a mutant with the checker that must find it.
func hunt(t *testing.T, m mutant.Info) *caught {
	if tests, ok := unitTests[m.ID]; ok {
		test := failingTest(t, m, tests)
		if test == "" {
			t.Errorf("%s (%s: %s) survived %s of its package", m.Name, m.Room, m.Breaks, tests)
			return nil
		}
		return &caught{m: m, checker: test}
	}
	out := runWith(t, m, huntTime, ".", os.Args[0], "-test.run=^TestHunt$", "-test.v", fmt.Sprintf("-mutant-seeds=%d", *mutantSeeds))
	hit := huntResult.FindSubmatch(out)
	if hit == nil {
		t.Errorf("%s (%s: %s) survived %d seeds\n%s", m.Name, m.Room, m.Breaks, *mutantSeeds, tail(out))
		return nil
	}
	c := &caught{m: m, checker: simulator, how: string(hit[2]) + ": " + string(hit[3])}
	if _, err := fmt.Sscan(string(hit[1]), &c.seeds); err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	huntResult = regexp.MustCompile(`(?m)^caught at seed (\d+) by (\S+): (.*)$`)
	testFailed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
)

// TestHunt is the process that runs a mutant in the simulator: seed by seed
// until one breaks a promise that it keeps without the bug. A seed that fails
// anyway proves nothing about the mutant.
func TestHunt(t *testing.T) {
	m, ok := mutant.Named(os.Getenv(plant.Env))
	if !ok {
		t.Skip("TestMutants runs it with a bug planted")
	}
	var runner Runner
	for seed := uint64(1); seed <= uint64(*mutantSeeds); seed++ {
		mutant.Plant(m.ID)
		_, _, f := runner.Run(OptionsOf(seed), nil)
		if f == nil {
			continue
		}
		mutant.Plant(mutant.None)
		if _, _, own := Run(OptionsOf(seed), nil); own != nil {
			continue // the simulator's own run reports it
		}
		text, _, _ := strings.Cut(f.Text, "\n")
		fmt.Printf("\ncaught at seed %d by %s: %s\n", seed, f.Property, text)
		return
	}
}

// failingTest runs the named tests of the mutant's package with the bug
// planted and returns the first that fails.
func failingTest(t *testing.T, m mutant.Info, tests string) string {
	dir := folderOf[m.Room]
	out := runWith(t, m, unitTime, dir, filepath.Join(testBinaries(t), filepath.Base(dir)+".test"), "-test.run="+tests)
	if hit := testFailed.FindSubmatch(out); hit != nil {
		return string(hit[1])
	}
	return ""
}

// folderOf are the folders of the rooms, seen from here.
var folderOf = map[string]string{
	mutant.Core: "../core", mutant.Bitmap: "../../bitmap", mutant.Meta: "../meta", mutant.Wire: "../../wire",
}

// runWith runs a test binary with the bug planted and returns its output.
func runWith(t *testing.T, m mutant.Info, limit time.Duration, dir, program string, args ...string) []byte {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), plant.Env+"="+m.Name, "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", program, err)
	}
	return out
}

// testBinaries builds the tests of all rooms once and returns their folder.
func testBinaries(t *testing.T) string {
	buildOnce.Do(func() {
		buildDir, buildErr = os.MkdirTemp("", "replicad-mutants-")
		args := []string{"test", "-c", "-tags", "mutants", "-o", buildDir + string(filepath.Separator)}
		for _, dir := range folderOf {
			args = append(args, dir)
		}
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return buildDir
}

var (
	buildOnce sync.Once
	buildDir  string
	buildErr  error
)

// report prints who caught what, in the order of the list.
func report(t *testing.T, planted int, found []caught) {
	if buildDir != "" {
		if err := os.RemoveAll(buildDir); err != nil {
			t.Error(err)
		}
	}
	t.Logf("mutants, seeds it took, and what caught them:\n%s", rows(found, false))
	t.Logf("chosen after the simulator was frozen, by somebody who did not write it:\n%s", rows(found, true))
	figure.Print("mutants-planted", planted)
	figure.Print("mutants-caught", len(found))
}

// reportHeldOut counts who caught those that were held out.
func reportHeldOut(planted int, found []caught) {
	bySimulator, byTests := 0, 0
	for _, c := range found {
		switch {
		case !isHeldOut(c.m):
		case c.checker == simulator:
			bySimulator++
		default:
			byTests++
		}
	}
	figure.Print("mutants-held-out-planted", planted)
	figure.Print("mutants-held-out-caught-by-simulator", bySimulator)
	figure.Print("mutants-held-out-caught-by-tests", byTests)
}

// rows are the lines of the report about the mutants that were held out, or
// about the others.
func rows(found []caught, heldOut bool) string {
	var table strings.Builder
	for _, m := range mutant.All() {
		for _, c := range found {
			if c.m.ID != m.ID || isHeldOut(m) != heldOut {
				continue
			}
			seeds := "-"
			if c.seeds > 0 {
				seeds = fmt.Sprint(c.seeds)
			}
			fmt.Fprintf(&table, "%-6s  %-32s  %5s  %s %.90s\n", m.Room, m.Name, seeds, c.checker, c.how)
		}
	}
	return table.String()
}

// tail is the end of a process's output.
func tail(out []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-20):], []byte("\n"))
}
