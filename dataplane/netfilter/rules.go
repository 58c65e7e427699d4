// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"net/netip"
	"sync"

	"fairlead.dev/dataplane"
)

// FlowRule says which flows to a Frontend may stay after a Change.
type FlowRule struct {
	Frontend dataplane.FrontendKey
	// Keep reports whether flows to a Backend may stay; nil keeps none. A flow
	// that is not translated at all has the Frontend itself for Backend.
	Keep func(backend netip.AddrPort) bool
	// Of TCP and SCTP, where it comes from two states: lost are the Backends
	// that went, now is the Frontend's new state (nil: gone). See EndStale.
	lost backends
	now  *dataplane.Frontend
}

// waits reports whether the rule need not be followed at once.
func (r *FlowRule) waits() bool { return r.lost != nil || r.now != nil }

// StaleRules compares two states of a Service, either of which may be nil. It
// gives a rule for each Frontend that lost Backends or, for UDP, that is new,
// gone, or got the first Backend of a set: what clients sent meanwhile may have
// made flows that go past the Service, and that each datagram keeps alive.
// For TCP and SCTP there is also a rule where Backends came: one that was lost
// a moment ago may be back, and then EndStale must not end flows to it.
func StaleRules(old, new *dataplane.Service) []FlowRule {
	before, after := frontendsOf(old), frontendsOf(new)
	var rules []FlowRule
	for key, was := range before {
		if is := after[key]; is == nil && key.Protocol == dataplane.UDP {
			rules = append(rules, FlowRule{Frontend: key})
		} else if is == nil {
			if all := backendsOf(was); len(all) > 0 {
				rules = append(rules, FlowRule{Frontend: key, lost: all})
			}
		} else if r := changed(key, was, is); r.Frontend == key {
			rules = append(rules, r)
		}
	}
	for key, is := range after {
		if before[key] != nil {
			continue
		}
		r := FlowRule{Frontend: key, Keep: keepOf(is)}
		if key.Protocol != dataplane.UDP {
			r.now = is
		}
		rules = append(rules, r)
	}
	return rules
}

// changed is the rule for a Frontend that was and is; the zero one for none.
func changed(key dataplane.FrontendKey, was, is *dataplane.Frontend) FlowRule {
	had, has := backendsOf(was), backendsOf(is)
	lost, got := without(had, has), without(has, had)
	if key.Protocol == dataplane.UDP {
		if len(lost) > 0 || started(was, is) {
			return FlowRule{Frontend: key, Keep: has.has}
		}
		return FlowRule{}
	}
	if len(lost)+len(got) == 0 {
		return FlowRule{}
	}
	return FlowRule{Frontend: key, Keep: has.has, lost: lost, now: is}
}

// AllRules gives a rule for every Frontend of a Table: for a first Sync, when
// what changed while no agent ran is not known.
func AllRules(t *dataplane.Table) []FlowRule {
	var rules []FlowRule
	for _, s := range t.Services {
		for i := range s.Frontends {
			rules = append(rules, FlowRule{Frontend: s.Frontends[i].FrontendKey, Keep: keepOf(&s.Frontends[i])})
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

// keepOf is Keep for all Backends of a Frontend, which are collected when they
// are first asked for: most rules meet no flow.
func keepOf(f *dataplane.Frontend) func(netip.AddrPort) bool {
	collect := sync.OnceValue(func() backends { return backendsOf(f) })
	return func(a netip.AddrPort) bool { return collect().has(a) }
}

// without are those of a that are not in b.
func without(a, b backends) backends {
	rest := backends{}
	for backend := range a {
		if !b.has(backend) {
			rest[backend] = struct{}{}
		}
	}
	return rest
}

// started reports whether a set got its first Backend.
func started(was, is *dataplane.Frontend) bool {
	return len(was.Internal.Backends) == 0 && len(is.Internal.Backends) > 0 ||
		len(was.External.Backends) == 0 && len(is.External.Backends) > 0
}
