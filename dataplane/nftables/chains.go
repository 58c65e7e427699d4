// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// What a packet of a new connection passes (netfilter shows chains of type nat
// no others):
//
//	nat-prerouting: of a Service? -> scope: allowed? internal -> dispatch
//	                                            external -> external -> dispatch
//	                other port of a ClusterIP? -> refuse
//	nat-output:     of a Service? -> local: allowed? -> dispatch
//	dispatch:       tuple -> action -> pick-N: tuple, random below N -> Backend
//	nat-postrouting: translated, of a Service? -> masquerade
//
// No two lookups of one packet need to see the same state of the maps: a
// transaction may come into force between them. What can be seen then, and why
// it does no harm:
//
//   - An action of before, "one of N", and slots of after, where there are fewer:
//     the slot is missing, pick-N returns and dispatch asks again, for the action
//     of after. Where there are as many or more, the slot is a Backend of after.
//   - An action of after and slots of before: can't be, all is one transaction.
//   - An action whose chain is not there: can't be. Chains and entries of the
//     actions map are made in a transaction before the one whose Frontends use
//     them, and are removed when none used them for a whole round of Sync.
//   - An action or slot that is replaced, and is found neither old nor new: the
//     kernel takes out the old element an instant before it clears the mark of
//     the new one (until 6.17, which then looks again). dispatch asks again.
//   - Twice the same in one packet: then slot 0. If even that is missing the
//     packet is dropped and counted (half_change); its sender repeats it.
const (
	chainPrerouting  = "nat-prerouting"
	chainOutput      = "nat-output"
	chainPostrouting = "nat-postrouting"
	chainScope       = "scope"
	chainLocal       = "local"
	chainExternal    = "external"
	chainDispatch    = "dispatch"
	chainRanges      = "ranges"
	chainNoBackends  = "no-backends"
	chainNoLocal     = "no-local-backends"
	chainUnknownPort = "unknown-port"
	chainRefuse      = "refuse"
	chainMasquerade  = "masquerade"
	// chainLoopback guards loopback while route_localnet is on: see loopback.go.
	chainLoopback = "loopback-guard"
)

// hook is where a base chain is called.
type hook struct {
	kind     string // filter or nat
	number   uint32 // NF_INET_
	priority int32
}

const (
	policyAccept = 1 // NF_ACCEPT

	priorityRaw  = -300
	priorityDNAT = -100
	prioritySNAT = 100
)

// chain is a chain with its rules.
type chain struct {
	name  string
	hook  *hook // nil: not a base chain
	rules []rule
}

// rule is a line of a chain. Its comment says what it is for.
type rule struct {
	comment string
	exprs   []expr.Any
}

func line(comment string, parts ...any) rule {
	r := rule{comment: comment}
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			r.exprs = append(r.exprs, p...)
		case expr.Any:
			r.exprs = append(r.exprs, p)
		}
	}
	return r
}

// chains are those that are always there, the referred before the referring.
func (f *family) chains(n dataplane.Node) []chain {
	return slices.Concat(f.refusals(), f.choice(n), f.masquerading(n), f.hooks())
}

func (f *family) refusals() []chain {
	return []chain{
		{name: chainRefuse, rules: []rule{
			line("", isProtocol(dataplane.TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}),
			// A reject would give the sender EPERM. Port 0 is nobody's, so that
			// the node's own stack refuses, and conntrack translates that.
			line("refused by the node's own stack, as nobody has port 0", isLocal(), isProtocol(dataplane.UDP),
				f.source(0), &expr.Immediate{Register: register(f.addressBytes), Data: []byte{0, 0}}, f.translate(0)),
			line("", &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.unreachable}),
		}},
		{name: chainNoBackends, rules: []rule{line("", count(counterNoBackends), goTo(chainRefuse))}},
		{name: chainNoLocal, rules: []rule{line("", count(counterNoLocalBackends), drop())}},
		{name: chainUnknownPort, rules: []rule{
			line("", isProtocol(dataplane.TCP), count(counterUnknownPort), goTo(chainRefuse)),
			line("", isProtocol(dataplane.UDP), count(counterUnknownPort), goTo(chainRefuse)),
			line("", isProtocol(dataplane.SCTP), count(counterUnknownPort), goTo(chainRefuse)),
		}},
		{name: chainRanges, rules: []rule{
			line("", f.tuple(), f.source(f.tupleBytes()), in(0, setAllowed), leave()),
			line("not limited any more", f.tuple(), notIn(0, setRestricted), leave()),
			line("", count(counterSourceRange), drop()),
		}},
	}
}

// choice has the chains that choose a Backend; the first ones, of actions, are
// in picks.go.
func (f *family) choice(n dataplane.Node) []chain {
	restricted := line("", f.tuple(), in(0, setRestricted), jump(chainRanges))
	scope := []rule{restricted}
	for _, p := range f.internal(n) {
		scope = append(scope, line("internal", f.fromPrefix(p), goTo(chainDispatch)))
	}
	scope = append(scope, line("", jump(chainExternal)), line("", goTo(chainDispatch)))
	return []chain{
		{name: chainDispatch, rules: f.asking(setFrontends, setActions, setSlots)},
		{name: chainExternal, rules: f.asking(setFrontendsExternal, setActionsExternal, setSlotsExternal)},
		{name: chainLocal, rules: []rule{restricted, line("", goTo(chainDispatch))}},
		{name: chainScope, rules: scope},
	}
}

// asking asks for the action of a Frontend, and again if a Change was faster.
func (f *family) asking(frontends, actions, slots setID) []rule {
	n := f.tupleBytes()
	ask := append(f.tuple(), mark(n), findWide(0, frontends, n), obey(n, actions))
	return []rule{
		line("not the mark: what "+frontends.String()+" has for the tuple", ask),
		line("again, if the Frontend changed meanwhile", ask),
		line("", f.tuple(), random(n, 1), find(0, slots, n), f.translate(n)),
		line("", f.tuple(), find(0, frontends, n), count(counterHalfChange), drop()),
	}
}

// internal are the prefixes of the family whose traffic is internal.
func (f *family) internal(n dataplane.Node) (out []netip.Prefix) {
	for _, p := range n.InternalSources {
		if familyOf(p.Addr()) == f {
			out = append(out, p.Masked())
		}
	}
	return out
}

var loopbackPrefixes = [2]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func (f *family) masquerading(n dataplane.Node) []chain {
	both := []expr.Any{f.destination(0), f.destination(f.addressBytes)}
	rules := []rule{
		line("its own Backend", f.source(0), f.destination(f.addressBytes), in(0, setLocalBackends), masquerade()),
		line("", f.fromPrefix(loopbackPrefixes[f.index]), device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, "lo"), masquerade()),
		line("of this node", isLocal(), leave()),
		line("in by an uplink, to another node", &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register(0)}, in(0, setUplinks),
			both, notIn(0, setLocalBackends), masquerade()),
	}
	for _, p := range f.internal(n) {
		rules = append(rules, line("internal", f.fromPrefix(p), leave()))
	}
	return []chain{{name: chainMasquerade, rules: append(rules,
		line("external", f.originalTuple(), notIn(0, setKeepSource), masquerade()))}}
}

func (f *family) hooks() []chain {
	unknown := line("", f.destination(0), in(0, setClusterIPs), goTo(chainUnknownPort))
	return []chain{
		{chainPrerouting, &hook{"nat", unix.NF_INET_PRE_ROUTING, priorityDNAT}, []rule{
			line("", f.tuple(), in(0, setServices), goTo(chainScope)), unknown,
		}},
		{chainOutput, &hook{"nat", unix.NF_INET_LOCAL_OUT, priorityDNAT}, []rule{
			line("", f.tuple(), in(0, setServices), goTo(chainLocal)), unknown,
		}},
		{chainPostrouting, &hook{"nat", unix.NF_INET_POST_ROUTING, prioritySNAT}, []rule{
			// Not in services, whose counters count.
			line("", translated(), f.originalTuple(), find(0, setFrontends, f.tupleBytes()), goTo(chainMasquerade)),
		}},
	}
}

// translated matches connections whose destination is not the one they asked for.
func translated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: register(0)},
		&expr.Bitwise{SourceRegister: register(0), DestRegister: register(0), Len: 4, Mask: native32(conntrackDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register(0), Data: make([]byte, 4)},
	}
}

// add appends the messages that make a chain, without its rules.
func (c *chain) add(m *messages, f *family) {
	m.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, f.proto)
	m.text(unix.NFTA_CHAIN_TABLE, f.table)
	m.text(unix.NFTA_CHAIN_NAME, c.name)
	if c.hook != nil {
		at := m.nest(unix.NFTA_CHAIN_HOOK)
		m.u32(unix.NFTA_HOOK_HOOKNUM, c.hook.number)
		m.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority))
		m.unnest(at)
		m.u32(unix.NFTA_CHAIN_POLICY, policyAccept)
		m.text(unix.NFTA_CHAIN_TYPE, c.hook.kind)
	}
	m.end()
}

// remove appends the message that removes a chain and its rules.
func removeChain(m *messages, f *family, name string) {
	m.begin(unix.NFT_MSG_DELCHAIN, 0, f.proto)
	m.text(unix.NFTA_CHAIN_TABLE, f.table)
	m.text(unix.NFTA_CHAIN_NAME, name)
	m.end()
}

// flush appends the message that removes a chain's rules.
func (c *chain) flush(m *messages, f *family) {
	m.begin(unix.NFT_MSG_DELRULE, 0, f.proto)
	m.text(unix.NFTA_RULE_TABLE, f.table)
	m.text(unix.NFTA_RULE_CHAIN, c.name)
	m.end()
}

// fill appends the messages that add a chain's rules.
func (c *chain) fill(m *messages, f *family) error {
	for i := range c.rules {
		r := &c.rules[i]
		exprs, err := r.encode(f)
		if err != nil {
			return fmt.Errorf("rule %d of chain %s: %w", i+1, c.name, err)
		}
		m.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, f.proto)
		m.text(unix.NFTA_RULE_TABLE, f.table)
		m.text(unix.NFTA_RULE_CHAIN, c.name)
		m.bytes(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, exprs)
		m.bytes(unix.NFTA_RULE_USERDATA, r.userData(exprs))
		m.end()
	}
	return nil
}

func (r *rule) encode(f *family) ([]byte, error) {
	m := &messages{}
	for _, e := range r.exprs {
		var b []byte
		if o, ok := e.(original); ok {
			b = o.encode()
		} else if v, err := expr.Marshal(f.proto, e); err == nil {
			b = v
		} else {
			return nil, err
		}
		m.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
	}
	return m.b, nil
}

// ruleHash is the type of user data that says what a rule was made of. The
// kernel does not give rules back as they were given to it; user data it does.
const ruleHash = 0xf1

// userData has the comment, for nft to print, and a hash.
func (r *rule) userData(exprs []byte) []byte {
	var b []byte
	if r.comment != "" {
		b = append(b, 0, byte(len(r.comment)+1))
		b = append(append(b, r.comment...), 0)
	}
	h := fnv.New64a()
	h.Write(exprs)
	b = append(b, ruleHash, 8)
	return binary.BigEndian.AppendUint64(b, h.Sum64())
}
