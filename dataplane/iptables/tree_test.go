// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// written is what a tree would have the kernel hold.
func written[K any](t *tree[K], out *table) map[string]int {
	t.stage(out, func(b *branch[K], digit int) string { return "-m digit" }, func(K) []string { return []string{"-m key"} })
	out.written()
	chains := map[string]int{}
	for name := range out.held {
		chains[name]++
	}
	return chains
}

func TestATreeDependsOnItsKeysAndNotOnTheirOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ports := rapid.SliceOfNDistinct(rapid.Uint16(), 1, 300, rapid.ID).Draw(rt, "ports")
		keep := rapid.IntRange(0, len(ports)).Draw(rt, "keep")
		newPorts := func() *tree[uint16] { return newTree("FAIRLEAD-X", 4, portDigit, cmp.Compare[uint16]) }
		a, b, outA, outB := newPorts(), newPorts(), newTable("nat", 0), newTable("nat", 0)
		for i, p := range ports {
			a.add(p)
			if i%7 == 0 {
				written(a, outA) // the kernel follows at any time
			}
		}
		for _, p := range ports[keep:] {
			a.remove(p)
		}
		for _, p := range slices.Backward(ports[:keep]) {
			b.add(p)
		}
		if got, want := written(a, outA), written(b, outB); !maps.Equal(got, want) {
			rt.Fatalf("after adding %d and removing %d: chains %v\nwant those of a fresh tree: %v", len(ports), len(ports)-keep, got, want)
		}
		for name, digest := range outA.held {
			if outB.held[name] != digest {
				rt.Fatalf("chain %s has other rules than in a fresh tree", name)
			}
		}
	})
}

func TestADigitOfAnAddressIsMatchedByAMaskOfItsOwn(t *testing.T) {
	for _, tc := range []struct {
		level, digit int
		v6           bool
		want         string
	}{
		{0, 5, false, "-d 0.0.0.5/0.0.0.15"},
		{1, 10, false, "-d 0.0.0.160/0.0.0.240"},
		{7, 1, false, "-d 16.0.0.0/240.0.0.0"},
		{0, 15, true, "-d ::f/::f"},
		{3, 0, true, "-d ::/::f000"},
		{4, 5, true, "-d ::0.5.0.0/::0.15.0.0"},
		{8, 2, true, "-d ::2:0:0/::f:0:0"},
	} {
		if got := digitMatch(tc.level, tc.digit, tc.v6); got != tc.want {
			t.Errorf("digit %d at level %d: %q, want %q", tc.digit, tc.level, got, tc.want)
		}
	}
	a := netip.MustParseAddr("10.96.1.37")
	for level, want := range []int{5, 2, 1, 0, 0, 6, 10, 0} {
		if got := addressDigit(a, level); got != want {
			t.Errorf("digit %d of %s is %d, want %d", level, a, got, want)
		}
	}
}

func TestNoChainOfATreeListsManyRules(t *testing.T) {
	tr := newAddressTree(treeAddresses, false)
	for _, s := range synthetic(10000, 0).Services {
		tr.add(s.Frontends[0].Address)
	}
	deepest := 0
	tr.root.each(func(b *branch[netip.Addr]) {
		if len(b.keys) > bucketSize {
			t.Errorf("chain %s lists %d addresses", b.name, len(b.keys))
		}
		deepest = max(deepest, b.level)
	})
	if deepest > 4 {
		t.Errorf("10,000 addresses of one range make a tree of %d levels", deepest+1)
	}
}
