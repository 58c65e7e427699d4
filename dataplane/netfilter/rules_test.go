// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"net/netip"
	"slices"
	"testing"

	"fairlead.dev/dataplane"
)

func setOf(addrs ...netip.Addr) dataplane.BackendSet {
	var s dataplane.BackendSet
	for _, a := range addrs {
		s.Backends = append(s.Backends, dataplane.Backend{Address: a, Port: backendPort})
	}
	return s
}

func service(frontends ...dataplane.Frontend) *dataplane.Service {
	return &dataplane.Service{Name: dataplane.ServiceName{Namespace: "ns", Name: "lab"}, Frontends: frontends}
}

func TestRulesForTwoStatesOfAService(t *testing.T) {
	udp, tcp := udpFrontend(53), tcpFrontend(53)
	both := func(key dataplane.FrontendKey, s dataplane.BackendSet) dataplane.Frontend {
		return dataplane.Frontend{FrontendKey: key, Internal: s, External: s}
	}
	type kept map[dataplane.FrontendKey][]netip.Addr
	for name, c := range map[string]struct {
		old, new *dataplane.Service
		want     kept
	}{
		"nothing changed": {service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), kept{}},
		"a Backend more":  {service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), service(both(udp, setOf(backendA, backendB)), both(tcp, setOf(backendA, backendB))), kept{}},
		"a Backend less": {
			service(both(udp, setOf(backendA, backendB)), both(tcp, setOf(backendA, backendB))),
			service(both(udp, setOf(backendB)), both(tcp, setOf(backendB))), kept{udp: {backendB}, tcp: {backendB}},
		},
		"a new Service":                  {nil, service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), kept{udp: {backendA}}},
		"a new Service without Backends": {nil, service(both(udp, setOf()), both(tcp, setOf())), kept{udp: nil}},
		"the first Backend":              {service(both(udp, setOf()), both(tcp, setOf())), service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), kept{udp: {backendA}}},
		"the first Backend of one scope": {
			service(dataplane.Frontend{FrontendKey: udp, Internal: setOf(backendA)}),
			service(dataplane.Frontend{FrontendKey: udp, Internal: setOf(backendA), External: setOf(backendA)}), kept{udp: {backendA}},
		},
		"no Backend left":      {service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), service(both(udp, setOf()), both(tcp, setOf())), kept{udp: nil, tcp: nil}},
		"the Service is gone":  {service(both(udp, setOf(backendA)), both(tcp, setOf(backendA))), nil, kept{udp: nil, tcp: nil}},
		"an empty one is gone": {service(both(udp, setOf()), both(tcp, setOf())), nil, kept{udp: nil}},
		"a Backend drains": {
			service(both(tcp, setOf(backendA, backendB))),
			service(dataplane.Frontend{FrontendKey: tcp, Internal: setOf(backendA), External: setOf(backendA), Draining: setOf(backendB).Backends}), kept{},
		},
		"one scope loses a Backend that the other has": {
			service(both(udp, setOf(backendA, backendB))),
			service(dataplane.Frontend{FrontendKey: udp, Internal: setOf(backendA, backendB), External: setOf(backendA)}), kept{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := slices.DeleteFunc(StaleRules(c.old, c.new), func(r FlowRule) bool {
				return r.now != nil && len(r.lost) == 0 // Backends that came: ends nothing
			})
			if len(got) != len(c.want) {
				t.Errorf("%d rules, want %d: %v", len(got), len(c.want), got)
			}
			for _, r := range got {
				addrs, ok := c.want[r.Frontend]
				if !ok {
					t.Errorf("a rule for %s", r.Frontend)
				}
				for _, a := range []netip.Addr{backendA, backendB, frontend} {
					want := false
					for _, k := range addrs {
						want = want || k == a
					}
					if got := r.Keep != nil && r.Keep(at(a)); got != want {
						t.Errorf("%s keeps flows to %s: %t, want %t", r.Frontend, a, got, want)
					}
				}
			}
		})
	}
}

func TestAllRulesCoverEveryFrontend(t *testing.T) {
	s := service(
		dataplane.Frontend{FrontendKey: udpFrontend(53), Internal: setOf(backendA), External: setOf(backendB)},
		dataplane.Frontend{FrontendKey: tcpFrontend(53)},
	)
	rules := AllRules(&dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{s.Name: s}})
	if len(rules) != 2 {
		t.Fatalf("%d rules, want 2", len(rules))
	}
	for _, r := range rules {
		isUDP := r.Frontend.Protocol == dataplane.UDP
		if r.Keep(at(backendA)) != isUDP || r.Keep(at(backendB)) != isUDP || r.Keep(at(silentA)) {
			t.Errorf("the rule for %s keeps the wrong Backends", r.Frontend)
		}
	}
}
