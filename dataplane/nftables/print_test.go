// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
)

func TestTableCanBeListedWithNft(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft here")
	}
	l := newLab(t)
	d := l.open()
	web := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.1:8080", "10.244.1.2:8080")...)
	sticky := clusterIP("sticky", "[fd00:96::1]:443", dataplane.TCP, backends("[fd00:244::1]:8443", "[fd00:244::2]:8443")...)
	f := &sticky.Frontends[0]
	f.Kind, f.AffinitySeconds, f.SourceRanges = dataplane.LoadBalancer, 600, []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
	f.External.Backends, f.MasqueradeExternal = f.Internal.Backends[:1], false
	tab := table(web, sticky)
	tab.Node.InternalSources = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/32")}
	l.Sync(d, tab, 2)
	for family, wants := range map[string][]string{
		"ip":  {`10.96.0.10 . tcp . 80 . 0x00000000 : 10.244.1.1 . 8080`, `comment "default/web ClusterIP port=http"`, "dnat to", "masquerade", "vmap @actions"},
		"ip6": {"fd00:96::1 . tcp . 443 . 0x00000001 : 0x00000000 . fd00:244::2 . 8443", `affinity=600`, "timeout 10m", "2001:db8::/32"},
	} {
		out, err := exec.Command(nft, "list", "table", family, tableName).CombinedOutput()
		if err != nil {
			t.Fatalf("nft list table %s %s: %v\n%s", family, tableName, err, out)
		}
		if testing.Verbose() {
			t.Logf("%s", out)
		}
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("nft list table %s %s: no %q in\n%s", family, tableName, want, out)
			}
		}
	}
}
