// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// Priorities of our chains. IPVS is hooked into LOCAL_IN at 98 and 99 and into
// LOCAL_OUT at -99 and -98 (ip_vs_ops4 in net/netfilter/ipvs/ip_vs_core.c);
// what it forwards passes LOCAL_OUT a second time, from the start.
const (
	beforeConntrack   = -310
	beforeIPVSOutput  = -101
	beforeIPVSInput   = 90
	afterIPVSInput    = 105
	beforeMasquerade  = 90
	masqueradeAtPlace = 100
)

// rule is its expressions.
type rule []expr.Any

// chain is one of the table's, with a hook or to be jumped to.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	kind     nftables.ChainType
	rules    []rule
}

// ruleset is all that the rules depend on: Services are in sets.
type ruleset struct {
	marks marks
	// primary are the addresses that masqueraded traffic gets, invalid where
	// the node lacks the family.
	primary map[*family]netip.Addr
	// timeouts of affinity that some Service has, in seconds, sorted.
	timeouts []uint32
}

// chains are in an order in which each may be jumped to by a later one.
func (r ruleset) chains() []chain {
	out := []chain{refuseChain("no_backends"), refuseChain("unknown_port")}
	for _, f := range families {
		out = append(out, r.schedule(f)...)
		out = append(out, r.affinity(f), r.after(f, dataplane.Internal), r.after(f, dataplane.External), r.afterEither(f), r.masquerade(f))
	}
	return append(out, r.hooked()...)
}

// hooked are the chains that packets enter.
func (r ruleset) hooked() []chain {
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	oldFlow := rule(concat(ctState(expr.CtStateBitNEW|expr.CtStateBitUNTRACKED, false), verdict(expr.VerdictAccept, "")))
	newFlow := ctState(expr.CtStateBitNEW, true)
	output := chain{"output-first", nftables.ChainHookOutput, beforeConntrack, filter, []rule{r.clearMark()}}
	after := chain{"input-after", nftables.ChainHookInput, afterIPVSInput, filter, []rule{r.clearMark()}}
	schedule := chain{"input-schedule", nftables.ChainHookInput, beforeIPVSInput, filter, []rule{oldFlow}}
	scheduleOwn := chain{"output-schedule", nftables.ChainHookOutput, beforeIPVSOutput, filter, []rule{oldFlow}}
	remember := chain{"postrouting-affinity", nftables.ChainHookPostrouting, beforeMasquerade, filter, []rule{r.clearMark()}}
	masquerade := chain{"postrouting-masquerade", nftables.ChainHookPostrouting, masqueradeAtPlace, nat, nil}
	for _, f := range families {
		if r.primary[f].IsValid() {
			output.rules = append(output.rules, r.leaveLoopback(f))
			after.rules = append(after.rules, r.returnToLoopback(f))
		}
		after.rules = append(after.rules,
			concat(newFlow, ofFamily(f), verdict(expr.VerdictJump, "affinity"+f.suffix)),
			concat(ofFamily(f), verdict(expr.VerdictJump, "after"+f.suffix)))
		schedule.rules = append(schedule.rules, concat(ofFamily(f), verdict(expr.VerdictGoto, "schedule"+f.suffix)))
		scheduleOwn.rules = append(scheduleOwn.rules, concat(ofFamily(f), verdict(expr.VerdictGoto, "schedule-internal"+f.suffix)))
		remember.rules = append(remember.rules, concat(newFlow, ofFamily(f), verdict(expr.VerdictJump, "affinity"+f.suffix)))
		masquerade.rules = append(masquerade.rules, concat(ofFamily(f), verdict(expr.VerdictJump, "masquerade"+f.suffix)))
	}
	return []chain{output, scheduleOwn, schedule, after, remember, masquerade}
}

// schedule marks what begins a flow to a Frontend with the virtual server of
// its scope or, where the client has an affinity that still holds, with that of
// its Backend.
func (r ruleset) schedule(f *family) []chain {
	var out []chain
	for _, scope := range []string{"internal", "external"} {
		out = append(out, chain{name: "schedule-" + scope + f.suffix, rules: []rule{
			concat(frontend(f), in("restricted"+f.suffix, false), source(f, reg(f.registers+2)), in("allowed"+f.suffix, true), verdict(expr.VerdictReturn, "")),
			concat(frontend(f), lookup(scope+f.suffix, reg(0)), setMark(reg(0))),
			concat(frontend(f), lookup("sticky"+f.suffix, reg(0)), source(f, reg(1)), lookup("affinity"+f.suffix, reg(1)),
				loadMark(reg(0)), in("eligible", false), setMark(reg(1))),
		}})
	}
	return append(out, chain{name: "schedule" + f.suffix, rules: r.byScope(f, "schedule-internal", "schedule-external")})
}

// byScope goes to the chain of a packet's scope. What comes from loopback was
// not for IPVS on its way out.
func (r ruleset) byScope(f *family, internal, external string) []rule {
	return []rule{
		concat(rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)}, equal(reg(0), deviceKey("lo"))}, verdict(expr.VerdictGoto, internal+f.suffix)),
		concat(source(f, reg(0)), in("internal-sources"+f.suffix, false), verdict(expr.VerdictGoto, internal+f.suffix)),
		verdict(expr.VerdictGoto, external+f.suffix),
	}
}

// affinity remembers which Backend IPVS chose for the client of a new flow. A
// timeout belongs to a rule, so there is one for each.
func (r ruleset) affinity(f *family) chain {
	c := chain{name: "affinity" + f.suffix}
	for _, seconds := range r.timeouts {
		port, home := reg(0), reg(f.registers+2)
		c.rules = append(c.rules, concat(
			original(f), lookup("sticky"+f.suffix, port),
			rule{&expr.Lookup{SourceRegister: port, DestRegister: reg(1), IsDestRegSet: true, SetName: "timeouts"}, equal(reg(1), number(seconds))},
			destination(f, reg(1)), destinationPort(reg(1+f.registers)), lookup("homes"+f.suffix, home),
			source(f, reg(1)),
			rule{
				&expr.Dynset{SrcRegKey: port, SrcRegData: home, SetName: "affinity" + f.suffix, Operation: dynsetDelete},
				&expr.Dynset{SrcRegKey: port, SrcRegData: home, SetName: "affinity" + f.suffix, Operation: unix.NFT_DYNSET_OP_ADD, Timeout: secondsOf(seconds)},
			}))
	}
	return c
}

func secondsOf(n uint32) time.Duration { return time.Duration(n) * time.Second }

// dynsetDelete is NFT_DYNSET_OP_DELETE (linux/netfilter/nf_tables.h, 5.4).
const dynsetDelete = 2

// after sees what IPVS did not take: it is refused or dropped where its
// destination is a Frontend or an address of Services alone.
func (r ruleset) after(f *family, scope dataplane.Scope) chain {
	name := scopeNames[scope]
	return chain{name: "after-" + name + f.suffix, rules: []rule{
		concat(frontend(f), in("refused-"+name+f.suffix, false), verdict(expr.VerdictGoto, "refuse-no_backends")),
		concat(frontend(f), in("dropped-"+name+f.suffix, false), count("no_local_backends"), verdict(expr.VerdictDrop, "")),
		concat(frontend(f), in("restricted"+f.suffix, false), count("source_range"), verdict(expr.VerdictDrop, "")),
		concat(destination(f, reg(0)), in("vips"+f.suffix, false), verdict(expr.VerdictGoto, "refuse-unknown_port")),
	}}
}

func (r ruleset) afterEither(f *family) chain {
	return chain{name: "after" + f.suffix, rules: r.byScope(f, "after-internal", "after-external")}
}

// refuseChain refuses at once, and counts. Here, behind the input hook, the
// kernel tells the sockets of the node too; in the output hook they would get
// EPERM.
func refuseChain(counter string) chain {
	c := chain{name: "refuse-" + counter}
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		reject := &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}
		if p == dataplane.TCP {
			reject = &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
		}
		c.rules = append(c.rules, concat(
			rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)}, equal(reg(0), []byte{byte(p)})}, count(counter), rule{reject}))
	}
	return c
}

// masquerade gives the first packet of a flow through IPVS the node's address
// where the answer would not come back this way else.
func (r ruleset) masquerade(f *family) chain {
	c := chain{name: "masquerade" + f.suffix}
	if !r.primary[f].IsValid() {
		return c
	}
	snat := rule{
		&expr.Immediate{Register: reg(0), Data: r.primary[f].AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.nfproto), RegAddrMin: reg(0), FullyRandom: true},
	}
	forwarded := rule{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg(0)}, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: number(0)}}
	own := rule{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg(0)}, equal(reg(0), number(0))}
	uplink := rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)}}
	loopback := rule{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg(0)}, equal(reg(0), deviceKey("lo"))}
	isLocal := func(not bool) rule {
		return concat(destination(f, reg(0)), destination(f, reg(f.registers)), in("local"+f.suffix, not))
	}
	c.rules = []rule{
		concat(original(f), in("frontends"+f.suffix, true), verdict(expr.VerdictReturn, "")),
		concat(loopback, verdict(expr.VerdictReturn, "")),
		// A Backend that is its own client.
		concat(source(f, reg(0)), destination(f, reg(f.registers)), in("local"+f.suffix, false), snat),
		// In by an uplink, and to another node.
		concat(uplink, in("uplinks", false), isLocal(true), snat),
		// External, where the policy is Cluster.
		concat(forwarded, source(f, reg(0)), in("internal-sources"+f.suffix, true), original(f), in("masquerade"+f.suffix, false), snat),
		// The node's own, from an address that may be unknown elsewhere.
		concat(own, source(f, reg(0)), rule{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: r.primary[f].AsSlice()}}, snat),
	}
	return c
}

// leaveLoopback gives what a process sends from loopback to a Frontend there
// the node's address: IPVS sends nothing from loopback to another host. It is
// done before conntrack and undone behind IPVS, so both see one flow of the
// node, and nothing ever leaves with a loopback address.
func (r ruleset) leaveLoopback(f *family) rule {
	return concat(source(f, reg(0)), rule{equal(reg(0), f.loopback.AsSlice())},
		destination(f, reg(0)), rule{equal(reg(0), f.loopback.AsSlice())},
		frontend(f), in("frontends"+f.suffix, false),
		rule{&expr.Immediate{Register: reg(0), Data: r.primary[f].AsSlice()}, f.write(f.source)})
}

// returnToLoopback is the way back.
func (r ruleset) returnToLoopback(f *family) rule {
	return concat(source(f, reg(0)), rule{equal(reg(0), f.loopback.AsSlice())},
		destination(f, reg(0)), rule{equal(reg(0), r.primary[f].AsSlice())},
		source(f, reg(0)), rule{protocolAt(reg(f.registers)), portAt(reg(f.registers+1), 0)}, in("frontends"+f.suffix, false),
		rule{&expr.Immediate{Register: reg(0), Data: f.loopback.AsSlice()}, f.write(f.destination)})
}

// clearMark takes our mark from what IPVS has seen.
func (r ruleset) clearMark() rule {
	return concat(loadMark(reg(0)), rule{
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: number(0xff000000), Xor: number(0)},
		equal(reg(0), number(r.marks.prefix)),
		&expr.Immediate{Register: reg(0), Data: number(0)}}, setMark(reg(0)))
}

// digest is what stored rules are known by.
func (r ruleset) digest() string {
	h := fnv.New64a()
	for _, c := range r.chains() {
		fmt.Fprint(h, c.name, c.priority, c.kind)
		for _, rule := range c.rules {
			for _, e := range rule {
				b, err := expr.Marshal(unix.NFPROTO_INET, e)
				fmt.Fprint(h, b, err)
			}
		}
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// Parts of rules. Registers are of four bytes, a concatenation is in adjacent
// ones.

func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

func concat(parts ...rule) rule { return slices.Concat(parts...) }

func verdict(kind expr.VerdictKind, chain string) rule {
	return rule{&expr.Verdict{Kind: kind, Chain: chain}}
}

func equal(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func ofFamily(f *family) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg(0)}, equal(reg(0), []byte{f.nfproto})}
}

func ctState(bits uint32, has bool) rule {
	op := expr.CmpOpEq
	if has {
		op = expr.CmpOpNeq
	}
	return rule{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: number(bits), Xor: number(0)},
		&expr.Cmp{Op: op, Register: reg(0), Data: number(0)},
	}
}

func loadMark(register uint32) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyMARK, Register: register}}
}

func setMark(register uint32) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: register}}
}

// in looks for what begins in the first register.
func in(set string, not bool) rule {
	return rule{&expr.Lookup{SourceRegister: reg(0), SetName: set, Invert: not}}
}

func lookup(set string, to uint32) rule {
	return rule{&expr.Lookup{SourceRegister: reg(0), DestRegister: to, IsDestRegSet: true, SetName: set}}
}

func count(name string) rule {
	return rule{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}
}

func (f *family) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.bytes}
}

// write writes an address from the first register, checksums too.
func (f *family) write(offset uint32) expr.Any {
	p := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.bytes,
		CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
	}
	if f == ipv4 {
		p.CsumType, p.CsumOffset = expr.CsumTypeInet, 10
	}
	return p
}

func source(f *family, register uint32) rule      { return rule{f.load(f.source, register)} }
func destination(f *family, register uint32) rule { return rule{f.load(f.destination, register)} }

func protocolAt(register uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
}

// portAt loads the source (offset 0) or destination port (2).
func portAt(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

func destinationPort(register uint32) rule { return rule{portAt(register, 2)} }

// frontend is what a packet is addressed to.
func frontend(f *family) rule {
	return concat(destination(f, reg(0)), rule{protocolAt(reg(f.registers)), portAt(reg(f.registers+1), 2)})
}

// original is what the first packet of its flow was addressed to.
func original(f *family) rule {
	return rule{
		&expr.Ct{Key: expr.CtKeyDST, Register: reg(0)}, // 16 bytes in this family of tables
		protocolAt(reg(f.registers)),
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg(f.registers + 1)},
	}
}

// dropCounters are the counters of the table, and the reasons of dump.
var dropCounters = []string{"no_backends", "no_local_backends", "source_range", "unknown_port"}

// queueRules queues the rules in place of those that are there.
func (t *table) queueRules(r ruleset) {
	digest := r.digest()
	for _, c := range r.chains() {
		made := &nftables.Chain{Table: t.table, Name: c.name}
		if c.hook != nil {
			made.Hooknum, made.Priority, made.Type = c.hook, nftables.ChainPriorityRef(c.priority), c.kind
		}
		t.conn.AddChain(made)
		t.conn.FlushChain(made)
		for i, rule := range c.rules {
			t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: made, Exprs: rule, UserData: fmt.Appendf(nil, "%s %d", digest, i)})
		}
	}
}

// holdsRules reports whether the table's rules are these.
func (t *table) holdsRules(r ruleset) (bool, error) {
	found, err := t.ruleNames()
	if err != nil {
		return false, err
	}
	digest := r.digest()
	var want []string
	for _, c := range r.chains() {
		for i := range c.rules {
			want = append(want, fmt.Sprintf("%s %s %d", c.name, digest, i))
		}
	}
	slices.SortFunc(found, strings.Compare)
	slices.SortFunc(want, strings.Compare)
	return slices.Equal(found, want), nil
}

// ruleNames are the chain and the userdata of every rule. The library's own
// listing can't read `ct` expressions with a direction back.
func (t *table) ruleNames() (names []string, err error) {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(tableName), 0)}})
	if err != nil {
		return nil, err
	}
	list, err := t.lister.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, b...),
	})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	for _, m := range list {
		if len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		var ofTable, chain, userdata string
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_TABLE:
				ofTable = ad.String()
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				userdata = string(ad.Bytes())
			}
		}
		if ofTable == tableName {
			names = append(names, chain+" "+userdata)
		}
	}
	return names, nil
}
