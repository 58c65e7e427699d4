// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// environment is what the rules of a Service depend on beside the Service.
type environment struct {
	v6 bool
	// internal are the sources of internal traffic of the family.
	internal []netip.Prefix
	// serviceCIDRs of the family: their unknown ports are refused as a whole.
	serviceCIDRs []netip.Prefix
	// forgetful: the kernel has no lists of clients.
	forgetful bool
}

// program is what one Service needs in one family.
type program struct {
	nat, filter             map[string][]string
	natLeaves, filterLeaves []leaf
	// local are the Backends that may be their own clients.
	local []netip.Addr
	// claimed are ClusterIPs in no Service CIDR: they refuse other ports.
	claimed []netip.Addr
	// loopback: a Frontend is on 127.0.0.1.
	loopback bool
}

var errForgetful = errors.New("sessionAffinity needs xt_recent, which the kernel lacks: load the module or use another --dataplane")

// leaf says where packets for a Frontend go.
type leaf struct {
	dataplane.FrontendKey
	// node: it is one of many ports of the node's addresses.
	node   bool
	target string
}

func (l leaf) key() portKey { return portKey{l.Protocol, l.Port} }

// class is all Frontends of a Service port that differ in their keys only.
type class struct {
	first     *dataplane.Frontend
	frontends []*dataplane.Frontend
	// internal and external are numbers of sets, -1 where there is no Backend.
	internal, external int
}

// portProgram makes the chains of one Service port.
type portProgram struct {
	env     *environment
	hash    string
	sets    []*setProgram
	classes []*class
}

type setProgram struct {
	backends dataplane.BackendSet
	protocol dataplane.Protocol
	affinity uint32
}

// programOf gives the chains of a Service in a family.
func programOf(s *dataplane.Service, env *environment) (*program, error) {
	p := &program{nat: map[string][]string{}, filter: map[string][]string{}}
	ports := map[string]*portProgram{}
	for i := range s.Frontends {
		f := &s.Frontends[i]
		if f.Address.Is6() != env.v6 || env.v6 && f.Address.IsLoopback() {
			continue // ::1 has no route out: netfilter can't translate it
		}
		if f.AffinitySeconds > 0 && env.forgetful {
			return nil, errForgetful
		}
		port := ports[f.PortName]
		if port == nil {
			port = &portProgram{env: env, hash: portHash(s.Name, f.PortName)}
			ports[f.PortName] = port
		}
		port.add(f)
		p.local = append(p.local, hairpins(f)...)
		p.loopback = p.loopback || f.Address.IsLoopback()
		if f.Kind == dataplane.ClusterIP && !contains(env.serviceCIDRs, f.Address) && !slices.Contains(p.claimed, f.Address) {
			p.claimed = append(p.claimed, f.Address)
		}
	}
	for name, port := range ports {
		if err := port.write(p, s.Name, name); err != nil {
			return nil, err
		}
	}
	for _, chains := range []map[string][]string{p.nat, p.filter} {
		for name := range chains {
			if len(name) > maxChainName {
				return nil, fmt.Errorf("chain %s: more kinds of Frontends or Backends of one port than its name can number", name)
			}
		}
	}
	slices.SortFunc(p.local, netip.Addr.Compare)
	p.local = slices.Compact(p.local)
	return p, nil
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// hairpins are a Frontend's Backends in pods of this node.
func hairpins(f *dataplane.Frontend) (out []netip.Addr) {
	for _, set := range []dataplane.BackendSet{f.Internal, f.External} {
		for _, b := range set.Eligible() {
			if b.Local && !b.HostNetwork {
				out = append(out, b.Address)
			}
		}
	}
	return out
}

func (p *portProgram) add(f *dataplane.Frontend) {
	internal, external := p.set(f, f.Internal), p.set(f, f.External)
	for _, c := range p.classes {
		if c.internal == internal && c.external == external && sameClass(c.first, f) {
			c.frontends = append(c.frontends, f)
			return
		}
	}
	p.classes = append(p.classes, &class{first: f, frontends: []*dataplane.Frontend{f}, internal: internal, external: external})
}

func sameClass(a, b *dataplane.Frontend) bool {
	return a.Kind == b.Kind && a.Protocol == b.Protocol && a.AffinitySeconds == b.AffinitySeconds &&
		a.MasqueradeExternal == b.MasqueradeExternal && slices.Equal(a.SourceRanges, b.SourceRanges) &&
		a.Internal.OnEmpty == b.Internal.OnEmpty && a.External.OnEmpty == b.External.OnEmpty
}

// set is the number of a BackendSet among those of the Service port.
func (p *portProgram) set(f *dataplane.Frontend, s dataplane.BackendSet) int {
	if len(s.Backends) == 0 {
		return -1
	}
	for i, have := range p.sets {
		if have.protocol == f.Protocol && have.affinity == f.AffinitySeconds && slices.Equal(have.backends.Backends, s.Backends) {
			return i
		}
	}
	p.sets = append(p.sets, &setProgram{s, f.Protocol, f.AffinitySeconds})
	return len(p.sets) - 1
}

// write makes the chains of the port.
func (p *portProgram) write(out *program, service dataplane.ServiceName, portName string) error {
	if !printable(service.String()) || !printable(portName) {
		return fmt.Errorf("name %q of port %q: characters that no rule's comment can hold", service, portName)
	}
	for n, s := range p.sets {
		s.write(out.nat, p.hash, n)
	}
	for n, c := range p.classes {
		out.nat[numbered(prefixPort, p.hash, n)] = append(p.scoped(c), comments(classText(service, portName, c))...)
		target := p.admission(out, c, n)
		verdict := p.verdict(out, c, n)
		for _, f := range c.frontends {
			l := leaf{f.FrontendKey, f.Kind == dataplane.NodePort || f.Kind == dataplane.HostPort, target}
			out.natLeaves = append(out.natLeaves, l)
			if verdict != "" {
				l.target = verdict
				out.filterLeaves = append(out.filterLeaves, l)
			}
		}
	}
	return nil
}

// printable: what iptables-save prints as it was given, in a comment of words.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune("\"'\\`$#", r)
	})
}

// scoped are the rules of a class's chain: what counts and marks a connection,
// then the choice of the set by scope.
func (p *portProgram) scoped(c *class) []string {
	mark := "-j " + chainInternal
	if c.first.MasqueradeExternal {
		mark = "-j " + chainMark
	}
	var rules []string
	if c.internal < 0 && c.first.Internal.OnEmpty == dataplane.Reject && c.first.Protocol != dataplane.TCP {
		rules = append(rules, "-m addrtype --src-type LOCAL -j "+chainReject)
	}
	if c.internal < 0 && c.external < 0 {
		return rules
	}
	return append(append([]string{mark}, rules...), p.byScope(c.internal == c.external, p.toSet(c.internal, true), p.toSet(c.external, false))...)
}

// toSet leads to a set. Of one without Backends internal traffic has to leave
// before it comes to the rule of the external one.
func (p *portProgram) toSet(n int, internal bool) string {
	switch {
	case n >= 0:
		return "-j " + numbered(prefixSet, p.hash, n)
	case internal:
		return "-j RETURN"
	}
	return ""
}

// byScope sends internal traffic one way and external the other.
func (p *portProgram) byScope(same bool, internal, external string) (rules []string) {
	if !same {
		for _, prefix := range p.env.internal {
			rules = append(rules, joined(source(prefix), internal))
		}
		rules = append(rules, "-m addrtype --src-type LOCAL "+internal)
	}
	if external != "" {
		rules = append(rules, external)
	}
	return rules
}

// admission is where packets for the class go first: past its source ranges,
// where it has any.
func (p *portProgram) admission(out *program, c *class, n int) (target string) {
	chain := numbered(prefixPort, p.hash, n)
	if len(c.first.SourceRanges) == 0 {
		return chain
	}
	var rules []string
	for _, r := range c.first.SourceRanges {
		if r.Addr().Is6() == p.env.v6 {
			rules = append(rules, joined(source(r), "-j "+chain))
		}
	}
	out.nat[numbered(prefixRanges, p.hash, n)] = rules
	return numbered(prefixRanges, p.hash, n)
}

// verdict is where the filter table sends packets for the class that nat did
// not translate; empty where there can be none.
func (p *portProgram) verdict(out *program, c *class, n int) string {
	internal, external := onEmpty(c.internal, c.first.Internal), onEmpty(c.external, c.first.External)
	allowed := internal
	if internal != external {
		allowed = numbered(prefixVerdict, p.hash, n)
		in, ex := "-j RETURN", ""
		if internal != "" {
			in = "-j " + internal
		}
		if external != "" {
			ex = "-j " + external
		}
		out.filter[allowed] = p.byScope(false, in, ex)
	}
	if len(c.first.SourceRanges) == 0 {
		return allowed
	}
	if allowed == "" {
		return chainRange
	}
	var rules []string
	for _, r := range c.first.SourceRanges {
		if r.Addr().Is6() == p.env.v6 {
			rules = append(rules, joined(source(r), "-j "+allowed))
		}
	}
	denied := numbered(prefixDenied, p.hash, n)
	out.filter[denied] = append(rules, "-j "+chainRange)
	return denied
}

func onEmpty(set int, s dataplane.BackendSet) string {
	switch {
	case set >= 0:
		return ""
	case s.OnEmpty == dataplane.Drop:
		return chainNoLocal
	}
	return chainReject
}
