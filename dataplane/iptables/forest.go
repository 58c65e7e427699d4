// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"fmt"

	"fairlead.dev/dataplane"
)

// portKey is a protocol and a port.
type portKey struct {
	protocol dataplane.Protocol
	port     uint16
}

func (k portKey) compare(o portKey) int {
	return cmp.Or(cmp.Compare(k.protocol, o.protocol), cmp.Compare(k.port, o.port))
}

// match is as iptables-save prints it.
func (k portKey) match() string {
	p := protocolName(k.protocol)
	return fmt.Sprintf("-p %s -m %s --dport %d", p, p, k.port)
}

// forest finds the port of a packet whose address is known: a tree of port
// ranges for each protocol.
type forest struct {
	prefix string
	trees  map[dataplane.Protocol]*tree[uint16]
}

func newForest(prefix string) *forest {
	return &forest{prefix: prefix, trees: map[dataplane.Protocol]*tree[uint16]{}}
}

func (f *forest) add(k portKey) {
	t := f.trees[k.protocol]
	if t == nil {
		t = newTree(f.prefix+"-"+k.protocol.String()[:1], 4, portDigit, cmp.Compare[uint16])
		f.trees[k.protocol] = t
	}
	t.add(k.port)
}

// remove takes a port out. A tree that is empty stays, for stage to drop.
func (f *forest) remove(k portKey)    { f.trees[k.protocol].remove(k.port) }
func (f *forest) touch(k portKey)     { f.trees[k.protocol].touch(k.port) }
func portDigit(p uint16, lvl int) int { return int(p >> (12 - 4*lvl) & 15) }

func (f *forest) touchAll() {
	for _, t := range f.trees {
		t.touchAll()
	}
}

// jumps lead a packet into the tree of its protocol.
func (f *forest) jumps(match string) (rules []string) {
	for _, p := range protocols {
		if t := f.trees[p]; t != nil && t.root.count > 0 {
			rules = append(rules, joined(match, fmt.Sprintf("-p %s -j %s", protocolName(p), t.root.name)))
		}
	}
	return rules
}

// stage gives the chains that changed to a table; list are the rules of a port.
func (f *forest) stage(out *table, list func(portKey) []string) {
	for p, t := range f.trees {
		if t.root.count == 0 {
			t.destroy(out)
			delete(f.trees, p)
			continue
		}
		t.stage(out, func(b *branch[uint16], digit int) string {
			return rangeMatch(p, b, digit)
		}, func(port uint16) []string { return list(portKey{p, port}) })
	}
}

// rangeMatch matches the ports that begin with a digit after those of b, which
// are in its name.
func rangeMatch(p dataplane.Protocol, b *branch[uint16], digit int) string {
	low := 0
	for _, c := range b.name[len(b.name)-b.level:] {
		var d int
		fmt.Sscanf(string(c), "%x", &d)
		low = low<<4 | d
	}
	low = low<<4 | digit
	shift := 12 - 4*b.level
	low <<= shift
	name := protocolName(p)
	if shift == 0 {
		return fmt.Sprintf("-p %s -m %s --dport %d", name, name, low)
	}
	return fmt.Sprintf("-p %s -m %s --dport %d:%d", name, name, low, low|(1<<shift-1))
}

func (f *forest) destroy(out *table) {
	for _, t := range f.trees {
		t.destroy(out)
	}
}

// joined puts matches and targets into one rule.
func joined(parts ...string) string {
	var rule string
	for _, p := range parts {
		switch {
		case p == "":
		case rule == "":
			rule = p
		default:
			rule += " " + p
		}
	}
	return rule
}
