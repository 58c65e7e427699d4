// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"fairlead.dev/dataplane"
)

// family is what the kernel holds for IPv4 or for IPv6, and writes it.
type family struct {
	base
	tool     *tool
	lockWait time.Duration

	tables      map[string]*table // nat, filter, raw
	nat, filter *dispatch
	hairpin     *tree[netip.Addr]
	// local counts who has a Backend of this node; loopbacks, claimed the same
	// for what base and filter depend on.
	local     map[netip.Addr]int
	loopbacks int

	services map[dataplane.ServiceName]*dataplane.Service
	// commits counts transactions, for the watch.
	commits int
}

// tableNames are the tables we have chains in, in the order of writing them.
var tableNames = []string{"raw", "nat", "filter"}

func newFamily(t *tool, o Options) *family {
	f := &family{tool: t, lockWait: o.LockWait, tables: map[string]*table{}}
	f.v6, f.base.mark, f.masquerade = t.v6, o.mark(), t.masquerade()
	chunk := 0
	if t.flavour == NFT { // legacy replaces the whole table at each transaction
		chunk = nftChunk
	}
	for _, name := range tableNames {
		f.tables[name] = newTable(name, chunk)
	}
	f.reset()
	return f
}

// reset forgets what was wanted, and not what the kernel holds.
func (f *family) reset() {
	f.nat, f.filter = newDispatch(f.v6, chainReject), newDispatch(f.v6, chainUnknown)
	f.hairpin = newAddressTree(treeHairpin, f.v6)
	f.local, f.loopbacks = map[netip.Addr]int{}, 0
	f.services = map[dataplane.ServiceName]*dataplane.Service{}
}

// environmentOf are the node's facts of this family.
func (f *family) environmentOf(n dataplane.Node) environment {
	other := func(p netip.Prefix) bool { return p.Addr().Is6() != f.v6 }
	return environment{
		v6:           f.v6,
		forgetful:    f.forgetful,
		internal:     slices.DeleteFunc(slices.Clone(n.InternalSources), other),
		serviceCIDRs: slices.DeleteFunc(slices.Clone(n.ServiceCIDRs), other),
	}
}

func (f *family) setNode(n dataplane.Node) {
	f.environment = f.environmentOf(n)
	f.nat.ranges, f.filter.ranges = f.serviceCIDRs, f.serviceCIDRs
}

func (f *family) differs(n dataplane.Node) bool {
	e := f.environmentOf(n)
	return !slices.Equal(e.internal, f.internal) || !slices.Equal(e.serviceCIDRs, f.serviceCIDRs)
}

// change is what one Change does to a family.
type change struct {
	old, new map[dataplane.ServiceName]*program
	services map[dataplane.ServiceName]*dataplane.Service
}

// plan gives what Services need, and what they had. A node whose facts change
// changes every Service.
func (f *family) plan(services map[dataplane.ServiceName]*dataplane.Service, node *dataplane.Node, failed map[dataplane.ServiceName]error) *change {
	c := &change{map[dataplane.ServiceName]*program{}, map[dataplane.ServiceName]*program{}, maps.Clone(services)}
	if node != nil && f.differs(*node) {
		c.services = maps.Clone(f.services)
		maps.Copy(c.services, services)
	}
	for name := range c.services {
		if old := f.services[name]; old != nil {
			c.old[name], _ = programOf(old, &f.environment) // it was one before
		}
	}
	if node != nil {
		f.setNode(*node)
	}
	for name, s := range c.services {
		p := &program{}
		if s != nil {
			var err error
			if p, err = programOf(s, &f.environment); err != nil {
				failed[name] = err
				p = nil
			}
		}
		c.new[name] = p
	}
	c.without(failed)
	return c
}

// without is the change with some Services left as they are.
func (c *change) without(failed map[dataplane.ServiceName]error) {
	for name := range failed {
		delete(c.old, name)
		delete(c.new, name)
		delete(c.services, name)
	}
}

// apply makes the kernel follow a change. Where it fails, what the family
// thinks of the kernel is wrong: it has to be synced.
//
// Verdicts of the filter table come before the translation that they are for
// goes, and go after the new one came: a packet meets one or the other.
func (f *family) apply(ctx context.Context, c *change) error {
	var in bytes.Buffer
	filter := f.tables["filter"]
	f.addVerdicts(c)
	f.filter.stage(filter)
	f.translate(c)
	f.stageNat()
	f.stageBase()
	filter.write(&in)
	filter.written()
	f.tables["nat"].write(&in)
	f.endVerdicts(c)
	f.filter.stage(filter)
	filter.write(&in)
	return f.commit(ctx, in.Bytes(), c)
}

// commit gives transactions to the kernel, the guard of loopback before all.
func (f *family) commit(ctx context.Context, in []byte, c *change) error {
	var all bytes.Buffer
	f.tables["raw"].write(&all)
	all.Write(in)
	if !f.guard {
		if err := f.closeLocalnet(); err != nil {
			return err
		}
	}
	if all.Len() > 0 {
		if err := f.tool.restore(ctx, all.Bytes(), f.lockWait); err != nil {
			return err
		}
		f.commits += bytes.Count(all.Bytes(), []byte("\nCOMMIT\n"))
	}
	for _, t := range f.tables {
		t.written()
	}
	if f.guard {
		if err := openLocalnet(); err != nil {
			return err
		}
	}
	for name, s := range c.services {
		if s == nil {
			delete(f.services, name)
		} else {
			f.services[name] = s
		}
	}
	return nil
}

func (f *family) addVerdicts(c *change) {
	filter := f.tables["filter"]
	for _, p := range c.new {
		for name, rules := range p.filter {
			filter.put(name, rules)
		}
		for _, l := range p.filterLeaves {
			f.filter.set(l)
		}
		for _, a := range p.claimed {
			f.filter.claim(a)
		}
	}
}

func (f *family) endVerdicts(c *change) {
	kept := map[leaf]struct{}{}
	chains := map[string]struct{}{}
	for _, p := range c.new {
		for _, l := range p.filterLeaves {
			kept[l] = struct{}{}
		}
		for name := range p.filter {
			chains[name] = struct{}{}
		}
	}
	for _, p := range c.old {
		for _, l := range p.filterLeaves {
			if _, ok := kept[l]; !ok {
				f.filter.unset(l)
			}
		}
		for name := range p.filter {
			if _, ok := chains[name]; !ok {
				f.tables["filter"].drop(name)
			}
		}
		for _, a := range p.claimed {
			f.filter.unclaim(a)
		}
	}
}

// translate is the nat table's part of a change.
func (f *family) translate(c *change) {
	nat := f.tables["nat"]
	kept := map[leaf]struct{}{}
	for name, p := range c.new {
		for _, l := range p.natLeaves {
			kept[l] = struct{}{}
		}
		if old := c.old[name]; old != nil {
			for chain := range old.nat {
				if _, ok := p.nat[chain]; !ok {
					nat.drop(chain)
				}
			}
		}
	}
	for _, p := range c.old {
		for _, l := range p.natLeaves {
			if _, ok := kept[l]; !ok {
				f.nat.unset(l)
			}
		}
	}
	for name, p := range c.new {
		for chain, rules := range p.nat {
			nat.put(chain, rules)
		}
		for _, l := range p.natLeaves {
			f.nat.set(l)
		}
		for _, a := range p.claimed {
			f.nat.claim(a)
		}
		f.count(p, 1)
		if old := c.old[name]; old != nil {
			f.count(old, -1)
			for _, a := range old.claimed {
				f.nat.unclaim(a)
			}
		}
	}
}

// count follows what Services have in common: Backends on this node, and the
// need of loopback.
func (f *family) count(p *program, n int) {
	for _, a := range p.local {
		was := f.local[a]
		f.local[a] += n
		switch {
		case was == 0:
			f.hairpin.add(a)
		case f.local[a] == 0:
			delete(f.local, a)
			f.hairpin.remove(a)
		}
	}
	if p.loopback {
		f.loopbacks += n
	}
}

func (f *family) stageNat() {
	nat := f.tables["nat"]
	f.nat.stage(nat)
	f.hairpin.stage(nat, func(b *branch[netip.Addr], digit int) string { return digitMatch(b.level, digit, f.v6) },
		func(a netip.Addr) []string { return []string{f.hairpinRule(a)} })
}

// stageBase gives the tables the chains that are always there.
func (f *family) stageBase() {
	f.loopback = f.loopbacks > 0
	_, guarded := f.tables["raw"].held[chainLocalnet]
	f.guard = f.loopback && (guarded || !localnetOpen())
	for name, chains := range map[string]map[string][]string{"nat": f.base.nat(), "filter": f.base.filter(), "raw": f.base.raw()} {
		for chain, rules := range chains {
			f.tables[name].put(chain, rules)
		}
	}
	raw := f.tables["raw"]
	switch _, held := raw.held[chainLocalnet]; {
	case f.guard && !held:
		if raw.seen == nil { // a sync finds out itself
			raw.jumps = guardJumps()
		}
	case !f.guard && held:
		raw.extra = append(raw.extra, guardJumps()...)
		raw.drop(chainLocalnet)
	}
}

func guardJumps() []jump { return jumps(true)[len(jumps(false)):] }
