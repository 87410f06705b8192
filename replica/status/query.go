package status

import (
	"fmt"
	"strings"
)

const unconfigured = "Unconfigured"

// notUp is how the one-line queries decide; unlike /proc/drbd they do not look
// at the role.
func (d *Device) notUp() bool { return d.Conn == StandAlone && d.Disk == Diskless }

// QueryRole is what `drbdadm role` prints for the volume, without line end.
func (d *Device) QueryRole() string {
	if d.notUp() {
		return unconfigured
	}
	return fmt.Sprintf("%s/%s", d.Role, d.PeerRole)
}

// QueryCState is what `drbdadm cstate` prints for the volume, without line end.
func (d *Device) QueryCState() string {
	if d.notUp() {
		return unconfigured
	}
	return string(d.Conn)
}

// QueryDState is what `drbdadm dstate` prints for the volume, without line end.
func (d *Device) QueryDState() string {
	if d.notUp() {
		return unconfigured
	}
	return fmt.Sprintf("%s/%s", d.Disk, d.PeerDisk)
}

// AppendShStatus appends what `drbdadm sh-status` prints for one volume of a
// resource: shell variables, and the call of a function that uses them.
func AppendShStatus(dst []byte, resource string, d *Device) []byte {
	dst = fmt.Appendf(dst, "_minor=%d\n_res_name=%s\n_volume=%d\n", d.Minor, shellWord(resource), d.Volume)
	if d.Unconfigured() {
		dst = append(dst, "_known=Unconfigured\n\n_cstate=Unconfigured\n"...)
		for _, name := range []string{
			"role", "peer", "disk", "pdsk", "flags_susp", "flags_aftr_isp",
			"flags_peer_isp", "flags_user_isp", "resynced_percent",
		} {
			dst = fmt.Appendf(dst, "_%s=\n", name)
		}
	} else {
		dst = appendShState(dst, d)
	}
	return append(dst, "\n_sh_status_process\n\n\n"...)
}

func appendShState(dst []byte, d *Device) []byte {
	dst = fmt.Appendf(dst, "_known=Configured\n\n_cstate=%s\n_role=%s\n_peer=%s\n_disk=%s\n_pdsk=%s\n\n",
		d.Conn, d.Role, d.PeerRole, d.Disk, d.PeerDisk)
	dst = fmt.Appendf(dst, "_flags_susp=%s\n_flags_aftr_isp=%s\n_flags_peer_isp=%s\n_flags_user_isp=%s\n\n",
		shFlag(d.Flags.suspended()), shFlag(d.Flags.AfterPaused), shFlag(d.Flags.PeerPaused), shFlag(d.Flags.UserPaused))
	percent := ""
	if d.Sync != nil {
		permille := d.Sync.permille()
		percent = fmt.Sprintf("%d.%d", permille/10, permille%10)
	}
	return fmt.Appendf(dst, "_resynced_percent=%s\n", percent)
}

func shFlag(on bool) string {
	if on {
		return "1"
	}
	return ""
}

// shellWord quotes text so that a shell reads it as one word.
func shellWord(text string) string {
	var b strings.Builder
	for _, c := range text {
		if !strings.ContainsRune("-._/", c) && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	return b.String()
}
