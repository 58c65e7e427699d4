// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// write carries out plans in the order that keeps every packet right: what is
// new is written where nothing points to yet, then each Frontend is switched in
// one map update, then what nothing points to any more is taken away.
func (d *Dataplane) write(plans []*plan) error {
	failed := map[dataplane.ServiceName]error{}
	plans = d.writeFresh(plans, failed)
	switched := d.switching()
	d.switchFrontends(plans, failed)
	d.deleteFrontends(plans, failed)
	switched()
	for _, p := range plans {
		d.retire(p)
		d.remember(p)
	}
	if len(failed) > 0 {
		return &dataplane.ApplyError{Failed: failed}
	}
	return nil
}

// writeFresh writes names, Backends, ranges and source ranges. Plans whose
// names can't be written are dropped from the result.
func (d *Dataplane) writeFresh(plans []*plan, failed map[dataplane.ServiceName]error) []*plan {
	return slices.DeleteFunc(plans, func(p *plan) bool {
		if p.new == nil {
			return false
		}
		if err := d.writeNames(p); err != nil {
			failed[p.new.service] = err
			d.abandon(p)
			return true
		}
		for _, b := range p.added {
			s := &d.states[b.id]
			s.EligibleSets, s.SocketUsed = 0, 0
			atomic.StoreUint32(&s.Generation, (s.Generation+1)|1)
		}
		for _, f := range p.fresh {
			copy(d.slots[f.base:f.end()], f.slots)
			d.setEligible(f.setState, true)
		}
		return false
	})
}

func (d *Dataplane) writeNames(p *plan) error {
	if p.newNames {
		names, _ := encodeNames(p.new.portID)
		if err := d.maps["services"].Put(p.new.id, &names); err != nil {
			return fmt.Errorf("name Service port %d: %w", p.new.id, err)
		}
		if err := d.maps["counters"].Put(p.new.id, make([]bpf.FairleadServiceCounters, d.cpus)); err != nil {
			return fmt.Errorf("reset counters of Service port %d: %w", p.new.id, err)
		}
	}
	for _, r := range p.new.sources {
		if p.old != nil && slices.Contains(p.old.sources, r) {
			continue
		}
		if err := d.maps["source_ranges"].Put(r, uint8(1)); err != nil {
			return fmt.Errorf("write loadBalancerSourceRanges: %w", err)
		}
	}
	return nil
}

// setEligible sets or clears a set's bit in the states of its eligible Backends.
func (d *Dataplane) setEligible(s setState, eligible bool) {
	for _, slot := range d.slots[s.base : s.base+uint32(s.eligible)] {
		if eligible {
			d.states[slot.Backend].EligibleSets |= 1 << s.index
		} else {
			d.states[slot.Backend].EligibleSets &^= 1 << s.index
		}
	}
}

// batchMin is the number of entries from which one batch call beats single ones.
const batchMin = 16

func (d *Dataplane) switchFrontends(plans []*plan, failed map[dataplane.ServiceName]error) {
	n := 0
	for _, p := range plans {
		n += len(p.puts)
	}
	m := d.maps["frontends"]
	if n >= batchMin {
		keys, values := make([]bpf.FairleadFrontendKey, 0, n), make([]bpf.FairleadFrontend, 0, n)
		for _, p := range plans {
			for _, f := range p.puts {
				keys, values = append(keys, f.key), append(values, f.value)
			}
		}
		if _, err := m.BatchUpdate(keys, values, nil); err == nil {
			return
		} // else one by one, to know which failed
	}
	for _, p := range plans {
		for i := range p.puts {
			if err := m.Put(&p.puts[i].key, &p.puts[i].value); err != nil {
				d.dirty = true
				failed[p.new.service] = d.frontendError(p.puts[i].key, err)
			}
		}
	}
}

func (d *Dataplane) frontendError(key bpf.FairleadFrontendKey, err error) error {
	if isFull(err) {
		return fmt.Errorf("program Frontend %s: map frontends is full (%d entries): raise --frontends-max", decodeKey(key), d.options.FrontendsMax)
	}
	return fmt.Errorf("program Frontend %s: %w", decodeKey(key), err)
}

// switching tells the programs that Frontends are being replaced, until the
// function it gives is called: they look twice (bpf/lb.h). An agent that is
// killed between the two leaves them looking twice, which is only slower.
func (d *Dataplane) switching() (done func()) {
	n := *d.switches | 1
	atomic.StoreUint32(d.switches, n)
	return func() { atomic.StoreUint32(d.switches, n+1) }
}

// deleteFrontends removes keys that their Service gave up, unless another
// Service has taken them over, in this Change or before.
func (d *Dataplane) deleteFrontends(plans []*plan, failed map[dataplane.ServiceName]error) {
	m := d.maps["frontends"]
	for _, p := range plans {
		for _, key := range p.deletes {
			var v bpf.FairleadFrontend
			if err := m.Lookup(&key, &v); err != nil || v.Service != p.old.id {
				continue
			}
			if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				d.dirty = true
				failed[p.old.service] = fmt.Errorf("remove Frontend %s: %w", decodeKey(key), err)
			}
		}
	}
}

// retire takes away what nothing points to any more.
func (d *Dataplane) retire(p *plan) {
	if p.old == nil {
		return
	}
	for _, s := range p.old.sets {
		if p.new == nil || !slices.Contains(p.new.sets, s) {
			d.setEligible(s, false)
		}
	}
	for _, b := range p.removed {
		s := &d.states[b.id]
		s.EligibleSets = 0
		atomic.StoreUint32(&s.Generation, (s.Generation+1)&^1)
		if s.SocketUsed != 0 {
			d.sweepWanted |= p.old.sweeps()
		} else {
			d.sweepDoubt |= p.old.sweeps()
		}
		d.shadow.backends.put(b.id)
	}
	for _, r := range p.freed {
		d.shadow.ranges.put(r)
	}
	for _, r := range p.old.sources {
		if p.new == nil || !slices.Contains(p.new.sources, r) {
			d.maps["source_ranges"].Delete(r)
		}
	}
	if p.new == nil {
		d.maps["services"].Delete(p.old.id)
		d.shadow.ids.put(p.old.id)
	}
}

// remember makes the shadow what the kernel now is.
func (d *Dataplane) remember(p *plan) {
	if p.old != nil {
		d.shadow.frontends -= len(p.old.frontends)
	}
	switch {
	case p.new == nil:
		d.shadow.remove(p.old)
	case p.old == nil:
		d.shadow.frontends += len(p.new.frontends)
		d.shadow.add(p.new)
	default:
		d.shadow.frontends += len(p.new.frontends)
		*p.old = *p.new
	}
}
