// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
)

// kube is a Service with its endpoints as an author thinks of them, and what
// Kubernetes documents for it: nothing here knows a Table.
type kube struct {
	kind                         corev1.ServiceType
	externalLocal, internalLocal bool
	ranges                       []string
	endpoints                    []kubeEndpoint
}

type kubeEndpoint struct {
	last                        int // of its address
	here                        bool
	ready, serving, terminating bool
}

func (e kubeEndpoint) address() netip.Addr {
	node := byte(2)
	if e.here {
		node = 1
	}
	return netip.AddrFrom4([4]byte{10, 244, node, byte(10 + e.last)})
}

func drawKube(t *rapid.T) kube {
	k := kube{
		kind:          rapid.SampledFrom([]corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer}).Draw(t, "type"),
		externalLocal: rapid.Bool().Draw(t, "externalTrafficPolicy Local"),
		internalLocal: rapid.Bool().Draw(t, "internalTrafficPolicy Local"),
	}
	if rapid.Bool().Draw(t, "ranged") {
		k.ranges = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"192.0.2.100/32", "10.244.0.0/16", "203.0.113.0/24"}), 1, 2, rapid.ID[string]).Draw(t, "ranges")
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		k.endpoints = append(k.endpoints, kubeEndpoint{
			last: i, here: rapid.Bool().Draw(t, "here"), ready: rapid.Bool().Draw(t, "ready"),
			serving: rapid.Bool().Draw(t, "serving"), terminating: rapid.Bool().Draw(t, "terminating"),
		})
	}
	return k
}

const (
	kubeClusterIP, kubeVIP = "10.96.0.10", "198.51.100.1"
	kubePort, kubeNodePort = 80, 30080
)

// compiled is the Table of this node.
func (k kube) compiled() *dataplane.Table {
	c := compile.New(compile.Options{})
	c.SetNode(compile.NodeFacts{
		Name: "node1", Addresses: []netip.Addr{nodeClient}, NodePortAddresses: []netip.Addr{nodeClient}, PrimaryIPv4: nodeClient,
		InternalSources: devicesDecide().InternalSources,
	})
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
		Type: k.kind, ClusterIP: kubeClusterIP, ClusterIPs: []string{kubeClusterIP}, LoadBalancerSourceRanges: k.ranges,
		Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: kubePort}},
	}}
	if k.kind != corev1.ServiceTypeClusterIP {
		s.Spec.Ports[0].NodePort = kubeNodePort
	}
	if k.kind == corev1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: kubeVIP}}
	}
	if k.externalLocal {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if k.internalLocal {
		local := corev1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = &local
	}
	c.SetService(name, s)
	port, protocol, empty := int32(8080), corev1.ProtocolTCP, ""
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &empty, Port: &port, Protocol: &protocol}},
	}
	for _, e := range k.endpoints {
		node := "node2"
		if e.here {
			node = "node1"
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{e.address().String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &e.ready, Serving: &e.serving, Terminating: &e.terminating},
		})
	}
	c.SetEndpointSlice(types.NamespacedName{Namespace: "default", Name: slice.Name}, slice)
	c.Compile()
	return c.Table()
}

// expected is what Kubernetes' documentation says of a client of a Frontend.
func (k kube) expected(kind dataplane.Kind, client netip.Addr, internal bool) (o Outcome, reason string, reached []netip.Addr) {
	if kind == dataplane.LoadBalancer && len(k.ranges) > 0 && !slices.ContainsFunc(k.ranges, func(r string) bool { return netip.MustParsePrefix(r).Contains(client) }) {
		return Dropped, "source_range", nil
	}
	local := k.externalLocal && !internal
	if kind == dataplane.ClusterIP {
		local = k.internalLocal
	}
	var ready, leaving []netip.Addr
	exists := false
	for _, e := range k.endpoints {
		usable := e.ready || e.serving && e.terminating
		exists = exists || usable
		switch {
		case !usable || local && !e.here:
		case e.ready:
			ready = append(ready, e.address())
		default:
			leaving = append(leaving, e.address())
		}
	}
	if len(ready) == 0 {
		ready = leaving
	}
	switch {
	case len(ready) > 0:
		slices.SortFunc(ready, netip.Addr.Compare)
		return Forwarded, "", ready
	case kind != dataplane.ClusterIP && local && exists:
		return Dropped, "no_local_backends", nil
	}
	return Refused, "no_backends", nil
}

func TestAnswersAreWhatKubernetesDocuments(t *testing.T) {
	places := map[string]struct {
		origin   Origin
		client   netip.Addr
		internal bool
	}{
		"pod here":    {FromPod, podClient, true},
		"node":        {FromNode, nodeClient, true},
		"pod there":   {FromOutside, netip.MustParseAddr("10.244.2.77"), true},
		"far":         {FromOutside, outClient, false},
		"another far": {FromOutside, netip.MustParseAddr("203.0.113.9"), false},
	}
	rapid.Check(t, func(t *rapid.T) {
		k := drawKube(t)
		table := k.compiled()
		place := places[rapid.SampledFrom(slices.Sorted(maps.Keys(places))).Draw(t, "place")]
		rules := rapid.SampledFrom([]func() dataplane.Rules{devicesDecide, sourcesDecide}).Draw(t, "rules")()
		for name, s := range table.Services {
			for i := range s.Frontends {
				f := &s.Frontends[i]
				a := Judge(Question{Client: place.client, To: f.FrontendKey}, Facts{
					Inspection: &dataplane.Inspection{Frontend: f, Service: name, Rules: rules}, Origin: place.origin, Device: "eth0",
				})
				o, reason, reached := k.expected(f.Kind, place.client, place.internal)
				if a.Outcome != o || a.Reason != reason {
					t.Fatalf("%s %s from %s: %s %s, want %s %s: %+v", f.Kind, f.FrontendKey, place.client, a.Outcome, a.Reason, o, reason, a.Because)
				}
				if got := shares(t, a); !slices.Equal(got, reached) {
					t.Fatalf("%s %s from %s reaches %v, want %v", f.Kind, f.FrontendKey, place.client, got, reached)
				}
				if place.internal == (a.Scope == "external") {
					t.Fatalf("%s is %s", place.client, a.Scope)
				}
				for _, b := range a.Backends {
					if err := k.source(&b, f.Kind, place.origin, place.internal); err != nil {
						t.Fatalf("%s %s from %s: %v", f.Kind, f.FrontendKey, place.client, err)
					}
				}
			}
		}
	})
}

// shares are the Backends that have one, which must be equal and make one.
func shares(t *rapid.T, a Answer) (out []netip.Addr) {
	sum := 0.0
	for _, b := range a.Backends {
		if b.Share > 0 {
			out = append(out, b.Address)
			sum += b.Share
		}
		if (b.Share > 0) != (b.Source != nil) {
			t.Fatalf("Backend %s: share %v, source %v", b.Address, b.Share, b.Source)
		}
	}
	for _, b := range a.Backends {
		if b.Share > 0 && cmp.Compare(b.Share, 1/float64(len(out))) != 0 {
			t.Fatalf("Backend %s of %d: share %v", b.Address, len(out), b.Share)
		}
	}
	if len(out) > 0 && (sum < 0.999 || sum > 1.001) {
		t.Fatalf("shares make %v", sum)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// source: whoever is in the cluster keeps its address, unless it came in by an
// uplink and goes out again; who is not keeps it under Local alone.
func (k kube) source(b *Backend, kind dataplane.Kind, from Origin, internal bool) error {
	if b.Source == nil {
		return nil
	}
	want := !internal && (kind == dataplane.ClusterIP || !k.externalLocal) || from == FromOutside && !b.Local
	if b.Source.Masquerade != want {
		return fmt.Errorf("%s sees %+v, want SNAT %v", b.Address, b.Source, want)
	}
	return nil
}
