// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

// Shape bounds what is drawn, where a technology can't hold more or would take
// long.
type Shape struct {
	// Services is how many numbers DrawService is asked for, at most 60. Few of
	// them change often, many are spread wide. Default 5.
	Services int
	// Backends is how many a set has at the most. Default 24.
	Backends int
	// Ports is how many a Service has that has many. Default 20.
	Ports int
}

func (s Shape) withDefaults() Shape {
	s.Services, s.Backends, s.Ports = cmp.Or(s.Services, 5), cmp.Or(s.Backends, 24), cmp.Or(s.Ports, 20)
	return s
}

// names are those that Service n can have. The second is about as long as the
// name of a Pod gets.
func names(n int) [2]dataplane.ServiceName {
	return [2]dataplane.ServiceName{
		{Namespace: "default", Name: fmt.Sprintf("s%d", n)},
		{Namespace: "default", Name: fmt.Sprintf("pod:s%d%s", n, strings.Repeat("x", 240))},
	}
}

// family makes addresses of one family, from four bytes.
type family func(a, b, c, d byte) netip.Addr

func four(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }

func six(a, b, c, d byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 5: 0x96, 12: a, 13: b, 14: c, 15: d})
}

var ranges = map[bool][][]netip.Prefix{
	true: {nil, prefixes("192.0.2.0/24"), prefixes("0.0.0.0/0"), prefixes("192.0.2.0/25", "203.0.113.7/32"),
		prefixes("0.0.0.0/0", "192.0.2.0/25", "203.0.113.7/32"), prefixes("192.0.2.0/25", "192.0.2.7/32", "203.0.113.7/32")},
	false: {nil, prefixes("::/0"), prefixes("2001:db8::/33", "2001:db8:ffff::1/128"), prefixes("2001:db8::/33", "2001:db8::7/128")},
}

// DrawService draws a Service with a few Frontends of every kind, in one family
// or both. Those of other numbers have other names and FrontendKeys, but share
// addresses with it. One number is not always one name.
func DrawService(t *rapid.T, n int, shape Shape) *dataplane.Service {
	shape = shape.withDefaults()
	called := names(n)
	s := &dataplane.Service{Name: called[0]}
	if rapid.IntRange(0, 5).Draw(t, "long") == 0 {
		s.Name = called[1]
	}
	families := rapid.SampledFrom([][]int{{4}, {6}, {4, 6}}).Draw(t, "families")
	pool := drawBackends(t, shape.Backends)
	named := map[string]dataplane.Frontend{} // a client is one for all ports of a name, so they are alike
	for port := range rapid.SampledFrom([]int{0, 1, 2, 3, shape.Ports}).Draw(t, "ports") {
		name := rapid.SampledFrom([]string{"", "p1", "p2", fmt.Sprintf("port%d", port)}).Draw(t, "name")
		f, is := named[name]
		if !is {
			f.PortName = name
			f.Protocol = rapid.SampledFrom([]dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP}).Draw(t, "protocol")
			f.AffinitySeconds = rapid.SampledFrom([]uint32{0, 0, 60, 10800}).Draw(t, "affinity")
			named[name] = f
		}
		f.Port = uint16(80 + port)
		for _, v := range families {
			at := family(four)
			if v == 6 {
				at = six
			}
			s.Frontends = append(s.Frontends, drawFrontends(t, n, port, f, at, pool)...)
		}
	}
	slices.SortFunc(s.Frontends, func(a, b dataplane.Frontend) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Compare(b.FrontendKey))
	})
	return s
}

// drawBackends draws Backends whose addresses are IPv4.
func drawBackends(t *rapid.T, most int) []dataplane.Backend {
	pool := make([]dataplane.Backend, rapid.IntRange(0, most).Draw(t, "backends"))
	for i := range pool {
		pool[i] = dataplane.Backend{
			Address: four(10, 244, byte(rapid.IntRange(1, 2).Draw(t, "node")), byte(i+1)), Port: 8080,
			State: dataplane.BackendState(rapid.IntRange(0, 1).Draw(t, "state")), Local: rapid.Bool().Draw(t, "local"),
		}
	}
	slices.SortFunc(pool, dataplane.CompareBackends)
	return pool
}

// drawFrontends draws the Frontends of one port in one family: f has the rest.
func drawFrontends(t *rapid.T, n, port int, f dataplane.Frontend, at family, pool []dataplane.Backend) (out []dataplane.Frontend) {
	all := make([]dataplane.Backend, len(pool))
	for i, b := range pool {
		v4 := b.Address.As4()
		b.Address = at(v4[0], v4[1], v4[2], v4[3])
		all[i] = b
	}
	f.Internal = dataplane.BackendSet{Backends: all}
	add := func(k dataplane.Kind, address netip.Addr, port uint16) {
		f := f
		f.Kind, f.Address, f.Port = k, address, port
		f.External, f.MasqueradeExternal = f.Internal, true
		if k != dataplane.ClusterIP {
			drawReach(t, &f)
		}
		if k == dataplane.LoadBalancer {
			f.SourceRanges = rapid.SampledFrom(ranges[address.Is4()]).Draw(t, "ranges")
		}
		out = append(out, f)
	}
	add(dataplane.ClusterIP, at(10, 96, 0, byte(n)), f.Port)
	if rapid.Bool().Draw(t, "load balancer") {
		add(dataplane.LoadBalancer, at(198, 51, 100, byte(n)), f.Port)
	}
	switch rapid.IntRange(0, 2).Draw(t, "external IP") {
	case 1:
		add(dataplane.ExternalIP, at(203, 0, 113, byte(n)), f.Port)
	case 2: // one that all Services share
		add(dataplane.ExternalIP, at(203, 0, 113, 9), uint16(1000*n+port))
	}
	if rapid.Bool().Draw(t, "loopback") {
		add(dataplane.NodePort, at(127, 0, 0, byte(n)), f.Port)
	}
	kind := rapid.SampledFrom([]dataplane.Kind{dataplane.NodePort, dataplane.HostPort}).Draw(t, "kind")
	for i := range rapid.IntRange(0, 3).Draw(t, "node addresses") {
		add(kind, at(192, 0, 2, byte(i)), uint16(30000+n*256+port))
	}
	return out
}

// drawReach draws which Backends of its internal set a Frontend reaches, by the
// traffic policies of its Service.
func drawReach(t *rapid.T, f *dataplane.Frontend) {
	all := f.Internal.Backends
	of := func(local bool) []dataplane.Backend {
		return slices.DeleteFunc(slices.Clone(all), func(b dataplane.Backend) bool { return b.Local != local })
	}
	internal, external := rapid.Bool().Draw(t, "internal local"), rapid.Bool().Draw(t, "external local")
	if internal {
		f.Internal.Backends = of(true)
	}
	if external {
		f.External, f.MasqueradeExternal = dataplane.BackendSet{Backends: of(true), OnEmpty: dataplane.Drop}, false
	}
	if internal && external {
		f.Draining = of(false)
	}
}
