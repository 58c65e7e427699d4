// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// pick is what a chain of its own is needed for: rules can only have a constant
// number to choose below, and a constant timeout.
type pick struct {
	backends        int
	affinitySeconds uint32 // 0: no affinity
	scope           dataplane.Scope
}

func (p pick) chainName() string {
	name := fmt.Sprintf("pick-%d", p.backends)
	if p.affinitySeconds > 0 {
		name = fmt.Sprintf("stick-%d-pick-%d", p.affinitySeconds, p.backends)
	}
	if p.scope == dataplane.External {
		name += "-external"
	}
	return name
}

// parsePick is the inverse of chainName.
func parsePick(name string) (p pick, ok bool) {
	for _, scope := range []dataplane.Scope{dataplane.Internal, dataplane.External} {
		q := pick{scope: scope}
		if n, _ := fmt.Sscanf(name, "stick-%d-pick-%d", &q.affinitySeconds, &q.backends); n == 2 && q.chainName() == name {
			return q, true
		}
		q.affinitySeconds = 0
		if n, _ := fmt.Sscanf(name, "pick-%d", &q.backends); n == 1 && q.chainName() == name {
			return q, true
		}
	}
	return pick{}, false
}

// chain makes the rules. Where none of them finds a Backend the packet returns
// to where it was asked for an action, see chains.go.
func (p pick) chain(f *family) chain {
	if p.affinitySeconds > 0 {
		return p.stickyChain(f)
	}
	tuple := f.tupleBytes()
	return chain{name: p.chainName(), rules: []rule{
		line("", f.tuple(), random(tuple, p.backends), find(0, slotSets[p.scope], tuple), f.translate(tuple)),
	}}
}

// stickyChain keeps clients on a Backend. The registers are just enough: tuple,
// Backend, number of the Service port, client.
func (p pick) stickyChain(f *family) chain {
	tuple := f.tupleBytes()
	client := tuple + f.backendBytes()
	backend := make([]expr.Any, 0, 5) // what nft finds where the Backend is
	for at := tuple; at < tuple+f.addressBytes; at += 4 {
		backend = append(backend, mark(at))
	}
	backend = append(backend, sourcePort(tuple+f.addressBytes))
	who := slices.Concat(f.tuple(), []expr.Any{mark(client), findWide(0, setStickyIDs, client), f.source(client + 4)}, backend)
	remembered := slices.Concat(who, []expr.Any{
		findWide(client, setAffinity, tuple), destinationPort(tuple - wideBytes), in(0, eligibleSets[p.scope]),
	})
	chosen := []expr.Any{random(tuple, p.backends), findWide(0, stickySets[p.scope], tuple), destinationPort(tuple - wideBytes)}
	change := func(operation uint32, timeout time.Duration) expr.Any {
		return &expr.Dynset{SrcRegKey: register(client), SrcRegData: register(tuple - wideBytes), SetName: setAffinity.String(),
			Operation: operation, Timeout: timeout}
	}
	remember := change(unix.NFT_DYNSET_OP_UPDATE, time.Duration(p.affinitySeconds)*time.Second)
	return chain{name: p.chainName(), rules: []rule{
		line("a known client, its time begins anew; not mark and port: the Backend of affinity", remembered, remember, f.translate(tuple)),
		line("new, or its Backend is not eligible any more", who, chosen, change(dynsetDelete, 0), remember),
		line("what is remembered now, maybe by another packet of the client", remembered, f.translate(tuple)),
		line("without affinity, if there are too many clients", f.tuple(), backend, chosen, f.translate(tuple)),
	}}
}

const dynsetDelete = 2 // NFT_DYNSET_OP_DELETE, kernel 5.4

// actions are the picks that the kernel has, by number. One is used only by
// transactions that come after the one that made it.
type actions struct {
	family  *family
	numbers map[pick]uint32
	next    uint32       // free number of a sticky pick
	wanted  []pick       // in numbers, not in the kernel yet
	used    map[pick]int // Frontends that use one
	idle    map[pick]bool
}

// ready are the picks that are made with the table: most Services need no more.
const ready = 16

func newActions(f *family) *actions {
	return &actions{family: f, numbers: map[pick]uint32{}, next: actionSticky, used: map[pick]int{}, idle: map[pick]bool{}}
}

// number is the action of a pick, which is made if it is not there.
func (a *actions) number(p pick) uint32 {
	n, ok := a.numbers[p]
	if ok {
		return n
	}
	n = uint32(p.backends)
	if p.affinitySeconds > 0 {
		n = a.next
		a.next++
	}
	a.numbers[p] = n
	a.wanted = append(a.wanted, p)
	return n
}

// make appends what makes the wanted picks.
func (a *actions) make(m *messages) error {
	var lists [2]elementList
	for _, p := range a.wanted {
		c := p.chain(a.family)
		if err := c.put(m, a.family); err != nil {
			return err
		}
		lists[p.scope].add(&element{key: native32(a.numbers[p]), chain: c.name})
	}
	lists[0].change(m, unix.NFT_MSG_NEWSETELEM, a.family, setActions)
	lists[1].change(m, unix.NFT_MSG_NEWSETELEM, a.family, setActionsExternal)
	a.wanted = nil
	return nil
}

// retire appends what removes the picks that were used neither now nor at the
// last call: no packet can be about to go there.
func (a *actions) retire(m *messages) {
	var lists [2]elementList
	var gone []pick
	for p, n := range a.numbers {
		switch {
		case a.used[p] > 0 || p.backends <= ready && p.affinitySeconds == 0 && p.scope == dataplane.Internal:
			delete(a.idle, p)
		case !a.idle[p]:
			a.idle[p] = true
		default:
			lists[p.scope].add(&element{key: native32(n)})
			gone = append(gone, p)
		}
	}
	lists[0].change(m, unix.NFT_MSG_DELSETELEM, a.family, setActions)
	lists[1].change(m, unix.NFT_MSG_DELSETELEM, a.family, setActionsExternal)
	for _, p := range gone {
		removeChain(m, a.family, p.chainName())
		delete(a.numbers, p)
		delete(a.idle, p)
	}
}
