// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/dataplane"
)

// The node of these tests. Its NodePorts are on 192.0.2.1 and 2001:db8::1.
func testNode() NodeFacts {
	return NodeFacts{
		Name: "here", Zone: "zone-a",
		Addresses:         addrs("192.0.2.1", "198.51.100.1", "2001:db8::1"),
		NodePortAddresses: addrs("192.0.2.1", "2001:db8::1"),
		PrimaryIPv4:       netip.MustParseAddr("192.0.2.1"),
		PrimaryIPv6:       netip.MustParseAddr("2001:db8::1"),
		StatusAddresses:   addrs("192.0.2.1", "192.0.2.99"), // the second is its external one, on no interface
	}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func ptr[T any](v T) *T { return &v }

func key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

// at is a creationTimestamp: the higher, the younger.
func at(seconds int64) metav1.Time { return metav1.NewTime(time.Unix(1_700_000_000+seconds, 0)) }

// svc makes a Service of type ClusterIP at 10.96.0.1 with port http 80.
func svc(edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1",
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
	}}
	for _, e := range edits {
		e(s)
	}
	return s
}

func clusterIPs(ips ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips }
}

func externalIPs(ips ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ExternalIPs = ips }
}

func nodePort(p int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = p
	}
}

func loadBalancer(ips ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
	}
}

func born(seconds int64) func(*corev1.Service) {
	return func(s *corev1.Service) { s.CreationTimestamp = at(seconds) }
}

func ports(ports ...corev1.ServicePort) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports = ports }
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// eps makes an IPv4 EndpointSlice of Service web with port http 8080.
func eps(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](8080), Protocol: ptr(corev1.ProtocolTCP)}},
		Endpoints:   endpoints,
	}
}

func eps6(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := eps(endpoints...)
	s.AddressType = discoveryv1.AddressTypeIPv6
	return s
}

// ep makes an endpoint with all conditions nil, on another node.
func ep(ip string, edits ...func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: ptr("elsewhere")}
	for _, edit := range edits {
		edit(&e)
	}
	return e
}

func here(e *discoveryv1.Endpoint) { e.NodeName = ptr("here") }

func conditions(ready, serving, terminating *bool) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) {
		e.Conditions = discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}
	}
}

func unready(e *discoveryv1.Endpoint) { conditions(ptr(false), ptr(false), ptr(false))(e) }

func terminating(e *discoveryv1.Endpoint) { conditions(ptr(false), ptr(true), ptr(true))(e) }

func hintZones(zones ...string) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) {
		if e.Hints == nil {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		for _, z := range zones {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
		}
	}
}

func hintNodes(nodes ...string) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) {
		if e.Hints == nil {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		for _, n := range nodes {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
		}
	}
}

// newCompiler is one that knows testNode and whose first Compile is done.
func newCompiler() *Compiler {
	c := New(Options{})
	c.SetNode(testNode())
	c.Compile()
	return c
}

// compileWeb compiles Service default/web with slices web-0, web-1, ...
func compileWeb(s *corev1.Service, slices ...*discoveryv1.EndpointSlice) (*Compiler, Result) {
	c := newCompiler()
	for i, sl := range slices {
		c.SetEndpointSlice(key(fmt.Sprintf("web-%d", i)), sl)
	}
	c.SetService(key("web"), s)
	return c, c.Compile()
}

// render prints a Service of a Table, a line for each Frontend:
//
//	NodePort 192.0.2.1:30080/TCP http masq in[10.244.0.1:8080*] out[drop]
//
// Backends are marked * local, ~ terminating, ^ on the node's own address. in
// and out are the scopes; out is left out where it equals in.
func render(s *dataplane.Service) (lines []string) {
	if s == nil {
		return nil
	}
	for i := range s.Frontends {
		f := &s.Frontends[i]
		line := fmt.Sprintf("%v %v %s", f.Kind, f.FrontendKey, f.PortName)
		if f.AffinitySeconds != 0 {
			line += fmt.Sprintf(" affinity=%d", f.AffinitySeconds)
		}
		if len(f.SourceRanges) > 0 {
			line += fmt.Sprintf(" from%v", f.SourceRanges)
		}
		if f.MasqueradeExternal {
			line += " masq"
		}
		line += " in" + renderSet(f.Internal)
		if out := renderSet(f.External); out != renderSet(f.Internal) {
			line += " out" + out
		}
		if len(f.Draining) > 0 {
			line += " drain" + renderSet(dataplane.BackendSet{Backends: f.Draining})
		}
		lines = append(lines, line)
	}
	return lines
}

func renderSet(s dataplane.BackendSet) string {
	if len(s.Backends) == 0 {
		return map[dataplane.EmptyAction]string{dataplane.Reject: "[reject]", dataplane.Drop: "[drop]"}[s.OnEmpty]
	}
	var list []string
	for _, b := range s.Backends {
		t := b.AddrPort().String()
		if b.Local {
			t += "*"
		}
		if b.State == dataplane.Terminating {
			t += "~"
		}
		if b.HostNetwork {
			t += "^"
		}
		list = append(list, t)
	}
	return "[" + strings.Join(list, " ") + "]"
}

func name(s string) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: "default", Name: s}
}

// wantService checks one Service of the Table.
func wantService(t *testing.T, c *Compiler, service string, want ...string) {
	t.Helper()
	got := render(c.Table().Services[name(service)])
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("Service %s (-want +got):\n%s", service, diff)
	}
}

// wantProblems checks that there is one Problem for each want, "Object: part
// of the reason", and no other.
func wantProblems(t *testing.T, got []Problem, want ...string) {
	t.Helper()
	rest := append([]Problem(nil), got...)
	for _, w := range want {
		obj, part, _ := strings.Cut(w, ": ")
		found := -1
		for i, p := range rest {
			if p.Object == obj && strings.Contains(p.Reason, part) {
				found = i
				break
			}
		}
		if found < 0 {
			t.Errorf("no Problem %q in %q", w, got)
			continue
		}
		rest = append(rest[:found], rest[found+1:]...)
	}
	if len(rest) > 0 {
		t.Errorf("unexpected Problems: %q", rest)
	}
}
