package config

import (
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// chef loads Chef's two files as Chef places them.
func chef(t *testing.T) *Config {
	t.Helper()
	main, err := os.ReadFile("testdata/chef/drbd.conf")
	if err != nil {
		t.Fatal(err)
	}
	res, err := os.ReadFile("testdata/chef/etc/pc0.res")
	if err != nil {
		t.Fatal(err)
	}
	fsys := files("/etc/drbd.conf", string(main), "/var/opt/opscode/drbd/etc/pc0.res", string(res),
		"/var/opt/opscode/drbd/etc/.#pc0.res", "an editor's lock file {")
	c, err := LoadFS(fsys, "/etc/drbd.conf")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestChef: Chef's own files are accepted as they are, and mean what they say.
func TestChef(t *testing.T) {
	c := chef(t)
	if got, want := warnings(c), "/etc/drbd.conf:2: 'usage-count' has no meaning in replicad and is ignored.\n"+
		"/etc/drbd.conf:11: cram-hmac-alg sha1: replicad always authenticates with HMAC-SHA-256.\n"+
		"/etc/drbd.conf:15: 'after-sb-0pri' is accepted, but not built yet: it works as disconnect.\n"+
		"/etc/drbd.conf:16: 'after-sb-1pri' is accepted, but not built yet: it works as disconnect.\n"+
		"/etc/drbd.conf:17: 'after-sb-2pri' is accepted, but not built yet: it works as disconnect."; got != want {
		t.Errorf("warnings:\n%s\nwant:\n%s", got, want)
	}
	list, err := c.Resolve(Self{Node: "backend2.example.com", RunDir: "/run/replicad"})
	if err != nil || len(list) != 1 {
		t.Fatalf("resolve: %d resources, %v", len(list), err)
	}
	r := list[0]
	if r.Name != "pc0" || r.Net.Protocol != 'C' || r.Local.Address.String() != "ipv4 10.33.33.11:7788" || r.Peer.Address.String() != "ipv4 10.33.33.10:7788" {
		t.Errorf("resource %+v", r)
	}
	if n := r.Net; n.AfterSB0Pri != "discard-younger-primary" || n.AfterSB1Pri != "discard-secondary" || n.AfterSB2Pri != "call-pri-lost-after-sb" || len(n.SharedSecret) != 60 {
		t.Errorf("net options %+v", n)
	}
	want := LocalVolume{
		Pos: Pos{"/var/opt/opscode/drbd/etc/pc0.res", 11}, Device: "/dev/drbd0", Disk: "/dev/opscode/drbd",
		MetaDisk:  MetaDisk{Kind: MetaInternal, Pos: Pos{"/var/opt/opscode/drbd/etc/pc0.res", 12}},
		NBDListen: []Listen{{"unix", "/run/replicad/pc0.nbd"}},
	}
	got := *r.Volumes[0]
	if got.Options.ResyncRate != 40<<20 || got.Options.OnIOError != "detach" {
		t.Errorf("disk options %+v", got.Options)
	}
	got.Options, got.Explicit = DiskOptions{}, Section{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("volume\n%+v, want\n%+v", got, want)
	}
	if r.Handlers["split-brain"] != "/usr/lib/drbd/notify-split-brain.sh root@example.com" || len(r.Handlers) != 1 {
		t.Errorf("handlers %v", r.Handlers)
	}
	if err := r.CheckAuthentication(); err != nil {
		t.Errorf("authentication: %v", err)
	}
}

// TestDefaults pins every default of the option tables in natural units.
func TestDefaults(t *testing.T) {
	r := one(t, inResource(""))
	wantNet := NetOptions{
		Protocol: 'C', Timeout: 6 * time.Second, ConnectInt: 10 * time.Second, PingInt: 10 * time.Second,
		PingTimeout: 500 * time.Millisecond, KoCount: 7, MaxBuffers: 2048, MaxEpochSize: 2048,
		SocketCheckTimeout: 500 * time.Millisecond, AfterSB0Pri: "disconnect", AfterSB1Pri: "disconnect",
		AfterSB2Pri: "disconnect", RRConflict: "disconnect", UseRLE: true, OnCongestion: "block", CongestionExtents: 1237,
	}
	if r.Net != wantNet {
		t.Errorf("net\n%+v, want\n%+v", r.Net, wantNet)
	}
	wantDisk := DiskOptions{
		OnIOError: "detach", Fencing: "dont-care", DiskFlushes: true, DiskDrain: true, MDFlushes: true,
		ResyncRate: 250 << 10, ALExtents: 1237, ALUpdates: true, CPlanAhead: 2 * time.Second,
		CDelayTarget: time.Second, CFillTarget: 100 * 512, CMaxRate: 102400 << 10, CMinRate: 250 << 10,
		ReadBalancing: "prefer-local", DiscardZeroesIfAligned: true,
	}
	if got := r.Volumes[0].Options; got != wantDisk {
		t.Errorf("disk\n%+v, want\n%+v", got, wantDisk)
	}
	if !reflect.DeepEqual(r.Startup, StartupOptions{}) || r.Options != (ResourceOptions{"io-error"}) || len(r.Handlers) != 0 {
		t.Errorf("startup %+v options %+v handlers %v", r.Startup, r.Options, r.Handlers)
	}
	if n := len(r.Explicit.Net.Settings) + len(r.Explicit.Disk.Settings); n != 0 {
		t.Errorf("%d options count as given", n)
	}
}

func TestUnits(t *testing.T) {
	r := one(t, inResource(`
 net { timeout 40; ping-timeout 7; connect-int 3; sndbuf-size 512K; rcvbuf-size 8s; congestion-fill 1M; protocol A; max-buffers 8K; }
 disk { size 10G; resync-rate 40M; c-max-rate 1G; c-min-rate 1000; c-fill-target 1k; c-plan-ahead 7; disk-timeout 25; rs-discard-granularity 64k; }
 startup { wfc-timeout 90; degr-wfc-timeout 010; wait-after-sb; become-primary-on be1; }`))
	n, d := r.Net, r.Volumes[0].Options
	if n.Timeout != 4*time.Second || n.PingTimeout != 700*time.Millisecond || n.SocketCheckTimeout != n.PingTimeout || n.ConnectInt != 3*time.Second ||
		n.SndbufSize != 512<<10 || n.RcvbufSize != 4096 || n.CongestionFill != 1<<20 || n.MaxBuffers != 8192 || n.Protocol != 'A' {
		t.Errorf("net %+v", n)
	}
	if d.Size != 10<<30 || d.ResyncRate != 40<<20 || d.CMaxRate != 1<<30 || d.CMinRate != 1000<<10 || d.CFillTarget != 1024 ||
		d.CPlanAhead != 700*time.Millisecond || d.DiskTimeout != 2500*time.Millisecond || d.RsDiscardGranularity != 64<<10 {
		t.Errorf("disk %+v", d)
	}
	if s := r.Startup; s.WfcTimeout != 90*time.Second || s.DegrWfcTimeout != 10*time.Second || !s.WaitAfterSB || !reflect.DeepEqual(s.BecomePrimaryOn, []string{"be1"}) {
		t.Errorf("startup %+v", s)
	}
}

// TestInheritance: common, resource, on, volume; the innermost wins.
func TestInheritance(t *testing.T) {
	text := `
common { net { ping-int 1; timeout 10; } disk { al-extents 100; resync-rate 1M; c-max-rate 1M; md-flushes no; } options { on-no-data-accessible suspend-io; } handlers { pri-lost "a"; split-brain "b"; } }
resource r0 {
 net { timeout 20; timeout 30; }
 disk { resync-rate 2M; c-max-rate 2M; }
 handlers { split-brain "c"; outdate-peer "d"; }
 meta-disk internal;
 nbd-listen "unix:/res.sock";
 volume 0 { device minor 0; disk /dev/a; disk { c-max-rate 3M; } }
 volume 7 { device /dev/nbd7; disk /dev/b; meta-disk /dev/m[3]; nbd-listen "unix:/vol.sock"; }
 on be1 { address 127.0.0.1:1; nbd-listen "unix:/%n.sock"; nbd-listen "127.0.0.1:10809"; options { on-no-data-accessible io-error; }
   volume 7 { disk /dev/c; nbd-listen "unix:/%n-7.sock"; disk { c-max-rate 4M; no-disk-flushes; } } }
 on be2 { address 127.0.0.1:2; }
}`
	r := one(t, text)
	if r.Net.PingInt != time.Second || r.Net.Timeout != 3*time.Second || r.Options.OnNoDataAccessible != "io-error" {
		t.Errorf("net %+v options %+v", r.Net, r.Options)
	}
	if want := map[string]string{"pri-lost": "a", "split-brain": "c", "fence-peer": "d"}; !reflect.DeepEqual(r.Handlers, want) {
		t.Errorf("handlers %v, want %v", r.Handlers, want)
	}
	v0, v7 := r.Volumes[0], r.Volumes[1]
	if v0.Number != 0 || v0.Device != "/dev/drbd0" || v0.Disk != "/dev/a" || v0.MetaDisk.Kind != MetaInternal {
		t.Errorf("volume 0 %+v", v0)
	}
	if want := []Listen{{"unix", "/be1.sock"}, {"tcp", "127.0.0.1:10809"}}; !reflect.DeepEqual(v0.NBDListen, want) {
		t.Errorf("volume 0 listens on %v, want %v", v0.NBDListen, want)
	}
	if v7.Number != 7 || v7.Minor != 7 || v7.Disk != "/dev/c" || v7.MetaDisk.Kind != MetaIndexed || v7.MetaDisk.Path != "/dev/m" || v7.MetaDisk.Index != 3 {
		t.Errorf("volume 7 %+v", v7)
	}
	if want := []Listen{{"unix", "/be1-7.sock"}}; !reflect.DeepEqual(v7.NBDListen, want) {
		t.Errorf("volume 7 listens on %v, want %v", v7.NBDListen, want)
	}
	if o := v0.Options; o.ALExtents != 100 || o.ResyncRate != 2<<20 || o.CMaxRate != 3<<20 || o.MDFlushes || !o.DiskFlushes {
		t.Errorf("volume 0 options %+v", o)
	}
	if o := v7.Options; o.ALExtents != 100 || o.ResyncRate != 2<<20 || o.CMaxRate != 4<<20 || o.DiskFlushes {
		t.Errorf("volume 7 options %+v", o)
	}
	var names []string
	for _, s := range v7.Explicit.Settings {
		names = append(names, s.Name+"="+s.Value())
	}
	if got, want := strings.Join(names, " "), "al-extents=100 c-max-rate=4M disk-flushes=no md-flushes=no resync-rate=2M"; got != want {
		t.Errorf("given options %s, want %s", got, want)
	}
	other := mustResolve(t, text, Self{Node: "be2", RunDir: "/r"})[0]
	if got := other.Volumes[1]; got.Disk != "/dev/b" || got.NBDListen[0].Address != "/vol.sock" {
		t.Errorf("volume 7 on be2 %+v", got)
	}
	if other.Volumes[0].NBDListen[0].Address != "/res.sock" {
		t.Errorf("volume 0 on be2 %+v", other.Volumes[0])
	}
}

func TestDefaultListen(t *testing.T) {
	if got := one(t, inResource("")).Volumes[0].NBDListen; got[0].String() != "unix:/run/replicad/r0.nbd" {
		t.Errorf("single volume 0: %v", got)
	}
	r := one(t, `resource r0 { volume 3 { device minor 0; disk /dev/a; meta-disk internal; } on be1 { address 127.0.0.1:1; } on be2 { address 127.0.0.1:2; } }`)
	if got := r.Volumes[0].NBDListen; got[0].String() != "unix:/run/replicad/r0-3.nbd" {
		t.Errorf("single volume 3: %v", got)
	}
	long := Self{Node: "be1", RunDir: "/" + strings.Repeat("x", 110)}
	if _, err := mustParse(t, inResource("")).Resolve(long); err == nil || !strings.Contains(err.Error(), "longer than 107 bytes") {
		t.Errorf("too long a socket path: %v", err)
	}
}

func TestDevices(t *testing.T) {
	for text, want := range map[string]Device{
		"minor 5":               {Path: "/dev/drbd5", Minor: 5},
		"/dev/drbd5":            {Path: "/dev/drbd5", Minor: 5},
		"drbd5 minor 5":         {Path: "/dev/drbd5", Minor: 5},
		"/dev/nbd15":            {Path: "/dev/nbd15", Minor: 15},
		"/dev/drbd_www minor 3": {Path: "/dev/drbd_www", Minor: 3},
	} {
		r := one(t, host("address 10.9.0.1:1; device "+text+"; disk /srv/a.img; flexible-meta-disk /dev/md;"))
		v := r.Volumes[0]
		if v.Device != want.Path || v.Minor != want.Minor || v.MetaDisk.Kind != MetaFlexibleExternal || v.MetaDisk.Path != "/dev/md" {
			t.Errorf("device %s: %+v", text, v)
		}
	}
}

func TestHostMatch(t *testing.T) {
	c := mustParse(t, inResource("")+`resource r1 { device minor 5; disk /dev/f; meta-disk internal;
 floating 10.1.0.1:1; floating ipv6 [fd00::2]:1 { disk /dev/g; } }
resource r2 { ignore-on be1; device minor 6; disk /dev/h; meta-disk internal; on be3 be4 { address 10.1.0.3:1; } on be5 { address 10.1.0.5:1; } }`)
	names := func(self Self) string {
		list, err := c.Resolve(self)
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, r := range list {
			out = append(out, r.Name+"@"+r.Local.Address.AddrPort.Addr().String()+" "+r.Volumes[0].Disk)
		}
		return strings.Join(out, ", ")
	}
	for _, tc := range []struct {
		self Self
		want string
	}{
		{Self{Node: "be1"}, "r0@10.9.0.1 /dev/vda"},
		{Self{Node: "BE1"}, ""},
		{Self{Node: "be1.example.com"}, ""},
		{Self{Node: "x", Addrs: []netip.Addr{addr("fd00::2")}}, "r1@fd00::2 /dev/g"},
		{Self{Node: "be1", Addrs: []netip.Addr{addr("10.9.0.1"), addr("10.1.0.1")}}, "r0@10.9.0.1 /dev/vda, r1@10.1.0.1 /dev/f"},
		{Self{Node: "be1", Addrs: []netip.Addr{addr("10.9.0.7")}}, "t.conf:2: in resource r0, on be1:\n\tIP 10.9.0.1 not found on this host."},
		{Self{Node: "be4"}, "r2@10.1.0.3 /dev/h"},
	} {
		tc.self.RunDir = "/run"
		if got := names(tc.self); got != tc.want {
			t.Errorf("%+v: %q, want %q", tc.self, got, tc.want)
		}
	}
	if c.Resources[0].IgnoredOn(be1) || !c.Resources[1].IgnoredOn(be1) || !c.Resources[2].IgnoredOn(be1) {
		t.Error("ignored resources are wrong")
	}
}

// TestLoopbackIsEverywhere: no interface lists all of 127.0.0.0/8.
func TestLoopbackIsEverywhere(t *testing.T) {
	c := mustParse(t, host("address 127.0.0.7:1; device minor 0; disk /dev/x; meta-disk internal;"))
	if _, err := c.Resolve(Self{Node: "be1", Addrs: []netip.Addr{addr("10.9.0.1")}, RunDir: "/run"}); err != nil {
		t.Error(err)
	}
}

// TestStacked: a stacked resource never runs on the nodes below it; its far
// end is an ordinary host.
func TestStacked(t *testing.T) {
	c := mustParse(t, inResource("")+`resource up { device minor 2; stacked-on-top-of r0 { address 10.9.0.9:1; }
 on be3 { address 10.9.0.3:1; disk /dev/y; meta-disk internal; } }`)
	if !c.Resources[1].IgnoredOn(be1) || !strings.Contains(warnings(c), "stacked resources are not supported") {
		t.Errorf("stacked resource is not ignored on be1; warnings:\n%s", warnings(c))
	}
	list, err := c.Resolve(Self{Node: "be3", RunDir: "/run"})
	if err != nil || len(list) != 1 || list[0].Peer.Address.String() != "ipv4 10.9.0.9:1" {
		t.Errorf("on be3: %+v, %v", list, err)
	}
}

func TestResolveFaults(t *testing.T) {
	const section = "{ address 10.9.0.1:1; device minor 0; disk /dev/a; meta-disk internal; }"
	for text, want := range map[string]string{
		"resource r0 { on be1 " + section + " }":                              "t.conf:1: in resource r0:\n\tMissing section 'on <PEER> { ... }'.",
		inResource("on be3 " + strings.ReplaceAll(section, "0.1:1", "0.9:1")): "t.conf:1: in resource r0:\n\tThere are multiple host sections for the peer node.",
		"resource r0 { device minor 0; disk /dev/a; meta-disk internal; floating 10.9.0.1:1; floating 10.9.0.1:2 { device minor 1; disk /dev/b; } }": "t.conf:1: in resource r0, floating 10.9.0.1:1 { ... } ... floating 10.9.0.1:2 { ... }:\n\tThere are multiple host sections for this node.",
	} {
		_, err := mustParse(t, text).Resolve(Self{Node: "be1", Addrs: []netip.Addr{addr("10.9.0.1")}, RunDir: "/run"})
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestDiscardNode(t *testing.T) {
	c := mustParse(t, inResource("net { after-sb-0pri discard-node-be2; }"))
	for node, want := range map[string]string{"be1": "discard-remote", "be2": "discard-local"} {
		list, err := c.Resolve(Self{Node: node, RunDir: "/run"})
		if err != nil || list[0].Net.AfterSB0Pri != want {
			t.Errorf("on %s: %v %v, want %s", node, list, err, want)
		}
	}
}

func TestDisklessHost(t *testing.T) {
	r := one(t, host("address 10.9.0.1:1; device minor 0; disk none;"))
	if v := r.Volumes[0]; v.Disk != "" || v.Minor != 0 {
		t.Errorf("volume %+v", v)
	}
}

func TestOurPaths(t *testing.T) {
	c := mustParse(t, "global { status-file \"/s/%n/drbd\"; }\n"+inResource(`net { tls yes; tls-cert "/t/%n.crt"; tls-key "/t/%n.key"; tls-ca /t/ca.crt; fence-via "x y"; allow-unauthenticated yes; } disk { rescue-dir "/r/%n"; }`))
	list, err := c.Resolve(be1)
	if err != nil {
		t.Fatal(err)
	}
	n := list[0].Net
	if !n.TLS || n.TLSCert != "/t/be1.crt" || n.TLSKey != "/t/be1.key" || n.TLSCA != "/t/ca.crt" || n.FenceVia != "x y" || !n.AllowUnauthenticated {
		t.Errorf("net %+v", n)
	}
	if got := list[0].Volumes[0].Options.RescueDir; got != "/r/be1" {
		t.Errorf("rescue-dir %s", got)
	}
	if got := c.StatusFile(be1); got != "/s/be1/drbd" {
		t.Errorf("status-file %s", got)
	}
	if got := mustParse(t, inResource("")).StatusFile(be1); got != "/run/replicad/proc/drbd" {
		t.Errorf("default status-file %s", got)
	}
}

func TestAuthentication(t *testing.T) {
	link := func(local, peer, options string) *LocalResource {
		return one(t, "resource r0 { device minor 0; disk /dev/a; meta-disk internal;\n"+options+"\non be1 { address "+local+":1; }\non be2 { address "+peer+":2; } }")
	}
	for _, tc := range []struct {
		local, peer, options string
		line                 int // of the error; 0 = accepted
	}{
		{"10.0.0.1", "10.0.0.2", "", 1},
		{"10.0.0.1", "10.0.0.2", "net { timeout 5; }", 2},
		{"10.0.0.1", "10.0.0.2", `net { shared-secret ""; }`, 2},
		{"127.0.0.1", "10.0.0.2", "", 1},
		{"10.0.0.1", "10.0.0.2", `net { allow-unauthenticated no; }`, 2},
		{"10.0.0.1", "10.0.0.2", `net { shared-secret "s"; }`, 0},
		{"10.0.0.1", "10.0.0.2", "net { allow-unauthenticated yes; }", 0},
		{"127.0.0.1", "127.0.0.1", "", 0},
		{"ipv6 [::1]", "127.0.0.1", "", 0},
	} {
		err := link(tc.local, tc.peer, tc.options).CheckAuthentication()
		refused, ok := err.(*UnauthenticatedError)
		if tc.line == 0 {
			if err != nil {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		if !ok || refused.Pos != (Pos{"t.conf", tc.line}) || len(refused.Secret) < 20 {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		// The line it prints settles the matter.
		_, line, _ := strings.Cut(err.Error(), "\t\t")
		line, _, _ = strings.Cut(line, "\n")
		if err := link(tc.local, tc.peer, "net { "+line+" }").CheckAuthentication(); err != nil {
			t.Errorf("after adding %q: %v", line, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	c := mustParse(t, `global { usage-count no; minor-count 8; dialog-refresh 1; disable-ip-verification; }
resource r0 {
 net { tcp-cork no; unplug-watermark 5; cram-hmac-alg sha256; timeout 5;
  timeout 6; }
 disk { max-bio-bvecs 1; disk-barrier; }
 options { cpu-mask 3; }
 proxy { memlimit 5M; plugin { zlib level 9; } }
 startup { stacked-timeouts; }
 nbd-listen "10.0.0.1:10809"; nbd-listen "127.0.0.1:10809"; nbd-listen "[::1]:1"; nbd-listen ":10809"; nbd-listen "localhost:1";
`+hosts+"}\nskip { a } ")
	var lines []string
	for _, w := range c.Warnings {
		lines = append(lines, w.Pos.String())
	}
	want := "t.conf:1 t.conf:1 t.conf:1 t.conf:3 t.conf:3 t.conf:4 t.conf:5 t.conf:5 t.conf:6 t.conf:7 t.conf:8 t.conf:9 t.conf:9"
	if got := strings.Join(lines, " "); got != want {
		t.Errorf("warnings at %s, want %s\n%s", got, want, warnings(c))
	}
	if !strings.Contains(warnings(c), "timeout was already given at t.conf:3; the later one counts.") {
		t.Errorf("no warning of the second timeout:\n%s", warnings(c))
	}
}

// TestAcceptedWithoutMeaning: statements of DRBD's proxy and failover links
// cost a warning and change nothing.
func TestAcceptedWithoutMeaning(t *testing.T) {
	const rest = "address ipv6 [fd00::1%eth0]:1; device minor 0; disk /dev/x; meta-disk internal;"
	plain := one(t, host(rest))
	c := mustParse(t, host(rest+` alternate-link-address 10.8.0.1:1;
 proxy on be1 { inside 127.0.0.1:7; outside ipv6 [::1]:9; options { memlimit 5M; } }`))
	list, err := c.Resolve(be1)
	if err != nil {
		t.Fatal(err)
	}
	if got := list[0]; got.Local.Address != plain.Local.Address || !reflect.DeepEqual(got.Volumes, plain.Volumes) || got.Net != plain.Net {
		t.Errorf("resource %+v, want %+v", got, plain)
	}
	want := "t.conf:2: 'alternate-link-address' has no meaning in replicad and is ignored.\n" +
		"t.conf:3: section 'proxy' has no meaning in replicad and is ignored."
	if got := warnings(c); got != want {
		t.Errorf("warnings:\n%s\nwant:\n%s", got, want)
	}
	text := dumpText(t, c, be1)
	for _, line := range []string{"        address          ipv6 [fd00::1%eth0]:1;", "        proxy on be1 {", "            inside       127.0.0.1:7;", "            outside      ipv6 [::1]:9;"} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("dump lacks %q:\n%s", line, text)
		}
	}
}

func TestElectionTree(t *testing.T) {
	r := one(t, inResource(`election { vrid 51; virtual-ip 10.0.0.50/24 dev eth0;
 takeover { order "vip last"; services "postgresql" nginx; }
 on be1 { source 10.0.0.1; priority 100; } }`))
	e := r.Election
	if e == nil || e.Pos.Line != 1 || len(e.Statements) != 4 {
		t.Fatalf("election %+v", e)
	}
	vip, takeover, on := e.Statements[1], e.Statements[2], e.Statements[3]
	if vip.Keyword() != "virtual-ip" || wordsText(vip.Words) != "virtual-ip 10.0.0.50/24 dev eth0" {
		t.Errorf("virtual-ip %+v", vip)
	}
	if order := takeover.Block[0]; order.Pos.Line != 2 || order.Words[1] != (Word{"vip last", true, Pos{"t.conf", 2}}) {
		t.Errorf("order %+v", order)
	}
	if wordsText(on.Words) != "on be1" || len(on.Block) != 2 || on.Block[1].Words[1].Text != "100" {
		t.Errorf("on %+v", on)
	}
}
