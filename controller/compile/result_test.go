// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/dataplane"
)

func healthChecked(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		loadBalancer("203.0.113.1")(s)
		externalLocal(s)
		s.Spec.HealthCheckNodePort = port
	}
}

func TestHealthChecksCountReadyLocalEndpointsAndReportChangesOnly(t *testing.T) {
	c := newCompiler()
	step := func(want map[dataplane.ServiceName]*HealthCheck) {
		t.Helper()
		if diff := cmp.Diff(want, c.Compile().HealthChecks); diff != "" {
			t.Errorf("HealthChecks (-want +got):\n%s", diff)
		}
	}
	is := func(port uint16, n int) map[dataplane.ServiceName]*HealthCheck {
		return map[dataplane.ServiceName]*HealthCheck{name("web"): {NodePort: port, LocalEndpoints: n}}
	}
	c.SetService(key("web"), svc(healthChecked(32000)))
	step(is(32000, 0))
	two := eps(ep("10.244.1.1", here), ep("10.244.1.2", here, terminating), ep("10.244.1.3", here, unready), ep("10.244.2.1"))
	two.Ports = append(two.Ports, discoveryv1.EndpointPort{Name: ptr("https"), Port: ptr[int32](8443)})
	c.SetEndpointSlice(key("web-0"), two)
	step(is(32000, 1)) // two ports, one address
	c.SetEndpointSlice(key("web-6"), eps6(ep("fd00:1::1", here)))
	step(nil) // the same Pod in the other family
	c.SetEndpointSlice(key("web-0"), eps(ep("10.244.1.1", here, terminating)))
	c.SetEndpointSlice(key("web-6"), nil)
	step(is(32000, 0)) // only terminating ones left: the check fails
	c.SetService(key("web"), svc(healthChecked(32001)))
	step(is(32001, 0))
	step(nil)
	c.SetService(key("web"), svc(healthChecked(32001), func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster }))
	step(map[dataplane.ServiceName]*HealthCheck{name("web"): nil})
	c.SetService(key("web"), svc(healthChecked(32001)))
	step(is(32001, 0))
	c.SetService(key("web"), nil)
	step(map[dataplane.ServiceName]*HealthCheck{name("web"): nil})
	c.SetService(key("web"), svc(healthChecked(99999)))
	step(nil)
	wantProblems(t, c.Compile().Problems, "Service default/web: healthCheckNodePort 99999")
}

func TestTriggerTimesComeWithTheChangeTheyCaused(t *testing.T) {
	at := func(s *discoveryv1.EndpointSlice, v string) *discoveryv1.EndpointSlice {
		s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: v}
		return s
	}
	c, _ := compileWeb(svc(), eps(ep("10.244.1.1")))
	c.SetEndpointSlice(key("web-0"), at(eps(ep("10.244.1.2")), "2026-11-24T10:00:00.5Z"))
	c.SetEndpointSlice(key("web-1"), at(eps(ep("10.244.1.3")), "2026-11-24T10:00:01Z"))
	c.SetEndpointSlice(key("web-2"), at(eps(ep("10.244.1.4")), "yesterday"))
	want := map[dataplane.ServiceName][]time.Time{name("web"): {
		time.Date(2026, 11, 24, 10, 0, 0, 500_000_000, time.UTC), time.Date(2026, 11, 24, 10, 0, 1, 0, time.UTC),
	}}
	if diff := cmp.Diff(want, c.Compile().TriggerTimes); diff != "" {
		t.Errorf("TriggerTimes (-want +got):\n%s", diff)
	}
	c.SetEndpointSlice(key("web-0"), at(eps(ep("10.244.1.2")), "2026-11-24T10:00:09Z"))
	if r := c.Compile(); r.TriggerTimes != nil || !r.Change.Empty() {
		t.Errorf("a slice that changed nothing gave times %v and Change %v", r.TriggerTimes, r.Change)
	}
	c.SetEndpointSlice(key("web-0"), at(eps(ep("10.244.1.9")), "2026-11-24T10:00:10Z"))
	c.SetEndpointSlice(key("web-0"), nil)
	if r := c.Compile(); r.TriggerTimes != nil {
		t.Errorf("a deleted slice gave times %v", r.TriggerTimes)
	}
}

func TestTheNodeIsInTheChangeOnlyWhereItsFactsChanged(t *testing.T) {
	c := New(Options{})
	c.SetNode(testNode())
	r := c.Compile()
	if r.Change.Node == nil || !r.Change.Node.Equal(c.Table().Node) {
		t.Fatalf("first Change has Node %v, Table %v", r.Change.Node, c.Table().Node)
	}
	node := testNode()
	node.Addresses[0], node.Addresses[1] = node.Addresses[1], node.Addresses[0]
	c.SetNode(node)
	if r := c.Compile(); !r.Change.Empty() {
		t.Errorf("another order of addresses made a Change %+v", r.Change)
	}
	node.InternalSources = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	c.SetNode(node)
	if r := c.Compile(); r.Change.Node == nil {
		t.Error("other InternalSources made no Change")
	}
}

func TestFactsThatComeAfterTheSlicesCount(t *testing.T) {
	c := New(Options{})
	c.SetEndpointSlice(key("web-0"), eps(ep("10.244.1.1", here), ep("192.0.2.1")))
	c.SetService(key("web"), svc(nodePort(30080)))
	c.Compile()
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080 192.0.2.1:8080]")
	c.SetNode(testNode())
	c.Compile()
	wantService(t, c, "web",
		"ClusterIP 10.96.0.1:80/TCP http masq in[10.244.1.1:8080* 192.0.2.1:8080^]",
		"NodePort 192.0.2.1:30080/TCP http masq in[10.244.1.1:8080* 192.0.2.1:8080^]")
}

func TestAnAddressOfAPodsInterfaceCompilesNothing(t *testing.T) {
	c, _ := compileWeb(svc(nodePort(30080)))
	node := testNode()
	node.Addresses = append(node.Addresses, netip.MustParseAddr("fe80::1234"))
	c.SetNode(node)
	if len(c.dirty) != 0 {
		t.Errorf("%d owners are dirty after a link-local address came", len(c.dirty))
	}
}

func TestACompileTouchesOnlyWhatWasSet(t *testing.T) {
	c := newCompiler()
	fill(c, 100, 3)
	c.Compile()
	before := c.Table()
	c.SetEndpointSlice(key("svc-7-0"), benchSlice(7, 3, 1))
	r := c.Compile()
	if len(r.Change.Services) != 1 || r.Change.Services[name("svc-7")] == nil {
		t.Fatalf("Change = %v, want svc-7 alone", r.Change.Services)
	}
	for n, s := range c.Table().Services {
		if n != name("svc-7") && before.Services[n] != s {
			t.Errorf("%v was made anew", n)
		}
	}
}

func TestAZoneAloneChangesTheTableAndNoKernel(t *testing.T) {
	zone := func(z string) *discoveryv1.EndpointSlice {
		return eps(ep("10.244.1.1", func(e *discoveryv1.Endpoint) { e.Zone = &z }))
	}
	c, _ := compileWeb(svc(), zone("a"))
	c.SetEndpointSlice(key("web-0"), zone("b"))
	if r := c.Compile(); !r.Change.Empty() {
		t.Errorf("Change = %+v, want none", r.Change)
	}
	if got := c.Table().Services[name("web")].Frontends[0].Internal.Backends[0].Zone; got != "b" {
		t.Errorf("zone %q in the Table, want b", got)
	}
}
