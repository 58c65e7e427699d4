// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// frontendSet counts each Frontend once.
type frontendSet map[dataplane.FrontendKey]struct{}

// sync makes the kernel equal a Table: one listing of each table, and the
// difference. It notes which Frontends were not as they should be, and returns
// how many chains and rules were not. Where the kernel held nothing of ours
// there are no such.
func (f *family) sync(ctx context.Context, t *dataplane.Table, failed map[dataplane.ServiceName]error, touched frontendSet) (wrong int, err error) {
	saved, fresh, err := f.adopt(ctx)
	if err != nil {
		return 0, err
	}
	f.reset()
	f.setNode(t.Node)
	c := f.plan(t.Services, nil, failed)
	f.stageAll(c)
	for name, out := range f.tables {
		f.checkJumps(out, saved[name])
		wrong += len(out.next) + len(out.jumps) + len(out.extra)
	}
	if wrong > 0 {
		f.compare(saved["nat"], c, touched)
	}
	if fresh {
		wrong = 0
	}
	var in bytes.Buffer
	f.tables["nat"].write(&in)
	f.tables["filter"].write(&in)
	return wrong, f.commit(ctx, in.Bytes(), c)
}

// adopt lists what the kernel holds, and takes it over.
func (f *family) adopt(ctx context.Context) (saved map[string]*savedTable, fresh bool, err error) {
	if saved, err = f.tool.save(ctx); err != nil {
		return nil, false, err
	}
	fresh = true
	for name, out := range f.tables {
		clear(out.held)
		out.forget()
		for chain, c := range saved[name].chains {
			if isOurs(chain) {
				out.held[chain] = digest(c.rules)
				fresh = false
			}
		}
	}
	return saved, fresh, nil
}

// stageAll gives the tables all that is wanted, and the end of all else.
func (f *family) stageAll(c *change) {
	for _, out := range f.tables {
		out.seen = map[string]struct{}{}
	}
	f.addVerdicts(c)
	f.filter.stage(f.tables["filter"])
	f.translate(c)
	f.stageNat()
	f.stageBase()
	for _, out := range f.tables {
		out.dropUnseen()
		out.seen = nil
	}
}

// checkJumps wants each of our rules in a built-in chain once, and no other
// that leads to chains of ours.
func (f *family) checkJumps(out *table, saved *savedTable) {
	out.jumps, out.extra = nil, nil
	wanted := slices.DeleteFunc(jumps(f.guard), func(j jump) bool { return j.table != out.name })
	for _, j := range wanted {
		if c := saved.chains[j.chain]; c == nil || !slices.Contains(c.rules, j.rule) {
			out.jumps = append(out.jumps, j)
		}
	}
	for chain, c := range saved.chains {
		if isOurs(chain) {
			continue
		}
		seen := map[string]bool{}
		for _, rule := range c.rules {
			if !isOurs(target(rule)) {
				continue
			}
			if seen[rule] || !slices.Contains(wanted, jump{out.name, chain, rule}) {
				out.extra = append(out.extra, jump{out.name, chain, rule})
			}
			seen[rule] = true
		}
	}
}

// target is the chain or target that a rule leads to.
func target(rule string) string {
	if to := option(rule, "-j"); to != "" {
		return to
	}
	return option(rule, "-g")
}

// compare notes the Frontends whose rules are to change.
func (f *family) compare(nat *savedTable, c *change, touched frontendSet) {
	had, err := leaves(nat)
	if err != nil { // somebody wrote into our chains: all is written anew
		had = nil
	}
	ports := map[string]struct{}{}
	for _, out := range f.tables {
		for chain := range out.next {
			ports[portOf(chain)] = struct{}{}
		}
	}
	for _, p := range c.new {
		for _, l := range p.natLeaves {
			_, changed := ports[portOf(l.target)]
			if changed || had[l.FrontendKey] != l.target {
				touched[l.FrontendKey] = struct{}{}
			}
			delete(had, l.FrontendKey)
		}
	}
	for key := range had {
		touched[key] = struct{}{}
	}
}

// portOf is the hash of the Service port that a chain is of; of other chains it
// is no port's.
func portOf(chain string) string {
	for _, p := range []string{prefixPort, prefixRanges, prefixSet, prefixVerdict, prefixDenied} {
		if rest, ok := strings.CutPrefix(chain, p); ok && len(rest) >= portHashLength {
			return rest[:portHashLength]
		}
	}
	return ""
}
