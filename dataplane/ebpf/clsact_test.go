// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// ourFilters counts filters by name on a device.
func ourFilters(t *testing.T, l netlink.Link) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, parent := range clsactParents {
		filters, err := netlink.FilterList(l, parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range filters {
			n[f.(*netlink.BpfFilter).Name]++
		}
	}
	return n
}

func TestWithoutTCXThePacketPathIsAClassicFilterThatIsReplacedAndRemoved(t *testing.T) {
	l := newLab(t)
	l.options.Clsact = true
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fairlead-a"}, PeerName: "fairlead-b"}); err != nil {
		t.Fatal(err)
	}
	dev, err := netlink.LinkByName("fairlead-a")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second replaces the first's
		d := l.open()
		if _, err := d.Sync(context.Background(), table()); err != nil {
			t.Fatal(err)
		}
		if n := ourFilters(t, dev); n["fairlead_ingress"] != 1 || n["fairlead_egress"] != 1 || len(n) != 2 {
			t.Fatalf("filters of the device: %v, want one each way", n)
		}
		d.Close()
	}
	removed, err := Cleanup(l.options)
	if err != nil || !strings.Contains(strings.Join(removed, "\n"), "clsact ingress filter of fairlead-a") {
		t.Errorf("Cleanup removed %q, error %v", removed, err)
	}
	qdiscs, err := netlink.QdiscList(dev)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			t.Errorf("Cleanup left %v", q)
		}
	}
}
