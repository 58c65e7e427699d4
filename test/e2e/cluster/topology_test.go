// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// The hints are those of the EndpointSlice controller: each node is a zone.
func TestTrafficStaysWhereTheControllersSay(t *testing.T) {
	k := newCase(t)
	k.spread("web", 4, nil)
	pods := k.rolledOut("web")
	for _, c := range []struct {
		name   string
		change func(*corev1.Service)
	}{
		{"same-zone", func(s *corev1.Service) {
			s.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferSameZone)
		}},
		{"same-node", func(s *corev1.Service) {
			s.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferSameNode)
		}},
		{"close", func(s *corev1.Service) {
			s.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferClose)
		}},
	} {
		s := k.expose(c.name, "web", c.change)
		k.hinted(s.Name, 8)
		for i, n := range k.nodes {
			for _, from := range []*client{k.pods[i], k.hosts[i]} {
				for _, ip := range s.Spec.ClusterIPs {
					for _, mode := range both {
						k.reaches(from, mode, hostPort(ip, 80), on(n, pods)...)
					}
				}
			}
		}
	}
	// The nodes are of one size, and each has half of the Pods.
	auto := k.expose("auto", "web", func(s *corev1.Service) { s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"} })
	k.hinted(auto.Name, 8)
	for i, n := range k.nodes {
		k.reaches(k.pods[i], traffic.TCP, hostPort(auto.Spec.ClusterIP, 80), on(n, pods)...)
	}
	// Without a Pod in its zone a client is served by the others.
	one := []byte(`{"spec":{"replicas":1}}`)
	if _, err := k.client.AppsV1().Deployments(k.namespace).Patch(t.Context(), "web", types.MergePatchType, one, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	last := names(k.rolledOut("web"))
	for _, name := range []string{"same-zone", "same-node", "close", "auto"} {
		s, err := k.client.CoreV1().Services(k.namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range k.pods {
			k.reaches(from, traffic.TCP, hostPort(s.Spec.ClusterIP, 80), last...)
		}
	}
}

// hinted waits until that many endpoints of the Service have hints.
func (k *testCase) hinted(service string, want int) {
	k.Helper()
	k.eventually(func() error {
		list, err := k.slices(service)
		if err != nil {
			return err
		}
		got := 0
		for _, s := range list {
			for _, e := range s.Endpoints {
				if e.Hints != nil && len(e.Hints.ForZones)+len(e.Hints.ForNodes) > 0 {
					got++
				}
			}
		}
		if got != want {
			return fmt.Errorf("Service %s has %d endpoints with hints, want %d", service, got, want)
		}
		return nil
	})
}
