// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func podWith(ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{
		Spec:   corev1.PodSpec{Containers: []corev1.Container{{Ports: ports}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.244.1.1"}, {IP: "fd00:1::1"}}},
	}
}

func hostPortOf(edits ...func(*corev1.ContainerPort)) corev1.ContainerPort {
	p := corev1.ContainerPort{Name: "http", HostPort: 8000, ContainerPort: 80, Protocol: corev1.ProtocolTCP}
	for _, e := range edits {
		e(&p)
	}
	return p
}

func hostIP(ip string) func(*corev1.ContainerPort) {
	return func(p *corev1.ContainerPort) { p.HostIP = ip }
}

func TestHostPortsOfPodsAreFrontends(t *testing.T) {
	all4 := []string{"HostPort 192.0.2.1:8000/TCP http in[10.244.1.1:80*]", "HostPort 198.51.100.1:8000/TCP http in[10.244.1.1:80*]"}
	all6 := []string{"HostPort [2001:db8::1]:8000/TCP http in[[fd00:1::1]:80*]"}
	edited := func(edit func(*corev1.Pod)) *corev1.Pod {
		p := podWith(hostPortOf())
		edit(p)
		return p
	}
	always := corev1.ContainerRestartPolicyAlways
	for _, tc := range []struct {
		name     string
		pod      *corev1.Pod
		want     []string
		problems []string
	}{
		{"no hostIP is every address", podWith(hostPortOf()), append(append([]string{}, all4...), all6...), nil},
		{"0.0.0.0 is every IPv4 one", podWith(hostPortOf(hostIP("0.0.0.0"))), all4, nil},
		{":: is every IPv6 one", podWith(hostPortOf(hostIP("::"))), all6, nil},
		{"one address", podWith(hostPortOf(hostIP("198.51.100.1"))), all4[1:], nil},
		{"loopback", podWith(hostPortOf(hostIP("127.0.0.1"))), []string{"HostPort 127.0.0.1:8000/TCP http in[10.244.1.1:80*]"}, nil},
		{"an address that is not the node's", podWith(hostPortOf(hostIP("203.0.113.9"))), nil, []string{"Pod default/web: hostIP 203.0.113.9 is not an address of this node"}},
		{"nonsense", podWith(hostPortOf(hostIP("x"))), nil, []string{`Pod default/web: hostIP "x" is not an IP address`}},
		{"no hostPort", podWith(hostPortOf(func(p *corev1.ContainerPort) { p.HostPort = 0 })), nil, nil},
		{"absurd hostPort", podWith(hostPortOf(func(p *corev1.ContainerPort) { p.HostPort = 70000 })), nil, []string{"Pod default/web: hostPort 70000"}},
		{"host network", edited(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), nil, nil},
		{"succeeded", edited(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), nil, nil},
		{"failed", edited(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), nil, nil},
		{"no address yet", edited(func(p *corev1.Pod) { p.Status.PodIPs = nil }), nil, nil},
		{"podIP alone", edited(func(p *corev1.Pod) { p.Status.PodIPs, p.Status.PodIP = nil, "10.244.1.1" }), all4, nil},
		{"a sidecar", edited(func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Ports: []corev1.ContainerPort{hostPortOf(hostIP("127.0.0.1"))}, RestartPolicy: &always}}
			p.Spec.Containers = nil
		}), []string{"HostPort 127.0.0.1:8000/TCP http in[10.244.1.1:80*]"}, nil},
		{"an init container that ends", edited(func(p *corev1.Pod) {
			p.Spec.InitContainers, p.Spec.Containers = p.Spec.Containers, nil
		}), nil, nil},
		{"an unready Pod", edited(func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
			p.Spec.Containers[0].Ports[0].HostIP = "198.51.100.1"
		}), all4[1:], nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCompiler()
			c.SetPod(key("web"), tc.pod)
			r := c.Compile()
			wantService(t, c, "pod:web", tc.want...)
			wantProblems(t, r.Problems, tc.problems...)
			c.SetPod(key("web"), nil)
			r = c.Compile()
			wantService(t, c, "pod:web")
			wantProblems(t, r.Problems)
			if len(c.owners)+len(c.claims.winner) != 0 {
				t.Errorf("left behind: %d owners, %d claims", len(c.owners), len(c.claims.winner))
			}
		})
	}
}

func TestAPodAndAServiceOfOneNameAreTwo(t *testing.T) {
	c := newCompiler()
	c.SetPod(key("web"), podWith(hostPortOf(hostIP("192.0.2.1"))))
	c.SetService(key("web"), svc())
	c.SetService(key("pod:web"), svc(clusterIPs("10.96.0.9")))
	r := c.Compile()
	wantService(t, c, "web", "ClusterIP 10.96.0.1:80/TCP http masq in[reject]")
	wantService(t, c, "pod:web", "HostPort 192.0.2.1:8000/TCP http in[10.244.1.1:80*]")
	wantProblems(t, r.Problems, "Service default/pod:web: the name must not contain")
}

func TestAHostPortYieldsToAnOlderNodePort(t *testing.T) {
	c := newCompiler()
	p := podWith(hostPortOf(hostIP("192.0.2.1"), func(p *corev1.ContainerPort) { p.HostPort = 30080 }))
	p.CreationTimestamp = at(20)
	c.SetPod(key("web"), p)
	c.SetService(key("web"), svc(nodePort(30080), born(10)))
	wantProblems(t, c.Compile().Problems, "Pod default/web: HostPort 192.0.2.1:30080/TCP is held by Service default/web")
	c.SetService(key("web"), svc(nodePort(30080), born(30)))
	wantProblems(t, c.Compile().Problems, "Service default/web: NodePort 192.0.2.1:30080/TCP is held by Pod default/web")
}
