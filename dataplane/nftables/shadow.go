// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

// shadow is what the kernel holds, but for what follows from the Services. It
// keeps the Services themselves, which the compiler has anyway, and next to
// nothing beside them.
type shadow struct {
	services map[dataplane.ServiceName]*serviceState
	actions  [2]*actions
	// How many Frontends and Backends need an address in a set.
	clusterIPs, local map[netip.Addr]int32
	loopback          int // Frontends on 127.0.0.0/8
	nextSticky        uint32
	frontends         int
}

func newShadow() *shadow {
	return &shadow{
		services: map[dataplane.ServiceName]*serviceState{}, nextSticky: 1,
		actions:    [2]*actions{newActions(families[0]), newActions(families[1])},
		clusterIPs: map[netip.Addr]int32{}, local: map[netip.Addr]int32{},
	}
}

// serviceState is a Service as programmed.
type serviceState struct {
	spec *dataplane.Service
	// frontends are parallel to spec.Frontends.
	frontends []frontendState
}

// frontendState is how a Frontend lies in the maps.
type frontendState struct {
	// split: external clients have maps of their own.
	split    bool
	actions  [2]uint32 // by scope
	orders   [2]order  // by scope
	stickyID uint32    // 0 without affinity
}

// order says which Backend of a set is at which place: the places of the
// eligible ones, then those of the others. nil is the order of the set.
type order []uint16

// nowhere marks a place that has no Backend yet.
const nowhere = 1<<16 - 1

func (o order) at(i int) int {
	if o == nil {
		return i
	}
	return int(o[i])
}

// compact forgets an order that is the set's.
func (o order) compact() order {
	for i, p := range o {
		if int(p) != i {
			return o
		}
	}
	return nil
}

// slotIndex is the index in the slots of a place, where eligible Backends are n.
func slotIndex(place, n int) uint32 {
	if place < n {
		return uint32(place)
	}
	return idleSlot + uint32(place-n)
}

// place is the inverse of slotIndex, -1 if there is no such place among all.
func place(index uint32, n, all int) int {
	p := int(index)
	if index >= idleSlot {
		p = int(index-idleSlot) + n
		if p < n {
			return -1
		}
	} else if p >= n {
		return -1
	}
	if p >= all {
		return -1
	}
	return p
}

// isSplit reports whether external clients need a set of their own.
func isSplit(f *dataplane.Frontend) bool {
	return f.Kind != dataplane.ClusterIP && !f.External.Equal(f.Internal)
}

// scopes are those with maps of their own.
func (s *frontendState) scopes() []dataplane.Scope {
	if s.split {
		return bothScopes
	}
	return bothScopes[:1]
}

var bothScopes = []dataplane.Scope{dataplane.Internal, dataplane.External}

// The maps of a scope.
var (
	frontendSets = [2]setID{setFrontends, setFrontendsExternal}
	slotSets     = [2]setID{setSlots, setSlotsExternal}
	stickySets   = [2]setID{setStickySlots, setStickySlotsExternal}
	eligibleSets = [2]setID{setEligible, setEligibleExternal}
)

// slotSet is where a Frontend's slots are.
func slotSet(f *dataplane.Frontend, scope dataplane.Scope) setID {
	if f.AffinitySeconds > 0 {
		return stickySets[scope]
	}
	return slotSets[scope]
}

func isSticky(id setID) bool { return id == setStickySlots || id == setStickySlotsExternal }

// indexOf finds a Backend in a set, the same in all that slots say of it.
func indexOf(s *dataplane.BackendSet, b *dataplane.Backend) int {
	i, ok := slices.BinarySearchFunc(s.Backends, *b, dataplane.CompareBackends)
	if !ok || s.Backends[i].Local != b.Local {
		return -1
	}
	return i
}

// count keeps how many need an address, and puts it into the set or takes it
// out with the first and the last.
func count32(m map[netip.Addr]int32, a netip.Addr, by int32, put func(there bool)) {
	n := m[a] + by
	switch {
	case n == 0:
		delete(m, a)
		put(false)
	case n == by && by > 0:
		m[a] = n
		put(true)
	default:
		m[a] = n
	}
}

// localAddresses are those of Backends on this node that have a network of
// their own, once for each set they are in.
func localAddresses(f *dataplane.Frontend, split bool, each func(netip.Addr)) {
	for _, scope := range bothScopes {
		if scope == dataplane.External && !split {
			return
		}
		set := f.Set(scope)
		for i := range set.Backends {
			if b := &set.Backends[i]; b.Local && !b.HostNetwork {
				each(b.Address)
			}
		}
	}
}
