// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"unique"

	"fairlead.dev/dataplane"
)

// candidate is an endpoint of one Service port and family while it is sorted
// into sets.
type candidate struct {
	addr        netip.Addr
	port        uint16
	terminating bool
	in          membership
	where       unique.Handle[place]
}

// membership has a bit for each traffic policy whose set a candidate is in.
type membership uint8

const (
	inCluster membership = 1 << iota
	inLocal
)

// scratch is reused between Services, so that compiling one allocates only
// what it keeps.
type scratch struct {
	candidates []candidate
}

// maxScratch is how many candidates stay allocated, 48 bytes each.
const maxScratch = 4096

// portSets are the Backends of one Service port and family, once for all
// Frontends that use them. Each list is in the order of CompareBackends, and
// lists that are equal are the same slice.
type portSets struct {
	made bool
	// cluster and local are what each traffic policy reaches.
	cluster, local []dataplane.Backend
	// any: there is an endpoint, wherever it is.
	any bool
	// notIn has, by membership, the Backends in none of those sets.
	notIn [inCluster | inLocal + 1][]dataplane.Backend
	// cut counts what exceeded MaxBackendsPerSet.
	cut int
}

// portSetsOf gathers the endpoints of all slices for a Service port: those of
// the slice port that has its name and protocol.
func (c *Compiler) portSetsOf(o *owner, p *servicePort, f family) portSets {
	found := c.scratch.candidates[:0]
	for _, s := range o.slices {
		if s.family != f {
			continue
		}
		for i := range s.ports {
			sp := &s.ports[i]
			if sp.name != p.name || sp.protocol != p.protocol {
				continue
			}
			for j := range s.endpoints {
				e := &s.endpoints[j]
				found = append(found, candidate{addr: e.addr, port: sp.port, terminating: e.terminating, where: e.where})
			}
		}
	}
	found = merge(found)
	c.assign(found)
	sets := c.split(found)
	clear(found)
	if cap(found) <= maxScratch {
		c.scratch.candidates = found[:0]
	}
	return sets
}

// merge leaves one candidate for each address and port, in the order of
// CompareBackends. Slices may disagree while an endpoint moves between them, or
// where an address is used again before its last Pod is gone: the one that is
// ready counts, and beyond that any rule will do that does not depend on order.
func merge(found []candidate) []candidate {
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port), compareBools(a.terminating, b.terminating), comparePlaces(a.where, b.where))
	})
	found = slices.CompactFunc(found, func(a, b candidate) bool { return a.addr == b.addr && a.port == b.port })
	slices.SortStableFunc(found, func(a, b candidate) int { return compareBools(a.terminating, b.terminating) })
	return found
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func comparePlaces(a, b unique.Handle[place]) int {
	if a == b {
		return 0
	}
	p, q := a.Value(), b.Value()
	return cmp.Or(strings.Compare(p.node, q.node), strings.Compare(p.zone, q.zone),
		strings.Compare(p.forNodes, q.forNodes), strings.Compare(p.forZones, q.forZones))
}

// assign decides which traffic policies reach each candidate. Terminating ones
// are in every set they could be in: a Dataplane uses them where no Active one
// is (KEP-1669), and hints are about ready endpoints only.
func (c *Compiler) assign(found []candidate) {
	use := c.heeded(found)
	for i := range found {
		x := &found[i]
		p := x.where.Value()
		switch {
		case x.terminating, use == noHints,
			use == nodeHints && hasHint(p.forNodes, c.node.name),
			use == zoneHints && hasHint(p.forZones, c.node.zone):
			x.in |= inCluster
		}
		if p.node == c.node.name && p.node != "" {
			x.in |= inLocal
		}
	}
}

// hints says which hints the Cluster policy heeds for one Service port.
type hints uint8

const (
	noHints hints = iota
	nodeHints
	zoneHints
)

// heeded follows KEP-2433 and KEP-3015: node hints, where every ready endpoint
// has one and some name this node; else the same for this node's zone.
func (c *Compiler) heeded(found []candidate) hints {
	ready, withNode, withZone := 0, 0, 0
	forNode, forZone := false, false
	for i := range found {
		if found[i].terminating {
			continue
		}
		ready++
		p := found[i].where.Value()
		if p.forNodes != "" {
			withNode++
			forNode = forNode || hasHint(p.forNodes, c.node.name)
		}
		if p.forZones != "" {
			withZone++
			forZone = forZone || hasHint(p.forZones, c.node.zone)
		}
	}
	switch {
	case forNode && withNode == ready:
		return nodeHints
	case forZone && withZone == ready:
		return zoneHints
	}
	return noHints
}

func (c *Compiler) split(found []candidate) portSets {
	sets := portSets{made: true, any: len(found) > 0}
	if len(found) == 0 {
		return sets
	}
	var all []dataplane.Backend
	list := func(mask, want membership) []dataplane.Backend {
		n := 0
		for i := range found {
			if wanted(found[i].in, mask, want) {
				n++
			}
		}
		switch {
		case n == 0:
			return nil
		case n == len(found) && all != nil:
			return all
		}
		out := make([]dataplane.Backend, 0, min(n, c.opts.MaxBackendsPerSet))
		for i := range found {
			if !wanted(found[i].in, mask, want) {
				continue
			}
			if len(out) == cap(out) {
				sets.cut = max(sets.cut, n-len(out))
				break
			}
			out = append(out, c.backend(&found[i]))
		}
		if n == len(found) {
			all = out
		}
		return out
	}
	sets.cluster = list(inCluster, inCluster)
	sets.local = list(inLocal, inLocal)
	for m := inCluster; m <= inCluster|inLocal; m++ {
		sets.notIn[m] = list(m, 0)
	}
	return sets
}

// wanted: want 0 asks for those in none of the sets in mask.
func wanted(in, mask, want membership) bool { return in&mask == want }

func (c *Compiler) backend(x *candidate) dataplane.Backend {
	b := dataplane.Backend{
		Address: x.addr, Port: x.port, Local: x.in&inLocal != 0,
		HostNetwork: c.node.isOwn(x.addr), Zone: x.where.Value().zone,
	}
	if x.terminating {
		b.State = dataplane.Terminating
	}
	return b
}
