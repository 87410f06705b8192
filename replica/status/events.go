package status

import "fmt"

// TimestampLayout is the layout, in the way of package time, of what
// `events2 --timestamps` puts before each line; a blank follows it.
const TimestampLayout = "2006-01-02T15:04:05.000000-07:00"

// Events renders the lines of `drbdsetup events2` (DRBD 8.4).
type Events struct {
	Prefix     string // stands before each line; see TimestampLayout
	Statistics bool   // with counters
}

// AppendExists appends the initial dump of the resources. A line
// "exists -" ends it.
func (e Events) AppendExists(dst []byte, resources []Resource) []byte {
	for i := range resources {
		r := &resources[i]
		w := eventWriter{Events: e, dst: dst, action: "exists", r: r}
		w.resource(nil)
		w.connection(nil)
		for j := range r.Devices {
			w.device(&r.Devices[j], nil)
		}
		for j := range r.Devices {
			w.peerDevice(&r.Devices[j], nil)
		}
		dst = w.dst
	}
	return fmt.Appendf(dst, "%sexists -\n", e.Prefix)
}

// AppendChange appends the lines that tell how a resource went from one state
// to the next. Either may be nil: the resource was created or destroyed. The
// connection exists while there is a network configuration.
func (e Events) AppendChange(dst []byte, was, is *Resource) []byte {
	empty := &Resource{}
	if was == nil {
		was = empty
	}
	if is == nil {
		is = empty
	}
	dst = e.appendGone(dst, was, is)
	if is == empty {
		return dst
	}
	w := eventWriter{Events: e, dst: dst, r: is}
	w.changeResource(was, was == empty)
	w.changeConnection(was)
	for i := range is.Devices {
		w.changeDevice(&is.Devices[i], was.device(is.Devices[i].Volume))
	}
	for i := range is.Devices {
		w.changePeerDevice(&is.Devices[i], was, was.device(is.Devices[i].Volume))
	}
	return w.dst
}

// AppendHelper appends the line that tells that a handler is called, or that
// it ended with a status when that is not nil.
func (e Events) AppendHelper(dst []byte, r *Resource, d *Device, helper string, status *int) []byte {
	action := "call"
	if status != nil {
		action = "response"
	}
	dst = fmt.Appendf(dst, "%s%s helper name:%s peer-node-id:%d conn-name:peer volume:%d minor:%d helper:%s",
		e.Prefix, action, r.Name, r.PeerNodeID, d.Volume, d.Minor, helper)
	if status != nil {
		dst = fmt.Appendf(dst, " status:%d", *status)
	}
	return append(dst, '\n')
}

// appendGone tells what was there and is no more, from the inside out.
func (e Events) appendGone(dst []byte, was, is *Resource) []byte {
	w := eventWriter{Events: e, dst: dst, action: "destroy", r: was}
	for i := range was.Devices {
		d := &was.Devices[i]
		if was.hasNet() && (!is.hasNet() || is.device(d.Volume) == nil) {
			w.begin("peer-device", w.peerKey(d))
			w.end()
		}
	}
	for i := range was.Devices {
		if d := &was.Devices[i]; is.device(d.Volume) == nil {
			w.begin("device", deviceKey(d))
			w.end()
		}
	}
	if was.hasNet() && !is.hasNet() {
		w.begin("connection", w.connKey())
		w.end()
	}
	if was.Name != "" && is.Name == "" {
		w.begin("resource", "")
		w.end()
	}
	return w.dst
}

func (r *Resource) device(volume int) *Device {
	for i := range r.Devices {
		if r.Devices[i].Volume == volume {
			return &r.Devices[i]
		}
	}
	return nil
}

type eventWriter struct {
	Events
	dst    []byte
	action string
	r      *Resource
}

func (w *eventWriter) begin(object, key string) {
	w.dst = fmt.Appendf(w.dst, "%s%s %s name:%s%s", w.Prefix, w.action, object, w.r.Name, key)
}

func (w *eventWriter) end() { w.dst = append(w.dst, '\n') }

func (w *eventWriter) key(name string, value any) {
	w.dst = fmt.Appendf(w.dst, " %s:%v", name, value)
}

func (w *eventWriter) counters(counters []counter) {
	if w.Statistics {
		for _, c := range counters {
			w.key(c.name, c.value)
		}
	}
}

// connKey names the connection; without a network configuration it has no name.
func (w *eventWriter) connKey() string {
	if !w.r.hasNet() {
		return fmt.Sprintf(" peer-node-id:%d", w.r.PeerNodeID)
	}
	return fmt.Sprintf(" peer-node-id:%d conn-name:peer", w.r.PeerNodeID)
}

func (w *eventWriter) peerKey(d *Device) string {
	return fmt.Sprintf("%s volume:%d", w.connKey(), d.Volume)
}

func deviceKey(d *Device) string { return fmt.Sprintf(" volume:%d minor:%d", d.Volume, d.Minor) }

// resource prints the keys of the resource that differ from was, all of them
// when that is nil. So do the functions below.
func (w *eventWriter) resource(was *Resource) {
	w.begin("resource", "")
	flags := w.r.flags()
	if was == nil || was.role() != w.r.role() {
		w.key("role", w.r.role())
	}
	if was == nil || was.suspendedList() != flags.suspendedList() {
		w.key("suspended", flags.suspendedList())
	}
	if w.Statistics && (was == nil || was.writeOrdering() != w.r.writeOrdering()) {
		w.key("write-ordering", w.r.writeOrdering())
	}
	w.end()
}

func (r *Resource) suspendedList() string {
	flags := r.flags()
	return flags.suspendedList()
}

func (w *eventWriter) connection(was *Resource) {
	w.begin("connection", w.connKey())
	if state := w.r.conn().connection(); was == nil || was.conn().connection() != state {
		w.key("connection", state)
	}
	if was == nil || was.peerRole() != w.r.peerRole() {
		w.key("role", w.r.peerRole())
	}
	if w.Statistics && (was == nil || was.congested() != w.r.congested()) {
		w.key("congested", yesNo(w.r.congested()))
	}
	w.end()
}

func (w *eventWriter) device(d, was *Device) {
	w.begin("device", deviceKey(d))
	if was == nil || was.Disk != d.Disk {
		w.key("disk", d.Disk)
	}
	w.counters(deviceCounters(d))
	if w.Statistics && (was == nil || was.Flags.blockedList() != d.Flags.blockedList()) {
		w.key("blocked", d.Flags.blockedList())
	}
	w.end()
}

func (w *eventWriter) peerDevice(d, was *Device) {
	w.begin("peer-device", w.peerKey(d))
	if was == nil || was.Conn.replication() != d.Conn.replication() {
		w.key("replication", d.Conn.replication())
	}
	if was == nil || was.PeerDisk != d.PeerDisk {
		w.key("peer-disk", d.PeerDisk)
	}
	if was == nil || was.Flags.resyncSuspendedList() != d.Flags.resyncSuspendedList() {
		w.key("resync-suspended", d.Flags.resyncSuspendedList())
	}
	w.counters(peerCounters(d))
	w.end()
}

func (w *eventWriter) changeResource(was *Resource, created bool) {
	switch {
	case created:
		w.action = "create"
		w.resource(nil)
	case was.role() != w.r.role() || was.suspendedList() != w.r.suspendedList():
		w.action = "change"
		w.resource(was)
	}
}

func (w *eventWriter) changeConnection(was *Resource) {
	switch {
	case !w.r.hasNet():
	case !was.hasNet():
		w.action = "create"
		w.connection(nil)
	case was.conn().connection() != w.r.conn().connection() || was.peerRole() != w.r.peerRole():
		w.action = "change"
		w.connection(was)
	}
}

func (w *eventWriter) changeDevice(d, was *Device) {
	switch {
	case was == nil:
		w.action = "create"
		w.device(d, nil)
	case was.Disk != d.Disk:
		w.action = "change"
		w.device(d, was)
	}
}

func (w *eventWriter) changePeerDevice(d *Device, before *Resource, was *Device) {
	switch {
	case !w.r.hasNet():
	case was == nil || !before.hasNet():
		w.action = "create"
		w.peerDevice(d, nil)
	case was.Conn.replication() != d.Conn.replication() || was.PeerDisk != d.PeerDisk ||
		was.Flags.resyncSuspendedList() != d.Flags.resyncSuspendedList():
		w.action = "change"
		w.peerDevice(d, was)
	}
}
