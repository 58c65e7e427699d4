// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// inlinePorts is how many Frontends of one address are listed in the chain of
// addresses; the ports of one that has more are a forest of its own.
const inlinePorts = 16

// dispatch leads packets of one table to what their destination is to get:
// addresses of the node by their ports, others by address and then port.
type dispatch struct {
	v6 bool
	// unknown is the chain for ports that no Frontend has, of addresses that
	// are claimed and of whole ranges.
	unknown   string
	ranges    []netip.Prefix
	addresses map[netip.Addr]*addressPorts
	tree      *tree[netip.Addr]
	// node are the Frontends on addresses of the node, most of them the same on
	// each; nodeAddresses counts them.
	node          map[portKey][]leaf
	nodeAddresses map[netip.Addr]int
	forest        *forest
	// changedForests are those of single addresses that changed, deadForests
	// those that went.
	changedForests map[netip.Addr]*forest
	deadForests    []*forest
}

// addressPorts are the Frontends of one address.
type addressPorts struct {
	targets map[portKey]string
	forest  *forest
	// claimed counts who wants the address's other ports refused.
	claimed int
}

func newDispatch(v6 bool, unknown string) *dispatch {
	return &dispatch{
		v6: v6, unknown: unknown, addresses: map[netip.Addr]*addressPorts{}, tree: newAddressTree(treeAddresses, v6),
		node: map[portKey][]leaf{}, nodeAddresses: map[netip.Addr]int{}, forest: newForest(chainNode),
		changedForests: map[netip.Addr]*forest{},
	}
}

// set leads a Frontend to a target, whatever it led to.
func (d *dispatch) set(l leaf) {
	if l.node {
		d.setNode(l)
		return
	}
	a := d.at(l.Address)
	was, had := a.targets[l.key()]
	if had && was == l.target {
		return
	}
	a.targets[l.key()] = l.target
	d.changed(l.Address, a, l.key(), !had)
}

// unset ends a Frontend, unless it leads to another target by now.
func (d *dispatch) unset(l leaf) {
	if l.node {
		d.unsetNode(l)
		return
	}
	a := d.addresses[l.Address]
	if a == nil || a.targets[l.key()] != l.target {
		return
	}
	delete(a.targets, l.key())
	if a.forest != nil {
		a.forest.remove(l.key())
		d.changedForests[l.Address] = a.forest
	}
	d.shrunk(l.Address, a)
}

// claim makes an address refuse what is for none of its ports.
func (d *dispatch) claim(address netip.Addr) {
	d.at(address).claimed++
	d.tree.touch(address)
}

func (d *dispatch) unclaim(address netip.Addr) {
	if a := d.addresses[address]; a != nil && a.claimed > 0 {
		a.claimed--
		d.shrunk(address, a)
	}
}

func (d *dispatch) at(address netip.Addr) *addressPorts {
	a := d.addresses[address]
	if a == nil {
		a = &addressPorts{targets: map[portKey]string{}}
		d.addresses[address] = a
		d.tree.add(address)
	}
	return a
}

// changed follows a Frontend that was added or got another target.
func (d *dispatch) changed(address netip.Addr, a *addressPorts, key portKey, added bool) {
	d.tree.touch(address)
	switch {
	case a.forest != nil:
		if added {
			a.forest.add(key)
		} else {
			a.forest.touch(key)
		}
	case len(a.targets) > inlinePorts:
		a.forest = newForest(forestPrefix(address))
		for k := range a.targets {
			a.forest.add(k)
		}
	default:
		return
	}
	d.changedForests[address] = a.forest
}

// shrunk follows an address that lost something.
func (d *dispatch) shrunk(address netip.Addr, a *addressPorts) {
	if len(a.targets) <= inlinePorts && a.forest != nil {
		d.deadForests = append(d.deadForests, a.forest)
		delete(d.changedForests, address)
		a.forest = nil
	}
	d.tree.touch(address)
	if len(a.targets) == 0 && a.claimed == 0 {
		delete(d.addresses, address)
		d.tree.remove(address)
	}
}

func (d *dispatch) setNode(l leaf) {
	was := d.node[l.key()]
	i := slices.IndexFunc(was, func(o leaf) bool { return o.Address == l.Address })
	if i >= 0 {
		if was[i].target != l.target {
			was[i].target = l.target
			d.forest.touch(l.key())
		}
		return
	}
	i, _ = slices.BinarySearchFunc(was, l, func(a, b leaf) int { return a.Address.Compare(b.Address) })
	d.node[l.key()] = slices.Insert(was, i, l)
	if len(was) == 0 {
		d.forest.add(l.key())
	} else {
		d.forest.touch(l.key())
	}
	if d.nodeAddresses[l.Address]++; d.nodeAddresses[l.Address] == 1 {
		d.forest.touchAll() // whether a port is on all of them may have changed
	}
}

func (d *dispatch) unsetNode(l leaf) {
	was := d.node[l.key()]
	i := slices.IndexFunc(was, func(o leaf) bool { return o.Address == l.Address && o.target == l.target })
	if i < 0 {
		return
	}
	if len(was) == 1 {
		delete(d.node, l.key())
		d.forest.remove(l.key())
	} else {
		d.node[l.key()] = slices.Delete(was, i, i+1)
		d.forest.touch(l.key())
	}
	if d.nodeAddresses[l.Address]--; d.nodeAddresses[l.Address] == 0 {
		delete(d.nodeAddresses, l.Address)
		d.forest.touchAll()
	}
}

// stage gives the chains that changed to a table.
func (d *dispatch) stage(out *table) {
	d.tree.stage(out, func(b *branch[netip.Addr], digit int) string { return digitMatch(b.level, digit, d.v6) }, d.listAddress)
	d.forest.stage(out, d.listNode)
	for _, f := range d.deadForests { // before the others: names may be used again
		f.destroy(out)
	}
	for address, f := range d.changedForests {
		a := d.addresses[address]
		f.stage(out, func(k portKey) []string { return []string{k.match() + " -j " + a.targets[k]} })
	}
	d.deadForests = nil
	clear(d.changedForests)
	var jumps []string
	for _, a := range slices.SortedFunc(maps.Keys(d.nodeAddresses), netip.Addr.Compare) {
		jumps = append(jumps, destination(a)+" -j "+chainNode)
	}
	rules := append(jumps, "-j "+treeAddresses)
	for _, r := range d.ranges {
		rules = append(rules, joined(strings.Replace(source(r), "-s ", "-d ", 1), "-j "+d.unknown))
	}
	out.put(chainServices, rules)
	out.put(chainNode, d.forest.jumps(""))
}

// listAddress are the rules of one address.
func (d *dispatch) listAddress(address netip.Addr) (rules []string) {
	a, to := d.addresses[address], destination(address)
	if a.forest != nil {
		rules = a.forest.jumps(to)
	} else {
		for _, k := range slices.SortedFunc(maps.Keys(a.targets), portKey.compare) {
			rules = append(rules, to+" "+k.match()+" -j "+a.targets[k])
		}
	}
	if a.claimed > 0 {
		rules = append(rules, to+" -j "+d.unknown)
	}
	return rules
}

// listNode are the rules of one port of the node: one where it is the same on
// every address, else one for each address.
func (d *dispatch) listNode(k portKey) (rules []string) {
	leaves := d.node[k]
	same := !slices.ContainsFunc(leaves, func(l leaf) bool { return l.target != leaves[0].target })
	if same && len(leaves) == len(d.nodeAddresses) {
		return []string{k.match() + " -j " + leaves[0].target}
	}
	for _, l := range leaves {
		rules = append(rules, destination(l.Address)+" "+k.match()+" -j "+l.target)
	}
	return rules
}
