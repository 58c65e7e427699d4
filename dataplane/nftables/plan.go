// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

// valid reports what the maps could not hold of a Service.
func valid(s *dataplane.Service) error {
	for i := range s.Frontends {
		f := &s.Frontends[i]
		if _, _, err := comments(s.Name, f); err != nil {
			return err
		}
		if len(f.Internal.Backends) > backendsMax || len(f.External.Backends) > backendsMax {
			return errors.New("more than 65,535 Backends in a set")
		}
	}
	return nil
}

// plan puts into t what makes old, as programmed, into new; either may be nil.
// It returns the new state and how many Frontends differ.
func (sh *shadow) plan(t *transaction, old *serviceState, new *dataplane.Service) (state *serviceState, changed int) {
	was := map[dataplane.FrontendKey]int{}
	if old != nil {
		for i := range old.spec.Frontends {
			was[old.spec.Frontends[i].FrontendKey] = i
		}
	}
	if new != nil {
		state = &serviceState{spec: new, frontends: make([]frontendState, len(new.Frontends))}
		for i := range new.Frontends {
			f := &new.Frontends[i]
			k, ok := was[f.FrontendKey]
			if ok {
				delete(was, f.FrontendKey)
				if g := &old.spec.Frontends[k]; g.Equal(f) {
					state.frontends[i] = old.frontends[k]
					continue
				}
			}
			changed++
			state.frontends[i] = sh.planFrontend(t, old, k, ok, state, i)
		}
	}
	for _, k := range was {
		changed++
		sh.planFrontend(t, old, k, true, nil, 0)
	}
	return state, changed
}

// planFrontend plans one Frontend: the k-th of old, if there is one, becomes
// the i-th of state, if that is not nil.
func (sh *shadow) planFrontend(t *transaction, old *serviceState, k int, had bool, state *serviceState, i int) (now frontendState) {
	var f, g *dataplane.Frontend // is, was
	var was frontendState
	if had {
		g, was = &old.spec.Frontends[k], old.frontends[k]
	}
	if state != nil {
		f = &state.spec.Frontends[i]
		now.split = isSplit(f)
		now.stickyID = sh.stickyID(f, old, state)
	}
	for _, scope := range bothScopes {
		sh.planScope(t, scope, g, &was, f, &now)
	}
	sh.planNames(t, old, state, g, &was, f, &now)
	sh.planFacts(t, g, f)
	sh.recount(t, f, now.split, 1)
	sh.recount(t, g, was.split, -1)
	return now
}

// planScope plans the slots and affinity of one scope, and its action but for
// what planNames does. The set of a Frontend that is not there, or not split,
// is empty.
func (sh *shadow) planScope(t *transaction, scope dataplane.Scope, g *dataplane.Frontend, was *frontendState, f *dataplane.Frontend, now *frontendState) {
	var before, after dataplane.BackendSet
	if g != nil && (scope == dataplane.Internal || was.split) {
		before = g.Set(scope)
	}
	if f != nil && (scope == dataplane.Internal || now.split) {
		after = f.Set(scope)
		now.actions[scope] = sh.action(f, scope)
	}
	key := keyOf(g, f)
	var had, has []dataplane.Backend
	if g != nil && g.AffinitySeconds > 0 {
		had = before.Eligible()
	}
	switch {
	case f == nil:
		planSlots(t, slotSet(g, scope), key, before, was.orders[scope], after)
	case g != nil && slotSet(g, scope) != slotSet(f, scope):
		planSlots(t, slotSet(g, scope), key, before, was.orders[scope], dataplane.BackendSet{})
		before, was.orders[scope] = dataplane.BackendSet{}, nil
		fallthrough
	default:
		now.orders[scope] = planSlots(t, slotSet(f, scope), key, before, was.orders[scope], after)
	}
	if f != nil && f.AffinitySeconds > 0 {
		has = after.Eligible()
	}
	planEligible(t, eligibleSets[scope], key, had, has)
}

func keyOf(g, f *dataplane.Frontend) dataplane.FrontendKey {
	if f != nil {
		return f.FrontendKey
	}
	return g.FrontendKey
}

// action is the number of what a Frontend does with connections of a scope.
func (sh *shadow) action(f *dataplane.Frontend, scope dataplane.Scope) uint32 {
	set := f.Set(scope)
	n := len(set.Eligible())
	switch {
	case n > 0:
		return sh.actions[familyOf(f.Address).index].number(pick{backends: n, affinitySeconds: f.AffinitySeconds, scope: scope})
	case set.OnEmpty == dataplane.Drop:
		return actionDrop
	}
	return actionReject
}

// stickyID is the number under which the clients of a Service port are
// remembered: that of its other Frontends, or a new one.
func (sh *shadow) stickyID(f *dataplane.Frontend, states ...*serviceState) uint32 {
	if f.AffinitySeconds == 0 {
		return 0
	}
	for _, s := range states {
		if s == nil {
			continue
		}
		for i := range s.frontends {
			g := &s.spec.Frontends[i]
			if id := s.frontends[i].stickyID; id != 0 && g.PortName == f.PortName && familyOf(g.Address) == familyOf(f.Address) {
				return id
			}
		}
	}
	sh.nextSticky++
	return sh.nextSticky - 1
}

// planSlots keeps the Backends that stay where they are, moves those whose
// place is not there any more, and fills the places that are left.
func planSlots(t *transaction, id setID, key dataplane.FrontendKey, before dataplane.BackendSet, places order, after dataplane.BackendSet) order {
	n, m := len(before.Eligible()), len(after.Eligible())
	now := make(order, len(after.Backends))
	placed := make([]bool, len(after.Backends))
	for i := range now {
		now[i] = nowhere
	}
	for i := range before.Backends {
		index := slotIndex(i, n)
		p := place(index, m, len(after.Backends))
		j := indexOf(&after, &before.Backends[places.at(i)])
		if p >= 0 && j >= 0 && (j < m) == (p < m) && !placed[j] {
			now[p], placed[j] = uint16(j), true
		} else {
			t.slot(id, key, index, nil)
		}
	}
	return fillPlaces(t, id, key, &after, now, placed)
}

// fillPlaces gives the Backends that have no place those that are free.
func fillPlaces(t *transaction, id setID, key dataplane.FrontendKey, s *dataplane.BackendSet, now order, placed []bool) order {
	m := len(s.Eligible())
	next := [2]int{0, m} // the next Backend to look at, of the eligible and the others
	for p := range now {
		if now[p] != nowhere {
			continue
		}
		part := 0
		if p >= m {
			part = 1
		}
		for placed[next[part]] {
			next[part]++
		}
		j := next[part]
		now[p], placed[j] = uint16(j), true
		t.slot(id, key, slotIndex(p, m), &s.Backends[j])
	}
	return now.compact()
}

// planEligible is the difference of two lists, each in the order of addresses.
func planEligible(t *transaction, id setID, key dataplane.FrontendKey, had, has []dataplane.Backend) {
	for len(had) > 0 || len(has) > 0 {
		c := 0
		switch {
		case len(had) == 0:
			c = 1
		case len(has) == 0:
			c = -1
		default:
			c = had[0].AddrPort().Compare(has[0].AddrPort())
		}
		if c < 0 {
			t.eligible(id, key, &had[0], false)
		}
		if c > 0 {
			t.eligible(id, key, &has[0], true)
		}
		if c <= 0 {
			had = had[1:]
		}
		if c >= 0 {
			has = has[1:]
		}
	}
}

// planNames plans the elements that a Frontend has one of: its names, its
// actions and its number for affinity.
func (sh *shadow) planNames(t *transaction, old, state *serviceState, g *dataplane.Frontend, was *frontendState, f *dataplane.Frontend, now *frontendState) {
	var before, after struct{ first, rest string }
	if g != nil {
		before.first, before.rest, _ = comments(old.spec.Name, g)
	}
	if f != nil {
		after.first, after.rest, _ = comments(state.spec.Name, f)
	}
	key := keyOf(g, f)
	replace := func(same bool, put func(there bool)) {
		if g != nil && (f == nil || !same) {
			put(false)
		}
		if f != nil && (g == nil || !same) {
			put(true)
		}
	}
	replace(before.first == after.first, func(there bool) { t.service(key, after.first, there) })
	same := func(scope dataplane.Scope) bool {
		return was.actions[scope] == now.actions[scope] && idle(g, scope) == idle(f, scope)
	}
	replace(before.rest == after.rest && same(dataplane.Internal), func(there bool) {
		t.tupleTo(setFrontends, key, idle(f, dataplane.Internal), now.actions[0], after.rest, there)
	})
	if was.split && (!now.split || !same(dataplane.External)) {
		t.tupleTo(setFrontendsExternal, key, 0, 0, "", false)
	}
	if now.split && (!was.split || !same(dataplane.External)) {
		t.tupleTo(setFrontendsExternal, key, idle(f, dataplane.External), now.actions[1], "", true)
	}
	if was.stickyID != now.stickyID {
		if was.stickyID != 0 {
			t.tupleTo(setStickyIDs, key, 0, 0, "", false)
		}
		if now.stickyID != 0 {
			t.tupleTo(setStickyIDs, key, 0, now.stickyID, "", true)
		}
	}
}

// idle is how many Backends of a set get no new connections: a reader has to
// know how many slots there are.
func idle(f *dataplane.Frontend, scope dataplane.Scope) uint32 {
	if f == nil {
		return 0
	}
	set := f.Set(scope)
	return uint32(len(set.Backends) - len(set.Eligible()))
}

// planFacts plans what is known of a Frontend beside its Backends.
func (sh *shadow) planFacts(t *transaction, g, f *dataplane.Frontend) {
	key := keyOf(g, f)
	toggle := func(id setID, had, has bool) {
		if had != has {
			t.tuple(id, key, has)
		}
	}
	toggle(setKeepSource, g != nil && !g.MasqueradeExternal, f != nil && !f.MasqueradeExternal)
	toggle(setRestricted, g != nil && len(g.SourceRanges) > 0, f != nil && len(f.SourceRanges) > 0)
	had, has := rangesOf(g), rangesOf(f)
	if slices.Equal(had, has) {
		return
	}
	for _, p := range had {
		if !slices.Contains(has, p) {
			t.allowed(key, p, false)
		}
	}
	for _, p := range has {
		if !slices.Contains(had, p) {
			t.allowed(key, p, true)
		}
	}
}

// rangesOf are the source ranges of a Frontend without those that lie in others,
// which the kernel would refuse.
func rangesOf(f *dataplane.Frontend) (out []netip.Prefix) {
	if f == nil {
		return nil
	}
	for _, p := range f.SourceRanges {
		inside := slices.ContainsFunc(f.SourceRanges, func(q netip.Prefix) bool { return q.Bits() < p.Bits() && q.Contains(p.Addr()) })
		if !inside && familyOf(p.Addr()) == familyOf(f.Address) {
			out = append(out, p)
		}
	}
	return out
}

// recount counts a Frontend in or out of what is needed by several.
func (sh *shadow) recount(t *transaction, f *dataplane.Frontend, split bool, by int32) {
	if f == nil {
		return
	}
	put := func(id setID, a netip.Addr) func(there bool) {
		return func(there bool) {
			if t != nil { // nil while what is there is only counted
				t.address(id, a, there)
			}
		}
	}
	sh.frontends += int(by)
	if f.Kind == dataplane.ClusterIP {
		count32(sh.clusterIPs, f.Address, by, put(setClusterIPs, f.Address))
	}
	if f.Address.Is4() && f.Address.IsLoopback() {
		sh.loopback += int(by)
	}
	localAddresses(f, split, func(a netip.Addr) {
		count32(sh.local, a, by, put(setLocalBackends, a))
	})
}
