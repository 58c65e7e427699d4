// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	mobyipvs "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ipvs"
	"fairlead.dev/dataplane/netfilter"
)

// ipvsDevice is the dummy device on which kube-proxy's ipvs mode puts the
// addresses of Services.
const ipvsDevice = "kube-ipvs0"

// kubeProxySets are the ipsets of that mode; those of IPv6 begin with KUBE-6-.
var kubeProxySets = []string{
	"KUBE-LOOP-BACK", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL", "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-LOCAL",
	"KUBE-LOAD-BALANCER-FW", "KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR",
	"KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-NODE-PORT-UDP", "KUBE-NODE-PORT-LOCAL-UDP",
	"KUBE-NODE-PORT-SCTP-HASH", "KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS",
}

// setNameBytes are the most that a name has: kube-proxy cuts longer ones.
const setNameBytes = 31

func isKubeProxySet(name string) bool {
	return slices.ContainsFunc(kubeProxySets, func(set string) bool {
		six := "KUBE-6-" + strings.TrimPrefix(set, "KUBE-")
		return name == set || name == six[:min(len(six), setNameBytes)]
	})
}

// ipvsState is what the ipvs mode left, beside its iptables chains.
type ipvsState struct {
	device    bool
	addresses map[netip.Addr]bool // on the device
	servers   []*mobyipvs.Service
	sets      []string
}

// findIPVS looks for it. Whose virtual servers those are that are no Service's
// address and no NodePort of its sets cannot be told: they are left alone.
func findIPVS() (*ipvsState, error) {
	s := &ipvsState{addresses: map[netip.Addr]bool{}}
	ports, err := s.findSets()
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(ipvsDevice)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for device %s: %w", ipvsDevice, err)
	}
	s.device = true
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", ipvsDevice, err)
	}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.IsLinkLocalUnicast() {
			s.addresses[addr.Unmap()] = true
		}
	}
	return s, s.findServers(ports)
}

// nodePort is one that kube-proxy's sets name.
type nodePort struct {
	protocol uint16
	port     uint16
}

func (s *ipvsState) findSets() (map[nodePort]bool, error) {
	names, err := setNames()
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil // a kernel without ipset
	case err != nil:
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	ports := map[nodePort]bool{}
	for _, name := range names {
		if !isKubeProxySet(name) {
			continue
		}
		s.sets = append(s.sets, name)
		for protocol, word := range map[uint16]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_SCTP: "SCTP"} {
			if !strings.Contains(name, "NODE-PORT") || !strings.Contains(name, word) {
				continue
			}
			set, err := netlink.IpsetList(name)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list ipset %s: %w", name, err)
			}
			for _, e := range set.Entries {
				if e.Port != nil {
					ports[nodePort{protocol, *e.Port}] = true
				}
			}
		}
	}
	slices.Sort(s.sets)
	return ports, nil
}

// listNames is IPSET_FLAG_LIST_SETNAME: no members, which are many. The library
// asks for all of them, gives a large set several times, and writes a line to
// the log for each thing that it does not know.
const listNames = 1 << 1

func setNames() (names []string, err error) {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_NETLINK, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_FLAGS | nl.NLA_F_NET_BYTEORDER, Value: listNames})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		for attr := range nl.ParseAttributes(m[min(len(m), nl.SizeofNfgenmsg):]) {
			if attr.Type == nl.IPSET_ATTR_SETNAME {
				names = append(names, unix.ByteSliceToString(attr.Value))
			}
		}
	}
	return names, nil
}

// withIPVS runs f with a handle, in the calling thread's network namespace:
// kube-ipvs0 is there, so the module is.
func withIPVS(f func(*mobyipvs.Handle) error) error {
	h, err := ipvs.OpenHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

func (s *ipvsState) findServers(ports map[nodePort]bool) error {
	return withIPVS(func(h *mobyipvs.Handle) error {
		list, err := h.GetServices()
		if err != nil {
			return fmt.Errorf("list virtual servers: %w", err)
		}
		for _, v := range list {
			addr, ok := netip.AddrFromSlice(v.Address)
			if v.FWMark == 0 && ok && (s.addresses[addr.Unmap()] || ports[nodePort{v.Protocol, v.Port}]) {
				s.servers = append(s.servers, v)
			}
		}
		return nil
	})
}

func (s *ipvsState) empty() bool {
	return s == nil || !s.device && len(s.sets) == 0 && len(s.servers) == 0
}

func (s *ipvsState) lines() (lines []string) {
	if s.empty() {
		return nil
	}
	if len(s.servers) > 0 {
		lines = append(lines, plural(len(s.servers), "IPVS virtual server"))
	}
	if s.device {
		lines = append(lines, fmt.Sprintf("device %s with %d addresses", ipvsDevice, len(s.addresses)))
	}
	if len(s.sets) > 0 {
		lines = append(lines, fmt.Sprintf("%s %s", plural(len(s.sets), "ipset"), strings.Join(s.sets, ", ")))
	}
	return lines
}

// quiesce gives every destination weight 0: it keeps its connections and gets
// no new ones.
func (s *ipvsState) quiesce() error {
	if len(s.servers) == 0 {
		return nil
	}
	return withIPVS(func(h *mobyipvs.Handle) error {
		var errs []error
		for _, v := range s.servers {
			list, err := h.GetDestinations(v)
			if gone(err) {
				continue
			}
			errs = append(errs, err)
			for _, d := range list {
				if d.Weight == 0 {
					continue
				}
				d.Weight = 0
				if err := h.UpdateDestination(v, d); err != nil && !gone(err) {
					errs = append(errs, fmt.Errorf("take %s off virtual server %s: %w", d.Address, v.Address, err))
				}
			}
		}
		return errors.Join(errs...)
	})
}

// endDatagrams takes away the Backends that rules do not keep: IPVS lets go of
// what is connected to them, and flows of UDP never end by themselves.
func (s *ipvsState) endDatagrams(rules []netfilter.FlowRule) error {
	if s.empty() || len(s.servers) == 0 {
		return nil
	}
	keep := map[dataplane.FrontendKey]func(netip.AddrPort) bool{}
	for _, r := range rules {
		keep[r.Frontend] = r.Keep
	}
	return withIPVS(func(h *mobyipvs.Handle) error {
		var errs []error
		for _, v := range s.servers {
			addr, _ := netip.AddrFromSlice(v.Address)
			keeps, known := keep[dataplane.FrontendKey{Address: addr.Unmap(), Port: v.Port, Protocol: dataplane.UDP}]
			if v.Protocol != unix.IPPROTO_UDP || !known {
				continue
			}
			list, err := h.GetDestinations(v)
			if gone(err) {
				continue
			}
			errs = append(errs, err)
			for _, d := range list {
				to, _ := netip.AddrFromSlice(d.Address)
				if keeps != nil && keeps(netip.AddrPortFrom(to.Unmap(), d.Port)) {
					continue
				}
				if err := h.DelDestination(v, d); err != nil && !gone(err) {
					errs = append(errs, fmt.Errorf("end flows of %s:%d to %s: %w", v.Address, v.Port, d.Address, err))
				}
			}
		}
		return errors.Join(errs...)
	})
}

// carries reports whether a virtual server has connections that may go on.
func (s *ipvsState) carries() (carries bool, err error) {
	if s.empty() || len(s.servers) == 0 {
		return false, nil
	}
	err = withIPVS(func(h *mobyipvs.Handle) error {
		known, err := s.known(h)
		if err == nil && known {
			carries, err = carried(h, s.servers)
		}
		return err
	})
	return carries, err
}

// known reports whether IPVS knows connections, be they over, of a virtual server.
func (s *ipvsState) known(h *mobyipvs.Handle) (bool, error) {
	for _, v := range s.servers {
		list, err := h.GetDestinations(v)
		if err != nil && !gone(err) {
			return false, fmt.Errorf("list destinations of virtual server %s: %w", v.Address, err)
		}
		if slices.ContainsFunc(list, func(d *mobyipvs.Destination) bool { return d.ActiveConnections+d.InactiveConnections > 0 }) {
			return true, nil
		}
	}
	return false, nil
}

// remove removes all of it. An ipset that a rule of somebody else uses stays.
func (s *ipvsState) remove() (removed []string, err error) {
	if s.empty() {
		return nil, nil
	}
	var errs []error
	if len(s.servers) > 0 {
		err := s.removeServers()
		if err == nil {
			removed = append(removed, plural(len(s.servers), "IPVS virtual server"))
		}
		errs = append(errs, err)
	}
	if s.device {
		link, err := netlink.LinkByName(ipvsDevice)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove device %s: %w", ipvsDevice, err))
		} else {
			removed = append(removed, fmt.Sprintf("device %s with %d addresses", ipvsDevice, len(s.addresses)))
		}
	}
	var sets []string
	for _, name := range s.sets {
		if err := netlink.IpsetDestroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove ipset %s: %w", name, err))
			continue
		}
		sets = append(sets, name)
	}
	if len(sets) > 0 {
		removed = append(removed, fmt.Sprintf("%s %s", plural(len(sets), "ipset"), strings.Join(sets, ", ")))
	}
	return removed, errors.Join(errs...)
}

// removeServers takes their destinations away first: IPVS lets go of connections
// to these, which would go on to take answers of the Backend for their own.
func (s *ipvsState) removeServers() error {
	return withIPVS(func(h *mobyipvs.Handle) error {
		for _, v := range s.servers {
			list, err := h.GetDestinations(v)
			if err != nil && !gone(err) {
				return fmt.Errorf("list destinations of virtual server %s: %w", v.Address, err)
			}
			for _, d := range list {
				if err := h.DelDestination(v, d); err != nil && !gone(err) {
					return fmt.Errorf("take %s from virtual server %s: %w", d.Address, v.Address, err)
				}
			}
		}
		err := letGo(s.servers)
		for _, v := range s.servers {
			if derr := h.DelService(v); derr != nil && !gone(derr) {
				return errors.Join(err, fmt.Errorf("remove virtual server %s: %w", v.Address, derr))
			}
		}
		return err
	})
}

// gone: somebody removed it meanwhile.
func gone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }
