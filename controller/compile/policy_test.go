// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

func prefixesOf(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestThePolicyDecidesWhichAddressesServicesClaim(t *testing.T) {
	const (
		clusterIP = "ClusterIP 10.96.0.1:80/TCP http masq in[reject]"
		external  = "ExternalIP 203.0.113.7:80/TCP http masq in[reject]"
		ingress   = "LoadBalancer 203.0.113.1:80/TCP http masq in[reject]"
	)
	service := svc(loadBalancer("203.0.113.1"), externalIPs("203.0.113.7"))
	for _, c := range []struct {
		name     string
		opts     Options
		want     []string
		problems []string
	}{
		{"by default all", Options{}, []string{clusterIP, external, ingress}, nil},
		{"no external IPs", Options{ExternalIPs: AddressPolicy{Deny: true}}, []string{clusterIP, ingress},
			[]string{"Service default/web: ExternalIP 203.0.113.7 is not among those"}},
		{"no load balancers", Options{LoadBalancerIPs: AddressPolicy{Deny: true}}, []string{clusterIP, external},
			[]string{"Service default/web: LoadBalancer 203.0.113.1 is not among those"}},
		{"ranges with it", Options{ExternalIPs: AddressPolicy{Only: prefixesOf("198.51.100.0/24", "203.0.113.4/30")}}, []string{clusterIP, external, ingress}, nil},
		{"ranges without it", Options{ExternalIPs: AddressPolicy{Only: prefixesOf("198.51.100.0/24", "::/0")}}, []string{clusterIP, ingress},
			[]string{"Service default/web: ExternalIP 203.0.113.7 is not among those"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			compiler := New(c.opts)
			compiler.SetNode(testNode())
			compiler.SetService(key("web"), service)
			r := compiler.Compile()
			wantService(t, compiler, "web", c.want...)
			wantProblems(t, r.Problems, c.problems...)
		})
	}
}

// An address that is denied as externalIP is not claimed by way of it, but what
// the load balancer's controller gave stays.
func TestTheKindsHavePoliciesOfTheirOwn(t *testing.T) {
	c := New(Options{ExternalIPs: AddressPolicy{Deny: true}})
	c.SetNode(testNode())
	c.SetService(key("web"), svc(loadBalancer("203.0.113.1"), externalIPs("203.0.113.1")))
	c.Compile()
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]", "LoadBalancer 203.0.113.1:80/TCP http masq in[reject]")
}

// Whatever Services say, and whatever the policy allows, no address of the node
// and none of loopback becomes a Frontend that a Service chose.
func TestNodeAddressesAndLoopbackAreNeverClaimed(t *testing.T) {
	node := testNode()
	kept := append(slices.Clone(node.StatusAddresses), node.PrimaryIPv4, node.PrimaryIPv6)
	spellings := []string{
		"192.0.2.1", "192.0.2.99", "2001:db8::1", "::ffff:192.0.2.1", "::ffff:c000:201", "192.000.002.001", "2001:DB8:0:0::1",
		"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "0127.0.0.1",
		"203.0.113.7", "2001:db8:7::7", "198.51.100.1",
	}
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(label string) []string {
			return rapid.SliceOfN(rapid.SampledFrom(spellings), 0, 6).Draw(rt, label)
		}
		policies := rapid.SampledFrom([]AddressPolicy{{}, {Deny: true}, {Only: prefixesOf("0.0.0.0/0", "::/0")}, {Only: prefixesOf("127.0.0.0/8", "192.0.2.0/24")}})
		c := New(Options{ExternalIPs: policies.Draw(rt, "external"), LoadBalancerIPs: policies.Draw(rt, "balancer")})
		c.SetNode(node)
		s := svc(clusterIPs("10.96.0.1", "fd00::1"), loadBalancer(draw("ingress")...), externalIPs(draw("externalIPs")...))
		s.Spec.Ports[0].Port = rapid.SampledFrom([]int32{22, 80, 6443, 10250}).Draw(rt, "port")
		if rapid.Bool().Draw(rt, "clusterIP too") {
			s.Spec.ClusterIP = rapid.SampledFrom(spellings).Draw(rt, "clusterIP")
			s.Spec.ClusterIPs = nil
		}
		s.Spec.Type = rapid.SampledFrom([]corev1.ServiceType{"ClusterIP", "NodePort", "LoadBalancer"}).Draw(rt, "type")
		c.SetService(key("web"), s)
		c.Compile()
		for _, f := range serviceFrontends(c) {
			if f.Address.IsLoopback() || f.Address.IsUnspecified() || slices.Contains(kept, f.Address) {
				rt.Fatalf("%v %v is a Frontend of a Service that says %+v", f.Kind, f.FrontendKey, s.Spec)
			}
		}
	})
}

func serviceFrontends(c *Compiler) []dataplane.Frontend {
	if s := c.Table().Services[name("web")]; s != nil {
		return s.Frontends
	}
	return nil
}
