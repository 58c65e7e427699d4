// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// FuzzObjects feeds whatever decodes as a Service, an EndpointSlice and a Pod:
// nothing panics, the Table holds what dataplane promises, the objects are not
// modified, and deleting them leaves nothing.
func FuzzObjects(f *testing.F) {
	add := func(s *corev1.Service, sl *discoveryv1.EndpointSlice, p *corev1.Pod) {
		a, _ := json.Marshal(s)
		b, _ := json.Marshal(sl)
		c, _ := json.Marshal(p)
		f.Add(a, b, c)
	}
	add(svc(clusterIPs("10.96.0.1", "fd00:96::1"), nodePort(30080), externalIPs("203.0.113.7"), internalLocal, externalLocal),
		eps(ep("10.244.1.1", here, hintZones("zone-a"), hintNodes("here")), ep("10.244.1.2", terminating)), podWith(hostPortOf()))
	add(svc(healthChecked(32000), func(s *corev1.Service) {
		s.Spec.LoadBalancerSourceRanges = []string{" 10.0.0.0/8", "::ffff:1.2.3.4/97"}
		s.Spec.SessionAffinity = "ClientIP"
	}), eps6(ep("fd00:1::1", here)), podWith(hostPortOf(hostIP("0.0.0.0"))))
	f.Add([]byte(`{"spec":{"clusterIP":"010.96.0.1","ports":[{"port":-1},{"port":70000}]}}`), []byte(`{"addressType":"FQDN"}`), []byte(`{}`))

	f.Fuzz(func(t *testing.T, service, endpointSlice, podJSON []byte) {
		var s corev1.Service
		var sl discoveryv1.EndpointSlice
		var p corev1.Pod
		if json.Unmarshal(service, &s) != nil || json.Unmarshal(endpointSlice, &sl) != nil || json.Unmarshal(podJSON, &p) != nil {
			t.Skip()
		}
		before := []any{s.DeepCopy(), sl.DeepCopy(), p.DeepCopy()}
		c := newCompiler()
		c.SetService(key("web"), &s)
		c.SetEndpointSlice(key("web-0"), &sl)
		c.SetPod(key("web"), &p)
		c.Compile()
		checkTable(t, c.Table(), c.opts.MaxBackendsPerSet)
		if diff := cmp.Diff(before, []any{&s, &sl, &p}); diff != "" {
			t.Fatalf("the objects were modified:\n%s", diff)
		}
		if r := c.Compile(); !r.Change.Empty() {
			t.Fatalf("a second Compile changed %+v", r.Change)
		}
		c.SetService(key("web"), nil)
		c.SetEndpointSlice(key("web-0"), nil)
		c.SetPod(key("web"), nil)
		r := c.Compile()
		if len(c.Table().Services)+len(c.owners)+len(c.claims.winner)+len(r.Problems) > 0 {
			t.Fatalf("after all is deleted: %v, %d owners, %d claims, Problems %v", c.Table().Services, len(c.owners), len(c.claims.winner), r.Problems)
		}
	})
}
