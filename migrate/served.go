// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	mobyipvs "github.com/moby/ipvs"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/iptables"
)

// servedSet are the Frontends that kube-proxy's rules lead to a Backend.
type servedSet struct {
	mode string
	at   map[dataplane.FrontendKey]bool
	// nodePorts are those of any address of the node, by family.
	nodePorts map[servedPort]bool
}

type servedPort struct {
	ipv6     bool
	protocol dataplane.Protocol
	port     uint16
}

func (s *servedSet) has(f wantedFrontend) bool {
	if f.kind == dataplane.NodePort && s.nodePorts[servedPort{f.key.Address.Is6(), f.key.Protocol, f.key.Port}] {
		return true
	}
	return s.at[f.key]
}

// readServed reads them, of whichever mode has any.
func readServed(ctx context.Context) (*servedSet, error) {
	l, err := Find(ctx)
	if err != nil {
		return nil, err
	}
	s := &servedSet{mode: strings.Join(l.Modes(), " and "), at: map[dataplane.FrontendKey]bool{}, nodePorts: map[servedPort]bool{}}
	for _, p := range l.chains {
		s.addChains(p.rules.Tables["nat"], p.rules.IPv6())
	}
	for _, t := range l.tables {
		if err := s.addTable(t); err != nil {
			return nil, fmt.Errorf("read %s: %w", t, err)
		}
	}
	ruled := map[bool]bool{}
	for _, p := range l.chains {
		ruled[p.rules.IPv6()] = ruled[p.rules.IPv6()] || len(p.rules.Tables["nat"][postrouting]) > 0
	}
	return s, s.addServers(l.ipvs, ruled)
}

// addChains reads rules such as
//
//	-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "..." -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
//	-A KUBE-NODEPORTS -p tcp -m comment --comment default/web -m tcp --dport 30080 -j KUBE-EXT-LOLE4ISW44XBNF3G
func (s *servedSet) addChains(nat map[string][]string, ipv6 bool) {
	for _, chain := range []string{"KUBE-SERVICES", "KUBE-NODEPORTS"} {
		for _, rule := range nat[chain] {
			if !strings.HasPrefix(iptables.Target(rule), "KUBE-") {
				continue
			}
			protocol, err := dataplane.ParseProtocol(strings.ToUpper(iptables.Option(rule, "-p")))
			if err != nil {
				continue
			}
			port, err := strconv.ParseUint(iptables.Option(rule, "--dport"), 10, 16)
			if err != nil {
				continue
			}
			prefix, err := netip.ParsePrefix(iptables.Option(rule, "-d"))
			switch {
			case err == nil && prefix.IsSingleIP():
				s.at[dataplane.FrontendKey{Address: prefix.Addr(), Port: uint16(port), Protocol: protocol}] = true
			case chain == "KUBE-NODEPORTS":
				s.nodePorts[servedPort{ipv6, protocol, uint16(port)}] = true
			}
		}
	}
}

// addTable reads the maps of kube-proxy's nftables mode: service-ips has
// elements "address . protocol . port", service-nodeports "protocol . port".
// Each part of a key takes a multiple of 4 bytes.
func (s *servedSet) addTable(t nftTable) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: nftTableName, Family: t.family}
	size := 4
	if t.family == nftables.TableFamilyIPv6 {
		size = 16
	}
	elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: "service-ips"})
	if err != nil {
		return fmt.Errorf("map service-ips: %w", err)
	}
	for _, e := range elements {
		if len(e.Key) < size+8 {
			continue
		}
		if a, ok := netip.AddrFromSlice(e.Key[:size]); ok {
			protocol, port := keyPort(e.Key[size:])
			s.at[dataplane.FrontendKey{Address: a, Port: port, Protocol: protocol}] = true
		}
	}
	elements, err = c.GetSetElements(&nftables.Set{Table: table, Name: "service-nodeports"})
	if err != nil {
		return fmt.Errorf("map service-nodeports: %w", err)
	}
	for _, e := range elements {
		if len(e.Key) >= 8 {
			protocol, port := keyPort(e.Key)
			s.nodePorts[servedPort{size == 16, protocol, port}] = true
		}
	}
	return nil
}

// keyPort is "protocol . port" of a key.
func keyPort(key []byte) (dataplane.Protocol, uint16) {
	return dataplane.Protocol(key[0]), binary.BigEndian.Uint16(key[4:])
}

// addServers reads those virtual servers that give connections to a Backend, of
// the families that have rules, too: kube-proxy writes these last, and masquerades
// by them. What Withdraw left of an earlier kube-proxy gives none.
func (s *servedSet) addServers(v *ipvsState, ruledIPv6 map[bool]bool) error {
	if v.empty() || len(v.servers) == 0 {
		return nil
	}
	return withIPVS(func(h *mobyipvs.Handle) error {
		for _, server := range v.servers {
			a, ok := netip.AddrFromSlice(server.Address)
			if !ok || !ruledIPv6[a.Unmap().Is6()] {
				continue
			}
			list, err := h.GetDestinations(server)
			if err != nil && !gone(err) {
				return fmt.Errorf("list destinations of virtual server %s: %w", server.Address, err)
			}
			if slices.ContainsFunc(list, func(d *mobyipvs.Destination) bool { return d.Weight > 0 }) {
				s.at[dataplane.FrontendKey{Address: a.Unmap(), Port: server.Port, Protocol: dataplane.Protocol(server.Protocol)}] = true
			}
		}
		return nil
	})
}
