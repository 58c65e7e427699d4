// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/dataplane"
)

func TestTheOldestServiceHasAContestedFrontend(t *testing.T) {
	c := newCompiler()
	c.SetService(key("young"), svc(clusterIPs("10.96.0.2"), externalIPs("203.0.113.7"), born(20)))
	c.Compile()
	c.SetService(key("old"), svc(clusterIPs("10.96.0.3"), externalIPs("203.0.113.7"), born(10)))
	r := c.Compile()
	old := []string{"ClusterIP 10.96.0.3:80/TCP http masq in[reject]", "ExternalIP 203.0.113.7:80/TCP http masq in[reject]"}
	wantService(t, c, "old", old...)
	wantService(t, c, "young", "ClusterIP 10.96.0.2:80/TCP http masq in[reject]")
	wantProblems(t, r.Problems, "Service default/young: ExternalIP 203.0.113.7:80/TCP is held by Service default/old")
	if len(r.Change.Services) != 2 {
		t.Errorf("Change has %d Services, want both", len(r.Change.Services))
	}

	c.SetService(key("third"), svc(clusterIPs("10.96.0.4"), externalIPs("203.0.113.7"), born(5)))
	wantProblems(t, c.Compile().Problems,
		"Service default/young: is held by Service default/third", "Service default/old: is held by Service default/third")

	c.SetService(key("third"), nil)
	c.SetService(key("old"), nil)
	r = c.Compile()
	wantService(t, c, "young", "ClusterIP 10.96.0.2:80/TCP http masq in[reject]", "ExternalIP 203.0.113.7:80/TCP http masq in[reject]")
	wantProblems(t, r.Problems)
	if len(c.claims.contested) != 0 || len(c.claims.winner) != 2 {
		t.Errorf("claims left: %d contested, %d won", len(c.claims.contested), len(c.claims.winner))
	}
}

func TestServicesOfOneAgeAreRankedByName(t *testing.T) {
	c := newCompiler()
	for _, n := range []string{"c", "a", "b"} {
		c.SetService(key(n), svc(born(7)))
	}
	r := c.Compile()
	wantService(t, c, "a", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
	wantService(t, c, "b")
	wantService(t, c, "c")
	wantProblems(t, r.Problems, "Service default/b: held by Service default/a", "Service default/c: held by Service default/a")
}

func TestARecreatedServiceLosesItsAge(t *testing.T) {
	c := newCompiler()
	c.SetService(key("a"), svc(born(10)))
	c.SetService(key("b"), svc(born(20)))
	c.Compile()
	c.SetService(key("a"), svc(born(30)))
	c.Compile()
	wantService(t, c, "a")
	wantService(t, c, "b", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
}

func TestDifferentPortsAndProtocolsDoNotConflict(t *testing.T) {
	c := newCompiler()
	c.SetService(key("a"), svc(externalIPs("203.0.113.7"), clusterIPs("10.96.0.2")))
	c.SetService(key("b"), svc(externalIPs("203.0.113.7"), clusterIPs("10.96.0.3"), ports(corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolUDP})))
	c.SetService(key("c"), svc(externalIPs("203.0.113.7"), clusterIPs("10.96.0.4"), ports(corev1.ServicePort{Name: "http", Port: 81})))
	wantProblems(t, c.Compile().Problems)
}

func TestNodePortsCollideToo(t *testing.T) {
	c := newCompiler()
	c.SetService(key("a"), svc(clusterIPs("10.96.0.2"), nodePort(30080), born(2)))
	c.SetService(key("b"), svc(clusterIPs("10.96.0.3"), nodePort(30080), born(1)))
	r := c.Compile()
	wantService(t, c, "a", "ClusterIP 10.96.0.2:80/TCP http masq in[reject]")
	wantProblems(t, r.Problems, "Service default/a: NodePort 192.0.2.1:30080/TCP is held by Service default/b")
}

func TestNoServiceClaimsTheNodeOrLoopback(t *testing.T) {
	for _, ip := range []string{"192.0.2.1", "192.0.2.99", "127.0.0.1", "127.9.9.9", "0.0.0.0", "224.0.0.1", "255.255.255.255"} {
		t.Run(ip, func(t *testing.T) {
			c, r := compileWeb(svc(externalIPs(ip)))
			wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
			wantProblems(t, r.Problems, "Service default/web: ExternalIP "+ip+" is")
			c, r = compileWeb(svc(loadBalancer(ip)))
			wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
			wantProblems(t, r.Problems, "Service default/web: LoadBalancer "+ip+" is")
			c, r = compileWeb(svc(clusterIPs(ip)))
			wantService(t, c, "web")
			wantProblems(t, r.Problems, "Service default/web: ClusterIP "+ip+" is")
		})
	}
	c, r := compileWeb(svc(clusterIPs("10.96.0.1", "fd00:96::1"), externalIPs("2001:db8::1", "::1", "::ffff:127.0.0.1", "fe80::1", "169.254.1.1", "ff02::1")))
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]", "ClusterIP [fd00:96::1]:80/TCP http masq in[reject]")
	if len(r.Problems) != 6 {
		t.Errorf("Problems %q, want one for each of 6 addresses", r.Problems)
	}
}

func TestAnAddressThatBecomesTheNodesIsTakenFromTheService(t *testing.T) {
	c, _ := compileWeb(svc(externalIPs("203.0.113.7")))
	node := testNode()
	node.StatusAddresses = append(node.StatusAddresses, netip.MustParseAddr("203.0.113.7"))
	c.SetNode(node)
	r := c.Compile()
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
	wantProblems(t, r.Problems, "Service default/web: ExternalIP 203.0.113.7 is an address of this node")
	c.SetNode(testNode())
	wantProblems(t, c.Compile().Problems)
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]", "ExternalIP 203.0.113.7:80/TCP http masq in[reject]")
}

func TestAVIPThatAnInterfaceHoldsIsTheServices(t *testing.T) {
	c, r := compileWeb(svc(loadBalancer("198.51.100.1"), externalIPs("198.51.100.1"))) // one of testNode's Addresses
	wantProblems(t, r.Problems)
	if s := c.Table().Services[dataplane.ServiceName{Namespace: "default", Name: "web"}]; len(s.Frontends) != 2 {
		t.Errorf("Frontends %+v, want the ClusterIP's and the VIP's", s.Frontends)
	}
}

func TestAClusterIPThatAnInterfaceHoldsStaysTheServices(t *testing.T) {
	c, _ := compileWeb(svc())
	node := testNode()
	node.Addresses = append(node.Addresses, netip.MustParseAddr("10.96.0.1"))
	node.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	c.SetNode(node)
	wantProblems(t, c.Compile().Problems)
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
}
