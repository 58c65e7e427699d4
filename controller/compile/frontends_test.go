// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestEachFieldOfAServiceMakesItsFrontends(t *testing.T) {
	slices := []*discoveryv1.EndpointSlice{eps(ep("10.244.1.1")), eps6(ep("fd00:1::1"))}
	for _, tc := range []struct {
		name     string
		service  *corev1.Service
		want     []string
		problems []string
	}{
		{
			name:    "clusterIP alone counts where clusterIPs is empty",
			service: svc(),
			want:    []string{"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]"},
		}, {
			name:    "dual stack has a ClusterIP and Backends of each family",
			service: svc(clusterIPs("10.96.0.1", "fd00:96::1")),
			want: []string{
				"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]",
				"ClusterIP [fd00:96::1]:80/TCP http masq in[[fd00:1::1]:8080]",
			},
		}, {
			name:    "an IPv6-only Service has no IPv4 NodePort",
			service: svc(clusterIPs("fd00:96::1"), nodePort(30080)),
			want: []string{
				"ClusterIP [fd00:96::1]:80/TCP http masq in[[fd00:1::1]:8080]",
				"NodePort [2001:db8::1]:30080/TCP http masq in[[fd00:1::1]:8080]",
			},
		}, {
			name:    "a NodePort is at every chosen address of the Service's families",
			service: svc(clusterIPs("10.96.0.1", "fd00:96::1"), nodePort(30080)),
			want: []string{
				"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]",
				"ClusterIP [fd00:96::1]:80/TCP http masq in[[fd00:1::1]:8080]",
				"NodePort 192.0.2.1:30080/TCP http masq in[10.244.1.1:8080]",
				"NodePort [2001:db8::1]:30080/TCP http masq in[[fd00:1::1]:8080]",
			},
		}, {
			name:    "externalIPs of a family without clusterIP are reported",
			service: svc(externalIPs("203.0.113.7", "2001:db8:7::7", "203.0.113.7", "")),
			want: []string{
				"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]",
				"ExternalIP 203.0.113.7:80/TCP http masq in[10.244.1.1:8080]",
			},
			problems: []string{"Service default/web: externalIP 2001:db8:7::7 is of a family"},
		}, {
			name: "ingress IPs make LoadBalancer Frontends unless ipMode is Proxy",
			service: svc(loadBalancer("203.0.113.1", "203.0.113.2", "203.0.113.3"), func(s *corev1.Service) {
				in := s.Status.LoadBalancer.Ingress
				in[1].IPMode = ptr(corev1.LoadBalancerIPModeProxy)
				in[2].IPMode = ptr(corev1.LoadBalancerIPModeVIP)
				s.Status.LoadBalancer.Ingress = append(in, corev1.LoadBalancerIngress{Hostname: "lb.example"})
			}),
			want: []string{
				"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]",
				"LoadBalancer 203.0.113.1:80/TCP http masq in[10.244.1.1:8080]",
				"LoadBalancer 203.0.113.3:80/TCP http masq in[10.244.1.1:8080]",
			},
		}, {
			name:    "a load balancer without nodePort has none",
			service: svc(loadBalancer()),
			want:    []string{"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]"},
		}, {
			name: "nodePort and ingress of a type that has none are not used",
			service: svc(nodePort(30080), loadBalancer("203.0.113.1"), func(s *corev1.Service) {
				s.Spec.Type = corev1.ServiceTypeClusterIP
			}),
			want: []string{"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]"},
		}, {
			name:    "an address that is ingress and externalIP is a LoadBalancer Frontend",
			service: svc(loadBalancer("203.0.113.1"), externalIPs("203.0.113.1")),
			want: []string{
				"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]",
				"LoadBalancer 203.0.113.1:80/TCP http masq in[10.244.1.1:8080]",
			},
		}, {
			name: "the same port number may have several protocols",
			service: svc(ports(
				corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
				corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
				corev1.ServicePort{Name: "assoc", Port: 53, Protocol: corev1.ProtocolSCTP},
			)),
			want: []string{
				"ClusterIP 10.96.0.1:53/TCP dns-tcp masq in[reject]",
				"ClusterIP 10.96.0.1:53/UDP dns masq in[reject]",
				"ClusterIP 10.96.0.1:53/SCTP assoc masq in[reject]",
			},
		}, {
			name:    "clusterIPs with leading zeros of old objects are decimal",
			service: svc(clusterIPs("010.096.000.001")),
			want:    []string{"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := compileWeb(tc.service, slices...)
			wantService(t, c, "web", tc.want...)
			wantProblems(t, r.Problems, tc.problems...)
		})
	}
}

func TestServicesOfNobodyOrOfAnotherProxyAreIgnored(t *testing.T) {
	for title, edit := range map[string]func(*corev1.Service){
		"headless":                  clusterIPs("None"),
		"no clusterIP yet":          clusterIPs(""),
		"ExternalName":              func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName },
		"another proxy's":           func(s *corev1.Service) { s.Labels = map[string]string{labelServiceProxyName: "other"} },
		"another proxy's, empty":    func(s *corev1.Service) { s.Labels = map[string]string{labelServiceProxyName: ""} },
		"labelled headless, any":    func(s *corev1.Service) { s.Labels = map[string]string{labelHeadless: "x"} },
		"labelled headless, empty ": func(s *corev1.Service) { s.Labels = map[string]string{labelHeadless: ""} },
	} {
		t.Run(title, func(t *testing.T) {
			c, r := compileWeb(svc(nodePort(30080), edit), eps(ep("10.244.1.1")))
			wantService(t, c, "web")
			wantProblems(t, r.Problems)

			// and one that becomes so later goes away, and comes back.
			c.SetService(key("web"), svc())
			c.Compile()
			c.SetService(key("web"), svc(edit))
			if got, ok := c.Compile().Change.Services[name("web")]; !ok || got != nil {
				t.Errorf("Change has (%v, %v), want the Service removed", got, ok)
			}
			c.SetService(key("web"), svc())
			c.Compile()
			wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]")
		})
	}
}

func TestTypeChangesInEveryDirection(t *testing.T) {
	cluster := "ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080]"
	node := "NodePort 192.0.2.1:30080/TCP http masq in[10.244.1.1:8080]"
	lb := "LoadBalancer 203.0.113.1:80/TCP http masq in[10.244.1.1:8080]"
	kinds := map[string]struct {
		service *corev1.Service
		want    []string
	}{
		"ClusterIP":    {svc(), []string{cluster}},
		"NodePort":     {svc(nodePort(30080)), []string{cluster, node}},
		"LoadBalancer": {svc(nodePort(30080), loadBalancer("203.0.113.1")), []string{cluster, node, lb}},
		"ExternalName": {svc(clusterIPs(""), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }), nil},
		"headless":     {svc(clusterIPs("None")), nil},
		"deleted":      {nil, nil},
	}
	for from, a := range kinds {
		for to, b := range kinds {
			t.Run(from+" to "+to, func(t *testing.T) {
				c, _ := compileWeb(a.service, eps(ep("10.244.1.1")))
				wantService(t, c, "web", a.want...)
				c.SetService(key("web"), b.service)
				c.Compile()
				wantService(t, c, "web", b.want...)
				if n := len(c.claims.winner); n != len(b.want) {
					t.Errorf("%d claims for %d Frontends", n, len(b.want))
				}
			})
		}
	}
}

func TestAffinityFollowsTheServiceAndChangesLive(t *testing.T) {
	with := func(timeout *int32) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: timeout}}
		}
	}
	c := newCompiler()
	for _, step := range []struct {
		service *corev1.Service
		want    string
		problem []string
	}{
		{svc(), " masq in[reject]", nil},
		{svc(with(ptr[int32](10))), " affinity=10 masq in[reject]", nil},
		{svc(with(ptr[int32](86400))), " affinity=86400 masq in[reject]", nil},
		{svc(with(nil)), " affinity=10800 masq in[reject]", nil},
		{svc(with(nil), func(s *corev1.Service) { s.Spec.SessionAffinityConfig = nil }), " affinity=10800 masq in[reject]", nil},
		{svc(with(ptr[int32](0))), " affinity=10800 masq in[reject]", []string{"Service default/web: timeoutSeconds 0 is not in"}},
		{svc(with(ptr[int32](86401))), " affinity=10800 masq in[reject]", []string{"Service default/web: timeoutSeconds 86401"}},
		{svc(func(s *corev1.Service) { s.Spec.SessionAffinity = "Cookie" }), " masq in[reject]", []string{"Service default/web: sessionAffinity \"Cookie\""}},
		{svc(func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityNone }), " masq in[reject]", nil},
	} {
		c.SetService(key("web"), step.service)
		r := c.Compile()
		wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http"+step.want)
		wantProblems(t, r.Problems, step.problem...)
	}
}

func TestSourceRangesLimitLoadBalancerFrontendsOnly(t *testing.T) {
	ranges := func(list ...string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = list }
	}
	annotation := func(v string) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: v}
		}
	}
	for _, tc := range []struct {
		name          string
		edit          func(*corev1.Service)
		want4, want6  string
		problemOrNone []string
	}{
		{"none allows all", ranges(), "", "", nil},
		{"padded, unmasked and double ones", ranges(" 10.1.2.3/8 ", "10.0.0.0/8", "172.16.0.0/12"), " from[10.0.0.0/8 172.16.0.0/12]", "", nil},
		{"each family has its own", ranges("10.0.0.0/8", "fd00::/8"), " from[10.0.0.0/8]", " from[fd00::/8]", nil},
		{"a zero range allows its family", ranges("0.0.0.0/0", "10.0.0.0/8", "fd00::/8"), "", " from[fd00::/8]", nil},
		{"a range with a node address allows the load balancer's too", ranges("192.0.2.0/24"), " from[192.0.2.0/24 203.0.113.1/32]", "", nil},
		{"the same in IPv6", ranges("2001:db8::/64"), "", " from[2001:db8::/64 2001:db8:1::1/128]", nil},
		{"the annotation counts where the field is empty", annotation("10.0.0.0/8, fd00::/8"), " from[10.0.0.0/8]", " from[fd00::/8]", nil},
		{"the field hides the annotation", func(s *corev1.Service) { annotation("10.0.0.0/8")(s); ranges("172.16.0.0/12")(s) }, " from[172.16.0.0/12]", "", nil},
		{"an invalid one is left out", ranges("10.0.0.0/8", "10.0.0.0/40"), " from[10.0.0.0/8]", "", []string{"Service default/web: \"10.0.0.0/40\" is not a CIDR"}},
		{"only invalid ones allow all", ranges("nonsense"), "", "", []string{"Service default/web: \"nonsense\" is not a CIDR"}},
		{"an IPv4-mapped one is IPv4", ranges("::ffff:10.0.0.0/104"), " from[10.0.0.0/8]", "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := compileWeb(svc(clusterIPs("10.96.0.1", "fd00:96::1"), nodePort(30080), loadBalancer("203.0.113.1", "2001:db8:1::1"), tc.edit))
			wantService(t, c, "web",
				"ClusterIP 10.96.0.1:80/TCP http masq in[reject]",
				"ClusterIP [fd00:96::1]:80/TCP http masq in[reject]",
				"NodePort 192.0.2.1:30080/TCP http masq in[reject]",
				"NodePort [2001:db8::1]:30080/TCP http masq in[reject]",
				"LoadBalancer 203.0.113.1:80/TCP http"+tc.want4+" masq in[reject]",
				"LoadBalancer [2001:db8:1::1]:80/TCP http"+tc.want6+" masq in[reject]",
			)
			wantProblems(t, r.Problems, tc.problemOrNone...)
		})
	}
}
