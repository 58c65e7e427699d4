// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sysctl is a setting of the network namespace, below /proc/sys/net.
type sysctl struct {
	key, value string
	// cost is what goes without it.
	cost string
	// optional: not every kernel has it.
	optional bool
}

// sysctls are those that IPVS needs to behave as Services do.
func (o Options) sysctls() []sysctl {
	list := []sysctl{
		{"ipv4/vs/conntrack", "1", "no masquerading, so no traffic from outside to other nodes", false},
		{"ipv4/vs/expire_nodest_conn", "1", "UDP flows stay with Backends that are gone", false},
		{"ipv4/vs/expire_quiescent_template", "1", "clients stay with Backends that are terminating", false},
		{"ipv4/vs/conn_reuse_mode", "1", "a source port that is used again reaches a Backend that is gone", true},
		{"ipv4/vs/sloppy_sctp", "1", "SCTP associations that were there before are cut off", true},
	}
	if o.StrictARP {
		list = append(list,
			sysctl{"ipv4/conf/all/arp_ignore", "1", "the node answers ARP for addresses of Services", false},
			sysctl{"ipv4/conf/all/arp_announce", "2", "the node announces addresses of Services", false})
	}
	return list
}

func sysctlPath(key string) string { return filepath.Join("/proc/sys/net", key) }

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(sysctlPath(key))
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(key, value string) error {
	return os.WriteFile(sysctlPath(key), []byte(value), 0o644)
}

// applySysctls sets what differs, in the calling thread's network namespace,
// and notes what was there in the table before it does.
func (d *Dataplane) applySysctls() (changed bool, err error) {
	for i, s := range d.options.sysctls() {
		was, err := readSysctl(s.key)
		if s.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("read sysctl net/%s: %w", s.key, err)
		}
		if was == s.value {
			continue
		}
		if err := d.remember(i, s.key+" "+was); err != nil {
			return changed, err
		}
		if err := writeSysctl(s.key, s.value); err != nil {
			return changed, fmt.Errorf("set sysctl net/%s to %s: %w: set it before fairlead starts", s.key, s.value, err)
		}
		changed = true
	}
	return changed, nil
}

// remember notes something for Cleanup, unless an earlier note is there.
func (d *Dataplane) remember(index int, what string) error {
	k := elementKey{set: "memory", key: string(number(uint32(index)))}
	notes, err := d.table.memory()
	if err != nil {
		return err
	}
	if _, ok := notes[k]; ok {
		return nil
	}
	note := newEdit()
	note.adds[k] = element{comment: what}
	return d.table.apply(note)
}

// undoSysctls sets what was set by us, and by nobody since, to what it was.
func (o Options) undoSysctls(notes elements) (undone []string, err error) {
	o.StrictARP = true
	list := o.sysctls()
	for _, v := range notes {
		key, was, ok := strings.Cut(v.comment, " ")
		i := slices.IndexFunc(list, func(s sysctl) bool { return s.key == key })
		if !ok || i < 0 {
			continue
		}
		if now, rerr := readSysctl(key); rerr != nil || now != list[i].value {
			continue
		}
		if werr := writeSysctl(key, was); werr != nil {
			err = errors.Join(err, fmt.Errorf("set sysctl net/%s to %s: %w", key, was, werr))
			continue
		}
		undone = append(undone, "sysctl net/"+key)
	}
	return undone, err
}
