// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// Sync implements dataplane.Dataplane.
func (d *Dataplane) Sync(ctx context.Context, t *dataplane.Table) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sync(t)
}

// repairs are the Frontends, and other things, that were not as they should be.
type repairs map[any]bool

// sync compares everything with the Table. What this process remembers, or
// else what the table says, decides which server is whose.
func (d *Dataplane) sync(t *dataplane.Table) (int, error) {
	done := repairs{}
	first := d.states == nil
	d.synced = false
	holds, err := d.look(done)
	if err != nil {
		return 0, err
	}
	old := d.adoptStates(holds)
	d.useNode(t.Node)
	failed := map[dataplane.ServiceName]error{}
	d.states = map[dataplane.ServiceName]*state{}
	d.sharedUses, d.vipUses, d.timeoutUses = map[elementKey]int{}, map[netip.Addr]int{}, map[uint32]int{}
	for _, name := range slices.SortedFunc(maps.Keys(t.Services), dataplane.ServiceName.Compare) {
		st, err := d.planner.plan(t.Services[name], old[name])
		if err == nil {
			if err = d.provideAll(st, done); err != nil {
				d.planner.release(st, old[name])
			}
		}
		if err != nil {
			failed[name] = err
			// What is in force stays, where it is known.
			if st = old[name]; st == nil || st.own == nil {
				continue
			}
		}
		d.states[name] = st
		d.use(st, 1)
		if before := old[name]; before != nil {
			d.forgetPorts(step{before: before, after: st})
		}
	}
	for name, before := range old {
		if d.states[name] == nil && failed[name] == nil {
			d.forgetPorts(step{before: before})
		}
	}
	if err := d.repair(holds, done); err != nil {
		return len(done), err
	}
	if err := d.retireAll(done); err != nil {
		return len(done), err
	}
	d.awaitExpiry()
	var rules []netfilter.FlowRule
	if first {
		rules = netfilter.AllRules(t)
	}
	if err := d.endStale(rules); err != nil {
		return len(done), err
	}
	d.synced = true
	if len(failed) > 0 {
		return len(done), &dataplane.ApplyError{Failed: failed}
	}
	return len(done), nil
}

// look reads what the kernel holds, and makes again what is missing as a whole.
func (d *Dataplane) look(done repairs) (elements, error) {
	intact, err := d.table.intact()
	if err != nil {
		return nil, err
	}
	if !intact {
		done[tableName] = true
		if err := d.recreate(); err != nil {
			return nil, err
		}
		d.rules = ruleset{}
	}
	if made, err := d.routes.device(); err != nil {
		return nil, err
	} else if made && d.states != nil {
		done[deviceName] = true
	}
	if changed, err := d.applySysctls(); err != nil {
		return nil, err
	} else if changed {
		done["sysctl"] = true
	}
	holds, err := d.table.elements()
	if err != nil {
		return nil, err
	}
	if d.servers, err = d.kernel.servers(); err != nil {
		return nil, err
	}
	sentinel := d.options.marks().sentinel()
	if d.servers[sentinel] == nil {
		if err := d.kernel.add(sentinel, ipv4, d.options.Scheduler); err != nil {
			return nil, err
		}
	}
	delete(d.servers, sentinel)
	return holds, nil
}

func (d *Dataplane) adoptStates(holds elements) map[dataplane.ServiceName]*state {
	found := decode(holds)
	if d.planner == nil {
		d.planner = &planner{marks: d.options.marks(), ports: newNumbers(), number: newNumbers()}
	}
	old := d.states
	if old == nil {
		old = found.states()
		d.planner.claim(found, d.servers)
	} else {
		d.planner.claim(decoded{}, d.servers)
	}
	return old
}

// useNode takes the node's facts.
func (d *Dataplane) useNode(n dataplane.Node) {
	d.node = n
	d.planner.nodeAddresses = map[netip.Addr]bool{}
	for _, a := range n.Addresses {
		d.planner.nodeAddresses[a] = true
	}
	d.routes.primary = map[*family]netip.Addr{ipv4: n.PrimaryIPv4, ipv6: n.PrimaryIPv6}
	d.uplinks.SetPrimary([]netip.Addr{n.PrimaryIPv4, n.PrimaryIPv6})
	d.nodes = elements{}
	for _, f := range families {
		prefixes := slices.DeleteFunc(slices.Clone(n.InternalSources), func(p netip.Prefix) bool { return familyOf(p.Addr()) != f })
		d.nodes.putRanges("internal-sources"+f.suffix, append(prefixes, nodePrefixes(n, f)...))
	}
	for _, name := range d.uplinks.Names() {
		d.nodes.put("uplinks", deviceKey(name), element{})
	}
}

// nodePrefixes are the node's own addresses: what comes from them is internal.
func nodePrefixes(n dataplane.Node, f *family) (out []netip.Prefix) {
	for _, a := range n.Addresses {
		if familyOf(a) == f {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

func (d *Dataplane) wantedRules() ruleset {
	return ruleset{
		marks: d.options.marks(), primary: map[*family]netip.Addr{ipv4: d.node.PrimaryIPv4, ipv6: d.node.PrimaryIPv6},
		timeouts: slices.Sorted(maps.Keys(d.timeoutUses)),
	}
}

func (d *Dataplane) provideAll(st *state, done repairs) error {
	for _, po := range st.ports {
		for _, w := range po.servers {
			changed, err := d.provideServer(w)
			if err != nil {
				return err
			}
			if changed {
				done.server(w)
			}
		}
	}
	return nil
}

func (r repairs) server(w *want) {
	for _, u := range w.uses {
		r[u.FrontendKey] = true
	}
	if w.home() {
		r[w.mark] = true
	}
}

// repair makes routes, rules and elements as they should be.
func (d *Dataplane) repair(holds elements, done repairs) error {
	routed, err := d.routes.list()
	if err != nil {
		return err
	}
	for a := range d.vipUses {
		if right, ok := routed[a]; !ok || !right {
			if err := d.routes.add(a, ok); err != nil {
				return err
			}
			done[a] = true
		}
	}
	want := maps.Clone(d.nodes)
	for _, st := range d.states {
		maps.Copy(want, st.own)
		maps.Copy(want, st.shared)
	}
	for k, v := range holds {
		if k.set == "memory" {
			want[k] = v
		}
	}
	d.linger(holds, want, routed)
	edit := difference(holds, want)
	frontends, others := edit.frontends()
	for f := range frontends {
		done[f] = true
	}
	for i := range others {
		done[fmt.Sprint("elements ", i)] = true
	}
	rules := d.wantedRules()
	right, err := d.table.holdsRules(rules)
	if err != nil {
		return err
	}
	if !right {
		d.table.queueRules(rules)
		done["rules"] = true
	}
	d.rules = rules
	if edit.empty() && right {
		return nil
	}
	return d.table.apply(edit)
}

// linger keeps the addresses that nobody wants any more as long as servers are
// leaving; an agent that starts does not know which went with which.
func (d *Dataplane) linger(holds, want elements, routed map[netip.Addr]bool) {
	wanted := map[uint32]bool{}
	for _, st := range d.states {
		maps.Copy(wanted, st.marks())
	}
	leaving := map[uint32]bool{}
	for mark := range d.servers {
		if !wanted[mark] {
			leaving[mark] = true
		}
	}
	d.leaving = leaving
	keep := func(a netip.Addr) {
		if d.vipUses[a] == 0 && d.lingering[a] == nil {
			d.lingering[a] = maps.Clone(leaving)
		}
	}
	for k := range holds {
		if a, ok := vipOf(k); ok {
			keep(a)
		}
	}
	for a := range routed {
		keep(a)
	}
	for a := range d.lingering {
		k := elementKey{set: "vips" + familyOf(a).suffix, key: string(a.AsSlice())}
		if d.vipUses[a] > 0 {
			delete(d.lingering, a)
		} else {
			want[k] = element{}
		}
	}
}

// retireAll ends what no Service wants.
func (d *Dataplane) retireAll(done repairs) error {
	settled := map[uint32]bool{}
	for _, st := range d.states {
		keep := st.keeps()
		for mark, w := range st.wants() {
			settled[mark] = true
			if s := d.servers[mark]; s != nil {
				changed, err := d.settle(mark, s, w.weights, keep, true)
				if err != nil {
					return err
				}
				if changed {
					done.server(w)
				}
			}
		}
	}
	for mark, s := range d.servers {
		if settled[mark] {
			continue
		}
		changed, err := d.settle(mark, s, nil, nil, false)
		if err != nil {
			return err
		}
		if changed {
			done[mark] = true
		}
	}
	return d.finishDrains(nil)
}

// followUplinks keeps the set of devices that lead out.
func (d *Dataplane) followUplinks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.uplinks.Changed():
		}
		if err := d.setUplinks(); err != nil {
			d.options.Logger.Warn("follow the devices that lead out", "error", err)
		}
	}
}

func (d *Dataplane) setUplinks() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.synced {
		return nil
	}
	before, after := elements{}, elements{}
	for k, v := range d.nodes {
		if k.set == "uplinks" {
			before[k] = v
		}
	}
	for _, name := range d.uplinks.Names() {
		after.put("uplinks", deviceKey(name), element{})
	}
	change := difference(before, after)
	if change.empty() {
		return nil
	}
	if err := d.table.apply(change); err != nil {
		return err
	}
	for k := range before {
		delete(d.nodes, k)
	}
	maps.Copy(d.nodes, after)
	return nil
}
