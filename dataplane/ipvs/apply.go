// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"maps"
	"net/netip"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// step is the change of one Service.
type step struct {
	name          dataplane.ServiceName
	before, after *state
}

// applyServices goes from old to new without a moment of neither: what is new
// is there before the table leads to it, in one transaction, and what is old
// ends after that.
func (d *Dataplane) applyServices(services map[dataplane.ServiceName]*dataplane.Service) error {
	failed := map[dataplane.ServiceName]error{}
	var steps []step
	change := newEdit()
	for name, s := range services {
		st := step{name: name, before: d.states[name]}
		if s != nil {
			var err error
			if st.after, err = d.planner.plan(s, st.before); err == nil {
				if err = d.provide(st.after); err != nil {
					d.planner.release(st.after, st.before)
				}
			}
			if err != nil {
				failed[name] = err
				continue
			}
		}
		if st.before == nil && st.after == nil {
			continue
		}
		change.join(difference(st.before.elements(), st.after.elements()))
		steps = append(steps, st)
	}
	d.synced = false // until all of this is done
	change.join(d.count(steps))
	if rules := d.wantedRules(); rules.digest() != d.rules.digest() {
		d.table.queueRules(rules)
		d.rules = rules
	}
	if err := d.addRoutes(steps); err != nil {
		return err
	}
	if err := d.table.apply(change); err != nil {
		return err
	}
	if err := d.retire(steps); err != nil {
		return err
	}
	d.synced = true
	if len(failed) > 0 {
		return &dataplane.ApplyError{Failed: failed}
	}
	return nil
}

func (st *state) elements() elements {
	if st == nil {
		return nil
	}
	return st.own
}

// provide makes the servers of a state, with all their destinations.
func (d *Dataplane) provide(st *state) error {
	for _, po := range st.ports {
		for _, w := range po.servers {
			if _, err := d.provideServer(w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Dataplane) provideServer(w *want) (changed bool, err error) {
	s := d.servers[w.mark]
	if s == nil {
		if err := d.kernel.add(w.mark, w.family, d.options.Scheduler); err != nil {
			return false, err
		}
		s = &server{family: w.family, scheduler: d.options.Scheduler, weights: map[netip.AddrPort]int{}}
		d.servers[w.mark] = s
		changed = true
	}
	if s.scheduler != d.options.Scheduler {
		if err := d.kernel.schedule(w.mark, w.family, d.options.Scheduler); err != nil {
			return changed, err
		}
		s.scheduler, changed = d.options.Scheduler, true
	}
	for a, weight := range w.weights {
		if have, ok := s.weights[a]; !ok || have < weight {
			if err := d.weigh(w.mark, s, a, weight); err != nil {
				return changed, err
			}
			changed = true
		}
	}
	return changed, nil
}

// count keeps count of what several Services share, and gives the elements
// that come and go with it. An address that goes lingers.
func (d *Dataplane) count(steps []step) edit {
	was := map[elementKey]bool{}
	for _, s := range steps {
		for _, st := range []*state{s.before, s.after} {
			if st != nil {
				for k := range st.shared {
					was[k] = d.sharedUses[k] > 0
				}
			}
		}
	}
	for _, s := range steps {
		d.use(s.before, -1)
		d.use(s.after, 1)
	}
	out := newEdit()
	for k, was := range was {
		a, isVIP := vipOf(k)
		switch now := d.sharedUses[k] > 0; {
		case was && !now && isVIP:
			d.lingering[a] = leavers(steps, a)
		case was && !now:
			out.deletes[k] = element{}
		case !was && now && isVIP && d.lingering[a] != nil:
			delete(d.lingering, a)
		case !was && now:
			out.adds[k] = element{}
		}
	}
	return out
}

// use counts what a state has, n times.
func (d *Dataplane) use(st *state, n int) {
	if st == nil {
		return
	}
	for k := range st.shared {
		if d.sharedUses[k] += n; d.sharedUses[k] == 0 {
			delete(d.sharedUses, k)
		}
	}
	for a := range st.vips {
		if d.vipUses[a] += n; d.vipUses[a] == 0 {
			delete(d.vipUses, a)
		}
	}
	for s := range st.affinityTimeouts() {
		if d.timeoutUses[s] += n; d.timeoutUses[s] == 0 {
			delete(d.timeoutUses, s)
		}
	}
}

func vipOf(k elementKey) (a netip.Addr, ok bool) {
	if k.set != "vips4" && k.set != "vips6" {
		return a, false
	}
	return netip.AddrFromSlice([]byte(k.key))
}

// leavers are the servers that go together with an address.
func leavers(steps []step, a netip.Addr) map[uint32]bool {
	marks := map[uint32]bool{}
	for _, s := range steps {
		if s.before == nil || !s.before.vips[a] {
			continue
		}
		kept := s.after.marks()
		for mark := range s.before.marks() {
			if !kept[mark] {
				marks[mark] = true
			}
		}
	}
	return marks
}

func (st *state) marks() map[uint32]bool {
	out := map[uint32]bool{}
	if st != nil {
		for _, po := range st.ports {
			for _, w := range po.servers {
				out[w.mark] = true
			}
		}
	}
	return out
}

func (st *state) affinityTimeouts() map[uint32]bool {
	out := map[uint32]bool{}
	for k, v := range st.own {
		if k.set == "timeouts" {
			out[v.value] = true
		}
	}
	return out
}

// addRoutes routes new addresses to IPVS.
func (d *Dataplane) addRoutes(steps []step) error {
	for _, s := range steps {
		if s.after == nil {
			continue
		}
		for a := range s.after.vips {
			if s.before == nil || !s.before.vips[a] {
				if err := d.routes.add(a, false); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// retire ends what the table does not lead to any more.
func (d *Dataplane) retire(steps []step) error {
	touched := map[uint32]bool{}
	var rules []netfilter.FlowRule
	for _, s := range steps {
		keep := s.after.keeps()
		kept := s.after.wants()
		for mark, w := range kept {
			touched[mark] = true
			delete(d.leaving, mark)
			if srv := d.servers[mark]; srv != nil {
				if _, err := d.settle(mark, srv, w.weights, keep, true); err != nil {
					return err
				}
			}
		}
		for mark := range s.before.marks() {
			if kept[mark] != nil {
				continue
			}
			touched[mark] = true
			d.leaving[mark] = true
			if srv := d.servers[mark]; srv != nil {
				if _, err := d.settle(mark, srv, nil, keep, true); err != nil {
					return err
				}
			}
		}
		d.forgetPorts(s)
		var old, new *dataplane.Service
		if s.before != nil {
			old = s.before.service
		}
		if s.after != nil {
			new = s.after.service
			d.states[s.name] = s.after
		} else {
			delete(d.states, s.name)
		}
		rules = append(rules, netfilter.StaleRules(old, new)...)
	}
	if err := d.finishDrains(touched); err != nil {
		return err
	}
	d.awaitExpiry()
	return d.endStale(rules)
}

// forgetPorts gives back the numbers of Service ports that are gone.
func (d *Dataplane) forgetPorts(s step) {
	if s.before == nil {
		return
	}
	for name, po := range s.before.ports {
		if s.after == nil || s.after.ports[name] == nil {
			d.planner.ports.free(po.id)
		}
	}
}

// keeps are the Backends of a Service whose flows may last.
func (st *state) keeps() map[netip.AddrPort]bool {
	out := map[netip.AddrPort]bool{}
	if st != nil {
		for _, po := range st.ports {
			for _, w := range po.servers {
				maps.Copy(out, w.keep)
			}
		}
	}
	return out
}

func (st *state) wants() map[uint32]*want {
	out := map[uint32]*want{}
	if st != nil {
		for _, po := range st.ports {
			for _, w := range po.servers {
				out[w.mark] = w
			}
		}
	}
	return out
}

// endStale ends flows to Backends that are gone. That it fails leaves the
// state in force as it should be.
func (d *Dataplane) endStale(rules []netfilter.FlowRule) error {
	if len(rules) == 0 {
		return nil
	}
	if _, err := d.conntrack.EndStale(rules); err != nil {
		return fmt.Errorf("end flows to removed Backends: %w", err)
	}
	return nil
}
