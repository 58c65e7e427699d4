// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func TestSandboxIsThePodWithoutItsContainers(t *testing.T) {
	pod := testPod(func(p *corev1.Pod) {
		withResources(list("cpu", "1", "memory", "1Gi"), list("memory", "2Gi"))(p)
		p.Spec.Overhead = list("cpu", "250m", "memory", "1Mi")
		p.Spec.SecurityContext = &corev1.PodSecurityContext{
			RunAsUser: ptr.To[int64](1), RunAsGroup: ptr.To[int64](2), FSGroup: ptr.To[int64](3), SupplementalGroups: []int64{4},
			Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"}, {Name: "net/ipv4/tcp_syncookies", Value: "1"}},
		}
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{
			{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP},
			{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP}, // again
			{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP, HostIP: "::1"},
			{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns", ContainerPort: 54},
		}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "p", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}})
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Ports: []corev1.ContainerPort{{ContainerPort: 9}}},
			{Name: "side", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{{ContainerPort: 10, Protocol: corev1.ProtocolSCTP}}}}
	})
	got, err := Sandbox(pod, 3, testFacts())
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "front", Namespace: "web", Uid: "0b1c-2d", Attempt: 3},
		Hostname: "front", LogDirectory: "/var/log/pods/web_front_0b1c-2d",
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"web.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"}},
		PortMappings: []*runtimeapi.PortMapping{
			{ContainerPort: 10, Protocol: runtimeapi.Protocol_SCTP},
			{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 80, HostPort: 8080, HostIp: "::1"},
			{ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP},
		},
		Labels:      map[string]string{"app": "x", "io.kubernetes.pod.name": "front", "io.kubernetes.pod.namespace": "web", "io.kubernetes.pod.uid": "0b1c-2d"},
		Annotations: map[string]string{"Example.com/note": "say \"hi\"\n", "fairlead.dev/pod.hash": fmt.Sprintf("%x", PodHash(pod))},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/burstable/pod0b1c-2d",
			Sysctls:      map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.tcp_syncookies": "1"},
			Resources:    &runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, MemoryLimitInBytes: 2 << 30},
			Overhead:     &runtimeapi.LinuxContainerResources{CpuShares: 256, CpuQuota: 25000, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 20},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				Privileged: true, RunAsUser: int64of(1), RunAsGroup: int64of(2), SupplementalGroups: []int64{3, 4},
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}, Seccomp: profile(standard, ""),
			},
		},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	host, err := Sandbox(testPod(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), 0, testFacts())
	if err != nil || host.Hostname != "" || host.Linux.SecurityContext.NamespaceOptions.Network != runtimeapi.NamespaceMode_NODE {
		t.Errorf("in the host's network: %v, %v", host, err)
	}
}

func TestSandboxRefusesWhatIsBeyondTheRunner(t *testing.T) {
	for want, change := range map[string]func(*corev1.Pod){
		"can't set `spec.hostUsers: false` for pod \"front_web(0b1c-2d)\", runtime does not support user namespaces": func(p *corev1.Pod) { p.Spec.HostUsers = ptr.To(false) },
		`pod "front_web(0b1c-2d)": resourceClaims need dynamic resource allocation, which is not supported`: func(p *corev1.Pod) {
			p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}}
		},
		"unsupported supplementalGroupsPolicy: Odd": func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroupsPolicy: ptr.To(corev1.SupplementalGroupsPolicy("Odd"))}
		},
	} {
		_, err := Sandbox(testPod(change), 0, testFacts())
		var r *Refused
		if !errors.As(err, &r) || r.Reason != ReasonSandbox || r.Message != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestHandlerIsAskedForOnlyWithARuntimeClass(t *testing.T) {
	f := &Facts{RuntimeHandler: func(name string) (string, error) {
		if name != "kata" {
			return "", fmt.Errorf("RuntimeClass %q not found", name)
		}
		return "kata-qemu", nil
	}}
	class := func(s *string) *corev1.Pod { return testPod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = s }) }
	for _, n := range []*string{nil, ptr.To("")} {
		if h, err := Handler(class(n), &Facts{}); h != "" || err != nil {
			t.Errorf("%v: %q, %v", n, h, err)
		}
	}
	if h, err := Handler(class(ptr.To("kata")), f); h != "kata-qemu" || err != nil {
		t.Errorf("kata: %q, %v", h, err)
	}
	var r *Refused
	if _, err := Handler(class(ptr.To("x")), f); !errors.As(err, &r) || r.Message != `failed to get sandbox runtime: RuntimeClass "x" not found` {
		t.Errorf("x: %v", err)
	}
	if _, err := Handler(class(ptr.To("x")), &Facts{}); !errors.As(err, &r) || r.Reason != ReasonSandbox {
		t.Errorf("x where none are known: %v", err)
	}
}
