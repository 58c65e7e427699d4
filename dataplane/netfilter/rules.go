// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"net/netip"

	"fairlead.dev/dataplane"
)

// FlowRule says which flows to a Frontend may stay after a Change.
type FlowRule struct {
	Frontend dataplane.FrontendKey
	// Keep reports whether flows to a Backend may stay; nil keeps none. A flow
	// that is not translated at all has the Frontend itself for Backend.
	Keep func(backend netip.AddrPort) bool
}

// StaleRules compares two states of a Service, either of which may be nil. It
// gives a rule for each Frontend that lost Backends or, for UDP, that is new,
// gone, or got the first Backend of a set: what clients sent meanwhile may have
// made flows that go past the Service, and that each datagram keeps alive.
func StaleRules(old, new *dataplane.Service) []FlowRule {
	before, after := frontendsOf(old), frontendsOf(new)
	var rules []FlowRule
	for key, was := range before {
		is := after[key]
		if is == nil {
			if key.Protocol == dataplane.UDP || len(backendsOf(was)) > 0 {
				rules = append(rules, FlowRule{Frontend: key})
			}
			continue
		}
		kept := backendsOf(is)
		if lost(backendsOf(was), kept) || key.Protocol == dataplane.UDP && started(was, is) {
			rules = append(rules, FlowRule{key, kept.has})
		}
	}
	for key, is := range after {
		if before[key] == nil && key.Protocol == dataplane.UDP {
			rules = append(rules, FlowRule{key, backendsOf(is).has})
		}
	}
	return rules
}

// AllRules gives a rule for every Frontend of a Table: for a first Sync, when
// what changed while no agent ran is not known.
func AllRules(t *dataplane.Table) []FlowRule {
	var rules []FlowRule
	for _, s := range t.Services {
		for i := range s.Frontends {
			rules = append(rules, FlowRule{s.Frontends[i].FrontendKey, backendsOf(&s.Frontends[i]).has})
		}
	}
	return rules
}

func frontendsOf(s *dataplane.Service) map[dataplane.FrontendKey]*dataplane.Frontend {
	frontends := map[dataplane.FrontendKey]*dataplane.Frontend{}
	if s != nil {
		for i := range s.Frontends {
			frontends[s.Frontends[i].FrontendKey] = &s.Frontends[i]
		}
	}
	return frontends
}

// backends are those that flows to a Frontend may go to.
type backends map[netip.AddrPort]struct{}

func (b backends) has(a netip.AddrPort) bool {
	_, ok := b[a]
	return ok
}

func backendsOf(f *dataplane.Frontend) backends {
	b := make(backends, len(f.Internal.Backends))
	for _, list := range [][]dataplane.Backend{f.Internal.Backends, f.External.Backends, f.Draining} {
		for i := range list {
			b[list[i].AddrPort()] = struct{}{}
		}
	}
	return b
}

func lost(before, after backends) bool {
	for b := range before {
		if !after.has(b) {
			return true
		}
	}
	return false
}

// started reports whether a set got its first Backend.
func started(was, is *dataplane.Frontend) bool {
	return len(was.Internal.Backends) == 0 && len(is.Internal.Backends) > 0 ||
		len(was.External.Backends) == 0 && len(is.External.Backends) > 0
}
