// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"

	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// initSettings writes what does not depend on the Table.
func (d *Dataplane) initSettings() error {
	s, err := d.readSettings()
	if err != nil {
		return err
	}
	if s.HostNetnsCookie, err = netnsCookie(); err != nil {
		d.options.Logger.Warn("this kernel tells no network namespace cookies: NodePorts on loopback addresses are off", "error", err)
	}
	s.HandledTcIndex = uint16(s.HostNetnsCookie) | 0x8000 // not 0, which is every packet's
	s.MasqueradePortMin, s.MasqueradePortMax = d.options.MasqueradePortMin, d.options.MasqueradePortMax
	if s.MasqueradePortMin > s.MasqueradePortMax {
		return fmt.Errorf("masquerade ports %d to %d: the first must not be above the last", s.MasqueradePortMin, s.MasqueradePortMax)
	}
	s.Flags = d.options.settingsFlags()
	return d.writeSettings(s)
}

func (d *Dataplane) readSettings() (s bpf.FairleadNodeSettings, err error) {
	if err = d.maps["settings"].Lookup(uint32(0), &s); err != nil {
		err = fmt.Errorf("read map settings: %w", err)
	}
	return s, err
}

func (d *Dataplane) writeSettings(s bpf.FairleadNodeSettings) error {
	if err := d.maps["settings"].Put(uint32(0), &s); err != nil {
		return fmt.Errorf("write map settings: %w", err)
	}
	return nil
}

// applyNode writes the node's facts where they differ.
func (d *Dataplane) applyNode(n dataplane.Node) error {
	s, err := d.readSettings()
	if err != nil {
		return err
	}
	want := s
	want.NodeIpv4, want.NodeIpv6 = encodeAddress(n.PrimaryIPv4), encodeAddress(n.PrimaryIPv6)
	if want != s {
		if err := d.writeSettings(want); err != nil {
			return err
		}
	}
	m := d.maps["internal_sources"]
	wanted := map[bpf.FairleadPrefixKey]bool{}
	for _, p := range n.InternalSources {
		key := encodePrefix(p)
		wanted[key] = true
		if err := m.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("write internal source %s: %w", p, err)
		}
	}
	var stray []bpf.FairleadPrefixKey
	if err := eachEntrySlowly(m, func(key bpf.FairleadPrefixKey, _ *uint8) {
		if !wanted[key] {
			stray = append(stray, key)
		}
	}); err != nil {
		return fmt.Errorf("read map internal_sources: %w", err)
	}
	for _, key := range stray {
		m.Delete(key)
	}
	d.devices.setNode(n)
	return nil
}

// netnsCookie is the kernel's name of the calling thread's network namespace
// (SO_NETNS_COOKIE, 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
