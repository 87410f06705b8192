package status

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

func resource(devices ...Device) Resource {
	return Resource{Name: "pc0", PeerNodeID: 0, PeerName: "be2", Devices: devices}
}

func TestQueries(t *testing.T) {
	alone := standard()
	alone.Conn, alone.PeerRole, alone.PeerDisk, alone.Protocol = StandAlone, Unknown, DUnknown, 0
	unconfiguredPrimary := down(0)
	unconfiguredPrimary.Role = Primary
	tests := []struct {
		d                    Device
		role, cstate, dstate string
	}{
		{standard(), "Primary/Secondary", "Connected", "UpToDate/UpToDate"},
		{alone, "Primary/Unknown", "StandAlone", "UpToDate/DUnknown"},
		{down(0), "Unconfigured", "Unconfigured", "Unconfigured"},
		{unconfiguredPrimary, "Unconfigured", "Unconfigured", "Unconfigured"},
	}
	for _, tt := range tests {
		if role, cstate, dstate := tt.d.QueryRole(), tt.d.QueryCState(), tt.d.QueryDState(); role != tt.role || cstate != tt.cstate || dstate != tt.dstate {
			t.Errorf("got %s, %s, %s; want %s, %s, %s", role, cstate, dstate, tt.role, tt.cstate, tt.dstate)
		}
	}
}

func TestShStatus(t *testing.T) {
	d := standard()
	d.Minor, d.Volume, d.Conn, d.PeerDisk = 3, 1, PausedSyncS, "Inconsistent"
	d.Flags = Flags{UserPaused: true}
	d.Sync = &SyncProgress{Total: 2 * gib, Left: gib}
	want := `_minor=3
_res_name=r\ 0
_volume=1
_known=Configured

_cstate=PausedSyncS
_role=Primary
_peer=Secondary
_disk=UpToDate
_pdsk=Inconsistent

_flags_susp=
_flags_aftr_isp=
_flags_peer_isp=
_flags_user_isp=1

_resynced_percent=50.1

_sh_status_process


`
	if got := string(AppendShStatus(nil, "r 0", &d)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	d = down(0)
	got := string(AppendShStatus(nil, "r0", &d))
	if !strings.HasPrefix(got, "_minor=0\n_res_name=r0\n_volume=0\n_known=Unconfigured\n\n_cstate=Unconfigured\n_role=\n") ||
		!strings.HasSuffix(got, "_flags_user_isp=\n_resynced_percent=\n\n_sh_status_process\n\n\n") {
		t.Errorf("unconfigured: %s", got)
	}
}

func TestTree(t *testing.T) {
	suspended := standard()
	suspended.Flags = Flags{SuspendedUser: true, SuspendedFencing: true, Blocked: NetworkCongested}
	paused := standard()
	paused.Conn, paused.PeerDisk, paused.OOS = PausedSyncS, "Inconsistent", 12268
	paused.Flags = Flags{UserPaused: true, PeerPaused: true}
	second := standard()
	second.Volume, second.Minor = 1, 1
	handshake := standard()
	handshake.Conn, handshake.PeerDisk, handshake.PeerRole = WFReportParams, DUnknown, Unknown
	alone := down(0)
	tests := []struct {
		name    string
		devices []Device
		o       TreeOptions
		want    string
	}{
		{"suspended", []Device{suspended}, TreeOptions{}, `pc0 role:Primary suspended:user,fencing
  disk:UpToDate blocked:upper
  peer role:Secondary congested:yes
    replication:Established peer-disk:UpToDate

`},
		{"paused", []Device{paused}, TreeOptions{}, `pc0 role:Primary
  disk:UpToDate
  peer role:Secondary
    replication:PausedSyncS peer-disk:Inconsistent done:50.00
        resync-suspended:user,peer

`},
		{"two volumes", []Device{standard(), second}, TreeOptions{}, `pc0 role:Primary
  volume:0 disk:UpToDate
  volume:1 disk:UpToDate
  peer role:Secondary
    volume:0 replication:Established peer-disk:UpToDate
    volume:1 replication:Established peer-disk:UpToDate

`},
		{"statistics", []Device{paused}, TreeOptions{Statistics: true, Width: 200}, `pc0 role:Primary
  disk:UpToDate
      read:0 written:0
  peer role:Secondary
    replication:PausedSyncS peer-disk:Inconsistent done:50.00 resync-suspended:user,peer
        received:0 sent:0 out-of-sync:12268

`},
		{"narrow", []Device{standard()}, TreeOptions{Width: 20}, `pc0 role:Primary
  disk:UpToDate
  peer
      role:Secondary
    replication:Established
        peer-disk:UpToDate

`},
		{"down", []Device{alone}, TreeOptions{}, "pc0 role:Secondary\n  disk:Diskless\n\n"},
	}
	for _, tt := range tests {
		r := resource(tt.devices...)
		if got := string(AppendTree(nil, &r, tt.o)); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
	r := resource(handshake)
	if got := string(AppendTree(nil, &r, TreeOptions{})); !strings.Contains(got, "  peer role:Unknown\n") || strings.Contains(got, "Off") {
		t.Errorf("handshake: %s", got)
	}
}

// story is the sequence of states that a recorded reconnect went through.
func story() []Resource {
	connected := standard()
	suspended := connected
	suspended.Flags.SuspendedUser = true
	closing := connected
	closing.Conn, closing.PeerRole, closing.PeerDisk = Disconnecting, Unknown, DUnknown
	alone := closing
	alone.Conn, alone.Protocol = StandAlone, 0
	waiting := closing
	waiting.Conn = WFConnection
	handshake := waiting
	handshake.Conn = WFReportParams
	bitmap := connected
	bitmap.Conn, bitmap.PeerDisk = "WFBitMapS", "Consistent"
	source := connected
	source.Conn, source.PeerDisk = SyncSource, "Inconsistent"
	var out []Resource
	for _, d := range []Device{connected, suspended, connected, closing, alone, waiting, handshake, bitmap, source, connected} {
		out = append(out, resource(d))
	}
	return out
}

func TestEventsOfReconnect(t *testing.T) {
	want := `change resource name:pc0 suspended:user
change resource name:pc0 suspended:no
change connection name:pc0 peer-node-id:0 conn-name:peer connection:Disconnecting role:Unknown
change peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0 replication:Off peer-disk:DUnknown
destroy peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0
destroy connection name:pc0 peer-node-id:0 conn-name:peer
create connection name:pc0 peer-node-id:0 conn-name:peer connection:Connecting role:Unknown
create peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0 replication:Off peer-disk:DUnknown resync-suspended:no
change connection name:pc0 peer-node-id:0 conn-name:peer connection:Connected
change connection name:pc0 peer-node-id:0 conn-name:peer role:Secondary
change peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0 replication:WFBitMapS peer-disk:Consistent
change peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0 replication:SyncSource peer-disk:Inconsistent
change peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0 replication:Established peer-disk:UpToDate
`
	var got []byte
	states := story()
	for i := range states[1:] {
		got = Events{}.AppendChange(got, &states[i], &states[i+1])
	}
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if quiet := (Events{}).AppendChange(nil, &states[0], &states[2]); len(quiet) != 0 {
		t.Errorf("nothing changed, but: %s", quiet)
	}
}

func TestEventsOfCreationAndEnd(t *testing.T) {
	r := resource(standard())
	e := Events{Prefix: time.Date(2026, 11, 23, 2, 32, 20, 661106000, time.UTC).Format(TimestampLayout) + " "}
	stamp := "2026-11-23T02:32:20.661106+00:00 "
	created := slices.Collect(strings.Lines(string(e.AppendChange(nil, nil, &r))))
	exists := slices.Collect(strings.Lines(string(e.AppendExists(nil, []Resource{r}))))
	if len(created) != 4 || len(exists) != 5 || exists[4] != stamp+"exists -\n" {
		t.Fatalf("created %q, exists %q", created, exists)
	}
	for i, line := range created {
		if want := stamp + "create" + strings.TrimPrefix(exists[i], stamp+"exists"); line != want {
			t.Errorf("got %q, want %q", line, want)
		}
	}
	want := stamp + "destroy peer-device name:pc0 peer-node-id:0 conn-name:peer volume:0\n" +
		stamp + "destroy device name:pc0 volume:0 minor:0\n" +
		stamp + "destroy connection name:pc0 peer-node-id:0 conn-name:peer\n" +
		stamp + "destroy resource name:pc0\n"
	if got := string(e.AppendChange(nil, &r, nil)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEventsOfHelper(t *testing.T) {
	r := resource(standard())
	status := 0
	e := Events{}
	got := e.AppendHelper(nil, &r, &r.Devices[0], "before-resync-source", nil)
	got = e.AppendHelper(got, &r, &r.Devices[0], "before-resync-source", &status)
	want := `call helper name:pc0 peer-node-id:0 conn-name:peer volume:0 minor:0 helper:before-resync-source
response helper name:pc0 peer-node-id:0 conn-name:peer volume:0 minor:0 helper:before-resync-source status:0
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func decodeJSON(t *testing.T, r Resource) map[string]any {
	t.Helper()
	text, err := AppendJSON(nil, []Resource{r})
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]any
	if err := json.Unmarshal(text, &out); err != nil || len(out) != 1 {
		t.Fatalf("%v in %s", err, text)
	}
	return out[0]
}

func TestJSONNames(t *testing.T) {
	d := standard()
	d.Conn, d.PeerDisk = SyncTarget, "Inconsistent"
	d.Counters = Counters{NS: 1, NR: 2, DW: 3, DR: 4, AL: 5, LO: 6, PE: 7, UA: 8, AP: 9, WO: 'f', OOS: 12268}
	d.Sync = &SyncProgress{Total: 2560, Left: 1280, Active: 5 * time.Second, Far: Mark{Left: 2560, Age: 5 * time.Second}, Want: 700}
	r := resource(d)
	r.Path = &Path{This: Address{"10.0.0.1", 7788, "ipv4"}, Remote: Address{"10.0.0.2", 7788, "ipv4"}, Established: true}
	got := decodeJSON(t, r)
	device := got["devices"].([]any)[0].(map[string]any)
	conn := got["connections"].([]any)[0].(map[string]any)
	peer := conn["peer_devices"].([]any)[0].(map[string]any)
	path := conn["paths"].([]any)[0].(map[string]any)
	tests := []struct {
		in   map[string]any
		want map[string]any
	}{
		{got, map[string]any{"name": "pc0", "node-id": 0.0, "role": "Primary", "suspended": false, "suspended-quorum": false, "write-ordering": "flush"}},
		{device, map[string]any{"volume": 0.0, "minor": 0.0, "disk-state": "UpToDate", "client": false, "quorum": true, "size": 24536.0, "read": 4.0, "written": 3.0, "al-writes": 5.0, "upper-pending": 9.0, "lower-pending": 6.0}},
		{conn, map[string]any{"name": "be2", "connection-state": "Connected", "congested": false, "peer-role": "Secondary", "tls": false}},
		{peer, map[string]any{"replication-state": "SyncTarget", "peer-disk-state": "Inconsistent", "resync-suspended": "no", "received": 2.0, "sent": 1.0, "out-of-sync": 12268.0, "pending": 7.0, "unacked": 8.0, "has-sync-details": true, "has-online-verify-details": false, "percent-in-sync": 50.0, "rs-total": 20480.0, "rs-failed": 0.0, "want": 700.0, "db0/dt0 [MiB/s]": 1.0, "percent-resync-done": 50.0, "estimated-seconds-to-finish": 4.0}},
		{path, map[string]any{"established": true}},
		{path["this_host"].(map[string]any), map[string]any{"address": "10.0.0.1", "port": 7788.0, "family": "ipv4"}},
	}
	for _, tt := range tests {
		for name, want := range tt.want {
			if value, ok := tt.in[name]; !ok || value != want {
				t.Errorf("%s: got %v, want %v", name, value, want)
			}
		}
	}
}

func TestJSONDisconnectedAndVerify(t *testing.T) {
	d := standard()
	d.Conn, d.PeerRole, d.PeerDisk = WFConnection, Unknown, DUnknown
	conn := decodeJSON(t, resource(d))["connections"].([]any)[0].(map[string]any)
	peer := conn["peer_devices"].([]any)[0].(map[string]any)
	if conn["connection-state"] != "Connecting" || peer["replication-state"] != "Off" || peer["has-sync-details"] != false {
		t.Errorf("disconnected: %v", conn)
	}
	if _, ok := peer["rs-total"]; ok {
		t.Error("sync details without a sync")
	}
	d.Conn, d.Size, d.Sync = VerifyS, 4000, &SyncProgress{Total: 1000, Left: 400}
	conn = decodeJSON(t, resource(d))["connections"].([]any)[0].(map[string]any)
	peer = conn["peer_devices"].([]any)[0].(map[string]any)
	if peer["ov-left"] != 3200.0 || peer["ov-position"] != 4800.0 || peer["ov-start-sector"] != 0.0 || peer["rs-failed"] != nil {
		t.Errorf("verify: %v", peer)
	}
	text, err := AppendJSON(nil, nil)
	if err != nil || string(text) != "[]\n" {
		t.Errorf("no resources: %q, %v", text, err)
	}
}
