// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"

	"fairlead.dev/dataplane/iptables"
)

// kubeProxyChains are the chains that kube-proxy's iptables and ipvs modes make,
// by table (pkg/proxy/iptables, pkg/proxy/ipvs of v1.37, and what older ones
// had). KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT and
// KUBE-MARK-DROP are the kubelet's.
var kubeProxyChains = map[string][]string{
	"nat": {
		"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER",
	},
	"filter": {
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	},
	"mangle": {"KUBE-PROXY-CANARY"},
	"raw":    {"KUBE-PROXY-CANARY"},
}

// kubeProxyPrefixes are those of the chains of a Service port or endpoint.
var kubeProxyPrefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"}

// kubeProxyComments begin the comments of all its jumps from built-in chains.
var kubeProxyComments = []string{"kubernetes ", "kube-proxy "}

const (
	markMasq    = "KUBE-MARK-MASQ"
	postrouting = "KUBE-POSTROUTING"
)

func isKubeProxyChain(table, chain string) bool {
	if slices.Contains(kubeProxyChains[table], chain) {
		return true
	}
	return table == "nat" && slices.ContainsFunc(kubeProxyPrefixes, func(p string) bool { return strings.HasPrefix(chain, p) })
}

// isKubeProxyJump reports whether a rule of a built-in chain to one of
// kube-proxy's chains is its own.
func isKubeProxyJump(chain, rule string) bool {
	if !slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, chain) {
		return false
	}
	comment := iptables.Comment(rule)
	return slices.ContainsFunc(kubeProxyComments, func(p string) bool { return strings.HasPrefix(comment, p) })
}

// chainPlan is what of one Ruleset is kube-proxy's.
type chainPlan struct {
	rules  *iptables.Ruleset
	tables map[string]*tablePlan
}

type tablePlan struct {
	chains []string // to be removed, sorted
	jumps  []jump   // to be removed
	// kept are chains of kube-proxy that rules of others lead to, with one of
	// these rules.
	kept map[string]string
}

// jump is a rule of a built-in chain.
type jump struct{ chain, rule string }

func findChains(ctx context.Context) (plans []*chainPlan, err error) {
	rulesets, err := iptables.Rulesets(ctx, iptables.Options{})
	if err != nil {
		return nil, err
	}
	if err := readable(rulesets); err != nil {
		return nil, err
	}
	for _, r := range rulesets {
		p := &chainPlan{rules: r, tables: map[string]*tablePlan{}}
		for table, chains := range r.Tables {
			if t := planTable(table, chains); t != nil {
				p.tables[table] = t
			}
		}
		if len(p.tables) > 0 {
			plans = append(plans, p)
		}
	}
	return plans, nil
}

// readable reports chains of kube-proxy that the commands of iptables made and
// cannot list here: they are not installed, or fail.
func readable(rulesets []*iptables.Ruleset) error {
	for family, command := range map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "iptables-nft", nftables.TableFamilyIPv6: "ip6tables-nft"} {
		if slices.ContainsFunc(rulesets, func(r *iptables.Ruleset) bool { return r.String() == command }) {
			continue
		}
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil && !noTables(err) {
			return fmt.Errorf("list nftables chains: %w", err)
		}
		for _, chain := range chains {
			if isKubeProxyChain(chain.Table.Name, chain.Name) {
				return fmt.Errorf("chain %s of kube-proxy is in table %s, and %s-save cannot list it: install iptables 1.8 or newer", chain.Name, chain.Table.Name, command)
			}
		}
	}
	return nil
}

// planTable finds what is kube-proxy's in one table; nil for nothing.
func planTable(table string, chains map[string][]string) *tablePlan {
	t := &tablePlan{kept: map[string]string{}}
	owned := map[string]bool{}
	for chain := range chains {
		owned[chain] = isKubeProxyChain(table, chain)
	}
	for _, chain := range slices.Sorted(maps.Keys(chains)) {
		if owned[chain] {
			continue
		}
		for _, rule := range chains[chain] {
			switch to := iptables.Target(rule); {
			case !owned[to]:
			case isKubeProxyJump(chain, rule):
				t.jumps = append(t.jumps, jump{chain, rule})
			default:
				t.keep(chains, owned, to, "-A "+chain+" "+rule)
			}
		}
	}
	// A mark that others set is worth nothing without the rule that looks at it.
	if why, ok := t.kept[markMasq]; ok && owned[postrouting] {
		t.keep(chains, owned, postrouting, why)
	}
	for chain, is := range owned {
		if _, kept := t.kept[chain]; is && !kept {
			t.chains = append(t.chains, chain)
		}
	}
	slices.Sort(t.chains)
	t.jumps = slices.DeleteFunc(t.jumps, func(j jump) bool {
		_, kept := t.kept[iptables.Target(j.rule)]
		return kept
	})
	if len(t.chains)+len(t.jumps)+len(t.kept) == 0 {
		return nil
	}
	return t
}

// keep keeps a chain, and those that it leads to.
func (t *tablePlan) keep(chains map[string][]string, owned map[string]bool, chain, why string) {
	if _, there := t.kept[chain]; there || !owned[chain] {
		return
	}
	t.kept[chain] = why
	for _, rule := range chains[chain] {
		t.keep(chains, owned, iptables.Target(rule), why)
	}
}

func (p *chainPlan) removes() bool {
	for _, t := range p.tables {
		if len(t.chains)+len(t.jumps) > 0 {
			return true
		}
	}
	return false
}

// script is what removes it, for iptables-restore --noflush: each table in one
// transaction, in which chains are emptied before any is deleted.
func (p *chainPlan) script() []byte {
	var out bytes.Buffer
	for _, table := range slices.Sorted(maps.Keys(p.tables)) {
		t := p.tables[table]
		if len(t.chains)+len(t.jumps) == 0 {
			continue
		}
		fmt.Fprintf(&out, "*%s\n", table)
		for _, c := range t.chains {
			fmt.Fprintf(&out, ":%s - [0:0]\n", c)
		}
		for _, j := range t.jumps {
			fmt.Fprintf(&out, "-D %s %s\n", j.chain, j.rule)
		}
		for _, c := range t.chains {
			fmt.Fprintf(&out, "-X %s\n", c)
		}
		out.WriteString("COMMIT\n")
	}
	return out.Bytes()
}

func (p *chainPlan) remove(ctx context.Context) error {
	if err := p.rules.Restore(ctx, p.script()); err != nil {
		return fmt.Errorf("remove kube-proxy's chains from %s: %w", p.rules, err)
	}
	return nil
}

func (p *chainPlan) lines() (lines []string) {
	for _, table := range slices.Sorted(maps.Keys(p.tables)) {
		t := p.tables[table]
		if len(t.jumps) > 0 {
			from := map[string]bool{}
			for _, j := range t.jumps {
				from[j.chain] = true
			}
			lines = append(lines, fmt.Sprintf("%s %s: %s from %s", p.rules, table, plural(len(t.jumps), "jump"), strings.Join(slices.Sorted(maps.Keys(from)), ", ")))
		}
		if len(t.chains) > 0 {
			lines = append(lines, fmt.Sprintf("%s %s: %s %s", p.rules, table, plural(len(t.chains), "chain"), summary(t.chains)))
		}
	}
	return lines
}

// summary names chains, those of Service ports and endpoints by their prefix.
func summary(chains []string) string {
	count := map[string]int{}
	for _, c := range chains {
		for _, p := range kubeProxyPrefixes {
			if strings.HasPrefix(c, p) {
				c = p + "*"
				break
			}
		}
		count[c]++
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		if strings.HasSuffix(name, "*") {
			name = fmt.Sprintf("%d %s", count[name], name)
		}
		words = append(words, name)
	}
	return strings.Join(words, ", ")
}

func (p *chainPlan) warnings() (lines []string) {
	for _, table := range slices.Sorted(maps.Keys(p.tables)) {
		for _, chain := range slices.Sorted(maps.Keys(p.tables[table].kept)) {
			lines = append(lines, fmt.Sprintf("%s %s: chain %s stays, a rule of somebody else needs it: %s", p.rules, table, chain, p.tables[table].kept[chain]))
		}
	}
	f := p.tables["filter"]
	if f != nil && slices.Contains(f.chains, "KUBE-FORWARD") && p.rules.Policies["filter"]["FORWARD"] == "DROP" {
		lines = append(lines, fmt.Sprintf("%s filter: policy of FORWARD is DROP, and kube-proxy's KUBE-FORWARD, which accepted translated flows, goes: only --dataplane iptables has such a rule, for others see that your own rules accept the pods' traffic", p.rules))
	}
	return lines
}
