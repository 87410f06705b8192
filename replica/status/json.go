package status

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// AppendJSON appends the array that DRBD 9's `drbdsetup status --json` prints,
// with its names in its order, and a line end. DRBD 8.4 has no JSON. What
// DRBD 9 knows and 8.4 does not (quorum, clients, TLS) has the value it has
// where that feature is not used.
func AppendJSON(dst []byte, resources []Resource) ([]byte, error) {
	out := make([]jsonResource, 0, len(resources))
	for i := range resources {
		out = append(out, newJSONResource(&resources[i]))
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return dst, fmt.Errorf("encode status: %w", err)
	}
	return append(append(dst, text...), '\n'), nil
}

// hundredths is a number printed with two decimals.
type hundredths float64

// MarshalJSON renders the number with two decimals.
func (h hundredths) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(h), 'f', 2, 64), nil
}

type jsonResource struct {
	Name             string           `json:"name"`
	NodeID           int              `json:"node-id"`
	Role             Role             `json:"role"`
	Suspended        bool             `json:"suspended"`
	SuspendedUser    bool             `json:"suspended-user"`
	SuspendedNoData  bool             `json:"suspended-no-data"`
	SuspendedFencing bool             `json:"suspended-fencing"`
	SuspendedQuorum  bool             `json:"suspended-quorum"`
	ForceIOFailures  bool             `json:"force-io-failures"`
	WriteOrdering    string           `json:"write-ordering"`
	Devices          []jsonDevice     `json:"devices"`
	Connections      []jsonConnection `json:"connections"`
}

type jsonDevice struct {
	Volume       int    `json:"volume"`
	Minor        int    `json:"minor"`
	Disk         Disk   `json:"disk-state"`
	Client       bool   `json:"client"`
	Open         bool   `json:"open"`
	Quorum       bool   `json:"quorum"`
	Size         uint64 `json:"size"`
	Read         uint64 `json:"read"`
	Written      uint64 `json:"written"`
	ALWrites     uint64 `json:"al-writes"`
	BMWrites     uint64 `json:"bm-writes"`
	UpperPending int    `json:"upper-pending"`
	LowerPending int    `json:"lower-pending"`
}

type jsonConnection struct {
	PeerNodeID  int              `json:"peer-node-id"`
	Name        string           `json:"name"`
	State       string           `json:"connection-state"`
	Congested   bool             `json:"congested"`
	PeerRole    Role             `json:"peer-role"`
	TLS         bool             `json:"tls"`
	APInFlight  uint64           `json:"ap-in-flight"`
	RSInFlight  uint64           `json:"rs-in-flight"`
	Paths       []jsonPath       `json:"paths"`
	PeerDevices []jsonPeerDevice `json:"peer_devices"`
}

type jsonPath struct {
	This        jsonAddress `json:"this_host"`
	Remote      jsonAddress `json:"remote_host"`
	Established bool        `json:"established"`
}

type jsonAddress struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
	Family  string `json:"family"`
}

type jsonPeerDevice struct {
	Volume           int        `json:"volume"`
	Replication      string     `json:"replication-state"`
	PeerDisk         Disk       `json:"peer-disk-state"`
	PeerClient       bool       `json:"peer-client"`
	ResyncSuspended  string     `json:"resync-suspended"`
	Received         uint64     `json:"received"`
	Sent             uint64     `json:"sent"`
	OutOfSync        uint64     `json:"out-of-sync"`
	Pending          int        `json:"pending"`
	Unacked          int        `json:"unacked"`
	HasSyncDetails   bool       `json:"has-sync-details"`
	HasVerifyDetails bool       `json:"has-online-verify-details"`
	PercentInSync    hundredths `json:"percent-in-sync"`
	*jsonVerify
	*jsonResync
	*jsonSync
}

// jsonVerify and jsonResync tell what is to do, in 512-byte sectors.
type jsonVerify struct {
	Start    uint64 `json:"ov-start-sector"`
	Stop     uint64 `json:"ov-stop-sector"`
	Position uint64 `json:"ov-position"`
	Left     uint64 `json:"ov-left"`
	Skipped  uint64 `json:"ov-skipped"`
}

type jsonResync struct {
	Failed   uint64 `json:"rs-failed"`
	SameCsum uint64 `json:"rs-same-csum"`
}

// jsonSync tells how fast it goes: sectors, milliseconds, KiB/s.
type jsonSync struct {
	Total       uint64     `json:"rs-total"`
	StartMS     int64      `json:"rs-dt-start-ms"`
	PausedMS    int64      `json:"rs-paused-ms"`
	FarMS       int64      `json:"rs-dt0-ms"`
	FarSectors  uint64     `json:"rs-db0-sectors"`
	NearMS      int64      `json:"rs-dt1-ms"`
	NearSectors uint64     `json:"rs-db1-sectors"`
	Want        uint64     `json:"want"`
	FarRate     hundredths `json:"db0/dt0 [MiB/s]"`
	NearRate    hundredths `json:"db1/dt1 [MiB/s]"`
	Finish      uint64     `json:"estimated-seconds-to-finish"`
	Rate        hundredths `json:"db/dt [MiB/s]"`
	PercentDone hundredths `json:"percent-resync-done"`
}

func newJSONResource(r *Resource) jsonResource {
	flags := r.flags()
	out := jsonResource{
		Name:             r.Name,
		NodeID:           r.NodeID,
		Role:             r.role(),
		Suspended:        flags.suspended(),
		SuspendedUser:    flags.SuspendedUser,
		SuspendedNoData:  flags.SuspendedNoData,
		SuspendedFencing: flags.SuspendedFencing,
		WriteOrdering:    r.writeOrdering(),
		Devices:          make([]jsonDevice, 0, len(r.Devices)),
		Connections:      []jsonConnection{newJSONConnection(r)},
	}
	for i := range r.Devices {
		out.Devices = append(out.Devices, newJSONDevice(&r.Devices[i]))
	}
	return out
}

func newJSONDevice(d *Device) jsonDevice {
	return jsonDevice{
		Volume: d.Volume, Minor: d.Minor, Disk: d.Disk, Open: d.Open, Quorum: true,
		Size: d.Size, Read: d.DR, Written: d.DW, ALWrites: d.AL, BMWrites: d.BM,
		UpperPending: d.AP, LowerPending: d.LO,
	}
}

func newJSONConnection(r *Resource) jsonConnection {
	out := jsonConnection{
		PeerNodeID:  r.PeerNodeID,
		Name:        r.PeerName,
		State:       r.conn().connection(),
		Congested:   r.congested(),
		PeerRole:    r.peerRole(),
		TLS:         r.TLS,
		Paths:       []jsonPath{},
		PeerDevices: make([]jsonPeerDevice, 0, len(r.Devices)),
	}
	if p := r.Path; p != nil {
		out.Paths = append(out.Paths, jsonPath{jsonAddress(p.This), jsonAddress(p.Remote), p.Established})
	}
	for i := range r.Devices {
		out.PeerDevices = append(out.PeerDevices, newJSONPeerDevice(&r.Devices[i]))
	}
	return out
}

func newJSONPeerDevice(d *Device) jsonPeerDevice {
	out := jsonPeerDevice{
		Volume:          d.Volume,
		Replication:     d.Conn.replication(),
		PeerDisk:        d.PeerDisk,
		ResyncSuspended: d.Flags.resyncSuspendedList(),
		Received:        d.NR,
		Sent:            d.NS,
		OutOfSync:       d.OOS,
		Pending:         d.PE,
		Unacked:         d.UA,
		PercentInSync:   hundredths(d.percentInSync()),
	}
	if s := d.Sync; s != nil {
		out.HasSyncDetails = true
		out.jsonSync = newJSONSync(s)
		if d.Conn.isVerify() {
			out.HasVerifyDetails = true
			out.jsonVerify = newJSONVerify(d)
		} else {
			out.jsonResync = &jsonResync{Failed: s.Failed * blockSectors}
		}
	}
	return out
}

const blockSectors = 8

// newJSONVerify tells of a verify that runs to the end of the volume.
func newJSONVerify(d *Device) *jsonVerify {
	end := d.Size * 2 // sectors
	left := d.Sync.left() * blockSectors
	return &jsonVerify{
		Start:    end - min(d.Sync.Total*blockSectors, end),
		Stop:     end,
		Position: end - min(left, end),
		Left:     left,
	}
}

func newJSONSync(s *SyncProgress) *jsonSync {
	done := s.Total - s.left()
	out := &jsonSync{
		Total:       s.Total * blockSectors,
		StartMS:     (s.Active + s.Paused).Milliseconds(),
		PausedMS:    s.Paused.Milliseconds(),
		FarMS:       s.Far.Age.Milliseconds(),
		FarSectors:  s.since(s.Far) * blockSectors,
		NearMS:      s.Near.Age.Milliseconds(),
		NearSectors: s.since(s.Near) * blockSectors,
		Want:        s.Want,
		FarRate:     mebibytesPerSecond(s.since(s.Far), s.Far.Age),
		NearRate:    mebibytesPerSecond(s.since(s.Near), s.Near.Age),
		Finish:      s.finish(),
		Rate:        mebibytesPerSecond(done, s.Active),
		PercentDone: 100,
	}
	if s.Total > 0 {
		out.PercentDone = hundredths(100 * float64(done) / float64(s.Total))
	}
	return out
}

func mebibytesPerSecond(blocks uint64, d time.Duration) hundredths {
	if d <= 0 {
		return 0
	}
	return hundredths(float64(blocks) * blockKiB / 1024 / d.Seconds())
}
