// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CVE-2020-8554: whoever may write a Service chooses its externalIPs.
func TestThePolicyDecidesWhichExternalIPsAreServed(t *testing.T) {
	b := newBed(t)
	const external = "203.0.113.50"
	pod := b.client("client")
	web := b.expose("web", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{external} })
	b.endpoints(web, "a")
	at := external + ":80"
	for _, c := range []struct {
		policy string
		served bool
	}{{"deny", false}, {"allow", true}, {"198.51.100.0/24", false}, {"198.51.100.0/24,203.0.113.48/30", true}} {
		a := b.startIn(place{capabilities: b.set.capabilities, args: []string{"--external-ips=" + c.policy}}).ready()
		pod.reaches(clusterIP(web), "a")
		if c.served {
			pod.reaches(at, "a")
		} else if got := pod.ask(at); got == "a" {
			t.Errorf("--external-ips=%s: the Service has %s", c.policy, external)
		}
		if served := strings.Contains(b.dump(), external); served != c.served {
			t.Errorf("--external-ips=%s: in the kernel: %v, want %v", c.policy, served, c.served)
		}
		if problems := b.metric("fairlead_problems"); (problems > 0) == c.served {
			t.Errorf("--external-ips=%s: %v problems are told", c.policy, problems)
		}
		a.kill()
	}
}

func TestNoServiceTakesWhatIsSentToTheNodeItself(t *testing.T) {
	b := newBed(t)
	b.start().ready()
	pod, outside := b.client("client"), b.client("outside")
	node := b.host.PrimaryIPv4.String()
	// The agent's own health port, and the load balancer's answer likewise.
	thief := b.expose("thief", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.Ports[0].Port = 10256
		s.Spec.ExternalIPs = []string{node}
	})
	thief.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: node}}
	if err := b.updateStatus(thief); err != nil {
		t.Fatal(err)
	}
	b.endpoints(thief, "a")
	pod.reaches(thief.Spec.ClusterIP+":10256", "a") // so what it says has arrived
	eventually(t, agentBound, func() string {
		if n := b.metric("fairlead_problems"); n < 2 {
			return fmt.Sprintf("%v problems are told, want one for each claim", n)
		}
		return ""
	})
	for name, c := range map[string]*client{"a pod": pod, "a client outside": outside} {
		if got := c.ask(node + ":10256"); got == "a" {
			t.Errorf("%s asks the node and gets the thief's Backend", name)
		}
	}
	if code, body := b.get("http://" + node + ":10256/healthz"); code != http.StatusOK || !strings.Contains(body, "nodeEligible") {
		t.Errorf("the node's own health is answered by somebody: %d %s", code, body)
	}
}

func (b *bed) updateStatus(s *corev1.Service) error {
	_, err := b.cluster.client.CoreV1().Services(b.namespace).UpdateStatus(b.t.Context(), s, metav1.UpdateOptions{})
	return err
}
