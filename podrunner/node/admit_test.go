// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func resources(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func requesting(cpu, memory string) *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "main", Resources: corev1.ResourceRequirements{Requests: resources(cpu, memory)}}}}}
}

func bigNode() *corev1.Node {
	l := resources("2", "1Gi")
	l[corev1.ResourcePods] = resource.MustParse("3")
	l["example.com/disk"] = resource.MustParse("1")
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "one", Labels: map[string]string{"zone": "a"}},
		Status:     corev1.NodeStatus{Allocatable: l},
	}
}

func TestAPodIsAdmittedOrRefusedWithTheKubeletsWords(t *testing.T) {
	with := func(p *corev1.Pod, change func(*corev1.Pod)) *corev1.Pod { change(p); return p }
	port := func(ip string, protocol corev1.Protocol, n int32) *corev1.Pod {
		return with(requesting("", ""), func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: n, HostIP: ip, Protocol: protocol}}
		})
	}
	noExecute := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "gone", Effect: corev1.TaintEffectNoExecute}, {Key: "other", Effect: corev1.TaintEffectNoSchedule}}
	}
	for _, c := range []struct {
		name   string
		pod    *corev1.Pod
		others []*corev1.Pod
		node   func(*corev1.Node)
		want   *Refusal
	}{
		{name: "a small pod on an empty node", pod: requesting("1", "1Mi")},
		{name: "exactly what is left", pod: requesting("1500m", "512Mi"), others: []*corev1.Pod{requesting("500m", "512Mi")}},
		{name: "too much cpu", pod: requesting("1501m", "1Mi"), others: []*corev1.Pod{requesting("500m", "")},
			want: &Refusal{"OutOfcpu", "Node didn't have enough resource: cpu, requested: 1501, used: 500, capacity: 2000"}},
		{name: "too much memory", pod: requesting("1", "1Gi"), others: []*corev1.Pod{requesting("", "1Mi")},
			want: &Refusal{"OutOfmemory", "Node didn't have enough resource: memory, requested: 1073741824, used: 1048576, capacity: 1073741824"}},
		{name: "cpu is looked at before memory", pod: requesting("3", "2Gi"),
			want: &Refusal{"OutOfcpu", "Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2000"}},
		{name: "too many pods", pod: requesting("", ""), others: []*corev1.Pod{requesting("", ""), requesting("", ""), requesting("", "")},
			want: &Refusal{"OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"}},
		{name: "nothing requested on a full node", pod: requesting("", ""), others: []*corev1.Pod{requesting("2", "1Gi")}},
		{name: "an init container counts as the largest", pod: with(requesting("1", ""), func(p *corev1.Pod) {
			p.Spec.InitContainers = requesting("2500m", "").Spec.Containers
		}), want: &Refusal{"OutOfcpu", "Node didn't have enough resource: cpu, requested: 2500, used: 0, capacity: 2000"}},
		{name: "a sidecar counts beside the containers", pod: with(requesting("1500m", ""), func(p *corev1.Pod) {
			p.Spec.InitContainers = requesting("600m", "").Spec.Containers
			p.Spec.InitContainers[0].RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		}), want: &Refusal{"OutOfcpu", "Node didn't have enough resource: cpu, requested: 2100, used: 0, capacity: 2000"}},
		{name: "overhead counts", pod: with(requesting("1900m", ""), func(p *corev1.Pod) { p.Spec.Overhead = resources("200m", "") }),
			want: &Refusal{"OutOfcpu", "Node didn't have enough resource: cpu, requested: 2100, used: 0, capacity: 2000"}},
		{name: "an extended resource of the node", pod: with(requesting("", ""), func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests["example.com/disk"] = resource.MustParse("2")
		}), want: &Refusal{"OutOfexample.com/disk", "Node didn't have enough resource: example.com/disk, requested: 2, used: 0, capacity: 1"}},
		{name: "an extended resource that the node does not know", pod: with(requesting("", ""), func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("2")
		})},
		{name: "a selector that matches", pod: with(requesting("", ""), func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "a"} })},
		{name: "a selector that does not match", pod: with(requesting("", ""), func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }),
			want: &Refusal{"NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}},
		{name: "another node", pod: with(requesting("", ""), func(p *corev1.Pod) { p.Spec.NodeName = "two" }),
			want: &Refusal{"NodeName", "Predicate NodeName failed: node(s) didn't match the requested node name"}},
		{name: "a host port that is taken", pod: port("", "", 80), others: []*corev1.Pod{port("127.0.0.1", corev1.ProtocolTCP, 80)},
			want: &Refusal{"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}},
		{name: "the same host port at another address", pod: port("127.0.0.2", "", 80), others: []*corev1.Pod{port("127.0.0.1", "", 80)}},
		{name: "the same host port of another protocol", pod: port("", corev1.ProtocolUDP, 80), others: []*corev1.Pod{port("", "", 80)}},
		{name: "a NoExecute taint", pod: requesting("", ""), node: noExecute,
			want: &Refusal{"TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"}},
		{name: "a NoExecute taint that is tolerated", node: noExecute, pod: with(requesting("", ""), func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "gone", Operator: corev1.TolerationOpExists}}
		})},
		{name: "a NoExecute taint and a pod of the directory", node: noExecute, pod: with(requesting("", ""), func(p *corev1.Pod) {
			p.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
		})},
		{name: "another operating system", pod: with(requesting("", ""), func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: "windows"} }),
			want: &Refusal{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}},
		{name: "this operating system", pod: with(requesting("", ""), func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.OSName(runtime.GOOS)} })},
		{name: "strict supplemental groups", pod: with(requesting("", ""), func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroupsPolicy: new(corev1.SupplementalGroupsPolicyStrict)}
		}), want: &Refusal{"SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := bigNode()
			if c.node != nil {
				c.node(n)
			}
			if diff := cmp.Diff(c.want, Admit(c.pod, c.others, n)); diff != "" {
				t.Errorf("Admit (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAResizeThatIsNotDoneCountsAsTheLargerOfBoth(t *testing.T) {
	resized := requesting("100m", "")
	resized.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main",
		AllocatedResources: resources("1500m", ""), Resources: &corev1.ResourceRequirements{Requests: resources("1500m", "")}}}
	want := &Refusal{"OutOfcpu", fmt.Sprintf("Node didn't have enough resource: cpu, requested: %d, used: %d, capacity: %d", 1000, 1500, 2000)}
	if diff := cmp.Diff(want, Admit(requesting("1", ""), []*corev1.Pod{resized}, bigNode())); diff != "" {
		t.Errorf("Admit (-want +got):\n%s", diff)
	}
}
