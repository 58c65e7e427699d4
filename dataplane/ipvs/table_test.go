// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

// openTestTable opens nftables in a namespace of the test's own.
func openTestTable(t *testing.T) *table {
	t.Helper()
	dataplanetest.EnterNamespace(t)
	tb, err := openTable(DefaultAffinityMax)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tb.close() })
	if err := tb.create(); err != nil {
		t.Fatal(err)
	}
	if err := tb.commit(); err != nil {
		t.Fatal(err)
	}
	return tb
}

func TestTableIsReadBackAsItWasWritten(t *testing.T) {
	tb := openTestTable(t)
	p := testPlanner()
	s := serviceAt("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.1:8080", "10.244.2.1:8080")...)
	s.Frontends[0].AffinitySeconds = 600
	s.Frontends[0].SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("192.0.2.7/32")}
	st, err := p.plan(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := elements{}
	for _, side := range []elements{st.own, st.shared} {
		for k, v := range side {
			want[k] = v
		}
	}
	want.putRanges("internal-sources4", []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.245.0.0/16"),
		netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("255.255.255.0/24")})
	want.put("uplinks", deviceKey("eth0"), element{})
	if err := tb.apply(difference(nil, want)); err != nil {
		t.Fatal(err)
	}
	got, err := tb.elements()
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(want, got); !d.empty() {
		t.Errorf("written and not read: %v\nread and not written: %v", d.deletes, d.adds)
	}
	if ok, err := tb.intact(); !ok || err != nil {
		t.Errorf("intact: %t, %v", ok, err)
	}
}

func TestRulesAreKnownAgainAndTheirLossIsSeen(t *testing.T) {
	tb := openTestTable(t)
	r := ruleset{marks: Options{}.withDefaults().marks(), primary: map[*family]netip.Addr{ipv4: netip.MustParseAddr("192.0.2.1")}, timeouts: []uint32{600, 10800}}
	for range 2 { // again over what is there
		tb.queueRules(r)
		if err := tb.commit(); err != nil {
			t.Fatal(err)
		}
		if ok, err := tb.holdsRules(r); !ok || err != nil {
			t.Fatalf("holds its rules: %t, %v", ok, err)
		}
	}
	other := r
	other.timeouts = []uint32{600}
	if ok, _ := tb.holdsRules(other); ok {
		t.Error("other rules were taken for these")
	}
	if _, err := tb.drops(); err != nil {
		t.Error(err)
	}
}
