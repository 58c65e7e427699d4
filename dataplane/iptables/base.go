// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"strings"
)

// How packets walk, in each family:
//
//	nat PREROUTING, OUTPUT -> SERVICES -> NODE (by port) or A (by address)
//	    -> [R: source ranges] -> P: count, mark, scope -> S: one Backend, DNAT
//	nat POSTROUTING -> POSTROUTING: what is marked is masqueraded, and hairpins
//	filter INPUT, FORWARD, OUTPUT -> REFUSE: Frontends that nat did not
//	    translate are rejected or dropped; the node's own datagrams for them
//	    nat translates to where INPUT rejects them
//	filter FORWARD -> FORWARD: accept what was translated
//	raw PREROUTING -> LOCALNET: guards 127.0.0.0/8 while route_localnet is set
//
// Rules of nat see the first packet of a connection only.

// jumps are the rules in built-in chains. Each is put at the head of its chain,
// in this order, so that the last one is first.
func jumps(localnet bool) []jump {
	all := []jump{
		{"nat", "PREROUTING", `-m comment --comment "fairlead: Services" -j ` + chainServices},
		{"nat", "OUTPUT", `-m comment --comment "fairlead: Services" -j ` + chainServices},
		{"nat", "POSTROUTING", `-m comment --comment "fairlead: masquerading" -j ` + chainPostrouting},
		{"filter", "INPUT", refuseJump},
		{"filter", "FORWARD", `-m comment --comment "fairlead: connections to Services" -j ` + chainForward},
		{"filter", "FORWARD", refuseJump},
		{"filter", "OUTPUT", refuseJump},
	}
	if localnet {
		all = append(all, jump{"raw", "PREROUTING", `-m comment --comment "fairlead: loopback is for this node" -j ` + chainLocalnet})
	}
	return all
}

const refuseJump = `-m conntrack --ctstate NEW -m comment --comment "fairlead: Services that refuse" -j ` + chainRefuse

// base is what the chains that are always there depend on.
type base struct {
	environment
	mark       string // of the mark, "0x4000"
	masquerade string
	uplinks    []string // devices, or patterns as "eth+"
	loopback   bool     // Frontends on 127.0.0.1 exist
	guard      bool     // route_localnet is set by us
}

// nat makes packets that are to be masqueraded carry the mark, and masquerades
// them.
func (b *base) nat() map[string][]string {
	set := "-j MARK --set-xmark " + b.mark + "/" + b.mark
	chains := map[string][]string{chainMark: nil, chainInternal: nil, chainUplink: nil, chainMasqUplink: nil}
	if b.loopback { // no other host can answer 127.0.0.1
		for _, chain := range []string{chainMark, chainInternal} {
			chains[chain] = append(chains[chain], "-s 127.0.0.0/8 "+set)
		}
	}
	// Internal traffic keeps its source, unless an uplink brought it and it
	// leaves by one again: then the answer would not come back this way.
	for _, p := range b.internal {
		for _, chain := range []string{chainMark, chainInternal} {
			chains[chain] = append(chains[chain], joined(source(p), "-g "+chainUplink))
		}
	}
	chains[chainMark] = append(chains[chainMark], "-m addrtype --src-type LOCAL -j RETURN", set)
	for _, u := range b.uplinks {
		chains[chainUplink] = append(chains[chainUplink], match("-i", u, set))
		chains[chainMasqUplink] = append(chains[chainMasqUplink], match("-o", u, b.masquerade))
	}
	post := []string{
		"-m mark ! --mark " + b.mark + "/" + b.mark + " -g " + chainHairpin,
		"-j MARK --set-xmark 0x0/" + b.mark,
	}
	for _, p := range b.internal {
		post = append(post, joined(source(p), "-g "+chainMasqUplink))
	}
	chains[chainPostrouting] = append(post, "-o lo -j RETURN", b.masquerade)
	for _, p := range []string{"udp", "sctp"} {
		chains[chainReject] = append(chains[chainReject], "-p "+p+" -m addrtype --src-type LOCAL -j DNAT --to-destination "+b.closed())
	}
	chains[chainHairpin] = []string{"-m conntrack --ctstate DNAT -j " + treeHairpin}
	return chains
}

// closed is where the node's own datagrams go that are to be refused. Rejected
// in OUTPUT, sendmsg() would fail with EPERM, which no program expects; so they
// go to loopback and are rejected in INPUT. No packet comes to this port by
// translation otherwise.
func (b *base) closed() string {
	if b.v6 {
		return "[::1]:9"
	}
	return "127.0.0.1:9"
}

// isClosed matches what came to closed, in INPUT alone.
func (b *base) isClosed(protocol string) string {
	at := netip.MustParseAddrPort(b.closed())
	return fmt.Sprintf("%s -i lo -p %s -m %s --dport %d -m conntrack --ctstate DNAT -j %s", destination(at.Addr()), protocol, protocol, at.Port(), chainReject)
}

// match is a rule about a device; every device needs no match.
func match(direction, pattern, rest string) string {
	if pattern == "+" {
		return rest
	}
	return direction + " " + pattern + " " + rest
}

// hairpinRule masquerades a pod that is its own Backend.
func (b *base) hairpinRule(a netip.Addr) string {
	return source(netip.PrefixFrom(a, a.BitLen())) + " " + destination(a) + " " + b.masquerade
}

// filter refuses what is for a Frontend and was not translated, and lets pass
// what was.
func (b *base) filter() map[string][]string {
	unreachable := "-j REJECT --reject-with icmp-port-unreachable"
	if b.v6 {
		unreachable = "-j REJECT --reject-with icmp6-port-unreachable"
	}
	reject := []string{"-p tcp -j REJECT --reject-with tcp-reset", "-p udp " + unreachable, "-p sctp " + unreachable}
	refuse := []string{b.isClosed("udp"), b.isClosed("sctp"), "-j " + chainServices}
	return map[string][]string{
		chainReject: reject, chainUnknown: reject,
		chainNoLocal: {"-j DROP"}, chainRange: {"-j DROP"},
		chainRefuse: refuse,
		chainForward: {
			"-m mark --mark " + b.mark + "/" + b.mark + " -j ACCEPT",
			"-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT -j ACCEPT",
		},
	}
}

// raw keeps 127.0.0.0/8 to this node, which route_localnet would open to its
// neighbours (CVE-2020-8558).
func (b *base) raw() map[string][]string {
	if !b.guard {
		return nil
	}
	return map[string][]string{chainLocalnet: {"-d 127.0.0.0/8 ! -i lo -j DROP", "-s 127.0.0.0/8 ! -i lo -j DROP"}}
}

// devicePattern is a pattern of Options.Devices in the words of iptables.
func devicePattern(d string) string {
	if name, ok := strings.CutSuffix(d, "*"); ok {
		return name + "+"
	}
	return d
}
