// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestAbsurdValuesAreReportedAndTheRestIsInForce(t *testing.T) {
	c, r := compileWeb(
		svc(nodePort(30080), func(s *corev1.Service) {
			s.Spec.ClusterIPs = []string{"10.96.0.1", "10.96.0.2", "not an address", "fe80::1%eth0"}
			s.Spec.ExternalIPs = []string{"1.2.3.4.5"}
			s.Spec.Ports = append(s.Spec.Ports,
				corev1.ServicePort{Name: "zero", Port: 0},
				corev1.ServicePort{Name: "negative", Port: -80},
				corev1.ServicePort{Name: "huge", Port: 1 << 30},
				corev1.ServicePort{Name: "odd", Port: 81, Protocol: "ICMP"},
				corev1.ServicePort{Name: "np", Port: 82, NodePort: -1},
				corev1.ServicePort{Name: "twin", Port: 80},
			)
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicy("Zone"))
			s.Spec.ExternalTrafficPolicy = "Everywhere"
		}),
		eps(discoveryv1.Endpoint{}, ep(""), ep("10.244.1.300"), ep("127.0.0.1"), ep("0.0.0.0"), ep("169.254.0.1"), ep("224.0.0.1"), ep("10.244.1.1")),
		func() *discoveryv1.EndpointSlice {
			s := eps(ep("10.244.1.2"))
			s.Ports = []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](0)}, {Name: ptr("http"), Port: ptr[int32](65536)}, {Name: ptr("http"), Port: ptr[int32](1), Protocol: ptr(corev1.Protocol("X"))}}
			return s
		}())
	wantService(t, c, "web",
		"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]",
		"ClusterIP 10.96.0.1:82/TCP np masq in[reject]",
		"NodePort 192.0.2.1:30080/TCP http masq in[10.244.1.1:8080]")
	wantProblems(t, r.Problems,
		"Service default/web: clusterIP 10.96.0.2 is the second of its family",
		`Service default/web: clusterIP "not an address" is not an IP address`,
		`Service default/web: clusterIP "fe80::1%eth0" has a zone`,
		`Service default/web: externalIP "1.2.3.4.5"`,
		`Service default/web: port "zero": number 0`,
		`Service default/web: port "negative": number -80`,
		`Service default/web: port "huge"`,
		`Service default/web: protocol "ICMP"`,
		`Service default/web: nodePort -1`,
		`Service default/web: ClusterIP 10.96.0.1:80/TCP: two ports of this object want it`,
		`Service default/web: internalTrafficPolicy "Zone"`,
		`Service default/web: externalTrafficPolicy "Everywhere"`,
		"EndpointSlice default/web-0: without an address",
		`EndpointSlice default/web-0: "" is not an IP address`,
		`EndpointSlice default/web-0: "10.244.1.300"`,
		"EndpointSlice default/web-0: 127.0.0.1 is a loopback",
		"EndpointSlice default/web-0: 0.0.0.0 is unspecified",
		"EndpointSlice default/web-0: 169.254.0.1 is a link-local",
		"EndpointSlice default/web-0: 224.0.0.1 is a multicast",
		`EndpointSlice default/web-1: number 0`,
		`EndpointSlice default/web-1: number 65536`,
		`EndpointSlice default/web-1: protocol "X"`,
	)
	c.SetService(key("web"), nil)
	c.SetEndpointSlice(key("web-0"), nil)
	c.SetEndpointSlice(key("web-1"), nil)
	r = c.Compile()
	wantProblems(t, r.Problems)
	if !r.ProblemsChanged || len(c.owners) != 0 {
		t.Errorf("after all is deleted: ProblemsChanged %v, %d owners", r.ProblemsChanged, len(c.owners))
	}
}

func TestTheProblemsOfOneObjectAreBounded(t *testing.T) {
	s := svc()
	for i := range 5000 {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: -1})
	}
	s.Spec.ExternalIPs = []string{strings.Repeat("9", 1<<20)}
	_, r := compileWeb(s)
	size := 0
	for _, p := range r.Problems {
		size += len(p.Reason)
	}
	if len(r.Problems) != maxReasons+1 || size > 4096 {
		t.Errorf("%d Problems of %d bytes", len(r.Problems), size)
	}
}

func TestAServiceWithTooManyFrontendsIsCutAndReported(t *testing.T) {
	c := New(Options{MaxFrontendsPerService: 3})
	c.SetNode(testNode())
	s := svc(nodePort(30000))
	for i := range int32(4) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: 1000 + i, NodePort: 30001 + i})
	}
	c.SetService(key("web"), s)
	r := c.Compile()
	wantService(t, c, "web",
		"ClusterIP 10.96.0.1:80/TCP http masq in[reject]",
		"ClusterIP 10.96.0.1:1000/TCP p0 masq in[reject]",
		"ClusterIP 10.96.0.1:1001/TCP p1 masq in[reject]")
	wantProblems(t, r.Problems, "Service default/web: more than 3 Frontends; 7 are left out")
}
