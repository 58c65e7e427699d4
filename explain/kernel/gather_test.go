// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"fairlead.dev/dataplane"
	"fairlead.dev/explain"
)

// node puts the test's thread into a network namespace with an uplink, a pod
// behind a device of its own, and a route that leads nowhere.
func node(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	for name, cidrs := range map[string][]string{"eth0": {"192.0.2.11/24", "192.0.2.12/24", "2001:db8::11/64"}, "pod0": {"10.244.1.1/32"}} {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: name})
		veth.PeerName = name + "-peer"
		must(t, netlink.LinkAdd(veth))
		for _, end := range []string{name, name + "-peer"} {
			l, err := netlink.LinkByName(end)
			must(t, err)
			must(t, netlink.LinkSetUp(l))
		}
		for _, cidr := range cidrs {
			l, err := netlink.LinkByName(name)
			must(t, err)
			a, err := netlink.ParseAddr(cidr)
			must(t, err)
			must(t, netlink.AddrAdd(l, a))
		}
	}
	route(t, "eth0", "0.0.0.0/0", "192.0.2.1")
	route(t, "pod0", "10.244.1.5/32", "")
	_, nowhere, err := net.ParseCIDR("10.66.0.0/16")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: nowhere, Type: 7})) // RTN_UNREACHABLE
}

func route(t *testing.T, device, to, via string) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	must(t, err)
	_, dst, err := net.ParseCIDR(to)
	must(t, err)
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}
	if via != "" {
		r.Gw = net.ParseIP(via)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	must(t, netlink.RouteAdd(r))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holds is a kernel that holds one Frontend, wherever it is asked about.
type holds struct {
	dataplane.Reader
	affinityFails error
	unread        []dataplane.Unread
	flows         []dataplane.ConntrackRow
}

func (h *holds) Inspect(at dataplane.FrontendKey) (*dataplane.Inspection, error) {
	backend := func(a string) dataplane.Backend { return dataplane.Backend{Address: netip.MustParseAddr(a), Port: 80} }
	f := &dataplane.Frontend{FrontendKey: at, Kind: dataplane.ClusterIP, AffinitySeconds: 60, Internal: dataplane.BackendSet{
		Backends: []dataplane.Backend{backend("10.244.1.5"), backend("10.244.2.5"), backend("10.66.0.1"), backend("192.0.2.11")},
	}}
	return &dataplane.Inspection{Frontend: f, Service: dataplane.ServiceName{Namespace: "ns", Name: "web"}, Rules: dataplane.Rules{Uplinks: []string{"eth*"}}, Unread: h.unread}, nil
}

func (h *holds) Flows(dataplane.FrontendKey) ([]dataplane.ConntrackRow, error) { return h.flows, nil }
func (h *holds) Affinity() ([]dataplane.AffinityRow, error)                    { return nil, h.affinityFails }

func TestTheRoutingTableSaysWhereAClientIs(t *testing.T) {
	node(t)
	for _, tc := range []struct {
		question string
		from     explain.Origin
		want     explain.Origin
		device   string
		client   string
	}{
		{"10.244.1.5 -> 10.96.0.1:80", "", explain.FromPod, "pod0", "10.244.1.5"},
		{"198.51.100.7 -> 10.96.0.1:80", "", explain.FromOutside, "eth0", "198.51.100.7"},
		{"192.0.2.12 -> 10.96.0.1:80", "", explain.FromNode, "eth0", "192.0.2.12"},
		{"127.0.0.1 -> 127.0.0.1:30080", "", explain.FromNode, "lo", "127.0.0.1"},
		{"10.96.0.1:80", "", explain.FromNode, "eth0", "192.0.2.11"},
		{"192.0.2.11:30080", "", explain.FromNode, "lo", "192.0.2.11"},
		// Against the route: the device is not known.
		{"198.51.100.7 -> 10.96.0.1:80", explain.FromPod, explain.FromPod, "", "198.51.100.7"},
		{"10.66.0.9 -> 10.96.0.1:80", explain.FromPod, explain.FromPod, "", "10.66.0.9"},
		{"10.244.1.5 -> 10.96.0.1:80", explain.FromOutside, explain.FromOutside, "", "10.244.1.5"},
		{"198.51.100.7 -> 10.96.0.1:80", explain.FromOutside, explain.FromOutside, "eth0", "198.51.100.7"},
		{"10.244.1.5 -> 10.96.0.1:80", explain.FromNode, explain.FromNode, "eth0", "10.244.1.5"},
	} {
		q, err := explain.ParseQuestion([]string{tc.question})
		must(t, err)
		q, f, err := Gather(&holds{}, q, Options{From: tc.from})
		if err != nil || f.Origin != tc.want || f.Device != tc.device || q.Client.String() != tc.client {
			t.Errorf("%s, --from %q: client %s from %q by %q, error %v; want %s from %s by %q", tc.question, tc.from, q.Client, f.Origin, f.Device, err, tc.client, tc.want, tc.device)
		}
	}
}

func TestWhatTheRoutingTableDoesNotKnowIsAsked(t *testing.T) {
	node(t)
	for _, tc := range []struct {
		question string
		from     explain.Origin
		want     string
	}{
		{"10.66.0.9 -> 10.96.0.1:80", "", "no route to client 10.66.0.9 (its route is unreachable), so it is not known where that is: give --from pod, node or outside"},
		{"10.66.0.9:80", "", "the node has no route to 10.66.0.9 (its route is unreachable): say which client"},
		{"10.96.0.1:80", explain.FromPod, "--from pod: say which client"},
	} {
		q, err := explain.ParseQuestion([]string{tc.question})
		must(t, err)
		if _, _, err = Gather(&holds{}, q, Options{From: tc.from}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want %q", tc.question, err, tc.want)
		}
	}
}

func TestWithoutKnownUplinksOnlyTheNodeNeedsNoSide(t *testing.T) {
	node(t)
	r := &holds{unread: []dataplane.Unread{{Part: dataplane.UnreadUplinks, Why: "no rights"}}}
	for _, tc := range []struct {
		question string
		from     explain.Origin
		want     string
	}{
		{"10.244.1.5 -> 10.96.0.1:80", "", "no rights: say where client 10.244.1.5 is with --from pod, node or outside"},
		{"10.244.1.5 -> 10.96.0.1:80", explain.FromPod, ""},
		{"192.0.2.11 -> 10.96.0.1:80", "", ""},
	} {
		q, err := explain.ParseQuestion([]string{tc.question})
		must(t, err)
		if _, _, err = Gather(r, q, Options{From: tc.from}); (err == nil) != (tc.want == "") || err != nil && err.Error() != tc.want {
			t.Errorf("%s, --from %q: %v; want %q", tc.question, tc.from, err, tc.want)
		}
	}
}

func TestWaysLeadToEveryBackend(t *testing.T) {
	node(t)
	q, err := explain.ParseQuestion([]string{"10.244.1.5 -> 10.96.0.1:80"})
	must(t, err)
	_, f, err := Gather(&holds{affinityFails: errors.New("no jiffies")}, q, Options{})
	must(t, err)
	address := netip.MustParseAddr
	for to, want := range map[string]explain.Way{
		"10.244.1.5": {Device: "pod0", Source: address("10.244.1.1"), Leaves: address("10.244.1.1")},
		"10.244.2.5": {Device: "eth0", Via: address("192.0.2.1"), Source: address("192.0.2.11"), Leaves: address("192.0.2.11")},
		"10.66.0.1":  {Unreachable: "its route is unreachable"},
		"192.0.2.11": {Local: true, Device: "lo", Source: address("192.0.2.11"), Leaves: netip.Addr{}},
	} {
		if got := f.Ways[address(to)]; got != want {
			t.Errorf("way to %s: %+v, want %+v", to, got, want)
		}
	}
	if len(f.Unknown) != 1 || !strings.Contains(f.Unknown[0], "no jiffies") {
		t.Errorf("affinity that can't be read: %q is unknown", f.Unknown)
	}
}

func TestFlowsOfOthersAreLeftOut(t *testing.T) {
	node(t)
	at := netip.MustParseAddrPort
	r := &holds{flows: []dataplane.ConntrackRow{{Client: at("10.244.1.5:1")}, {Client: at("10.244.1.5:2")}, {Client: at("10.244.1.6:1")}}}
	for question, want := range map[string]int{"10.244.1.5 -> 10.96.0.1:80": 2, "10.244.1.5:2 -> 10.96.0.1:80": 1, "10.244.1.5:3 -> 10.96.0.1:80": 0} {
		q, err := explain.ParseQuestion([]string{question})
		must(t, err)
		_, f, err := Gather(r, q, Options{})
		must(t, err)
		if len(f.Flows) != want {
			t.Errorf("%s: flows %+v, want %d", question, f.Flows, want)
		}
		for _, row := range f.Flows {
			if row.Service != "ns/web" {
				t.Errorf("%s: a flow of Service %q", question, row.Service)
			}
		}
	}
}
