// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"slices"
	"unsafe"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// plan is what one Service port has to become, with everything it needs
// already allocated, so that writing it can't run out of anything.
type plan struct {
	old      *portState // nil for a new one
	new      *portState // nil to remove
	added    []backendRef
	removed  []backendRef
	fresh    []freshSet
	freed    []slotRange
	puts     []frontendState
	deletes  []bpf.FairleadFrontendKey
	newNames bool
}

// freshSet is a range to be written.
type freshSet struct {
	setState
	slots []bpf.FairleadSlot
}

// setsMax is how many distinct sets one Service port can have in the kernel,
// half of the bits of backend_state.eligible_sets: old and new ones exist side
// by side during a change.
const setsMax = 8

// planPort compares the Frontends of one Service port with what the kernel
// holds of it.
func (d *Dataplane) planPort(id portID, frontends []*dataplane.Frontend, anyPort []bpf.FairleadFrontendKey) (*plan, error) {
	old := d.shadow.port(id)
	p := &plan{old: old, new: &portState{portID: id}}
	if old == nil {
		if _, ok := encodeNames(id); !ok {
			return nil, fmt.Errorf("name too long: namespace has at most %d bytes, name %d, port name %d", namespaceMax, nameMax, portNameMax)
		}
		n, ok := d.shadow.ids.alloc()
		if !ok {
			return nil, fmt.Errorf("map services is full (%d Service ports): raise --services-max", d.options.ServicesMax)
		}
		p.new.id, p.newNames = n, true
		old = &portState{}
	} else {
		p.new.id = old.id
	}
	if err := d.planBackends(p, old, frontends); err != nil {
		d.abandon(p)
		return nil, err
	}
	if err := d.planFrontends(p, old, frontends, anyPort); err != nil {
		d.abandon(p)
		return nil, err
	}
	return p, nil
}

// abandon gives back what a plan allocated.
func (d *Dataplane) abandon(p *plan) {
	if p.newNames {
		d.shadow.ids.put(p.new.id)
	}
	for _, b := range p.added {
		d.shadow.backends.put(b.id)
	}
	for _, f := range p.fresh {
		d.shadow.ranges.put(f.slotRange)
	}
}

// planBackends finds the Backends that come and go, and numbers the new ones.
func (d *Dataplane) planBackends(p *plan, old *portState, frontends []*dataplane.Frontend) error {
	var refs []backendRef
	var last []dataplane.Backend
	collect := func(list []dataplane.Backend) {
		if len(list) == len(last) && unsafe.SliceData(list) == unsafe.SliceData(last) {
			return // the set before had the same slice
		}
		last = list
		for i := range list {
			refs = append(refs, backendRef{address: encodeAddress(list[i].Address), port: swap16(list[i].Port)})
		}
	}
	for _, f := range frontends {
		collect(f.Internal.Backends)
		collect(f.External.Backends)
		collect(f.Draining)
	}
	slices.SortFunc(refs, compareBackendRefs)
	refs = slices.CompactFunc(refs, func(a, b backendRef) bool { return compareBackendRefs(a, b) == 0 })
	k := 0
	for i := range refs {
		for k < len(old.backends) && compareBackendRefs(old.backends[k], refs[i]) < 0 {
			p.removed = append(p.removed, old.backends[k])
			k++
		}
		if k < len(old.backends) && compareBackendRefs(old.backends[k], refs[i]) == 0 {
			refs[i].id = old.backends[k].id
			k++
			continue
		}
		id, ok := d.shadow.backends.alloc()
		if !ok {
			return fmt.Errorf("map backend_states is full (%d Backends): raise --slots-max", d.options.SlotsMax)
		}
		refs[i].id = id
		p.added = append(p.added, refs[i])
	}
	p.removed = append(p.removed, old.backends[k:]...)
	p.new.backends = slices.Clone(refs) // kept: no room that append left
	return nil
}

func (d *Dataplane) planFrontends(p *plan, old *portState, frontends []*dataplane.Frontend, anyPort []bpf.FairleadFrontendKey) error {
	want := make([]frontendState, 0, len(frontends)+len(anyPort))
	for _, f := range frontends {
		fs, err := d.planFrontend(p, old, f)
		if err != nil {
			return err
		}
		want = append(want, fs)
		for _, r := range f.SourceRanges {
			p.new.sources = append(p.new.sources, encodeSourceRange(p.new.id, r))
		}
	}
	for _, key := range anyPort {
		want = append(want, frontendState{key, bpf.FairleadFrontend{Service: p.new.id, Flags: frontendAnyPort}})
	}
	slices.SortFunc(want, func(a, b frontendState) int { return compareKeys(a.key, b.key) })
	k := 0
	for _, w := range want {
		for k < len(old.frontends) && compareKeys(old.frontends[k].key, w.key) < 0 {
			p.deletes = append(p.deletes, old.frontends[k].key)
			k++
		}
		if k < len(old.frontends) && old.frontends[k].key == w.key {
			if old.frontends[k].value != w.value {
				p.puts = append(p.puts, w)
			}
			k++
			continue
		}
		p.puts = append(p.puts, w)
	}
	for ; k < len(old.frontends); k++ {
		p.deletes = append(p.deletes, old.frontends[k].key)
	}
	p.new.frontends = want
	for _, s := range old.sets {
		if !slices.Contains(p.new.sets, s) {
			p.freed = append(p.freed, s.slotRange)
		}
	}
	return nil
}

func (d *Dataplane) planFrontend(p *plan, old *portState, f *dataplane.Frontend) (frontendState, error) {
	v := bpf.FairleadFrontend{Service: p.new.id, AffinitySeconds: f.AffinitySeconds, Kind: uint8(f.Kind)}
	if len(f.SourceRanges) > 0 {
		v.Flags |= frontendSourceRanges
	}
	if f.MasqueradeExternal {
		v.Flags |= frontendMasqueradeExternal
	}
	var err error
	if v.Internal, err = d.planSet(p, old, f.Internal, f.Draining); err != nil {
		return frontendState{}, err
	}
	if v.External, err = d.planSet(p, old, f.External, nil); err != nil {
		return frontendState{}, err
	}
	return frontendState{encodeKey(f.FrontendKey), v}, nil
}

// planSet finds the range that already holds the set, in the kernel or in this
// plan, or allocates one.
func (d *Dataplane) planSet(p *plan, old *portState, s dataplane.BackendSet, draining []dataplane.Backend) (bpf.FairleadBackendSet, error) {
	out := bpf.FairleadBackendSet{OnEmpty: uint8(s.OnEmpty)}
	if len(s.Backends)+len(draining) == 0 {
		return out, nil
	}
	if len(s.Backends)+len(draining) > 65535 {
		return out, fmt.Errorf("%d Backends: a set holds at most 65535", len(s.Backends)+len(draining))
	}
	slots := d.encodeSet(p, s, draining)
	eligible := uint16(len(s.Eligible()))
	found, ok := d.findSet(p, old, slots, eligible)
	if !ok {
		var err error
		if found, err = d.freshSet(p, old, slots, eligible); err != nil {
			return out, err
		}
	}
	out.Base, out.Eligible, out.Total, out.Index = found.base, eligible, uint16(len(slots)), found.index
	return out, nil
}

// encodeSet writes the set into a buffer that the next call overwrites.
func (d *Dataplane) encodeSet(p *plan, s dataplane.BackendSet, draining []dataplane.Backend) []bpf.FairleadSlot {
	d.slotBuffer = d.slotBuffer[:0]
	for i, list := range [...][]dataplane.Backend{s.Backends, draining} {
		for _, b := range list {
			slot := encodeSlot(b, 0)
			slot.Backend, _ = backendID(p.new.backends, slot.Address, slot.Port)
			if i == 1 {
				slot.Flags |= slotDraining
			}
			d.slotBuffer = append(d.slotBuffer, slot)
		}
	}
	return d.slotBuffer
}

func (d *Dataplane) findSet(p *plan, old *portState, slots []bpf.FairleadSlot, eligible uint16) (setState, bool) {
	for _, f := range p.fresh {
		if f.eligible == eligible && slices.Equal(f.slots, slots) {
			return f.setState, true
		}
	}
	for _, s := range old.sets {
		if s.eligible == eligible && s.n == uint32(len(slots)) && slices.Equal(d.slots[s.base:s.end()], slots) {
			if !slices.Contains(p.new.sets, s) {
				p.new.sets = append(p.new.sets, s)
			}
			return s, true
		}
	}
	return setState{}, false
}

func (d *Dataplane) freshSet(p *plan, old *portState, slots []bpf.FairleadSlot, eligible uint16) (setState, error) {
	if len(p.new.sets) >= setsMax {
		return setState{}, fmt.Errorf("more than %d different Backend sets on one port", setsMax)
	}
	r, ok := d.shadow.ranges.alloc(uint32(len(slots)))
	if !ok {
		return setState{}, fmt.Errorf("map slots is full (%d of %d in use, %d wanted): raise --slots-max",
			d.shadow.ranges.used, d.options.SlotsMax, len(slots))
	}
	s := setState{slotRange: r, eligible: eligible, index: freeIndex(old.sets, p.new.sets)}
	p.fresh = append(p.fresh, freshSet{s, slices.Clone(slots)})
	p.new.sets = append(p.new.sets, s)
	return s, nil
}

// freeIndex is the lowest bit that no set of the port uses, old or new.
func freeIndex(lists ...[]setState) uint8 {
	var taken uint32
	for _, l := range lists {
		for _, s := range l {
			taken |= 1 << s.index
		}
	}
	i := uint8(0)
	for taken&(1<<i) != 0 {
		i++
	}
	return i
}

// planRemoval removes a Service port.
func planRemoval(old *portState) *plan {
	p := &plan{old: old, removed: old.backends}
	for _, f := range old.frontends {
		p.deletes = append(p.deletes, f.key)
	}
	for _, s := range old.sets {
		p.freed = append(p.freed, s.slotRange)
	}
	return p
}
