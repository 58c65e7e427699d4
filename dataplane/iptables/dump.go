// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// kernelPort is a class as read from the nat table.
type kernelPort struct {
	classMeta
	chain       string
	connections uint64
}

// set is the chain of a scope's set, empty for one without Backends.
func (p *kernelPort) set(name string) string {
	if strings.HasPrefix(name, "!") {
		return ""
	}
	hashed := strings.TrimPrefix(p.chain, prefixPort)[:portHashLength]
	return prefixSet + hashed + "-" + name
}

// kernelPorts reads all classes, by their chain.
func kernelPorts(nat *savedTable) (map[string]*kernelPort, error) {
	ports := map[string]*kernelPort{}
	for name, c := range nat.chains {
		if !strings.HasPrefix(name, prefixPort) || len(name) < len(prefixPort)+portHashLength {
			continue
		}
		var text strings.Builder
		p := &kernelPort{chain: name}
		for i, rule := range c.rules {
			if s, ok := comment(rule); ok {
				text.WriteString(s)
			} else if t := target(rule); t == chainMark || t == chainInternal {
				p.connections = c.packets[i]
			}
		}
		var err error
		if p.classMeta, err = parseClassText(text.String()); err != nil {
			return nil, fmt.Errorf("chain %s: %w", name, err)
		}
		ports[name] = p
	}
	return ports, nil
}

// leaves reads where each Frontend leads, from the rules that lead to classes.
func leaves(nat *savedTable) (map[dataplane.FrontendKey]string, error) {
	out := map[dataplane.FrontendKey]string{}
	var node []netip.Addr
	if services := nat.chains[chainServices]; services != nil {
		for _, rule := range services.rules {
			if option(rule, "-j") == chainNode {
				if a, err := address(option(rule, "-d")); err == nil {
					node = append(node, a)
				}
			}
		}
	}
	owners := owners(nat)
	for name, c := range nat.chains {
		if !isTree(name) {
			continue
		}
		for _, rule := range c.rules {
			target := option(rule, "-j")
			if !strings.HasPrefix(target, prefixPort) && !strings.HasPrefix(target, prefixRanges) {
				continue
			}
			at := node
			if d := option(rule, "-d"); d != "" {
				a, err := address(d)
				if err != nil {
					return nil, fmt.Errorf("chain %s, rule %q: %w", name, rule, err)
				}
				at = []netip.Addr{a}
			} else if strings.HasPrefix(name, prefixForest) {
				at = owners[name[:min(len(name), len(prefixForest)+8+2)]] // hash, -T
			}
			key, err := ruleKey(rule)
			if err != nil {
				return nil, fmt.Errorf("chain %s, rule %q: %w", name, rule, err)
			}
			for _, key.Address = range at {
				out[key] = target
			}
		}
	}
	return out, nil
}

// isTree: a chain that leads to Frontends, of an address or of the node.
func isTree(chain string) bool {
	return chain == treeAddresses || strings.HasPrefix(chain, treeAddresses+"-") ||
		strings.HasPrefix(chain, chainNode+"-") || strings.HasPrefix(chain, prefixForest)
}

// owners are the addresses whose ports a forest lists, by its root.
func owners(nat *savedTable) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for name, c := range nat.chains {
		if name != treeAddresses && !strings.HasPrefix(name, treeAddresses+"-") {
			continue
		}
		for _, rule := range c.rules {
			if root := option(rule, "-j"); strings.HasPrefix(root, prefixForest) {
				if a, err := address(option(rule, "-d")); err == nil {
					out[root] = append(out[root], a)
				}
			}
		}
	}
	return out
}

func address(s string) (netip.Addr, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.IsSingleIP() {
		return netip.Addr{}, fmt.Errorf("%q: want one address", s)
	}
	return p.Addr(), nil
}

// ruleKey is the protocol and port of a rule.
func ruleKey(rule string) (key dataplane.FrontendKey, err error) {
	if key.Protocol, err = dataplane.ParseProtocol(strings.ToUpper(option(rule, "-p"))); err != nil {
		return key, err
	}
	port, err := strconv.ParseUint(option(rule, "--dport"), 10, 16)
	if err != nil {
		return key, fmt.Errorf("port: %w", err)
	}
	key.Port = uint16(port)
	return key, nil
}

// backendsOf reads a set.
func backendsOf(nat *savedTable, set string) ([]dataplane.BackendRow, error) {
	if set == "" {
		return []dataplane.BackendRow{}, nil
	}
	c := nat.chains[set]
	if c == nil {
		return nil, fmt.Errorf("chain %s is missing", set)
	}
	at, err := destinations(nat, c)
	if err != nil {
		return nil, fmt.Errorf("chain %s: %w", set, err)
	}
	var text strings.Builder
	for _, rule := range c.rules {
		if s, ok := comment(rule); ok {
			text.WriteString(s)
		}
	}
	rows, err := parseSetText(text.String(), at)
	if err != nil {
		return nil, fmt.Errorf("chain %s: %w", set, err)
	}
	return rows, nil
}

// destinations are the Backends that a set's rules choose from, in their order.
func destinations(nat *savedTable, c *savedChain) (at []netip.AddrPort, err error) {
	for _, rule := range c.rules {
		target := option(rule, "-j")
		switch {
		case strings.Contains(rule, "-m recent --update"): // chosen from below
		case target == "DNAT":
			to, err := netip.ParseAddrPort(option(rule, "--to-destination"))
			if err != nil {
				return nil, fmt.Errorf("rule %q: %w", rule, err)
			}
			at = append(at, to)
		case strings.HasPrefix(target, prefixSet) && strings.Contains(target, "."): // a group, which leads no further
			group := nat.chains[target]
			if group == nil {
				return nil, fmt.Errorf("chain %s is missing", target)
			}
			for _, rule := range group.rules {
				to, err := netip.ParseAddrPort(option(rule, "--to-destination"))
				if err != nil {
					return nil, fmt.Errorf("rule %q: %w", rule, err)
				}
				at = append(at, to)
			}
		}
	}
	return at, nil
}

// rows reads the whole table of one family.
func rows(nat *savedTable) ([]dataplane.Row, error) {
	ports, err := kernelPorts(nat)
	if err != nil {
		return nil, err
	}
	at, err := leaves(nat)
	if err != nil {
		return nil, err
	}
	sets := map[string][]dataplane.BackendRow{}
	var out []dataplane.Row
	for key, target := range at {
		chain := prefixPort + strings.TrimPrefix(strings.TrimPrefix(target, prefixRanges), prefixPort)
		p := ports[chain]
		if p == nil {
			return nil, fmt.Errorf("chain %s, where %s leads, is missing", chain, key)
		}
		for _, scope := range []dataplane.Scope{dataplane.Internal, dataplane.External} {
			name := p.set(p.internal)
			if scope == dataplane.External {
				name = p.set(p.external)
			}
			if _, ok := sets[name]; !ok {
				if sets[name], err = backendsOf(nat, name); err != nil {
					return nil, err
				}
			}
			if scope == dataplane.External && p.kind == dataplane.ClusterIP.String() {
				continue
			}
			out = append(out, dataplane.Row{
				Service: p.service, PortName: p.portName, Kind: p.kind,
				Address: key.Address, Port: key.Port, Protocol: key.Protocol.String(), Scope: scope.String(),
				SessionAffinitySeconds: p.affinity, Backends: append([]dataplane.BackendRow{}, sets[name]...),
			})
		}
	}
	return out, nil
}
