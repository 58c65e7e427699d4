// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"reflect"
	"testing"

	"fairlead.dev/dataplane"
)

func TestRulesThatCertainlyDoNotMatchAreNotFollowed(t *testing.T) {
	four := dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.1.16"), Port: 80, Protocol: dataplane.TCP}
	six := dataplane.FrontendKey{Address: netip.MustParseAddr("fd00:96::1f"), Port: 53, Protocol: dataplane.UDP}
	for _, c := range []struct {
		rule string
		at   dataplane.FrontendKey
		want bool
	}{
		{"-j FAIRLEAD-A", four, true},
		{"-d 0.0.0.0/0.0.0.15 -j FAIRLEAD-A-0", four, true},
		{"-d 0.0.0.1/0.0.0.15 -j FAIRLEAD-A-1", four, false},
		{"-d 0.0.0.16/0.0.0.240 -j FAIRLEAD-A-01", four, true},
		{"-d ::f/::f -j FAIRLEAD-A-f", six, true},
		{"-d ::e/::f -j FAIRLEAD-A-e", six, false},
		{"-d 10.96.1.16/32 -p tcp -m tcp --dport 80 -j FAIRLEAD-P-a-0", four, true},
		{"-d 10.96.1.16/32 -p tcp -m tcp --dport 81 -j FAIRLEAD-P-a-0", four, false},
		{"-d 10.96.1.16/32 -p udp -m udp --dport 80 -j FAIRLEAD-P-a-0", four, false},
		{"-d 10.96.1.17/32 -p tcp -m tcp --dport 80 -j FAIRLEAD-P-a-0", four, false},
		{"-p tcp -m tcp --dport 64:127 -j FAIRLEAD-D-a-T1", four, true},
		{"-p tcp -m tcp --dport 128:191 -j FAIRLEAD-D-a-T2", four, false},
		{"-d what/ever -j FAIRLEAD-A", four, true},
	} {
		if got := mayMatch(c.rule, c.at); got != c.want {
			t.Errorf("%q, packets to %s: %v, want %v", c.rule, c.at, got, c.want)
		}
	}
}

func TestWhatIsFollowedReadsLikeAllRules(t *testing.T) {
	l := newLab(t, NFT)
	d := l.open()
	wanted := synthetic(50, 3)
	l.Sync(d, wanted, 50)
	r, err := Read(l.options)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, tool := range r.tools {
		all, err := tool.save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range wanted.Services {
			for _, f := range s.Frontends {
				if f.Address.Is6() != tool.v6 {
					continue
				}
				nat, _, err := tool.rulesFor(f.FrontendKey)
				if err != nil {
					t.Fatal(err)
				}
				var want, got dataplane.Inspection
				if err := inspectFrontend(&want, all["nat"], f.FrontendKey); err != nil {
					t.Fatal(err)
				}
				if err := inspectFrontend(&got, nat, f.FrontendKey); err != nil {
					t.Fatal(err)
				}
				if want.Frontend == nil || !reflect.DeepEqual(want, got) {
					t.Errorf("%s: read %+v, of all rules %+v", f.FrontendKey, got.Frontend, want.Frontend)
				}
				if len(nat.chains) >= len(all["nat"].chains)/2 {
					t.Errorf("%s: %d of %d chains were read", f.FrontendKey, len(nat.chains), len(all["nat"].chains))
				}
			}
		}
	}
}
