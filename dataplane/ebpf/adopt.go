// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf"
)

// adopt rebuilds the shadow from the kernel. What contradicts itself there (a
// Frontend of no named Service, ranges that overlap) is left out, so that the
// comparison with the Table that follows replaces or removes it; strays are
// Frontends to delete in any case.
func (d *Dataplane) adopt() (strays []bpf.FairleadFrontendKey, err error) {
	old := d.shadow
	d.shadow = newShadow(d.options)
	if old != nil {
		d.shadow.ranges.aging = old.ranges.aging
	}
	ports, err := d.adoptNames()
	if err != nil {
		return nil, err
	}
	if strays, err = d.adoptFrontends(ports); err != nil {
		return nil, err
	}
	if err := d.adoptSources(ports); err != nil {
		return nil, err
	}
	d.adoptRanges(ports)
	d.adoptBackends(ports)
	return strays, nil
}

func (d *Dataplane) adoptNames() ([]*portState, error) {
	ports := make([]*portState, d.options.ServicesMax)
	used := make([]bool, d.options.ServicesMax)
	err := eachEntry(d.maps["services"], func(id uint32, n *bpf.FairleadServiceNames) {
		if int(id) >= len(ports) {
			return
		}
		p := &portState{portID: decodeNames(n), id: id}
		if d.shadow.port(p.portID) != nil {
			return // named twice: the second is nobody's
		}
		ports[id], used[id] = p, true
		d.shadow.add(p)
	})
	if err != nil {
		return nil, fmt.Errorf("read map services: %w", err)
	}
	d.shadow.ids.adopt(used)
	return ports, nil
}

func (d *Dataplane) adoptFrontends(ports []*portState) (strays []bpf.FairleadFrontendKey, err error) {
	err = eachEntry(d.maps["frontends"], func(key bpf.FairleadFrontendKey, v *bpf.FairleadFrontend) {
		if int(v.Service) >= len(ports) || ports[v.Service] == nil {
			strays = append(strays, key)
			return
		}
		p := ports[v.Service]
		p.frontends = append(p.frontends, frontendState{key, *v})
		d.shadow.frontends++
	})
	if err != nil {
		return nil, fmt.Errorf("read map frontends: %w", err)
	}
	for _, p := range ports {
		if p != nil {
			slices.SortFunc(p.frontends, func(a, b frontendState) int { return compareKeys(a.key, b.key) })
		}
	}
	return strays, nil
}

func (d *Dataplane) adoptSources(ports []*portState) error {
	var stray []bpf.FairleadSourceRangeKey
	err := eachEntry(d.maps["source_ranges"], func(key bpf.FairleadSourceRangeKey, _ *uint8) {
		if int(key.Service) >= len(ports) || ports[key.Service] == nil {
			stray = append(stray, key)
			return
		}
		ports[key.Service].sources = append(ports[key.Service].sources, key)
	})
	if err != nil {
		return fmt.Errorf("read map source_ranges: %w", err)
	}
	for _, key := range stray {
		d.maps["source_ranges"].Delete(key)
	}
	return nil
}

// adoptRanges takes the ranges that Frontends point to as used, and forgets
// those Frontends' values whose range is impossible or another's.
func (d *Dataplane) adoptRanges(ports []*portState) {
	taken := make([]bool, len(d.slots))
	var used []slotRange
	claim := func(p *portState, set bpf.FairleadBackendSet) bool {
		if set.Total == 0 {
			return true
		}
		s := setState{slotRange{set.Base, uint32(set.Total)}, set.Eligible, set.Index}
		if slices.Contains(p.sets, s) {
			return true
		}
		if uint64(set.Base)+uint64(set.Total) > uint64(len(d.slots)) || set.Eligible > set.Total || set.Index >= 16 ||
			slices.ContainsFunc(p.sets, func(o setState) bool { return o.index == s.index }) {
			return false
		}
		for i := s.base; i < s.end(); i++ {
			if taken[i] || int(d.slots[i].Backend) >= len(d.states) {
				return false
			}
		}
		for i := s.base; i < s.end(); i++ {
			taken[i] = true
		}
		p.sets = append(p.sets, s)
		used = append(used, s.slotRange)
		return true
	}
	for _, p := range ports {
		if p == nil {
			continue
		}
		for i := range p.frontends {
			v := &p.frontends[i].value
			if !claim(p, v.Internal) || !claim(p, v.External) {
				*v = bpf.FairleadFrontend{} // equals nothing wanted: will be written
			}
		}
	}
	d.shadow.ranges.adopt(used)
}

// adoptBackends numbers the Backends that slots name, and ends those that none
// names: an agent killed between switching a Frontend and ending its removed
// Backends left them alive.
func (d *Dataplane) adoptBackends(ports []*portState) {
	used := make([]bool, len(d.states))
	for _, p := range ports {
		if p == nil {
			continue
		}
		for _, s := range p.sets {
			for _, slot := range d.slots[s.base:s.end()] {
				if !used[slot.Backend] {
					used[slot.Backend] = true
					p.backends = append(p.backends, backendRef{slot.Address, slot.Port, slot.Backend})
				}
			}
		}
		slices.SortFunc(p.backends, compareBackendRefs)
	}
	for i := range d.states {
		s := &d.states[i]
		if !used[i] && s.Generation&1 == 1 {
			if s.SocketUsed != 0 {
				d.sweepWanted = sweepUDP | sweepTCP
			}
			s.EligibleSets = 0
			atomic.StoreUint32(&s.Generation, s.Generation+1)
		}
		if used[i] && s.Generation&1 == 0 {
			atomic.StoreUint32(&s.Generation, s.Generation+1)
		}
	}
	d.shadow.backends.adopt(used)
	d.adoptEligible(ports, used)
}

// adoptEligible makes eligible_sets exactly what the ranges say.
func (d *Dataplane) adoptEligible(ports []*portState, used []bool) {
	want := make([]uint16, len(d.states))
	for _, p := range ports {
		if p == nil {
			continue
		}
		for _, s := range p.sets {
			for _, slot := range d.slots[s.base : s.base+uint32(s.eligible)] {
				want[slot.Backend] |= 1 << s.index
			}
		}
	}
	for i := range want {
		if used[i] && d.states[i].EligibleSets != want[i] {
			d.states[i].EligibleSets = want[i]
		}
	}
}

// eachEntry calls f for every entry of a hash map, in batches where the kernel
// has them. f must not keep the pointer.
func eachEntry[K, V any](m *ebpf.Map, f func(K, *V)) error {
	const batch = 4096
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range keys[:n] {
			f(keys[i], &values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if errors.Is(err, ebpf.ErrNotSupported) {
			return eachEntrySlowly(m, f)
		}
		if err != nil {
			return err
		}
	}
}

func eachEntrySlowly[K, V any](m *ebpf.Map, f func(K, *V)) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		f(k, &v)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	return nil
}
