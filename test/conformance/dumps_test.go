// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/dataplane/iptables"
	"fairlead.dev/dataplane/ipvs"
	"fairlead.dev/dataplane/nftables"
	"fairlead.dev/test/conformance"
)

// technology is a Dataplane and the Reader of what it leaves in the kernel.
type technology struct {
	name  string
	check func() []dataplane.CheckResult
	new   func(context.Context, *conformance.Node) (dataplane.Dataplane, error)
	read  func(*conformance.Node) (dataplane.Reader, error)
}

var technologies = []technology{
	{
		name: "ebpf",
		new: func(ctx context.Context, n *conformance.Node) (dataplane.Dataplane, error) {
			return ebpf.New(ctx, ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices})
		},
		read: func(n *conformance.Node) (dataplane.Reader, error) { return ebpf.Read(n.BPFFS) },
	},
	{
		name: "nftables",
		new: func(ctx context.Context, n *conformance.Node) (dataplane.Dataplane, error) {
			return nftables.New(ctx, nftables.Options{Devices: n.Devices})
		},
		read: func(*conformance.Node) (dataplane.Reader, error) { return nftables.Read(nftables.Options{}) },
	},
	{
		name: "iptables",
		new: func(ctx context.Context, n *conformance.Node) (dataplane.Dataplane, error) {
			return iptables.New(ctx, iptables.Options{Flavour: iptables.NFT, Devices: n.Devices})
		},
		read: func(*conformance.Node) (dataplane.Reader, error) {
			return iptables.Read(iptables.Options{Flavour: iptables.NFT})
		},
	},
	{
		name: "ipvs", check: func() []dataplane.CheckResult { return ipvs.Check(ipvs.Options{}) },
		new: func(ctx context.Context, n *conformance.Node) (dataplane.Dataplane, error) {
			return ipvs.New(ctx, ipvs.Options{Devices: n.Devices})
		},
		read: func(*conformance.Node) (dataplane.Reader, error) { return ipvs.Read(ipvs.Options{}) },
	},
}

func TestEveryDataplaneDumpsTheSameTable(t *testing.T) {
	for _, tech := range technologies {
		t.Run(tech.name, func(t *testing.T) {
			if tech.check != nil {
				if ok, reason := dataplane.Usable(tech.check()); !ok {
					t.Skip("this machine can't do " + tech.name + ": " + reason)
				}
			}
			n := conformance.NewLab(t).Node(1)
			table := everything(n)
			inNamespace(t, n.NetNSPath, func() {
				ctx := context.Background()
				dp, err := tech.new(ctx, n)
				if err != nil {
					t.Error(err)
					return
				}
				defer dp.Close()
				if _, err := dp.Sync(ctx, table); err != nil {
					t.Error(err)
					return
				}
				r, err := tech.read(n)
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Close()
				got, err := r.Table()
				if err != nil {
					t.Error(err)
					return
				}
				want := dataplane.Dump{Dataplane: tech.name, Frontends: table.Rows()}
				if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
					t.Errorf("the dump is not the Table (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// everything is a Table with what a Frontend can be.
func everything(n *conformance.Node) *dataplane.Table {
	v4, v6 := netip.MustParseAddr, netip.MustParseAddr
	both := dataplane.BackendSet{Backends: []dataplane.Backend{
		{Address: v4("10.244.1.11"), Port: 8080, Local: true}, {Address: v4("10.244.2.11"), Port: 8080},
		{Address: v4("10.244.1.12"), Port: 8080, State: dataplane.Terminating, Local: true},
	}}
	both6 := dataplane.BackendSet{Backends: []dataplane.Backend{{Address: v6("fd00:10:244:2::b"), Port: 8080}}}
	host := dataplane.BackendSet{Backends: []dataplane.Backend{{Address: n.PrimaryIPv4, Port: 9090, Local: true, HostNetwork: true}}}
	leaving := dataplane.BackendSet{Backends: []dataplane.Backend{{Address: v4("10.244.2.11"), Port: 8080, State: dataplane.Terminating}}}
	none, silent := dataplane.BackendSet{}, dataplane.BackendSet{OnEmpty: dataplane.Drop}
	frontend := func(k dataplane.Kind, a netip.Addr, port uint16, p dataplane.Protocol, internal, external dataplane.BackendSet) dataplane.Frontend {
		return dataplane.Frontend{FrontendKey: dataplane.FrontendKey{Address: a, Port: port, Protocol: p}, Kind: k, PortName: "main",
			Internal: internal, External: external, MasqueradeExternal: true}
	}
	sticky := frontend(dataplane.ClusterIP, v4("10.96.0.2"), 443, dataplane.TCP, both, both)
	sticky.AffinitySeconds = 10800
	ranged := frontend(dataplane.LoadBalancer, v4("198.51.100.7"), 80, dataplane.TCP, both, silent)
	ranged.SourceRanges, ranged.MasqueradeExternal = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, false
	nameless := frontend(dataplane.ClusterIP, v4("10.96.0.3"), 53, dataplane.UDP, leaving, leaving)
	nameless.PortName = ""
	services := map[string][]dataplane.Frontend{
		"web": {
			frontend(dataplane.ClusterIP, v4("10.96.0.1"), 80, dataplane.TCP, both, both),
			frontend(dataplane.ClusterIP, v6("fd00:10:96::1"), 80, dataplane.TCP, both6, both6),
			frontend(dataplane.NodePort, v4("127.0.0.1"), 30080, dataplane.TCP, both, both),
			frontend(dataplane.NodePort, n.PrimaryIPv4, 30080, dataplane.TCP, both, both),
			frontend(dataplane.NodePort, n.PrimaryIPv6, 30080, dataplane.TCP, both6, none),
			ranged,
			frontend(dataplane.ExternalIP, v4("198.51.100.8"), 80, dataplane.TCP, host, host),
		},
		"sticky": {sticky},
		"dns":    {nameless, frontend(dataplane.ClusterIP, v4("10.96.0.3"), 53, dataplane.TCP, none, none)},
		"sctp":   {frontend(dataplane.ClusterIP, v4("10.96.0.4"), 3868, dataplane.SCTP, both, both)},
		"pod:p":  {frontend(dataplane.HostPort, n.PrimaryIPv4, 8081, dataplane.UDP, both, both)},
	}
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}, Node: dataplane.Node{
		Addresses: n.Addresses, PrimaryIPv4: n.PrimaryIPv4, PrimaryIPv6: n.PrimaryIPv6,
		InternalSources: conformance.ClusterCIDRs, ServiceCIDRs: conformance.ServiceCIDRs,
	}}
	for name, fs := range services {
		slices.SortFunc(fs, func(a, b dataplane.Frontend) int {
			if a.Kind != b.Kind {
				return int(a.Kind) - int(b.Kind)
			}
			return a.FrontendKey.Compare(b.FrontendKey)
		})
		s := &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Frontends: fs}
		for i := range fs {
			for _, set := range []dataplane.BackendSet{fs[i].Internal, fs[i].External} {
				slices.SortFunc(set.Backends, dataplane.CompareBackends)
			}
		}
		t.Services[s.Name] = s
	}
	return t
}

// inNamespace runs f on a thread of its own in a network namespace.
func inNamespace(t *testing.T, path string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
