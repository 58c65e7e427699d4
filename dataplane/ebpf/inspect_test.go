// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"net/netip"
	"testing"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

func TestAffinityToABackendOfBeforeIsNotRead(t *testing.T) {
	l := newLab(t)
	d := l.open()
	sticky := func(hostPorts ...string) *dataplane.Service {
		s := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends(hostPorts...)...)
		s.Frontends[0].AffinitySeconds = 600
		return s
	}
	apply := func(s *dataplane.Service) {
		t.Helper()
		if err := d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{s.Name: s}}); err != nil {
			t.Fatal(err)
		}
	}
	web := sticky("10.0.0.1:80")
	if _, err := d.Sync(context.Background(), table(web)); err != nil {
		t.Fatal(err)
	}
	p := d.shadow.services[web.Name][0]
	b := p.backends[0]
	key := bpf.FairleadAffinityKey{Client: encodeAddress(netip.MustParseAddr("10.0.0.9")), Service: p.id}
	entry := bpf.FairleadAffinityEntry{
		BackendAddress: b.address, BackendPort: b.port, Backend: b.id, Generation: d.states[b.id].Generation, LastSeenSeconds: monotonicSeconds(),
	}
	if err := d.maps["affinity"].Put(key, &entry); err != nil {
		t.Fatal(err)
	}
	r, err := Read(l.options.BPFFS)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	read := func(when string, want int) {
		t.Helper()
		rows, err := r.Affinity()
		if err != nil || len(rows) != want {
			t.Errorf("%s: %+v, %v; want %d entries", when, rows, err, want)
		}
	}
	read("while the Backend is there", 1)
	apply(sticky("10.0.0.2:80"))
	read("when it is gone", 0)
	apply(sticky("10.0.0.1:80"))
	read("when another has its address", 0)
}

func TestAFrontendIsInspectedWhole(t *testing.T) {
	l := newLab(t)
	d := l.open()
	web := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.0.0.1:80", "10.0.0.2:80")...)
	f := &web.Frontends[0]
	f.Kind, f.PortName, f.AffinitySeconds, f.MasqueradeExternal = dataplane.LoadBalancer, "http", 30, false
	f.External = dataplane.BackendSet{OnEmpty: dataplane.Drop}
	f.Draining = backends("10.0.0.3:80")
	f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.0/24")}
	other := clusterIP("other", "10.96.0.11:53", dataplane.UDP)
	if _, err := d.Sync(context.Background(), table(web, other)); err != nil {
		t.Fatal(err)
	}
	r, err := Read(l.options.BPFFS)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, err := r.Inspect(f.FrontendKey)
	if err != nil || in.Frontend == nil || !in.Frontend.Equal(f) || in.Service != web.Name {
		t.Errorf("%s: %+v, %v; want %+v", f.FrontendKey, in, err, f)
	}
	for key, refused := range map[dataplane.FrontendKey]bool{
		{Address: netip.MustParseAddr("10.96.0.11"), Port: 54, Protocol: dataplane.UDP}: true,
		{Address: netip.MustParseAddr("10.96.0.11"), Port: 53, Protocol: dataplane.TCP}: true,
		{Address: f.Address, Port: 81, Protocol: dataplane.TCP}:                         false, // no ClusterIP
		{Address: netip.MustParseAddr("10.96.0.12"), Port: 53, Protocol: dataplane.UDP}: false,
	} {
		if in, err := r.Inspect(key); err != nil || in.Frontend != nil || (in.RefusedPort != "") != refused {
			t.Errorf("%s: %+v, %v; want no Frontend, refused %v", key, in, err, refused)
		}
	}
}
