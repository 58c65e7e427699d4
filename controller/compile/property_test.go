// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

// world is a set of objects, few of each so that they meet.
type world struct {
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName]*discoveryv1.EndpointSlice
	pods     map[types.NamespacedName]*corev1.Pod
	node     NodeFacts
}

func newWorld() *world {
	return &world{map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}, map[types.NamespacedName]*corev1.Pod{}, testNode()}
}

// event sets or deletes one object, in the world and in a Compiler.
type event func(*world, *Compiler)

func drawKey(t *rapid.T, names ...string) types.NamespacedName {
	return types.NamespacedName{Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"), Name: rapid.SampledFrom(names).Draw(t, "name")}
}

func drawEvent(t *rapid.T) event {
	gone := rapid.IntRange(0, 4).Draw(t, "gone") == 0
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0, 1, 2:
		k := drawKey(t, "web", "db", "dns")
		var s *corev1.Service
		if !gone {
			s = drawService(t)
		}
		return func(w *world, c *Compiler) { put(w.services, k, s); c.SetService(k, s) }
	case 3, 4, 5, 6:
		k := drawKey(t, "s1", "s2", "s3")
		var s *discoveryv1.EndpointSlice
		if !gone {
			s = drawSlice(t)
		}
		return func(w *world, c *Compiler) { put(w.slices, k, s); c.SetEndpointSlice(k, s) }
	case 7, 8:
		k := drawKey(t, "web", "db")
		var p *corev1.Pod
		if !gone {
			p = drawPod(t)
		}
		return func(w *world, c *Compiler) { put(w.pods, k, p); c.SetPod(k, p) }
	}
	n := testNode()
	n.Zone = rapid.SampledFrom([]string{"", "zone-a", "zone-b"}).Draw(t, "zone")
	n.Name = rapid.SampledFrom([]string{"here", "elsewhere"}).Draw(t, "node")
	if rapid.Bool().Draw(t, "vip is own") {
		n.Addresses = append(n.Addresses, addrs("203.0.113.1")...)
	}
	if rapid.Bool().Draw(t, "all node ports") {
		n.NodePortAddresses = append(slices.Clone(n.Addresses), addrs("127.0.0.1", "::1")...)
	}
	return func(w *world, c *Compiler) { w.node = n; c.SetNode(n) }
}

func put[T any](m map[types.NamespacedName]*T, k types.NamespacedName, v *T) {
	if v == nil {
		delete(m, k)
		return
	}
	m[k] = v
}

func drawService(t *rapid.T) *corev1.Service {
	ips := rapid.SampledFrom([][]string{{"10.96.0.1"}, {"10.96.0.2"}, {"10.96.0.1", "fd00:96::1"}, {"fd00:96::2"}, {"None"}, {"192.0.2.1"}}).Draw(t, "clusterIPs")
	s := svc(clusterIPs(ips...), born(int64(rapid.IntRange(0, 2).Draw(t, "age"))))
	s.Spec.Type = rapid.SampledFrom([]corev1.ServiceType{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}).Draw(t, "type")
	s.Spec.Ports = nil
	for i := range rapid.IntRange(0, 2).Draw(t, "ports") {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
			Name:     rapid.SampledFrom([]string{"http", "dns"}).Draw(t, "port name"),
			Port:     int32(80 + i%2),
			Protocol: rapid.SampledFrom([]corev1.Protocol{"TCP", "UDP"}).Draw(t, "protocol"),
			NodePort: int32(30000 + rapid.IntRange(0, 1).Draw(t, "nodePort")),
		})
	}
	s.Spec.ExternalIPs = rapid.SampledFrom([][]string{nil, {"203.0.113.1"}, {"203.0.113.1", "203.0.113.2", "10.96.0.1"}}).Draw(t, "externalIPs")
	if rapid.Bool().Draw(t, "ingress") {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.2"}}
		s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"}
	}
	if rapid.Bool().Draw(t, "internal local") {
		internalLocal(s)
	}
	if rapid.Bool().Draw(t, "external local") {
		externalLocal(s)
		s.Spec.HealthCheckNodePort = 32000
	}
	if rapid.Bool().Draw(t, "affinity") {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	return s
}

func drawSlice(t *rapid.T) *discoveryv1.EndpointSlice {
	s := eps()
	s.Labels[discoveryv1.LabelServiceName] = rapid.SampledFrom([]string{"web", "db", "dns", ""}).Draw(t, "of")
	prefix := "10.244.0."
	if rapid.Bool().Draw(t, "v6") {
		s.AddressType, prefix = discoveryv1.AddressTypeIPv6, "fd00:1::"
	}
	s.Ports[0].Name = ptr(rapid.SampledFrom([]string{"http", "dns"}).Draw(t, "port name"))
	s.Ports[0].Protocol = ptr(rapid.SampledFrom([]corev1.Protocol{"TCP", "UDP"}).Draw(t, "protocol"))
	someBool := rapid.SampledFrom([]*bool{nil, ptr(true), ptr(false)})
	for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		e := ep(fmt.Sprint(prefix, rapid.IntRange(1, 3).Draw(t, "address")),
			conditions(someBool.Draw(t, "ready"), someBool.Draw(t, "serving"), someBool.Draw(t, "terminating")))
		e.NodeName = rapid.SampledFrom([]*string{nil, ptr("here"), ptr("elsewhere")}).Draw(t, "node")
		e.Zone = rapid.SampledFrom([]*string{nil, ptr("zone-a")}).Draw(t, "zone")
		if rapid.Bool().Draw(t, "zone hint") {
			hintZones(rapid.SampledFrom([]string{"zone-a", "zone-b"}).Draw(t, "for zone"))(&e)
		}
		if rapid.Bool().Draw(t, "node hint") {
			hintNodes(rapid.SampledFrom([]string{"here", "elsewhere"}).Draw(t, "for node"))(&e)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func drawPod(t *rapid.T) *corev1.Pod {
	p := podWith(hostPortOf(hostIP(rapid.SampledFrom([]string{"", "0.0.0.0", "192.0.2.1", "203.0.113.1"}).Draw(t, "hostIP")),
		func(p *corev1.ContainerPort) { p.HostPort = int32(30000 + rapid.IntRange(0, 1).Draw(t, "hostPort")) }))
	p.CreationTimestamp = at(int64(rapid.IntRange(0, 2).Draw(t, "age")))
	p.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{corev1.PodRunning, corev1.PodFailed}).Draw(t, "phase")
	return p
}

// fresh compiles the whole world at once, in a drawn order.
func (w *world) fresh(t *rapid.T, opts Options) (*Compiler, Result) {
	c := New(opts)
	sets := []func(){func() { c.SetNode(w.node) }}
	for k, s := range w.services {
		sets = append(sets, func() { c.SetService(k, s) })
	}
	for k, s := range w.slices {
		sets = append(sets, func() { c.SetEndpointSlice(k, s) })
	}
	for k, p := range w.pods {
		sets = append(sets, func() { c.SetPod(k, p) })
	}
	// The maps' own order is random too; the drawn one makes a failure smaller.
	for i := len(sets) - 1; i > 0; i-- {
		j := rapid.IntRange(0, i).Draw(t, "order")
		sets[i], sets[j] = sets[j], sets[i]
	}
	for _, set := range sets {
		set()
	}
	return c, c.Compile()
}

// state is all that a Compiler tells, with deltas summed up.
type state struct {
	Rows     map[string][]string
	Problems []Problem
	NoLocal  map[dataplane.Scope]int
	Health   map[dataplane.ServiceName]HealthCheck
}

// follower sums up Results as a controller does.
type follower struct {
	services map[dataplane.ServiceName]*dataplane.Service
	health   map[dataplane.ServiceName]HealthCheck
	last     Result
}

func newFollower() *follower {
	return &follower{services: map[dataplane.ServiceName]*dataplane.Service{}, health: map[dataplane.ServiceName]HealthCheck{}}
}

func (f *follower) follow(r Result) {
	for n, s := range r.Change.Services {
		if s == nil {
			delete(f.services, n)
		} else {
			f.services[n] = s
		}
	}
	for n, h := range r.HealthChecks {
		if h == nil {
			delete(f.health, n)
		} else {
			f.health[n] = *h
		}
	}
	f.last = r
}

func (f *follower) state() state {
	s := state{Rows: map[string][]string{}, Problems: f.last.Problems, NoLocal: f.last.NoLocalEndpoints, Health: f.health}
	for n, svc := range f.services {
		s.Rows[n.String()] = render(svc)
	}
	return s
}

func TestIncrementalEqualsFromScratchInAnyOrderOfEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		opts := Options{MaxBackendsPerSet: rapid.SampledFrom([]int{0, 2}).Draw(t, "max backends")}
		w, c, f := newWorld(), New(opts), newFollower()
		c.SetNode(w.node)
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			drawEvent(t)(w, c)
			if rapid.Bool().Draw(t, "compile now") {
				f.follow(c.Compile())
			}
		}
		f.follow(c.Compile())
		if again := c.Compile(); !again.Change.Empty() || len(again.HealthChecks) > 0 || again.ProblemsChanged {
			t.Fatalf("a second Compile changed %+v", again)
		}
		scratch, r := w.fresh(t, opts)
		want := newFollower()
		want.follow(r)
		if diff := cmp.Diff(want.state(), f.state(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("from scratch (-) and incremental (+) differ:\n%s", diff)
		}
		for n, s := range c.Table().Services {
			if !s.Equal(scratch.Table().Services[n]) || f.services[n] == nil || !f.services[n].Equal(s) {
				t.Fatalf("Table and Changes differ in %v", n)
			}
		}
		checkClaims(t, c, w)
		checkTable(t, c.Table(), c.opts.MaxBackendsPerSet)
		if len(w.services)+len(w.slices)+len(w.pods) == 0 && len(c.owners)+len(c.claims.winner)+len(c.claims.contested) > 0 {
			t.Fatalf("an empty world leaves %d owners and %d claims", len(c.owners), len(c.claims.winner))
		}
	})
}

// checkClaims computes who has each FrontendKey from the definition: of all
// owners that would have it if they were alone, the oldest, then the first by
// name.
func checkClaims(t *rapid.T, c *Compiler, w *world) {
	type holder struct {
		name dataplane.ServiceName
		born int64
	}
	best := map[dataplane.FrontendKey]holder{}
	consider := func(alone *Compiler, n dataplane.ServiceName, born int64) {
		alone.SetNode(w.node)
		alone.Compile()
		s := alone.Table().Services[n]
		if s == nil {
			return
		}
		for i := range s.Frontends {
			k := s.Frontends[i].FrontendKey
			if b, taken := best[k]; !taken || born < b.born || born == b.born && n.Compare(b.name) < 0 {
				best[k] = holder{n, born}
			}
		}
	}
	for k, s := range w.services {
		alone := New(Options{})
		alone.SetService(k, s)
		consider(alone, dataplane.ServiceName(k), s.CreationTimestamp.Unix())
	}
	for k, p := range w.pods {
		alone := New(Options{})
		alone.SetPod(k, p)
		consider(alone, PodServiceName(k), p.CreationTimestamp.Unix())
	}
	want, got := map[string]string{}, map[string]string{}
	for k, h := range best {
		want[k.String()] = h.name.String()
	}
	for n, s := range c.Table().Services {
		for i := range s.Frontends {
			k := s.Frontends[i].FrontendKey.String()
			if got[k] != "" {
				t.Fatalf("%s is in the Table twice: %s and %s", k, got[k], n)
			}
			got[k] = n.String()
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("holders of Frontends (-want +got):\n%s", diff)
	}
}

// failer is what checkTable needs of a rapid.T or testing.T.
type failer interface{ Fatalf(string, ...any) }

// checkTable checks what dataplane's comments promise of every Table.
func checkTable(t failer, table *dataplane.Table, limit int) {
	for n, s := range table.Services {
		if s.Name != n || len(s.Frontends) == 0 {
			t.Fatalf("%v: named %v, %d Frontends", n, s.Name, len(s.Frontends))
		}
		if !slices.IsSortedFunc(s.Frontends, func(a, b dataplane.Frontend) int {
			if a.Kind != b.Kind {
				return int(a.Kind) - int(b.Kind)
			}
			return a.FrontendKey.Compare(b.FrontendKey)
		}) {
			t.Fatalf("%v: Frontends are not sorted", n)
		}
		for i := range s.Frontends {
			checkFrontend(t, &s.Frontends[i], limit)
		}
	}
}

func checkFrontend(t failer, f *dataplane.Frontend, limit int) {
	if f.Port == 0 || !f.Address.IsValid() || f.Address.Is4In6() || f.Address.Zone() != "" || f.AffinitySeconds > 86400 {
		t.Fatalf("bad Frontend %+v", f)
	}
	if f.Kind == dataplane.ClusterIP && !f.Internal.Equal(f.External) {
		t.Fatalf("%v: a ClusterIP with two scopes", f.FrontendKey)
	}
	if !slices.IsSortedFunc(f.SourceRanges, comparePrefixes) || len(f.SourceRanges) > 0 && f.Kind != dataplane.LoadBalancer {
		t.Fatalf("%v: source ranges %v", f.FrontendKey, f.SourceRanges)
	}
	for _, list := range [][]dataplane.Backend{f.Internal.Backends, f.External.Backends, f.Draining} {
		if !slices.IsSortedFunc(list, dataplane.CompareBackends) || len(list) > limit {
			t.Fatalf("%v: Backends unsorted or more than %d: %v", f.FrontendKey, limit, list)
		}
		seen := map[string]bool{}
		for _, b := range list {
			if b.Port == 0 || b.Address.Is4() != f.Address.Is4() || seen[b.AddrPort().String()] {
				t.Fatalf("%v: bad or double Backend %+v", f.FrontendKey, b)
			}
			seen[b.AddrPort().String()] = true
		}
	}
	for _, d := range f.Draining {
		if slices.Contains(f.Internal.Backends, d) || slices.Contains(f.External.Backends, d) {
			t.Fatalf("%v: Backend %v is draining and in a set", f.FrontendKey, d)
		}
	}
}
