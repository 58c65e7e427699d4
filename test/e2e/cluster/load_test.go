// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// loadPace is the time between two questions of a stream: the clients must not
// take the machine from the cluster.
const loadPace = 40 * time.Millisecond

// everyPath asks a Service of the type NodePort by each of its paths: from Pods
// and from nodes by its ClusterIPs, from outside by the nodes' ports.
func (k *testCase) everyPath(s *corev1.Service, modes ...traffic.Mode) map[*client]traffic.Plan {
	plans := map[*client]traffic.Plan{}
	add := func(c *client, mode traffic.Mode, to string) {
		p := plans[c]
		p.Streams = append(p.Streams, traffic.Stream{Mode: mode, To: to, Every: loadPace, Within: 20 * time.Second})
		plans[c] = p
	}
	for _, mode := range modes {
		nodePort := s.Spec.Ports[0].NodePort
		if mode == traffic.UDP || mode == traffic.HeldUDP {
			nodePort = s.Spec.Ports[1].NodePort
		}
		for _, c := range append(slices.Clone(k.pods), k.hosts...) {
			for _, ip := range s.Spec.ClusterIPs {
				add(c, mode, hostPort(ip, 80))
			}
		}
		for _, n := range k.nodes {
			add(k.outside, mode, hostPort(n.ipv4.String(), nodePort))
			add(k.outside, mode, hostPort(n.ipv6.String(), nodePort))
		}
	}
	return plans
}

func nodePort(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }

// ready waits until the Service is answered on every path.
func (k *testCase) ready(s *corev1.Service, pods []corev1.Pod) {
	k.Helper()
	for c, p := range k.everyPath(s, traffic.TCP, traffic.UDP) {
		for _, stream := range p.Streams {
			k.reaches(c, stream.Mode, stream.To, names(pods)...)
		}
	}
}

// gentle is a Deployment as Kubernetes documents it for updates that nobody
// notices: a Pod goes on to serve while the news of its end is on its way.
func gentle(d *appsv1.Deployment) {
	c := &d.Spec.Template.Spec.Containers[0]
	c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}}
	d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxUnavailable: new(intOrString(0)), MaxSurge: new(intOrString(2))}
}

// answered fails the test unless each of the servers answered.
func (k *testCase) answered(r traffic.Report, servers []string) {
	k.Helper()
	seen := map[string]int{}
	for _, s := range r.Streams {
		for name, n := range s.Servers {
			seen[name] += n
		}
	}
	for _, name := range servers {
		if seen[name] == 0 {
			k.Errorf("Pod %s answered nothing: %v", name, fmt.Sprint(seen))
		}
	}
}
