// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestConditionsDecideTheStateOfABackend(t *testing.T) {
	yes, no := ptr(true), ptr(false)
	for _, tc := range []struct {
		ready, serving, terminating *bool
		want                        string
	}{
		{nil, nil, nil, "[10.244.1.1:8080]"},
		{yes, yes, no, "[10.244.1.1:8080]"},
		{yes, nil, nil, "[10.244.1.1:8080]"},
		{no, yes, no, "[reject]"}, // not terminating, so serving has no say
		{no, no, no, "[reject]"},
		{no, yes, yes, "[10.244.1.1:8080~]"},
		{no, no, yes, "[reject]"},
		{no, nil, yes, "[10.244.1.1:8080~]"}, // nil serving is true
		{no, yes, nil, "[reject]"},           // nil terminating is false
		{no, nil, nil, "[reject]"},
		// publishNotReadyAddresses: the controller says ready, whatever else.
		{yes, no, yes, "[10.244.1.1:8080]"},
		{yes, no, no, "[10.244.1.1:8080]"},
	} {
		title := fmt.Sprintf("ready %s serving %s terminating %s", show(tc.ready), show(tc.serving), show(tc.terminating))
		t.Run(title, func(t *testing.T) {
			c, _ := compileWeb(svc(), eps(ep("10.244.1.1", conditions(tc.ready, tc.serving, tc.terminating))))
			wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in"+tc.want)
		})
	}
}

func show(b *bool) string {
	if b == nil {
		return "nil"
	}
	return fmt.Sprint(*b)
}

func TestTrafficPoliciesChooseTheBackendsOfEachScope(t *testing.T) {
	for _, tc := range []struct {
		name      string
		edit      func(*corev1.Service)
		endpoints []discoveryv1.Endpoint
		cluster   string
		nodePort  string
		noLocal   [2]int
	}{
		{
			name:      "Cluster and Cluster use all",
			edit:      func(*corev1.Service) {},
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here), ep("10.244.2.1")},
			cluster:   "masq in[10.244.1.1:8080* 10.244.2.1:8080]",
			nodePort:  "masq in[10.244.1.1:8080* 10.244.2.1:8080]",
		}, {
			name:      "internal Local is for ClusterIP alone",
			edit:      internalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here), ep("10.244.2.1")},
			cluster:   "masq in[10.244.1.1:8080*] drain[10.244.2.1:8080]",
			nodePort:  "masq in[10.244.1.1:8080* 10.244.2.1:8080]",
		}, {
			name:      "internal Local without a local endpoint rejects",
			edit:      internalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.2.1")},
			cluster:   "masq in[reject] drain[10.244.2.1:8080]",
			nodePort:  "masq in[10.244.2.1:8080]",
			noLocal:   [2]int{1, 0},
		}, {
			name:      "external Local keeps the source and leaves clients inside alone",
			edit:      externalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here), ep("10.244.2.1")},
			cluster:   "masq in[10.244.1.1:8080* 10.244.2.1:8080]",
			nodePort:  "in[10.244.1.1:8080* 10.244.2.1:8080] out[10.244.1.1:8080*]",
		}, {
			name:      "external Local with endpoints elsewhere only drops",
			edit:      externalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.2.1")},
			cluster:   "masq in[10.244.2.1:8080]",
			nodePort:  "in[10.244.2.1:8080] out[drop]",
			noLocal:   [2]int{0, 1},
		}, {
			name:      "external Local with no endpoint at all rejects",
			edit:      externalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here, unready)},
			cluster:   "masq in[reject]",
			nodePort:  "in[reject]",
		}, {
			name:      "each policy falls back to terminating endpoints by itself",
			edit:      func(s *corev1.Service) { internalLocal(s); externalLocal(s) },
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here, terminating), ep("10.244.2.1")},
			cluster:   "masq in[10.244.1.1:8080*~] drain[10.244.2.1:8080]",
			nodePort:  "in[10.244.2.1:8080 10.244.1.1:8080*~] out[10.244.1.1:8080*~]",
		}, {
			name:      "endpoints elsewhere that are terminating still make external Local drop",
			edit:      externalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.2.1", terminating)},
			cluster:   "masq in[10.244.2.1:8080~]",
			nodePort:  "in[10.244.2.1:8080~] out[drop]",
			noLocal:   [2]int{0, 1},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := compileWeb(svc(nodePort(30080), externalIPs("203.0.113.7"), tc.edit), eps(tc.endpoints...))
			wantService(t, c, "web",
				squeeze("ClusterIP 10.96.0.1:80/TCP http "+tc.cluster),
				squeeze("NodePort 192.0.2.1:30080/TCP http "+tc.nodePort),
				squeeze("ExternalIP 203.0.113.7:80/TCP http "+tc.nodePort))
			if got := [2]int{r.NoLocalEndpoints[0], r.NoLocalEndpoints[1]}; got != tc.noLocal {
				t.Errorf("NoLocalEndpoints = %v, want %v", got, tc.noLocal)
			}
			c.SetService(key("web"), nil)
			if r := c.Compile(); r.NoLocalEndpoints[0]+r.NoLocalEndpoints[1] != 0 {
				t.Errorf("NoLocalEndpoints = %v after the Service is gone", r.NoLocalEndpoints)
			}
		})
	}
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestHintsNarrowTheClusterPolicyOnlyWhereTheyAreWhole(t *testing.T) {
	for _, tc := range []struct {
		name      string
		zone      string
		edit      func(*corev1.Service)
		endpoints []discoveryv1.Endpoint
		want      string
	}{
		{
			name: "zone hints", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", hintZones("zone-a")), ep("10.244.2.1", hintZones("zone-b")), ep("10.244.3.1", hintZones("zone-b", "zone-a"))},
			want:      "in[10.244.1.1:8080 10.244.3.1:8080] drain[10.244.2.1:8080]",
		}, {
			name: "one ready endpoint without a hint voids them", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", hintZones("zone-a")), ep("10.244.2.1")},
			want:      "in[10.244.1.1:8080 10.244.2.1:8080]",
		}, {
			name: "an unready or terminating one without a hint does not", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", hintZones("zone-a")), ep("10.244.2.1", unready), ep("10.244.3.1", terminating), ep("10.244.4.1", hintZones("zone-b"))},
			want:      "in[10.244.1.1:8080 10.244.3.1:8080~] drain[10.244.4.1:8080]",
		}, {
			name: "no endpoint for this zone uses all", zone: "zone-c",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", hintZones("zone-a")), ep("10.244.2.1", hintZones("zone-b"))},
			want:      "in[10.244.1.1:8080 10.244.2.1:8080]",
		}, {
			name: "an unknown zone of this node uses all", zone: "",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", hintZones("zone-a")), ep("10.244.2.1", hintZones(""))},
			want:      "in[10.244.1.1:8080 10.244.2.1:8080]",
		}, {
			name: "a zone whose name starts like another is not it", zone: "zone",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", hintZones("zone-a")), ep("10.244.2.1", hintZones("zone"))},
			want:      "in[10.244.2.1:8080] drain[10.244.1.1:8080]",
		}, {
			name: "node hints go before zone hints", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here, hintZones("zone-a"), hintNodes("here")), ep("10.244.2.1", hintZones("zone-a"), hintNodes("elsewhere"))},
			want:      "in[10.244.1.1:8080*] drain[10.244.2.1:8080]",
		}, {
			name: "without one for this node, zone hints count", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.2.1", hintZones("zone-a"), hintNodes("elsewhere")), ep("10.244.3.1", hintZones("zone-b"), hintNodes("third"))},
			want:      "in[10.244.2.1:8080] drain[10.244.3.1:8080]",
		}, {
			name: "a missing node hint voids node hints only", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here, hintZones("zone-a"), hintNodes("here")), ep("10.244.2.1", hintZones("zone-a")), ep("10.244.3.1", hintZones("zone-b"), hintNodes("third"))},
			want:      "in[10.244.1.1:8080* 10.244.2.1:8080] drain[10.244.3.1:8080]",
		}, {
			name: "only terminating endpoints are all used", zone: "zone-a",
			endpoints: []discoveryv1.Endpoint{ep("10.244.2.1", terminating, hintZones("zone-b"))},
			want:      "in[10.244.2.1:8080~]",
		}, {
			name: "a Local policy does not heed hints", zone: "zone-a", edit: internalLocal,
			endpoints: []discoveryv1.Endpoint{ep("10.244.1.1", here, hintZones("zone-b")), ep("10.244.2.1", hintZones("zone-a"))},
			want:      "in[10.244.1.1:8080*] drain[10.244.2.1:8080]",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _ := compileWeb(svc(func(s *corev1.Service) {
				if tc.edit != nil {
					tc.edit(s)
				}
			}), eps(tc.endpoints...))
			node := testNode()
			node.Zone = tc.zone
			c.SetNode(node)
			c.Compile()
			wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq "+tc.want)
		})
	}
}

func TestHintsAndLocalPolicyTogetherDrainWhatNeitherReaches(t *testing.T) {
	c, _ := compileWeb(svc(nodePort(30080), externalLocal), eps(
		ep("10.244.1.1", here, hintZones("zone-b")), ep("10.244.2.1", hintZones("zone-a")), ep("10.244.3.1", hintZones("zone-b"))))
	wantService(t, c, "web",
		"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.2.1:8080] drain[10.244.1.1:8080* 10.244.3.1:8080]",
		"NodePort 192.0.2.1:30080/TCP http in[10.244.2.1:8080] out[10.244.1.1:8080*] drain[10.244.3.1:8080]")
}

func TestSlicesOfOneServiceAreJoined(t *testing.T) {
	named := func(port int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		s := eps(endpoints...)
		s.Ports[0].Port = ptr(port)
		return s
	}
	labelled := func(s *discoveryv1.EndpointSlice, k, v string) *discoveryv1.EndpointSlice {
		s.Labels[k] = v
		return s
	}
	withPort := func(edit func(*discoveryv1.EndpointPort)) *discoveryv1.EndpointSlice {
		s := eps(ep("10.244.9.9"))
		edit(&s.Ports[0])
		return s
	}
	for _, tc := range []struct {
		name     string
		slices   []*discoveryv1.EndpointSlice
		want     string
		problems []string
	}{
		{"several", []*discoveryv1.EndpointSlice{eps(ep("10.244.2.1")), eps(ep("10.244.1.1"))}, "[10.244.1.1:8080 10.244.2.1:8080]", nil},
		{"named ports that differ per endpoint", []*discoveryv1.EndpointSlice{named(8080, ep("10.244.1.1")), named(9090, ep("10.244.2.1"), ep("10.244.1.1"))},
			"[10.244.1.1:8080 10.244.1.1:9090 10.244.2.1:9090]", nil},
		{"a duplicate counts once", []*discoveryv1.EndpointSlice{eps(ep("10.244.1.1")), eps(ep("10.244.1.1"), ep("10.244.1.1"))}, "[10.244.1.1:8080]", nil},
		{"of duplicates the ready one counts", []*discoveryv1.EndpointSlice{eps(ep("10.244.1.1", terminating)), eps(ep("10.244.1.1", unready)), eps(ep("10.244.1.1"))}, "[10.244.1.1:8080]", nil},
		{"and terminating goes before none", []*discoveryv1.EndpointSlice{eps(ep("10.244.1.1", unready)), eps(ep("10.244.1.1", terminating))}, "[10.244.1.1:8080~]", nil},
		{"another proxy's", []*discoveryv1.EndpointSlice{labelled(eps(ep("10.244.1.1")), labelServiceProxyName, "x")}, "[reject]", nil},
		{"headless", []*discoveryv1.EndpointSlice{labelled(eps(ep("10.244.1.1")), labelHeadless, "")}, "[reject]", nil},
		{"another Service's", []*discoveryv1.EndpointSlice{labelled(eps(ep("10.244.1.1")), discoveryv1.LabelServiceName, "other")}, "[reject]", nil},
		{"nobody's", []*discoveryv1.EndpointSlice{labelled(eps(ep("10.244.1.1")), discoveryv1.LabelServiceName, "")}, "[reject]", nil},
		{"another port name", []*discoveryv1.EndpointSlice{withPort(func(p *discoveryv1.EndpointPort) { p.Name = ptr("https") })}, "[reject]", nil},
		{"another protocol", []*discoveryv1.EndpointSlice{withPort(func(p *discoveryv1.EndpointPort) { p.Protocol = ptr(corev1.ProtocolUDP) })}, "[reject]", nil},
		{"no protocol is TCP", []*discoveryv1.EndpointSlice{withPort(func(p *discoveryv1.EndpointPort) { p.Protocol = nil })}, "[10.244.9.9:8080]", nil},
		{"no port number", []*discoveryv1.EndpointSlice{withPort(func(p *discoveryv1.EndpointPort) { p.Port = nil })}, "[reject]", nil},
		{"only the first address", []*discoveryv1.EndpointSlice{eps(discoveryv1.Endpoint{Addresses: []string{"10.244.1.1", "10.244.1.2"}})}, "[10.244.1.1:8080]", nil},
		{"FQDN", []*discoveryv1.EndpointSlice{func() *discoveryv1.EndpointSlice {
			s := eps(ep("web.example"))
			s.AddressType = discoveryv1.AddressTypeFQDN
			return s
		}()}, "[reject]", []string{`EndpointSlice default/web-0: addressType "FQDN"`}},
		{"a hostNetwork endpoint of this node", []*discoveryv1.EndpointSlice{eps(ep("192.0.2.1"))}, "[192.0.2.1:8080^]", nil},
		{"an address of the other family", []*discoveryv1.EndpointSlice{eps(ep("fd00::1"))}, "[reject]", []string{"EndpointSlice default/web-0: endpoint fd00::1 is not of the slice's addressType"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := compileWeb(svc(), tc.slices...)
			wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in"+tc.want)
			wantProblems(t, r.Problems, tc.problems...)
		})
	}
}

func TestSlicesThatDisagreeOnAPlaceGiveOneAnswerInAnyOrder(t *testing.T) {
	a, b := eps(ep("10.244.1.1", here)), eps(ep("10.244.1.1"))
	first, _ := compileWeb(svc(), a, b)
	second, _ := compileWeb(svc(), b, a)
	wantService(t, first, "web", render(second.Table().Services[name("web")])...)
}

func TestAnUnnamedPortMatchesTheSlicePortWithoutName(t *testing.T) {
	for _, name := range []*string{nil, ptr("")} {
		s := eps(ep("10.244.1.1"))
		s.Ports[0].Name = name
		c, _ := compileWeb(svc(ports(corev1.ServicePort{Port: 80})), s)
		wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP  masq in[10.244.1.1:8080]")
	}
}

func TestASliceThatMovesToAnotherServiceLeavesTheFirst(t *testing.T) {
	c, _ := compileWeb(svc(), eps(ep("10.244.1.1")))
	c.SetService(key("other"), svc(clusterIPs("10.96.0.2")))
	moved := eps(ep("10.244.1.1"))
	moved.Labels[discoveryv1.LabelServiceName] = "other"
	c.SetEndpointSlice(key("web-0"), moved)
	c.Compile()
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
	wantService(t, c, "other", "ClusterIP 10.96.0.2:80/TCP http masq in[10.244.1.1:8080]")
}

func TestFrontendsShareTheBackendsThatAreEqual(t *testing.T) {
	c, _ := compileWeb(svc(nodePort(30080), externalIPs("203.0.113.7")), eps(ep("10.244.1.1", here), ep("10.244.2.1")))
	fs := c.Table().Services[name("web")].Frontends
	first := &fs[0].Internal.Backends[0]
	for i := range fs {
		if &fs[i].Internal.Backends[0] != first || &fs[i].External.Backends[0] != first {
			t.Errorf("%v has Backends of its own", fs[i].FrontendKey)
		}
	}
}

func TestASetThatIsTooLongIsCutAndReported(t *testing.T) {
	c := New(Options{MaxBackendsPerSet: 2})
	c.SetNode(testNode())
	c.SetService(key("web"), svc(nodePort(30080), externalLocal))
	c.SetEndpointSlice(key("web-0"), eps(ep("10.244.1.1", terminating), ep("10.244.1.2"), ep("10.244.1.3"), ep("10.244.1.4", here)))
	r := c.Compile()
	wantService(t, c, "web",
		"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.2:8080 10.244.1.3:8080]",
		"NodePort 192.0.2.1:30080/TCP http in[10.244.1.2:8080 10.244.1.3:8080] out[10.244.1.4:8080*]")
	wantProblems(t, r.Problems, "Service default/web: more than 2 endpoints; 2 are left out")
}
