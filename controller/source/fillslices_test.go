// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is a Pod labelled app=NAME's first part, with lines of its status.
func pod(name string, spec, status string) string {
	app, _, _ := strings.Cut(name, "-")
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec:\n  containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]\n%s%s---\n", name, app, spec, status)
}

func ready(ips ...string) string {
	out := "status:\n  conditions: [{type: Ready, status: 'True'}]\n  podIPs:\n"
	for _, ip := range ips {
		out += fmt.Sprintf("  - ip: %q\n", ip)
	}
	return out
}

// endpoints gives "ADDRESS:PORT ready serving terminating" of all slices.
func (g *rig) endpoints() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, s := range g.slices {
		for _, e := range s.Endpoints {
			for _, p := range s.Ports {
				line := fmt.Sprintf("%s %d", e.Addresses[0], *p.Port)
				if c := e.Conditions; c.Ready != nil {
					line += fmt.Sprintf(" %v %v %v", *c.Ready, *c.Serving, *c.Terminating)
				}
				out = append(out, line)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (g *rig) wantEndpoints(want ...string) {
	g.t.Helper()
	g.eventually(fmt.Sprintf("endpoints %q (have %q)", want, g.endpoints()), func() bool { return slices.Equal(g.endpoints(), want) })
}

func TestAServiceWithoutSlicesFollowsThePodsOfThisNode(t *testing.T) {
	g := newRig(t)
	web := svc("web", 80, "selector: {app: web}", "ipFamilyPolicy: PreferDualStack")
	web = strings.Replace(web, "- port: 80\n", "- port: 80\n    targetPort: http\n", 1)
	g.write("svc.yaml", web)
	g.write("pods.yaml", pod("web-1", "", ready("10.244.1.11", "fd00:10:244:1::11"))+pod("web-2", "  nodeName: node1\n", "status: {podIP: 10.244.1.12}\n")+
		pod("web-3", "  nodeName: node2\n", ready("10.244.2.1"))+pod("db-1", "", ready("10.244.1.13"))+
		pod("web-4", "", ready("10.244.1.14")+"  phase: Succeeded\n")+
		strings.ReplaceAll(pod("web-5", "", ready("10.244.1.15")), "8080", "9090")+strings.ReplaceAll(pod("web-6", "", ready("10.244.1.16")), "http", "other"))
	g.start()
	g.wantEndpoints("10.244.1.11 8080 true true false", "10.244.1.12 8080 false false false", "10.244.1.15 9090 true true false", "fd00:10:244:1::11 8080 true true false")
	if got := slices.Sorted(maps.Keys(g.pods)); len(got) != 6 || slices.Contains(got, "default/web-3") {
		t.Errorf("Pods %v, want all but web-3 of node2", got)
	}
	for name, s := range g.slices {
		if s.Labels["kubernetes.io/service-name"] != "web" || *s.Endpoints[0].NodeName != "node1" || s.Endpoints[0].TargetRef.Name == "" {
			t.Errorf("%s: %+v", name, s)
		}
	}

	g.write("svc.yaml", strings.Replace(web, "spec:\n", "spec:\n  publishNotReadyAddresses: true\n", 1))
	g.wantEndpoints("10.244.1.11 8080 true true false", "10.244.1.12 8080 true false false", "10.244.1.15 9090 true true false", "fd00:10:244:1::11 8080 true true false")

	g.write("slice.yaml", slice("web", "web-1", "10.244.1.99"))
	g.wantEndpoints("10.244.1.99 8080")
	g.remove("slice.yaml")
	g.remove("pods.yaml")
	g.wantEndpoints()
	g.write("pods.yaml", pod("web-1", "", ready("10.244.1.11")))
	g.wantEndpoints("10.244.1.11 8080 true true false")
	g.write("svc.yaml", strings.Replace(web, "app: web", "app: db", 1))
	g.wantEndpoints()
}

func TestAPodsStatusIsThatOfItsRunner(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("web", 80, "selector: {app: web}")+pod("web-1", "", ""))
	g.start()
	g.wantEndpoints()
	key := types.NamespacedName{Namespace: "default", Name: "web-1"}
	status := corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.1.11"}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	g.d.SetPodStatus(types.NamespacedName{Namespace: "default", Name: "unknown"}, status)
	g.d.SetPodStatus(key, status)
	g.wantEndpoints("10.244.1.11 80 true true false")
	g.eventually("the Pod with its status", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.pods["default/web-1"].Status.PodIPs) == 1
	})
	// A change of the manifest does not lose it.
	g.write("a.yaml", svc("web", 81, "selector: {app: web}")+pod("web-1", "  nodeName: node1\n", ""))
	g.wantEndpoints("10.244.1.11 81 true true false")
	status.Conditions[0].Status = corev1.ConditionFalse
	g.d.SetPodStatus(key, status)
	g.wantEndpoints("10.244.1.11 81 false false false")
	g.write("a.yaml", svc("web", 81, "selector: {app: web}"))
	g.wantEndpoints()
}

func TestATerminatingPodIsServingAndNotReady(t *testing.T) {
	always, now := corev1.ContainerRestartPolicyAlways, metav1.Now()
	p := &corev1.Pod{}
	p.DeletionTimestamp = &now
	p.Spec.InitContainers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 1, Protocol: "TCP"}}},
		{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 2, Protocol: "TCP"}}},
	}
	p.Status = corev1.PodStatus{PodIP: "10.244.1.1", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	s := &corev1.Service{}
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	s.Spec.Ports = []corev1.ServicePort{{Port: 80, Protocol: "TCP"}}
	s.Spec.Ports[0].TargetPort.Type, s.Spec.Ports[0].TargetPort.StrVal = 1, "side"
	for _, got := range slicesOfPods(s, []*corev1.Pod{p}, "node1") {
		c := got.Endpoints[0].Conditions
		if *c.Ready || !*c.Serving || !*c.Terminating || *got.Ports[0].Port != 2 {
			t.Errorf("conditions %+v, port %d: want serving, terminating, the sidecar's port 2", c, *got.Ports[0].Port)
		}
		return
	}
	t.Error("no slice")
}
