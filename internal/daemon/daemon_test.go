package daemon

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"replicad/config"
	"replicad/internal/ctl"
	"replicad/nbd"
	"replicad/replica"
	"replicad/replica/core"
	"replicad/replica/disk"
	"replicad/replica/meta"
	"replicad/replica/status"
)

// local resolves the first resource of a configuration for node be1.
func local(t *testing.T, text string) *config.LocalResource {
	t.Helper()
	cfg, err := config.LoadFS(fstest.MapFS{"r.conf": {Data: []byte(text)}}, "r.conf")
	if err != nil {
		t.Fatal(err)
	}
	all, err := cfg.Resolve(config.Self{Node: "be1", RunDir: "/run/x"})
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

const fullConfig = `resource r0 {
  protocol B;
  net { shared-secret "s"; after-sb-0pri discard-younger-primary; after-sb-1pri discard-secondary;
        after-sb-2pri call-pri-lost-after-sb; always-asbp; rr-conflict violently; data-integrity-alg sha256;
        timeout 40; ping-int 5; ping-timeout 20; ko-count 3; connect-int 7; sndbuf-size 1M; rcvbuf-size 2M; }
  disk { resync-rate 10M; c-max-rate 20M; c-plan-ahead 15; fencing resource-and-stonith; al-updates no; al-extents 257; size 1G; }
  options { on-no-data-accessible suspend-io; }
  handlers { split-brain "echo split"; }
  on be1 { device /dev/nbd3; disk /dev/a; meta-disk internal; address 127.0.0.1:7788; }
  on be2 { device /dev/nbd3; disk /dev/b; flexible-meta-disk /dev/m; address 127.0.0.1:7789; }
}`

// What the file says reaches the state machine, in its units.
func TestSettings(t *testing.T) {
	got := settings(local(t, fullConfig), "/etc/r.conf")
	second := core.Duration(time.Second)
	want := replica.Config{
		Resource: "r0", Node: "be1", ConfigPath: "/etc/r.conf",
		Handlers: map[string]string{"split-brain": "echo split"},
		Link: replica.LinkConfig{
			Local: netip.MustParseAddrPort("127.0.0.1:7788"), Peer: netip.MustParseAddrPort("127.0.0.1:7789"), PeerName: "be2",
			Secret: "s", ConnectInterval: 7 * time.Second, PingTimeout: 2 * time.Second, WriteTimeout: 12 * time.Second,
			SendBuffer: 1 << 20, ReceiveBuffer: 2 << 20,
		},
		Volumes: []replica.VolumeConfig{{Minor: 3, Device: "/dev/nbd3", Disk: "/dev/a", Size: 1 << 30, ALExtents: 257}},
	}
	want.Core.Net = core.Defaults()
	want.Core.Net.Protocol = 'B'
	want.Core.Net.AfterSB0, want.Core.Net.AfterSB1, want.Core.Net.AfterSB2 = "discard-younger-primary", "discard-secondary", "call-pri-lost-after-sb"
	want.Core.Net.AlwaysASBP, want.Core.Net.RRConflict, want.Core.Net.IntegrityAlg = true, "violently", "sha256"
	want.Core.Net.Timeout, want.Core.Net.PingInt, want.Core.Net.PingTimeout, want.Core.Net.KoCount = 4*second, 5*second, 2*second, 3
	v := core.DefaultVolume(0)
	v.Fencing, v.OnNoData, v.ALUpdates = core.FencingResourceAndStonith, core.NoDataSuspendIO, false
	v.ResyncRate, v.CMaxRate, v.CPlanAhead = 10<<20, 20<<20, 3*second/2
	want.Core.Volumes = []core.VolumeConfig{v}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n%+v\nwant\n%+v", got, want)
	}
}

func TestSettingsOfMetaDisks(t *testing.T) {
	tests := []struct {
		statement string
		kind      replica.MetaKind
		path      string
		slot      int
	}{
		{"meta-disk internal;", replica.MetaInternal, "", 0},
		{"flexible-meta-disk /dev/m;", replica.MetaFlexible, "/dev/m", 0},
		{"meta-disk /dev/m[2];", replica.MetaIndexed, "/dev/m", 2},
	}
	for _, tt := range tests {
		c := settings(local(t, strings.Replace(fullConfig, "meta-disk internal;", tt.statement, 1)), "")
		if v := c.Volumes[0]; v.MetaKind != tt.kind || v.MetaPath != tt.path || v.MetaSlot != tt.slot {
			t.Errorf("%s: %+v", tt.statement, v)
		}
	}
}

func TestReplyErrors(t *testing.T) {
	for result := core.IOOK; result <= core.IOShutdown+1; result++ {
		err := replyError(result)
		if (err == nil) != (result == core.IOOK) {
			t.Errorf("result %d becomes %v", result, err)
		}
	}
	if replyError(core.IONoSpace) != nbd.ENOSPC || replyError(core.IOShutdown) != nbd.ESHUTDOWN || replyError(core.IOInvalid) != nbd.EINVAL {
		t.Error("the numbers are mixed up")
	}
}

// A request's way through the adapter costs no allocation.
func TestPendingDoesNotAllocate(t *testing.T) {
	h := &handler{}
	req := &nbd.Request{}
	h.put(h.take())
	if n := testing.AllocsPerRun(1000, func() {
		p := h.take()
		p.req = req
		_ = replica.IO{Op: operation(nbd.OpWrite), Done: p}
		h.put(p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestExportName(t *testing.T) {
	for _, tt := range []struct {
		volume int
		only   bool
		want   string
	}{{0, true, "r0"}, {0, false, "r0/0"}, {1, true, "r0/1"}, {7, false, "r0/7"}} {
		if got := exportName("r0", tt.volume, tt.only); got != tt.want {
			t.Errorf("volume %d, only %v: %s, want %s", tt.volume, tt.only, got, tt.want)
		}
	}
}

func TestWhyNotServed(t *testing.T) {
	s := replica.Snapshot{Resource: "r0", Peer: "be2"}
	s.Role = core.Secondary
	for _, tt := range []struct {
		peer core.Role
		want string
	}{{core.Primary, "the peer be2 is Primary"}, {core.Secondary, "and so is the peer be2"}, {core.RoleUnknown, "the peer be2 is not connected"}} {
		s.Volumes = []replica.VolumeSnapshot{{VolumeStatus: core.VolumeStatus{State: core.State{Peer: tt.peer}}}}
		got := whyNotServed(s)
		if !strings.HasPrefix(got, "r0: this node is Secondary") || !strings.Contains(got, tt.want) || !strings.Contains(got, `"replicad primary r0" here first`) {
			t.Errorf("peer %s: %s", tt.peer, got)
		}
	}
}

func TestTune(t *testing.T) {
	volumes := []core.VolumeConfig{{Vol: 0}, {Vol: 1}}
	for _, tt := range []struct{ name, value, fault string }{
		{"resync-rate", "1100M", ""},
		{"resync-rate", "512K", ""},
		{"resync-rate", "700", ""},
		{"c-plan-ahead", "20", ""},
		{"resync-rate", "0", "out of range"},
		{"resync-rate", "5G", "out of range"},
		{"resync-rate", "fast", "is not a number"},
		{"resync-rate", "", "is not a number"},
		{"resync-rate", "99999999999999999999", "is not a number"},
		{"al-extents", "67", "cannot be changed"},
	} {
		err := tune(volumes, -1, tt.name, tt.value)
		if (err == nil) != (tt.fault == "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("--%s=%s: %v, want %q", tt.name, tt.value, err, tt.fault)
		}
	}
	if err := tune(volumes, 1, "resync-rate", "1M"); err != nil || volumes[1].ResyncRate != 1<<20 || volumes[0].ResyncRate != 700<<10 || volumes[0].CPlanAhead != core.Duration(2*time.Second) {
		t.Errorf("%v, %+v", err, volumes)
	}
}

func TestGIOfRunningVolume(t *testing.T) {
	v := &replica.VolumeSnapshot{}
	v.Gen = core.Generation{Current: 0x64A60534C51AA885, H1: 0xE4AEFCE0CD0441C3, H2: 4}
	v.Flags = core.FlagConsistent | core.FlagWasUpToDate | core.FlagPrimaryInd | core.FlagConnectedInd
	get, show := giOf(v)
	const want = "64A60534C51AA885:0000000000000000:E4AEFCE0CD0441C3:0000000000000004:1:1:1:1:0:0:0"
	if get != want {
		t.Errorf("%s, want %s", get, want)
	}
	if !strings.Contains(show, want) || !strings.HasSuffix(show, "\nflags: Primary, Connected, UpToDate\nmeta-data: need apply-al\n") {
		t.Error(show)
	}
}

func TestRate(t *testing.T) {
	p := &status.SyncProgress{Left: 100, Far: status.Mark{Left: 356, Age: 2 * time.Second}}
	if got := rate(p); got != 512 {
		t.Errorf("%d KiB/s, want 512", got)
	}
	p.Far = status.Mark{Left: 50}
	if got := rate(p); got != 0 {
		t.Errorf("%d KiB/s while it grows, want 0", got)
	}
}

func TestNBDURI(t *testing.T) {
	for _, tt := range []struct{ address, name, want string }{
		{"unix:/run/r0.nbd", "r0", "nbd+unix:///r0?socket=/run/r0.nbd"},
		{"127.0.0.1:10809", "r0/1", "nbd://127.0.0.1:10809/r0%2F1"},
	} {
		if got := nbdURI(tt.address, tt.name); got != tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
	}
}

func TestStatusFile(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "proc", "drbd"), filepath.Join(dir, "other")
	var f statusFile
	for _, path := range []string{one, one, two} {
		if err := f.write(path, []byte("text of "+path)); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "text of "+path {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	if _, err := os.Stat(one); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old place still has a file: %v", err)
	}
	f.remove()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 { // the folder proc
		t.Errorf("left: %v, %v", left, err)
	}
	blocked := statusFile{}
	if err := blocked.write(filepath.Join(dir, "proc"), nil); err == nil {
		t.Error("a folder was written over")
	}
}

func TestSocketHasOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	if err := os.WriteFile(path, []byte("left behind"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := takeSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	_, err = takeSocket(path)
	held, ok := errors.AsType[*HeldError](err)
	if !ok || held.PID != os.Getpid() {
		t.Errorf("second holder: %v", err)
	}
	s.release()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	again, err := takeSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	again.release()
	if _, err := takeSocket("/" + strings.Repeat("x", socketBytesMax)); err == nil || !strings.Contains(err.Error(), "unix sockets take") {
		t.Errorf("long path: %v", err)
	}
}

// startDaemon runs a daemon of one resource, with metadata if wanted, until
// the test ends. It returns a client and the folder.
func startDaemon(t *testing.T, withMetadata bool) (*ctl.Client, string) {
	dir, err := os.MkdirTemp("", "rd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	heard := listenNotify(t, filepath.Join(dir, "notify"))
	image := filepath.Join(dir, "a.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if withMetadata {
		createMetadata(t, image)
	}
	text := `global { status-file "DIR/proc/drbd"; } resource r0 { device /dev/nbd0; meta-disk internal; disk DIR/a.img; nbd-listen "unix:DIR/r0.nbd";
		on be1 { address 127.0.0.1:1; } on be2 { address 127.0.0.1:2; } }`
	path := filepath.Join(dir, "r.conf")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	o := Options{ConfigPath: path, Self: config.Self{Node: "be1", RunDir: dir}, Socket: filepath.Join(dir, "s.sock"), Version: "v1", StopTimeout: 10 * time.Second}
	go func() { done <- Run(ctx, o, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		expectNotify(t, heard, "STOPPING=1")
	})
	expectNotify(t, heard, "READY=1")
	return ctl.NewClient(o.Socket), dir
}

func createMetadata(t testing.TB, image string) {
	d, err := disk.Open(image, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = meta.Create(d, meta.Placement{Kind: meta.Internal}, meta.CreateOptions{Name: image, Confirmed: true})
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
}

// listenNotify plays the service manager.
func listenNotify(t *testing.T, path string) <-chan string {
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	heard := make(chan string, 10)
	go func() {
		buf := make([]byte, 100)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			heard <- string(buf[:n])
		}
	}()
	return heard
}

func expectNotify(t *testing.T, heard <-chan string, want string) {
	t.Helper()
	select {
	case got := <-heard:
		if got != want {
			t.Fatalf("the service manager heard %q, not %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the service manager never heard %q", want)
	}
}

func TestDaemonAnswers(t *testing.T) {
	c, dir := startDaemon(t, true)
	d, err := c.Daemon(t.Context())
	if err != nil || d.PID != os.Getpid() || d.Node != "be1" || d.Version != "v1" || d.Config != filepath.Join(dir, "r.conf") {
		t.Errorf("%+v, %v", d, err)
	}
	r, err := c.Resource(t.Context(), "r0")
	if err != nil || !r.Configured || !r.Volumes[0].Attached || r.Volumes[0].Disk != "Inconsistent" || r.Peer != "be2" {
		t.Errorf("%+v, %v", r, err)
	}
	if want := []string{"nbd+unix:///r0?socket=" + dir + "/r0.nbd"}; !reflect.DeepEqual(r.Volumes[0].NBD, want) {
		t.Errorf("NBD %q, want %q", r.Volumes[0].NBD, want)
	}
	reply, err := c.Command(t.Context(), "r0", "primary", map[string][]string{"force": {"yes"}})
	if err != nil || reply.Exit != 0 {
		t.Errorf("%+v, %v", reply, err)
	}
	for _, path := range []string{"frobnicate", "up/more"} {
		if _, err := c.Command(t.Context(), "r0", path, nil); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := c.Ask(t.Context(), "r0", "role", map[string][]string{"volume": {"x"}}); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("volume x: %v", err)
	}
	if reply, err := c.Command(t.Context(), "nosuch", "primary", nil); err != nil || reply.Exit != exitUsage {
		t.Errorf("%+v, %v", reply, err)
	}
	if reply, err := c.Command(t.Context(), "nosuch", "up", nil); err != nil || reply.Exit != exitUsage {
		t.Errorf("%+v, %v", reply, err)
	}
}

// The empty export name means the only export, and what is written comes back.
func TestDaemonServesNBD(t *testing.T) {
	c, dir := startDaemon(t, true)
	if reply, err := c.Command(t.Context(), "r0", "primary", map[string][]string{"force": {"yes"}}); err != nil || reply.Exit != 0 {
		t.Fatalf("%+v, %v", reply, err)
	}
	client, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+filepath.Join(dir, "r0.nbd"))
	if err != nil {
		t.Fatal(err)
	}
	want := []byte(strings.Repeat("replicad", 1024))
	got := make([]byte, len(want))
	if _, err := client.WriteFUA(want, 8192); err != nil {
		t.Fatal(err)
	}
	if err := client.Trim(0, 8192); err != nil {
		t.Fatal(err)
	}
	if err := client.WriteZeroes(8192+4096, 4096, true); err != nil {
		t.Fatal(err)
	}
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ReadAt(got, 8192); err != nil || string(got[:4096]) != string(want[:4096]) || strings.Trim(string(got[4096:]), "\x00") != "" {
		t.Errorf("read back %q…, %v", got[:16], err)
	}
	reply, err := c.Command(t.Context(), "r0", "secondary", nil)
	if err != nil || reply.Exit != 11 || !strings.Contains(reply.Hint, "1 NBD client holds r0 open") {
		t.Errorf("%+v, %v", reply, err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

// A resource without metadata leaves its disk free and comes up later.
func TestDaemonWithoutMetadata(t *testing.T) {
	c, dir := startDaemon(t, false)
	r, err := c.Resource(t.Context(), "r0")
	if err != nil || r.Volumes[0].Attached {
		t.Errorf("%+v, %v", r, err)
	}
	createMetadata(t, filepath.Join(dir, "a.img"))
	if reply, err := c.Command(t.Context(), "r0", "up", nil); err != nil || reply.Exit != 0 {
		t.Errorf("%+v, %v", reply, err)
	}
}

func TestWaitTimeout(t *testing.T) {
	u := &unit{}
	u.local.Store(local(t, strings.Replace(fullConfig, "options {", "startup { wfc-timeout 1; degr-wfc-timeout 2; outdated-wfc-timeout 3; } options {", 1)))
	state := func(s core.State) replica.Snapshot {
		return replica.Snapshot{Volumes: []replica.VolumeSnapshot{{VolumeStatus: core.VolumeStatus{State: s}}}}
	}
	for _, tt := range []struct {
		state core.State
		given string
		want  time.Duration
	}{
		{core.State{Disk: core.UpToDate}, "", time.Second},
		{core.State{Disk: core.UpToDate, PDisk: core.Outdated}, "", 2 * time.Second},
		{core.State{Disk: core.Outdated}, "", 3 * time.Second},
		{core.State{Disk: core.Outdated}, "1.5", 1500 * time.Millisecond},
		{core.State{Disk: core.Outdated}, "0", 0},
	} {
		o := options{values: map[string][]string{"timeout": {tt.given}}}
		if got, err := waitTimeout(u, state(tt.state), o); err != nil || got != tt.want {
			t.Errorf("%+v given %q: %s, %v, want %s", tt.state, tt.given, got, err, tt.want)
		}
	}
}
