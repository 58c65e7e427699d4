// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"testing"
)

func TestSharesTogetherAreTheTable(t *testing.T) {
	played := map[string]int{}
	for part := 1; part <= 3; part++ {
		t.Setenv("FAIRLEAD_CONFORMANCE_SHARE", fmt.Sprintf("%d/3", part))
		s, err := shareOfThisProcess()
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range Cases() {
			for _, v := range s.variants(i, c.variants()) {
				played[c.ID+"/"+v.String()]++
			}
		}
	}
	for _, c := range Cases() {
		for _, v := range c.variants() {
			if n := played[c.ID+"/"+v.String()]; n != 1 {
				t.Errorf("%s/%s is in %d shares; want 1", c.ID, v, n)
			}
		}
	}
}

func TestOneOfEachMeetsEveryClientProtocolAndFamily(t *testing.T) {
	t.Setenv("FAIRLEAD_CONFORMANCE_SHARE", "one")
	s, err := shareOfThisProcess()
	if err != nil {
		t.Fatal(err)
	}
	met := map[string]bool{}
	for i, c := range Cases() {
		mine := s.variants(i, c.variants())
		if len(mine) != 1 {
			t.Fatalf("%s: %d variants; want 1", c.ID, len(mine))
		}
		met[mine[0].client], met[mine[0].protocol], met[string(mine[0].family)] = true, true, true
	}
	for _, c := range Cases() {
		for _, v := range c.variants() {
			for _, part := range []string{v.client, v.protocol, string(v.family)} {
				if !met[part] {
					t.Errorf("no case is played with %s", part)
					met[part] = true
				}
			}
		}
	}
}

func TestAShareThatIsNoneIsRefused(t *testing.T) {
	for _, text := range []string{"0/3", "4/3", "x", "1"} {
		t.Setenv("FAIRLEAD_CONFORMANCE_SHARE", text)
		if _, err := shareOfThisProcess(); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
