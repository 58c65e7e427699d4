// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"cmp"
	"slices"
	"time"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// shadow is what the agent knows the kernel to hold: enough to find what a
// Change has to write, and no more.
type shadow struct {
	services  map[dataplane.ServiceName][]*portState
	frontends int // entries in the frontends map
	ranges    *ranges
	ids       numbers // of Service ports
	backends  numbers // of backend_states
}

// portState is one Service port in the kernel.
type portState struct {
	portID
	id        uint32
	frontends []frontendState // sorted by key
	sets      []setState      // distinct ranges in use
	backends  []backendRef    // sorted; every Backend in any range
	sources   []bpf.FairleadSourceRangeKey
}

type frontendState struct {
	key   bpf.FairleadFrontendKey
	value bpf.FairleadFrontend
}

type setState struct {
	slotRange
	eligible uint16
	index    uint8
}

// backendRef names a Backend within its Service port.
type backendRef struct {
	address bpf.FairleadAddress
	port    uint16 // network byte order
	id      uint32
}

func compareBackendRefs(a, b backendRef) int {
	return cmp.Or(slices.Compare(a.address.Word[:], b.address.Word[:]), cmp.Compare(a.port, b.port))
}

func compareKeys(a, b bpf.FairleadFrontendKey) int {
	return cmp.Or(slices.Compare(a.Address.Word[:], b.Address.Word[:]), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

func newShadow(o Options) *shadow {
	return &shadow{
		services: map[dataplane.ServiceName][]*portState{},
		ranges:   newRanges(uint32(o.SlotsMax), time.Now),
		ids:      numbers{max: uint32(o.ServicesMax), now: time.Now},
		backends: numbers{max: uint32(o.SlotsMax), now: time.Now},
	}
}

func (s *shadow) port(id portID) *portState {
	for _, p := range s.services[id.service] {
		if p.portName == id.portName {
			return p
		}
	}
	return nil
}

func (s *shadow) add(p *portState) { s.services[p.service] = append(s.services[p.service], p) }

func (s *shadow) remove(p *portState) {
	list := slices.DeleteFunc(s.services[p.service], func(q *portState) bool { return q == p })
	if len(list) == 0 {
		delete(s.services, p.service)
		return
	}
	s.services[p.service] = list
}

// backendID finds the number of a Backend among sorted refs.
func backendID(refs []backendRef, address bpf.FairleadAddress, port uint16) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(refs, backendRef{address: address, port: port}, compareBackendRefs)
	if !ok {
		return 0, false
	}
	return refs[i].id, true
}
