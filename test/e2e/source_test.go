// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/controller/source"
	"fairlead.dev/test/e2e/controlplane"
)

// deliveryBound is the longest that a change may take to arrive on a loaded
// machine; typical are milliseconds, which the tests print.
const deliveryBound = 2 * time.Second

func (c *cluster) service(name, mark string, labels map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name, Labels: labels, Annotations: map[string]string{"mark": mark}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func (c *cluster) createService(t *testing.T, name, mark string, labels map[string]string) *corev1.Service {
	t.Helper()
	s, err := c.client.CoreV1().Services(c.namespace).Create(t.Context(), c.service(name, mark, labels), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *cluster) updateService(t *testing.T, s *corev1.Service, mark string) *corev1.Service {
	t.Helper()
	s = s.DeepCopy()
	s.Annotations["mark"] = mark
	s, err := c.client.CoreV1().Services(c.namespace).Update(t.Context(), s, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *cluster) deleteService(t *testing.T, name string) {
	t.Helper()
	if err := c.client.CoreV1().Services(c.namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) createSlice(t *testing.T, name, mark string, labels map[string]string) *discoveryv1.EndpointSlice {
	t.Helper()
	s, err := c.client.DiscoveryV1().EndpointSlices(c.namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: labels, Annotations: map[string]string{"mark": mark}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatExistsIsDeliveredBeforeSynced(t *testing.T) {
	c := newCluster(t)
	c.createService(t, "a", "1", nil)
	c.createService(t, "b", "1", nil)
	c.createSlice(t, "a-1", "1", nil)

	r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
	eventually(t, 5*time.Second, r.isSynced)
	for _, what := range []string{"service " + c.namespace + "/a", "service " + c.namespace + "/b", "slice " + c.namespace + "/a-1", "node " + c.node} {
		if e, ok := r.last(what); !ok || e.deleted {
			t.Errorf("%s was not delivered before OnSynced", what)
		}
	}
	if s := r.source.State(); !s.Connected || len(s.Problems) != 0 {
		t.Errorf("State is %+v, want connected without problems", s)
	}
	r.stop()
	if len(r.synced) != 1 {
		t.Errorf("OnSynced was called %d times, want once", len(r.synced))
	}
}

func TestChangesArriveWithinMilliseconds(t *testing.T) {
	c := newCluster(t)
	r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
	eventually(t, 5*time.Second, r.isSynced)

	var latencies []time.Duration
	measure := func(what string, deleted bool, mark string, change func()) {
		t.Helper()
		before := time.Now()
		change()
		latencies = append(latencies, r.waitFor(t, what, deleted, mark).at.Sub(before))
	}
	for i := range 20 {
		name := fmt.Sprintf("s%d", i)
		service, slice := "service "+c.namespace+"/"+name, "slice "+c.namespace+"/"+name
		var s *corev1.Service
		measure(service, false, "1", func() { s = c.createService(t, name, "1", nil) })
		measure(service, false, "2", func() { c.updateService(t, s, "2") })
		var e *discoveryv1.EndpointSlice
		measure(slice, false, "1", func() { e = c.createSlice(t, name, "1", nil) })
		measure(slice, false, "2", func() {
			e.Annotations["mark"] = "2"
			e.Endpoints[0].Addresses = []string{"10.244.0.2"}
			if _, err := c.client.DiscoveryV1().EndpointSlices(c.namespace).Update(t.Context(), e, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		})
		measure(slice, true, "", func() {
			if err := c.client.DiscoveryV1().EndpointSlices(c.namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		})
		measure(service, true, "", func() { c.deleteService(t, name) })
	}
	measure("node "+c.node, false, "2", func() {
		n, err := c.client.CoreV1().Nodes().Get(t.Context(), c.node, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n.Annotations = map[string]string{"mark": "2"}
		if _, err := c.client.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	slices.Sort(latencies)
	t.Logf("write begun -> delivered, %d changes: p50 %v, p99 %v, max %v", len(latencies),
		latencies[len(latencies)/2], latencies[len(latencies)*99/100], latencies[len(latencies)-1])
}

func TestOtherNodesAndTheirPodsAreNotDelivered(t *testing.T) {
	c := newCluster(t)
	r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), func(o *source.APIServerOptions) { o.WantPods = true })
	without := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
	eventually(t, 5*time.Second, r.isSynced)
	eventually(t, 5*time.Second, without.isSynced)
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.node + "-other"}}
	if _, err := c.client.CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	zero := int64(0)
	for _, node := range []string{other.Name, c.node} { // ours last
		_, err := c.client.CoreV1().Pods(c.namespace).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "on-" + node},
			Spec: corev1.PodSpec{
				NodeName:                      node,
				TerminationGracePeriodSeconds: &zero,
				Containers:                    []corev1.Container{{Name: "c", Image: "i"}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	ours := "pod " + c.namespace + "/on-" + c.node
	r.waitFor(t, ours, false, "")
	for _, what := range []string{"node " + other.Name, "pod " + c.namespace + "/on-" + other.Name} {
		if e, ok := r.last(what); ok {
			t.Errorf("%+v was delivered", e)
		}
	}
	for _, node := range []string{other.Name, c.node} {
		if err := c.client.CoreV1().Pods(c.namespace).Delete(t.Context(), "on-"+node, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
	}
	r.waitFor(t, ours, true, "")
	if n := without.present("pod "); n != 0 {
		t.Errorf("a Source that does not want Pods got %d", n)
	}
}

func TestObjectsOfOtherProxiesAreNotDelivered(t *testing.T) {
	c := newCluster(t)
	headless := map[string]string{"service.kubernetes.io/headless": ""}
	foreign := map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	c.createService(t, "headless", "", headless)
	c.createSlice(t, "headless", "", headless)
	r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
	eventually(t, 5*time.Second, r.isSynced)
	c.createService(t, "foreign", "", foreign)
	c.createSlice(t, "foreign", "", foreign)
	s := c.createService(t, "ours", "1", nil)
	c.createSlice(t, "ours", "1", nil)
	r.waitFor(t, "service "+c.namespace+"/ours", false, "1")
	r.waitFor(t, "slice "+c.namespace+"/ours", false, "1")
	for _, name := range []string{"headless", "foreign"} {
		for _, kind := range []string{"service", "slice"} {
			if events := r.of(kind+" "+c.namespace+"/"+name, 0); len(events) != 0 {
				t.Errorf("%s %s was delivered: %+v", kind, name, events)
			}
		}
	}

	s.Labels = foreign
	s = c.updateService(t, s, "2")
	r.waitFor(t, "service "+c.namespace+"/ours", true, "")
	s.Labels = nil
	c.updateService(t, s, "3")
	r.waitFor(t, "service "+c.namespace+"/ours", false, "3")
}

func TestTwoThousandServicesCreatedQuicklyAllArrive(t *testing.T) {
	const n = 2000
	c := newCluster(t)
	r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
	eventually(t, 5*time.Second, r.isSynced)
	started := time.Now()
	names := make(chan string)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for name := range names {
				_, err := c.client.CoreV1().Services(c.namespace).Create(t.Context(), c.service(name, "1", nil), metav1.CreateOptions{})
				if err != nil {
					t.Errorf("create %s: %v", name, err)
				}
			}
		})
	}
	for i := range n {
		names <- fmt.Sprintf("s%d", i)
	}
	close(names)
	wg.Wait()
	created := time.Now()
	all := func(r *running) func() string {
		return func() string {
			if got := r.present("service " + c.namespace + "/"); got != n {
				return fmt.Sprintf("%d of %d Services arrived", got, n)
			}
			return ""
		}
	}
	eventually(t, 10*time.Second, all(r))
	t.Logf("%d Services created in %v; the last arrived %v later", n, created.Sub(started), time.Since(created))

	t.Run("and a new Source gets them in a streamed list", func(t *testing.T) {
		started := time.Now()
		r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
		eventually(t, 10*time.Second, r.isSynced)
		t.Logf("synced after %v", time.Since(started))
		eventually(t, 0, all(r))
	})
	t.Run("and in pages from a server that does not stream lists", func(t *testing.T) {
		old := newOldServer(t, c)
		started := time.Now()
		r := runSource(t, c, old.config, nil)
		eventually(t, 10*time.Second, r.isSynced)
		t.Logf("synced after %v", time.Since(started))
		eventually(t, 0, all(r))
		if pages := old.serviceLists.Load(); pages < n/500 {
			t.Errorf("%d lists of Services reached the server, want pages of 500 of %d", pages, n)
		}
		c.deleteService(t, "s0")
		r.waitFor(t, "service "+c.namespace+"/s0", true, "")
		eventually(t, 3*time.Second, r.isConnected)
	})
}
