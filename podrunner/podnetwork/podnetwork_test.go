// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func needs(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for network namespaces")
	}
	if _, err := os.Stat("/usr/lib/cni/ptp"); err != nil {
		t.Skipf("SKIPPED: needs the CNI plugins ptp and host-local: %v", err)
	}
}

var (
	nodeOne = Node{"one", prefixes("10.244.1.0/24", "fd00:10:1::/64"), addrs("10.0.0.1", "fd00::1")}
	nodeTwo = Node{"two", prefixes("10.244.2.0/24", "fd00:10:2::/64"), addrs("10.0.0.2", "fd00::2")}
)

// pair is two nodes and a machine outside, on one switch.
func pair(t *testing.T) (one, two *member, outside *space) {
	t.Helper()
	needs(t)
	lan := newSwitch(t)
	one = newMember(t, lan, "one", Options{}, "10.0.0.1/24", "fd00::1/64")
	two = newMember(t, lan, "two", Options{MTU: 1350}, "10.0.0.2/24", "fd00::2/64")
	outside = newSpace(t)
	outside.plug(lan, "outside", "10.0.0.99/24", "fd00::99/64")
	for _, m := range []*member{one, two} {
		m.network.SetNode("one", &nodeOne)
		m.network.SetNode("two", &nodeTwo)
		m.network.SetSynced()
		if err := m.network.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	return one, two, outside
}

func TestPodsReachOneAnotherAndTheWorld(t *testing.T) {
	one, two, outside := pair(t)
	one.startPod()
	two.startPod()
	two.whoAmI(80)
	outside.whoAmI(80)
	if len(one.podIPs) != 2 || len(two.podIPs) != 2 {
		t.Fatalf("Pods have %v and %v, want an address of each family", one.podIPs, two.podIPs)
	}
	for i, other := range two.podIPs {
		mine := one.podIPs[i].String()
		if got := one.pod.ask(other); got != mine {
			t.Errorf("a Pod sees another node's Pod as %s, want %s", got, mine)
		}
		if got := one.pod.ask(nodeTwo.Addresses[i]); got != mine {
			t.Errorf("a node sees another node's Pod as %s, want %s", got, mine)
		}
		if got, want := one.pod.ask(addrs("10.0.0.99", "fd00::99")[i]), nodeOne.Addresses[i].String(); got != want {
			t.Errorf("the world sees a Pod as %s, want its node %s", got, want)
		}
		if got, want := one.ask(other), nodeOne.Addresses[i].String(); got != want {
			t.Errorf("a Pod sees another node as %s, want %s", got, want)
		}
	}
	// An address of a Pod that is not there: an answer, not a walk.
	if got, want := two.pod.ask(netip.MustParseAddr("10.244.1.200")), unix.EHOSTUNREACH.Error(); !strings.Contains(got, want) {
		t.Errorf("a Pod that is not there answers %s, want %s", got, want)
	}
	two.pod.must(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil && l.Attrs().MTU != 1350 {
			err = errors.New("the MTU of a Pod is not the one that was asked for")
		}
		return err
	})
	one.pod.must(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil && l.Attrs().MTU > 1500 {
			err = errors.New("the MTU of a Pod is larger than the default")
		}
		return err
	})
}

func TestRoutesFollowTheNodesAndComeBack(t *testing.T) {
	one, _, _ := pair(t)
	want := map[string]string{"10.244.1.0/24": "invalid IP", "fd00:10:1::/64": "invalid IP", "10.244.2.0/24": "10.0.0.2", "fd00:10:2::/64": "fd00::2"}
	if diff := cmp.Diff(want, one.routes()); diff != "" {
		t.Fatalf("routes (-want +got):\n%s", diff)
	}
	// The watch has ended, as when more came than it could take: it begins anew.
	overrun := make(chan netlink.RouteUpdate)
	close(overrun)
	one.network.changes = overrun
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- one.network.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	becomes := func(what string, want map[string]string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			got := one.routes()
			if cmp.Diff(want, got) == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: routes (-want +got):\n%s", what, cmp.Diff(want, got))
			}
			time.Sleep(time.Millisecond)
		}
	}
	// Something removes a route. The first two times it may be the start of Run,
	// or of the watch, that sees it: the third time only the watch can.
	for range 3 {
		started := time.Now()
		if err := one.network.handle.RouteDel(route{netip.MustParsePrefix("10.244.2.0/24"), nodeTwo.Addresses[0]}.message()); err != nil {
			t.Fatal(err)
		}
		becomes("a route was removed", want)
		t.Logf("a route that was removed was back after %v", time.Since(started).Round(time.Microsecond))
	}
	// The node gets other addresses.
	moved := nodeTwo
	moved.Addresses = addrs("10.0.0.22", "fd00::22")
	one.network.SetNode("two", &moved)
	becomes("the node has other addresses", map[string]string{"10.244.1.0/24": "invalid IP", "fd00:10:1::/64": "invalid IP", "10.244.2.0/24": "10.0.0.22", "fd00:10:2::/64": "fd00::22"})
	one.network.SetNode("two", nil)
	becomes("the node is gone", map[string]string{"10.244.1.0/24": "invalid IP", "fd00:10:1::/64": "invalid IP"})
}

func TestOneNodeThatIsElsewhereIsToldAndTheOthersWork(t *testing.T) {
	one, _, _ := pair(t)
	one.network.SetNode("far", &Node{"far", prefixes("10.244.9.0/24"), addrs("192.0.2.1")})
	one.network.SetNode("near", &Node{"near", prefixes("10.244.8.0/24"), addrs("10.0.0.8")})
	err := one.network.Sync()
	if err == nil || !strings.Contains(err.Error(), "10.244.9.0/24") || !strings.Contains(err.Error(), "one subnet") || len(one.network.Problems()) != 1 {
		t.Errorf("%v, problems %q", err, one.network.Problems())
	}
	if one.routes()["10.244.8.0/24"] != "10.0.0.8" {
		t.Errorf("routes %v", one.routes())
	}
	one.network.SetNode("far", nil)
	if err := one.network.Sync(); err != nil || len(one.network.Problems()) != 0 {
		t.Errorf("%v, problems %q", err, one.network.Problems())
	}
}

func TestRoutesOfOthersAreLeftAlone(t *testing.T) {
	one, _, _ := pair(t)
	foreign := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 244, 7, 0), Mask: net.CIDRMask(24, 32)}, Gw: net.IPv4(10, 0, 0, 77)}
	if err := one.network.handle.RouteAdd(foreign); err != nil {
		t.Fatal(err)
	}
	one.network.SetNode("seven", &Node{"seven", prefixes("10.244.7.0/24"), addrs("10.0.0.7")})
	if err := one.network.Sync(); err == nil || !strings.Contains(err.Error(), "not fairlead's") {
		t.Errorf("%v", err)
	}
	one.must(func() error {
		_, err := Cleanup(one.o)
		return err
	})
	list, err := one.network.handle.RouteListFiltered(netlink.FAMILY_V4, foreign, netlink.RT_FILTER_DST|netlink.RT_FILTER_GW)
	if err != nil || len(list) != 1 {
		t.Errorf("the route of others is %v, %v", list, err)
	}
}

func TestNothingIsRemovedBeforeAllNodesAreKnown(t *testing.T) {
	one, _, _ := pair(t)
	before := one.routes()
	var again *Network
	one.must(func() (err error) {
		again, err = Open(one.o)
		return err
	})
	defer again.Close()
	again.SetNode("one", &nodeOne)
	if err := again.Sync(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, one.routes()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	again.SetSynced()
	if err := again.Sync(); err != nil {
		t.Fatal(err)
	}
	if len(one.routes()) != 2 {
		t.Errorf("routes %v", one.routes())
	}
}

func TestMasqueradingIsRepairedAndWrittenOnlyWhenItDiffers(t *testing.T) {
	one, _, _ := pair(t)
	same := func() bool {
		t.Helper()
		ok, err := one.network.masqueradeIs(nodeOne.PodCIDRs, inside([]Node{nodeOne, nodeTwo}, nodeOne.PodCIDRs, nil))
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !same() {
		t.Fatal("what was written is not what is read")
	}
	table, err := findTable(one.network.conn)
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func(*nftables.Conn){
		"a flush of the table": func(c *nftables.Conn) { c.FlushTable(table) },
		"an element that is missing": func(c *nftables.Conn) {
			set, err := c.GetSetByName(table, "inside4")
			if err != nil {
				t.Fatal(err)
			}
			c.FlushSet(set)
		},
		"a deletion of the table": func(c *nftables.Conn) { c.DelTable(table) },
	} {
		damage(one.network.conn)
		if err := one.network.conn.Flush(); err != nil {
			t.Fatal(err)
		}
		if same() {
			t.Errorf("%s is not seen", what)
		}
		if err := one.network.Sync(); err != nil || !same() {
			t.Errorf("%s is not repaired: %v", what, err)
		}
	}
	handle := func() uint64 {
		rules, err := one.network.conn.GetRules(table, &nftables.Chain{Name: "postrouting", Table: table})
		if err != nil || len(rules) != 2 {
			t.Fatalf("%d rules, %v", len(rules), err)
		}
		return rules[0].Handle
	}
	before := handle()
	if err := one.network.Sync(); err != nil || handle() != before {
		t.Errorf("written again though nothing changed: %v", err)
	}
}

func TestCleanupFindsAllOfItAndThenNothing(t *testing.T) {
	one, _, _ := pair(t)
	var removed []string
	one.must(func() (err error) {
		removed, err = Cleanup(one.o)
		return err
	})
	want := []string{"file " + filepath.Join(one.o.ConfDir, conflistName), "nft table inet fairlead-pods",
		"route to 10.244.1.0/24", "route to 10.244.2.0/24", "route to fd00:10:1::/64", "route to fd00:10:2::/64"}
	slices.Sort(removed)
	if diff := cmp.Diff(want, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	one.must(func() (err error) {
		removed, err = Cleanup(one.o)
		return err
	})
	if len(removed) > 0 {
		t.Errorf("the second time: %q", removed)
	}
}

func TestAConfigurationThatTheRuntimeTakesInsteadIsTold(t *testing.T) {
	one, _, _ := pair(t)
	other := filepath.Join(one.o.ConfDir, "05-other.conf")
	if err := os.WriteFile(other, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := one.network.Sync(); err == nil || !strings.Contains(err.Error(), "05-other.conf") {
		t.Errorf("%v", err)
	}
	if err := os.Rename(other, filepath.Join(one.o.ConfDir, "20-other.conf")); err != nil {
		t.Fatal(err)
	}
	if err := one.network.Sync(); err != nil {
		t.Error(err)
	}
}

func TestANodeWithoutARangeSaysWhatToDo(t *testing.T) {
	needs(t)
	one := newMember(t, newSwitch(t), "one", Options{}, "10.0.0.1/24")
	one.network.SetNode("one", &Node{Name: "one", Addresses: addrs("10.0.0.1")})
	if err := one.network.Sync(); err == nil || !strings.Contains(err.Error(), "--allocate-node-cidrs") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(one.o.ConfDir, conflistName)); err == nil {
		t.Error("a configuration was written")
	}
}
