// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
)

// nftChunk: a load of 10,000 Services takes 11 s of CPU so; in one
// transaction it is over 37 s (iptables 1.8.9).
const nftChunk = 1000

var seed = maphash.MakeSeed()

// table is one table of one family: what the kernel holds in chains of ours, as
// a hash of each, and what is to be written next.
type table struct {
	name string
	held map[string]uint64
	// next are the chains to write; a nil one goes.
	next map[string][]string
	// jumps are rules to put at the head of built-in chains, and extra ones to
	// take away.
	jumps, extra []jump
	// chunk is how many chains one transaction may make, 0 for any number.
	// iptables-nft-restore takes a time with the square of them.
	chunk int
	// seen are all chains that were wanted, while that is of interest.
	seen map[string]struct{}
}

// jump is a rule of a built-in chain that leads into ours.
type jump struct {
	table, chain, rule string
}

func newTable(name string, chunk int) *table {
	return &table{name: name, chunk: chunk, held: map[string]uint64{}, next: map[string][]string{}}
}

// put wants a chain to have these rules.
func (t *table) put(chain string, rules []string) {
	if rules == nil {
		rules = []string{}
	}
	delete(t.next, chain)
	if t.seen != nil {
		t.seen[chain] = struct{}{}
	}
	if h, ok := t.held[chain]; !ok || h != digest(rules) {
		t.next[chain] = rules
	}
}

// drop wants a chain to be no more.
func (t *table) drop(chain string) {
	delete(t.next, chain)
	if _, ok := t.held[chain]; ok {
		t.next[chain] = nil
	}
}

func digest(rules []string) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, r := range rules {
		h.WriteString(r)
		h.WriteByte('\n')
	}
	return h.Sum64()
}

func (t *table) empty() bool { return len(t.next) == 0 && len(t.jumps) == 0 && len(t.extra) == 0 }

// dropUnseen wants no chain but those that were wanted.
func (t *table) dropUnseen() {
	for chain := range t.held {
		if _, ok := t.seen[chain]; !ok {
			t.drop(chain)
		}
	}
}

// write appends what is next, where there is any, as a transaction for
// iptables-restore; where chunk is set, many new chains come before it in
// transactions of their own. Nothing leads to these chains yet.
func (t *table) write(b *bytes.Buffer) {
	if t.empty() {
		return
	}
	names := slices.SortedFunc(maps.Keys(t.next), byUse)
	if t.chunk > 0 && len(names) > t.chunk {
		fresh := 0 // chains that the kernel lacks, of Service ports and below them
		for i, name := range names {
			if _, held := t.held[name]; !held && (portOf(name) != "" || slices.Contains(ends, name)) {
				names[i], names[fresh] = names[fresh], name
				fresh++
			}
		}
		slices.SortFunc(names[:fresh], byUse)
		for part := range slices.Chunk(names[:fresh], t.chunk) {
			t.writeChains(b, part)
			b.WriteString("COMMIT\n")
		}
		names = names[fresh:]
	}
	t.writeChains(b, names)
	for _, j := range t.jumps {
		b.WriteString("-I " + j.chain + " 1 " + j.rule + "\n")
	}
	for _, j := range t.extra {
		b.WriteString("-D " + j.chain + " " + j.rule + "\n")
	}
	for _, name := range names {
		if t.next[name] == nil {
			b.WriteString("-X " + name + "\n")
		}
	}
	b.WriteString("COMMIT\n")
}

// ends are the chains that those of Service ports lead to.
var ends = []string{chainMark, chainInternal, chainUplink, chainReject, chainNoLocal, chainRange}

// byUse puts chains before those that lead to them.
func byUse(a, b string) int {
	rank := func(chain string) int {
		if slices.Contains(ends, chain) {
			return -1
		}
		for i, p := range []string{prefixSet, prefixPort, prefixRanges, prefixVerdict, prefixDenied} {
			if strings.HasPrefix(chain, p) {
				if i == 0 && strings.Contains(chain, ".") {
					return 0
				}
				return i + 1
			}
		}
		return 9
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
}

// writeChains begins a transaction. With --noflush a chain that is declared is
// emptied, or made.
func (t *table) writeChains(b *bytes.Buffer, names []string) {
	b.WriteString("*" + t.name + "\n")
	for _, name := range names {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, name := range names {
		for _, rule := range t.next[name] {
			b.WriteString("-A " + name)
			if rule != "" {
				b.WriteByte(' ')
				b.WriteString(rule)
			}
			b.WriteByte('\n')
		}
	}
}

// written notes that the kernel has what was next.
func (t *table) written() {
	for name, rules := range t.next {
		if rules == nil {
			delete(t.held, name)
		} else {
			t.held[name] = digest(rules)
		}
	}
	t.forget()
}

// forget gives up what was next.
func (t *table) forget() {
	clear(t.next)
	t.jumps, t.extra = nil, nil
}
