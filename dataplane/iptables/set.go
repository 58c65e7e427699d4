// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"strconv"

	"fairlead.dev/dataplane"
)

// groupSize is how many Backends a chain chooses from. A larger set is chosen
// from in two steps, so that the walk grows with its root.
const groupSize = 64

// write makes the chains of a set: a rule for each Backend that gets new
// connections, then comments that no packet comes to.
func (s *setProgram) write(chains map[string][]string, hashed string, n int) {
	name := numbered(prefixSet, hashed, n)
	eligible := s.backends.Eligible()
	var rules []string
	if s.affinity > 0 {
		rules = s.remembered(hashed, eligible)
	}
	if len(eligible) <= groupSize {
		rules = append(rules, s.choose(hashed, eligible)...)
	} else {
		rules = append(rules, s.chooseGroup(chains, name, hashed, eligible)...)
	}
	chains[name] = append(rules, comments(setText(s.backends))...)
}

func (s *setProgram) dnat(b dataplane.Backend) string {
	return "-j DNAT --to-destination " + toDestination(b.AddrPort())
}

func toDestination(a netip.AddrPort) string { return a.String() }

// remembered are the rules that send a client to the Backend it had. The entry
// is renewed by use.
func (s *setProgram) remembered(hashed string, backends []dataplane.Backend) (rules []string) {
	for _, b := range backends {
		rules = append(rules, fmt.Sprintf("-p %s -m recent --update --seconds %d --reap --name %s --mask %s --rsource %s",
			protocolName(s.protocol), s.affinity, recentList(hashed, b.AddrPort()), wholeMask(b.Address), s.dnat(b)))
	}
	return rules
}

func wholeMask(a netip.Addr) string {
	if a.Is6() {
		return "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "255.255.255.255"
}

// choose are rules that take each of the Backends with the same chance.
func (s *setProgram) choose(hashed string, backends []dataplane.Backend) (rules []string) {
	for i, b := range backends {
		rule := joined("-p "+protocolName(s.protocol), chance(len(backends)-i, 1))
		if s.affinity > 0 {
			rule = fmt.Sprintf("%s -m recent --set --name %s --mask %s --rsource", rule, recentList(hashed, b.AddrPort()), wholeMask(b.Address))
		}
		rules = append(rules, rule+" "+s.dnat(b))
	}
	return rules
}

// chooseGroup shares the Backends among chains and chooses one of these.
func (s *setProgram) chooseGroup(chains map[string][]string, name, hashed string, backends []dataplane.Backend) (rules []string) {
	size := groupSize
	for size*size < len(backends) {
		size *= 2
	}
	for i := 0; i < len(backends); i += size {
		group := backends[i:min(i+size, len(backends))]
		chain := name + "." + strconv.FormatInt(int64(i/size), 36)
		chains[chain] = s.choose(hashed, group)
		rules = append(rules, joined(chance(len(backends)-i, len(group)), "-j "+chain))
	}
	return rules
}

// chance matches part of n by chance, in the words of iptables-save: the kernel
// holds it in units of 2^-31.
func chance(n, part int) string {
	if part >= n {
		return ""
	}
	const one = 1 << 31
	units := uint64(float64(part)/float64(n)*one + 0.5)
	return fmt.Sprintf("-m statistic --mode random --probability %.11f", float64(units)/one)
}
