// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/dataplane"
)

var (
	podClient  = netip.MustParseAddr("10.244.1.5")
	nodeClient = netip.MustParseAddr("192.0.2.11")
	outClient  = netip.MustParseAddr("192.0.2.100")
	gateway    = netip.MustParseAddr("10.244.1.1")

	here  = dataplane.Backend{Address: netip.MustParseAddr("10.244.1.11"), Port: 8080, Local: true}
	there = dataplane.Backend{Address: netip.MustParseAddr("10.244.2.11"), Port: 8080}
	own   = dataplane.Backend{Address: nodeClient, Port: 8080, Local: true, HostNetwork: true}
)

// devicesDecide are the rules of a technology with hooks at sockets and devices,
// sourcesDecide those of one in netfilter.
func devicesDecide() dataplane.Rules {
	return dataplane.Rules{
		Hooks:           dataplane.Hooks{Packet: "tc", Socket: "connect()", Pod: "from_pod", Uplink: "from_uplink", Node: "from_host"},
		InternalSources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		DevicesDecide:   true, Uplinks: []string{"eth*"}, Attached: []string{"eth0", "pod-a"}, LoopbackServed: true,
		Masquerade:  dataplane.MasqueradeRules{IPv4: nodeClient, NodeMustLeave: true},
		NodeClients: [2]string{"netns:7", ""},
	}
}

func sourcesDecide() dataplane.Rules {
	return dataplane.Rules{
		Hooks:           dataplane.Hooks{Packet: "netfilter", Pod: "prerouting", Uplink: "prerouting", Node: "output"},
		InternalSources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Uplinks:         []string{"eth0"}, LoopbackServed: true,
		Masquerade: dataplane.MasqueradeRules{ByDevice: true, Loopback: true},
	}
}

func frontendOf(k dataplane.Kind, internal, external []dataplane.Backend) *dataplane.Frontend {
	return &dataplane.Frontend{
		FrontendKey: dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: dataplane.TCP},
		Kind:        k, PortName: "http", MasqueradeExternal: true,
		Internal: dataplane.BackendSet{Backends: internal}, External: dataplane.BackendSet{Backends: external},
	}
}

// verdict is what the cases compare of an Answer.
type verdict struct {
	Outcome             Outcome
	Reason, Scope, Path string
	// Sees is "BACKEND SHARE SOURCE" of each Backend with a share.
	Sees     []string
	Affinity string
}

func verdictOf(a Answer) verdict {
	v := verdict{Outcome: a.Outcome, Reason: a.Reason, Scope: a.Scope, Path: a.Path}
	for _, b := range a.Backends {
		if b.Share == 0 {
			continue
		}
		s := b.Address.String() + " " + map[float64]string{1: "all", 0.5: "half"}[b.Share] + " "
		switch {
		case b.Dropped != "":
			s += b.Dropped
		case b.Source.Address == nil:
			s += "?"
		default:
			s += b.Source.Address.String()
		}
		v.Sees = append(v.Sees, s)
	}
	if a.Affinity != nil {
		v.Affinity = a.Affinity.Backend.String()
		if !a.Affinity.Honoured {
			v.Affinity = "not " + v.Affinity
		}
	}
	return v
}

func TestJudgement(t *testing.T) {
	both, local := []dataplane.Backend{here, there}, []dataplane.Backend{here}
	leaving := there
	leaving.State = dataplane.Terminating
	cluster := frontendOf(dataplane.ClusterIP, both, both)
	nodePort := frontendOf(dataplane.NodePort, both, both)
	localPolicy := frontendOf(dataplane.NodePort, both, local)
	localPolicy.MasqueradeExternal, localPolicy.External.OnEmpty = false, dataplane.Drop
	noneHere := frontendOf(dataplane.NodePort, both, nil)
	noneHere.External.OnEmpty = dataplane.Drop
	ranged := frontendOf(dataplane.LoadBalancer, both, both)
	ranged.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	noneRanged := frontendOf(dataplane.LoadBalancer, nil, nil)
	noneRanged.SourceRanges = ranged.SourceRanges
	sticky := frontendOf(dataplane.ClusterIP, both, both)
	sticky.AffinitySeconds = 100
	entry := func(client string, b dataplane.Backend, idle uint32) dataplane.AffinityRow {
		return dataplane.AffinityRow{Service: "default/web", PortName: "http", Client: client, Backend: b.AddrPort(), IdleSeconds: idle}
	}
	for _, tc := range []struct {
		name   string
		rules  dataplane.Rules
		f      *dataplane.Frontend
		origin Origin
		client netip.Addr
		facts  func(*Facts)
		want   verdict
	}{
		{
			"a pod's socket", devicesDecide(), cluster, FromPod, podClient, nil,
			verdict{Forwarded, "", "internal", "socket", []string{"10.244.1.11 half 10.244.1.5", "10.244.2.11 half 10.244.1.5"}, ""},
		},
		{
			"a pod that no hook sees", devicesDecide(), cluster, FromPod, podClient, func(f *Facts) { f.PacketPath = true },
			verdict{Forwarded, "", "internal", "tc", []string{"10.244.1.11 half 10.244.1.5", "10.244.2.11 half 10.244.1.5"}, ""},
		},
		{
			"a pod that is its own Backend", devicesDecide(), cluster, FromPod, here.Address, func(f *Facts) { f.PacketPath = true },
			verdict{Forwarded, "", "internal", "tc", []string{"10.244.1.11 half 192.0.2.11", "10.244.2.11 half 10.244.1.11"}, ""},
		},
		{
			"a pod whose device has no program", devicesDecide(), cluster, FromPod, podClient,
			func(f *Facts) { f.PacketPath, f.Device = true, "wg0" },
			verdict{NotService, "", "", "tc", nil, ""},
		},
		{
			"outside, policy Cluster", devicesDecide(), nodePort, FromOutside, outClient, nil,
			verdict{Forwarded, "", "external", "tc", []string{"10.244.1.11 half 192.0.2.11", "10.244.2.11 half 192.0.2.11"}, ""},
		},
		{
			"outside, policy Cluster, by netfilter", sourcesDecide(), nodePort, FromOutside, outClient, nil,
			verdict{Forwarded, "", "external", "netfilter", []string{"10.244.1.11 half 10.244.1.1", "10.244.2.11 half ?"}, ""},
		},
		{
			"outside, policy Local", devicesDecide(), localPolicy, FromOutside, outClient, nil,
			verdict{Forwarded, "", "external", "tc", []string{"10.244.1.11 all 192.0.2.100"}, ""},
		},
		{
			"another node's pod, policy Local", devicesDecide(), localPolicy, FromOutside, netip.MustParseAddr("10.244.2.9"), nil,
			verdict{Forwarded, "", "internal", "tc", []string{"10.244.1.11 half 10.244.2.9", "10.244.2.11 half 192.0.2.11"}, ""},
		},
		{
			"outside, policy Local, none here", devicesDecide(), noneHere, FromOutside, outClient, nil,
			verdict{Dropped, "no_local_backends", "external", "tc", nil, ""},
		},
		{
			"no Backends", devicesDecide(), frontendOf(dataplane.ClusterIP, nil, nil), FromPod, podClient, nil,
			verdict{Refused, "no_backends", "internal", "socket", nil, ""},
		},
		{
			"no masquerade address", func() dataplane.Rules {
				r := devicesDecide()
				r.Masquerade.IPv4 = netip.Addr{}
				return r
			}(), nodePort, FromOutside, outClient, nil,
			verdict{
				Dropped, "no_masquerade_address", "external", "tc",
				[]string{"10.244.1.11 half no_masquerade_address", "10.244.2.11 half no_masquerade_address"}, "",
			},
		},
		{
			"in the source ranges: the packet path", devicesDecide(), ranged, FromPod, podClient, nil,
			verdict{Forwarded, "", "internal", "tc", []string{"10.244.1.11 half 10.244.1.5", "10.244.2.11 half 10.244.1.5"}, ""},
		},
		{
			"not in the source ranges", sourcesDecide(), ranged, FromOutside, outClient, nil,
			verdict{Dropped, "source_range", "external", "netfilter", nil, ""},
		},
		{
			"not in the source ranges, and no Backends", sourcesDecide(), noneRanged, FromOutside, outClient, nil,
			verdict{Dropped, "source_range", "external", "netfilter", nil, ""},
		},
		{
			"no Backends before source ranges", func() dataplane.Rules {
				r := sourcesDecide()
				r.EmptyFirst = true
				return r
			}(), noneRanged, FromOutside, outClient, nil,
			verdict{Refused, "no_backends", "external", "netfilter", nil, ""},
		},
		{
			"terminating Backends where none is active", devicesDecide(), frontendOf(dataplane.ClusterIP, []dataplane.Backend{leaving}, nil), FromPod, podClient, nil,
			verdict{Forwarded, "", "internal", "socket", []string{"10.244.2.11 all 10.244.1.5"}, ""},
		},
		{
			"an affinity that holds", devicesDecide(), sticky, FromPod, podClient,
			func(f *Facts) { f.Affinity = []dataplane.AffinityRow{entry("10.244.1.5", there, 40)} },
			verdict{Forwarded, "", "internal", "socket", []string{"10.244.2.11 all 10.244.1.5"}, "10.244.2.11:8080"},
		},
		{
			"an affinity that is over", devicesDecide(), sticky, FromPod, podClient,
			func(f *Facts) { f.Affinity = []dataplane.AffinityRow{entry("10.244.1.5", there, 101)} },
			verdict{Forwarded, "", "internal", "socket", []string{"10.244.1.11 half 10.244.1.5", "10.244.2.11 half 10.244.1.5"}, "not 10.244.2.11:8080"},
		},
		{
			"an affinity to a Backend that is not eligible", sourcesDecide(), sticky, FromPod, podClient,
			func(f *Facts) { f.Affinity = []dataplane.AffinityRow{entry("10.244.1.5", own, 1)} },
			verdict{Forwarded, "", "internal", "netfilter", []string{"10.244.1.11 half 10.244.1.5", "10.244.2.11 half 10.244.1.5"}, "not 192.0.2.11:8080"},
		},
		{
			"the node's processes are one client", devicesDecide(), sticky, FromNode, nodeClient,
			func(f *Facts) {
				f.Affinity = []dataplane.AffinityRow{entry("192.0.2.11", here, 1), entry("netns:7", there, 2)}
				f.Ways[there.Address] = Way{Source: nodeClient}
			},
			verdict{Forwarded, "", "internal", "socket", []string{"10.244.2.11 all 192.0.2.11"}, "10.244.2.11:8080"},
		},
		{
			"the node to its own Backend by the packet path", devicesDecide(), frontendOf(dataplane.ClusterIP, []dataplane.Backend{own}, nil), FromNode, nodeClient,
			func(f *Facts) { f.PacketPath = true },
			verdict{Dropped, "no_route", "internal", "tc", []string{"192.0.2.11 all no_route"}, ""},
		},
		{
			"a Backend in the node's network is never masked", sourcesDecide(), frontendOf(dataplane.NodePort, nil, []dataplane.Backend{own}), FromOutside, outClient, nil,
			verdict{Forwarded, "", "external", "netfilter", []string{"192.0.2.11 all 192.0.2.100"}, ""},
		},
		{
			"a pod in no range of pods: by its device", func() dataplane.Rules {
				r := devicesDecide()
				r.InternalSources = nil
				return r
			}(), localPolicy, FromPod, podClient, nil,
			verdict{Forwarded, "", "internal", "socket", []string{"10.244.1.11 half 10.244.1.5", "10.244.2.11 half 10.244.1.5"}, ""},
		},
		{
			"a pod in no range of pods: by its source", func() dataplane.Rules {
				r := sourcesDecide()
				r.InternalSources = nil
				return r
			}(), localPolicy, FromPod, podClient, nil,
			verdict{Forwarded, "", "external", "netfilter", []string{"10.244.1.11 all 10.244.1.5"}, ""},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := Facts{
				Inspection: &dataplane.Inspection{Dataplane: "test", Frontend: tc.f, Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Rules: tc.rules},
				Origin:     tc.origin, OriginHow: "the test says so", Device: map[Origin]string{FromPod: "pod-a", FromOutside: "eth0", FromNode: "eth0"}[tc.origin],
				Ways: map[netip.Addr]Way{here.Address: {Leaves: gateway}},
			}
			if tc.facts != nil {
				tc.facts(&f)
			}
			a := Judge(Question{Client: tc.client, To: tc.f.FrontendKey}, f)
			if diff := cmp.Diff(tc.want, verdictOf(a)); diff != "" {
				t.Errorf("(-want +got):\n%s%+v", diff, a.Because)
			}
		})
	}
}

func TestWhatIsNoFrontend(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	nodePort := frontendOf(dataplane.NodePort, []dataplane.Backend{here}, []dataplane.Backend{here})
	nodePort.Address = loopback
	for _, tc := range []struct {
		name string
		to   netip.Addr
		edit func(*Facts)
		want Outcome
	}{
		{"an address of nobody", netip.MustParseAddr("198.51.100.7"), func(*Facts) {}, NotService},
		{"another port of a ClusterIP", nodePort.Address, func(f *Facts) { f.Inspection.RefusedPort = "the address is a ClusterIP"; f.Origin = FromNode }, Refused},
		{"a pod's own loopback", loopback, func(f *Facts) { f.Inspection.Frontend = nodePort }, NotService},
		{"the node's loopback, not served", loopback, func(f *Facts) {
			f.Inspection.Frontend, f.Origin, f.Inspection.Rules.LoopbackServed = nodePort, FromNode, false
		}, NotService},
		{"the node's loopback", loopback, func(f *Facts) { f.Inspection.Frontend, f.Origin = nodePort, FromNode }, Forwarded},
		{"the node's loopback by the packet path", loopback, func(f *Facts) {
			f.Inspection.Frontend, f.Origin, f.PacketPath = nodePort, FromNode, true
		}, NotService},
		{"one that another dataplane replaced", loopback, func(f *Facts) {
			f.Inspection.Frontend, f.Origin, f.Inspection.Draining = nodePort, FromNode, true
		}, NotService},
	} {
		f := Facts{Inspection: &dataplane.Inspection{Rules: devicesDecide()}, Origin: FromPod, Device: "pod-a", Ways: map[netip.Addr]Way{}}
		tc.edit(&f)
		a := Judge(Question{Client: podClient, To: dataplane.FrontendKey{Address: tc.to, Port: 80, Protocol: dataplane.TCP}}, f)
		if a.Outcome != tc.want {
			t.Errorf("%s: %s, want %s: %+v", tc.name, a.Outcome, tc.want, a.Because)
		}
		if a.Outcome == Refused && a.Reason != "unknown_port" {
			t.Errorf("%s: reason %q", tc.name, a.Reason)
		}
	}
}

func TestAFlowDecidesForItsSourcePort(t *testing.T) {
	f := Facts{
		Inspection: &dataplane.Inspection{Frontend: frontendOf(dataplane.NodePort, []dataplane.Backend{there}, []dataplane.Backend{there}), Rules: sourcesDecide()},
		Origin:     FromOutside, Device: "eth0",
		Flows: []dataplane.ConntrackRow{{
			Client: netip.AddrPortFrom(outClient, 4000), Backend: here.AddrPort(), Masquerade: "10.244.1.1:1024", State: "established",
		}},
	}
	q := Question{Client: outClient, ClientPort: 4000, To: f.Inspection.Frontend.FrontendKey}
	want := verdict{Forwarded, "", "external", "netfilter", []string{"10.244.1.11 all 10.244.1.1"}, ""}
	if diff := cmp.Diff(want, verdictOf(Judge(q, f))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	f.Flows[0].State = "stale"
	want.Sees = []string{"10.244.2.11 all ?"}
	if diff := cmp.Diff(want, verdictOf(Judge(q, f))); diff != "" {
		t.Errorf("a stale flow (-want +got):\n%s", diff)
	}
}

func TestAnEntryThatMayBeTheClientsIsSaidToBeUnknown(t *testing.T) {
	f := frontendOf(dataplane.ClusterIP, []dataplane.Backend{here, there}, nil)
	f.AffinitySeconds = 60
	facts := Facts{
		Inspection: &dataplane.Inspection{Frontend: f, Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Rules: devicesDecide()},
		Origin:     FromPod, Device: "pod-a",
		Affinity: []dataplane.AffinityRow{{Service: "default/web", PortName: "http", Client: "netns:9", Backend: here.AddrPort()}},
	}
	q := Question{Client: podClient, To: f.FrontendKey}
	if a := Judge(q, facts); len(a.Unknown) != 1 || a.Affinity != nil {
		t.Errorf("%q is unknown, affinity %+v; want it said, and nothing guessed", a.Unknown, a.Affinity)
	}
	facts.PacketPath = true // there addresses are known
	if a := Judge(q, facts); len(a.Unknown) != 0 {
		t.Errorf("%q is unknown on the packet path", a.Unknown)
	}
}

func TestTheTrafficPolicyIsSaidWhereTheTableShowsIt(t *testing.T) {
	clusterIP := func(set, draining []dataplane.Backend) *dataplane.Frontend {
		f := frontendOf(dataplane.ClusterIP, set, set)
		f.Draining = draining
		return f
	}
	policy := func(f *dataplane.Frontend, unread ...dataplane.Unread) (internal, external string) {
		a := Judge(Question{Client: podClient, To: f.FrontendKey}, Facts{
			Inspection: &dataplane.Inspection{Frontend: f, Rules: sourcesDecide(), Unread: unread}, Origin: FromPod,
		})
		if said := len(a.Unknown); said != len(unread) {
			t.Errorf("%d unknown things are said, want %d: %q", said, len(unread), a.Unknown)
		}
		return a.Policy.InternalTrafficPolicy, a.Policy.ExternalTrafficPolicy
	}
	both, local, remote := []dataplane.Backend{here, there}, []dataplane.Backend{here}, []dataplane.Backend{there}
	kept := frontendOf(dataplane.ExternalIP, both, local)
	kept.MasqueradeExternal = false
	for _, tc := range []struct {
		name                   string
		f                      *dataplane.Frontend
		wantInternal, external string
	}{
		{"a Backend elsewhere is in the set", clusterIP(both, nil), "Cluster", ""},
		{"none here, and one elsewhere drains", clusterIP(nil, remote), "Local", ""},
		{"all are here", clusterIP(local, nil), "", ""},
		{"some are here, and one elsewhere drains: Local, or a hint", clusterIP(local, remote), "", ""},
		{"external clients are masked", frontendOf(dataplane.ExternalIP, both, both), "", "Cluster"},
		{"external clients are not masked", kept, "", "Local"},
	} {
		if internal, external := policy(tc.f); internal != tc.wantInternal || external != tc.external {
			t.Errorf("%s: internal %q, external %q; want %q and %q", tc.name, internal, external, tc.wantInternal, tc.external)
		}
	}
	hostPort := frontendOf(dataplane.HostPort, local, local)
	if a := Judge(Question{Client: podClient, To: hostPort.FrontendKey}, Facts{Inspection: &dataplane.Inspection{Frontend: hostPort, Rules: sourcesDecide()}, Origin: FromPod}); a.Policy.Decides != "hostPort" {
		t.Errorf("a hostPort is decided by %q", a.Policy.Decides)
	}
	unread := dataplane.Unread{Part: dataplane.UnreadMasquerade, Why: "not readable"}
	if _, external := policy(kept, unread); external != "" {
		t.Errorf("not readable: %q is guessed", external)
	}
}

func TestUplinksMayBePatterns(t *testing.T) {
	r := &dataplane.Rules{Uplinks: []string{"eth*", "bond0"}}
	var got []string
	for _, d := range []string{"eth0", "eth1.5", "bond0", "bond01", "veth0", ""} {
		if IsUplink(r, d) {
			got = append(got, d)
		}
	}
	if want := []string{"eth0", "eth1.5", "bond0"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
