// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// frontend is a row of `fairlead dump services -o json`.
type frontend struct {
	Service, Kind, Address, Protocol, Scope string
	Port                                    int
	Backends                                []struct {
		Address, State string
		Local          bool
	}
}

// dump is what the node's kernel has for the namespace of the case.
func (k *testCase) dump(n *node) (out []frontend) {
	k.Helper()
	var all struct{ Frontends []frontend }
	text, err := n.run(k.agents[0], "dump", "services", "-o", "json")
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		k.Fatalf("dump on %s: %v\n%.1000s", n.name, err, text)
	}
	for _, f := range all.Frontends {
		if strings.HasPrefix(f.Service, k.namespace+"/") {
			out = append(out, f)
		}
	}
	return out
}

// frontendsOf counts the rows of a Service.
func (k *testCase) frontendsOf(n *node, service string) (count int) {
	k.Helper()
	for _, f := range k.dump(n) {
		if f.Service == k.namespace+"/"+service {
			count++
		}
	}
	return count
}

// on are the names of those Pods that run on the node.
func on(n *node, pods []corev1.Pod) (out []string) {
	for _, p := range pods {
		if p.Spec.NodeName == n.name {
			out = append(out, p.Name)
		}
	}
	slices.Sort(out)
	return out
}

var both = []traffic.Mode{traffic.TCP, traffic.UDP}

func TestServicesOfEveryTypeAcrossNodes(t *testing.T) {
	k := newCase(t)
	k.spread("web", 4, nil)
	pods := k.rolledOut("web")
	all := names(pods)
	for _, n := range k.nodes {
		if len(on(n, pods)) != 2 {
			t.Fatalf("%s has the Pods %v, want two of %v", n.name, on(n, pods), all)
		}
	}
	for _, p := range pods {
		if len(p.Status.PodIPs) != 2 {
			t.Errorf("Pod %s has the addresses %v, want one of each family", p.Name, p.Status.PodIPs)
		}
	}
	inside := append(slices.Clone(k.pods), k.hosts...)
	step := func(name string, f func(k *testCase)) {
		t.Run(name, func(t *testing.T) {
			k := &testCase{T: t, cluster: k.cluster, namespace: k.namespace}
			f(k)
			if t.Failed() {
				k.explain()
			}
		})
	}

	step("ClusterIP", func(k *testCase) {
		s := k.expose("web", "web", nil)
		for _, ip := range s.Spec.ClusterIPs {
			for _, mode := range both {
				for _, c := range inside {
					k.reaches(c, mode, hostPort(ip, 80), all...)
				}
			}
		}
	})
	step("NodePort", func(k *testCase) {
		s := k.expose("node", "web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
		for i, mode := range both {
			port := s.Spec.Ports[i].NodePort
			for _, n := range k.nodes {
				for _, ip := range []net.IP{n.ipv4, n.ipv6} {
					for _, c := range k.everyone() {
						k.reaches(c, mode, hostPort(ip.String(), port), all...)
					}
				}
			}
			for _, c := range k.hosts {
				k.reaches(c, mode, hostPort("127.0.0.1", port), all...)
			}
		}
	})
	step("NodePort with externalTrafficPolicy Local", func(k *testCase) {
		s := k.expose("local", "web", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
		})
		for _, n := range k.nodes {
			for i, ip := range []net.IP{n.ipv4, n.ipv6} {
				to := hostPort(ip.String(), s.Spec.Ports[0].NodePort)
				k.reaches(k.outside, traffic.TCP, to, on(n, pods)...)
				a := k.outside.ask(traffic.TCP, to, 5*time.Second)
				want := []net.IP{underlayIPv4, underlayIPv6}[i].String()
				if host, _, _ := net.SplitHostPort(a.Client); host != want {
					k.Errorf("the server behind %s saw the client %s, want %s", to, a.Client, want)
				}
			}
		}
	})
	step("LoadBalancer", func(k *testCase) {
		s := k.expose("lb", "web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
		vips := []string{"198.51.100.10", "2001:db8:100::10"}
		for _, ip := range vips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip, IPMode: new(corev1.LoadBalancerIPModeVIP)})
		}
		if _, err := k.client.CoreV1().Services(k.namespace).UpdateStatus(k.Context(), s, metav1.UpdateOptions{}); err != nil {
			k.Fatal(err)
		}
		for _, ip := range vips {
			for _, mode := range both {
				for _, c := range k.everyone() {
					k.reaches(c, mode, hostPort(ip, 80), all...)
				}
			}
		}
	})
	step("externalIPs", func(k *testCase) {
		ips := []string{"198.51.100.20", "2001:db8:100::20"}
		k.expose("external", "web", func(s *corev1.Service) { s.Spec.ExternalIPs = ips })
		for _, ip := range ips {
			for _, mode := range both {
				for _, c := range k.everyone() {
					k.reaches(c, mode, hostPort(ip, 80), all...)
				}
			}
		}
	})
	step("internalTrafficPolicy Local", func(k *testCase) {
		s := k.expose("inner", "web", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal) })
		for i, n := range k.nodes {
			for _, c := range []*client{k.pods[i], k.hosts[i]} {
				for _, ip := range s.Spec.ClusterIPs {
					k.reaches(c, traffic.TCP, hostPort(ip, 80), on(n, pods)...)
				}
			}
		}
	})
	step("headless and ExternalName", func(k *testCase) {
		k.expose("headless", "web", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone })
		named := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "named"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}}
		if _, err := k.client.CoreV1().Services(k.namespace).Create(k.Context(), named, metav1.CreateOptions{}); err != nil {
			k.Fatal(err)
		}
		var addresses []string
		k.eventually(func() error {
			addresses = nil
			list, err := k.slices("headless")
			if err != nil {
				return err
			}
			for _, s := range list {
				for _, e := range s.Endpoints {
					addresses = append(addresses, e.Addresses...)
				}
			}
			if len(addresses) != 8 {
				return fmt.Errorf("the EndpointSlices of the headless Service have %v, want two addresses of each Pod", addresses)
			}
			return nil
		})
		for _, c := range inside {
			for _, ip := range addresses {
				if a := c.ask(traffic.TCP, hostPort(ip, 8080), 10*time.Second); !slices.Contains(all, a.Server) {
					k.Errorf("%s asks the Pod at %s: %+v", c.name, ip, a)
				}
			}
		}
		for _, n := range k.nodes {
			for _, service := range []string{"headless", "named"} {
				if count := k.frontendsOf(n, service); count > 0 {
					k.Errorf("%s has %d Frontends of %s, which has no address", n.name, count, service)
				}
			}
		}
	})
	step("none of them after their deletion", func(k *testCase) {
		s, err := k.client.CoreV1().Services(k.namespace).Get(k.Context(), "web", metav1.GetOptions{})
		if err != nil {
			k.Fatal(err)
		}
		if err := k.client.CoreV1().RESTClient().Delete().Namespace(k.namespace).Resource("services").Do(k.Context()).Error(); err != nil {
			k.Fatal(err)
		}
		for _, n := range k.nodes {
			k.eventually(func() error {
				if rows := k.dump(n); len(rows) > 0 {
					return fmt.Errorf("%s still has %d Frontends of the namespace", n.name, len(rows))
				}
				return nil
			})
		}
		for _, c := range inside {
			k.refused(c, traffic.TCP, hostPort(s.Spec.ClusterIP, 80))
		}
	})
}
