// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"fmt"
	"strings"
)

// Ruleset is all that one family holds in one flavour, whoever made it: for
// those who have to do with the rules of others.
type Ruleset struct {
	// Tables has the rules of each chain, by table and chain, as iptables-save
	// prints them without "-A CHAIN".
	Tables map[string]map[string][]string
	// Policies are those of the built-in chains, by table and chain.
	Policies map[string]map[string]string

	tool *tool
	o    Options
}

// Rulesets reads those of both families and flavours, in the network namespace
// of the calling thread. One that holds nothing is left out, and so is the nft
// flavour where it is not installed or the kernel lacks it.
func Rulesets(ctx context.Context, o Options) (out []*Ruleset, err error) {
	o = o.withDefaults()
	for _, f := range []Flavour{NFT, Legacy} {
		for _, v6 := range []bool{false, true} {
			if f == Legacy && !legacyTables(v6) {
				continue // asking would make the tables
			}
			t, err := newTool(f, v6)
			if err != nil {
				if f == Legacy {
					return nil, fmt.Errorf("this network namespace has tables of iptables-legacy, which is not installed: %w", err)
				}
				continue
			}
			r, err := t.ruleset(ctx, o)
			if err != nil && f == NFT && ctx.Err() == nil {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", command(f, v6, ""), err)
			}
			if len(r.Tables) > 0 {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func (t *tool) ruleset(ctx context.Context, o Options) (*Ruleset, error) {
	text, err := t.run(ctx, nil, command(t.flavour, t.v6, "save"))
	if err != nil {
		return nil, err
	}
	tables, err := parseSave(text)
	if err != nil {
		return nil, err
	}
	r := &Ruleset{tool: t, o: o, Tables: map[string]map[string][]string{}, Policies: map[string]map[string]string{}}
	for name, table := range tables {
		if len(table.chains) == 0 {
			continue
		}
		chains := make(map[string][]string, len(table.chains))
		for chain, c := range table.chains {
			chains[chain] = c.rules
		}
		r.Tables[name] = chains
	}
	table := ""
	for line := range bytes.Lines(text) {
		switch line[0] {
		case '*':
			table = strings.TrimSpace(string(line[1:]))
		case ':':
			if f := strings.Fields(string(line[1:])); len(f) > 1 && f[1] != "-" {
				if r.Policies[table] == nil {
					r.Policies[table] = map[string]string{}
				}
				r.Policies[table][f[0]] = f[1]
			}
		}
	}
	return r, nil
}

// IPv6 reports whether it is that of ip6tables.
func (r *Ruleset) IPv6() bool { return r.tool.v6 }

// String is the name of the command, such as iptables-nft.
func (r *Ruleset) String() string { return command(r.tool.flavour, r.tool.v6, "") }

// Restore commits lines of iptables-restore --noflush.
func (r *Ruleset) Restore(ctx context.Context, rules []byte) error {
	return r.tool.restore(ctx, rules, r.o.LockWait)
}

// Target is where a rule leads to, empty where it says nothing of it.
func Target(rule string) string { return target(rule) }

// Comment is the text of a rule's comment, empty for none.
func Comment(rule string) string {
	_, rest, ok := strings.Cut(rule, "--comment ")
	if !ok {
		return ""
	}
	if !strings.HasPrefix(rest, `"`) {
		word, _, _ := strings.Cut(rest, " ")
		return word
	}
	var text strings.Builder
	for i := 1; i < len(rest) && rest[i] != '"'; i++ {
		if rest[i] == '\\' && i+1 < len(rest) {
			i++
		}
		text.WriteByte(rest[i])
	}
	return text.String()
}

// Option is the word after an option of a rule, such as -d; comments are not
// looked into.
func Option(rule, name string) string { return option(rule, name) }
