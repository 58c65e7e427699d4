// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServicesOfTheAPIServerAreServedUntilTheyAreDeleted(t *testing.T) {
	b := newBed(t)
	b.start().ready()
	pod, outside := b.client("client"), b.client("outside")
	web := b.expose("web", nil)
	b.endpoints(web, "a", "d")
	pod.reaches(clusterIP(web), "a", "d")
	outside.reaches(b.nodePort(web), "a", "d")
	b.endpoints(web, "b")
	pod.reaches(clusterIP(web), "b")
	outside.reaches(b.nodePort(web), "b")
	b.endpoints(web)
	pod.getsNothing(clusterIP(web), "refused")
	outside.getsNothing(b.nodePort(web), "refused")
	b.endpoints(web, "a")
	pod.reaches(clusterIP(web), "a")
	b.deleteService(t, "web")
	pod.getsNothing(clusterIP(web), "timed out", "refused")
	outside.getsNothing(b.nodePort(web), "refused")
}

func TestServicesOfOtherProxiesAndHeadlessOnesAreLeftAlone(t *testing.T) {
	b := newBed(t)
	b.start().ready()
	pod := b.client("client")
	var ignored []*corev1.Service
	for label, value := range map[string]string{"service.kubernetes.io/service-proxy-name": "another", corev1.IsHeadlessService: ""} {
		s := b.expose(fmt.Sprintf("ignored-%d", len(ignored)), func(s *corev1.Service) { s.Labels = map[string]string{label: value} })
		b.endpoints(s, "a")
		ignored = append(ignored, s)
	}
	none := b.expose("none", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ClusterIP = corev1.ServiceTypeClusterIP, corev1.ClusterIPNone
	})
	b.endpoints(none, "a")
	web := b.expose("web", nil)
	b.endpoints(web, "a")
	pod.reaches(clusterIP(web), "a") // so what came before it has arrived
	for _, s := range ignored {
		if got := pod.ask(clusterIP(s)); got != "timed out" && got != "refused" {
			t.Errorf("Service with labels %v is served: %s", s.Labels, got)
		}
	}
	if got, want := services(t, b.dump()), []string{b.namespace + "/web"}; !slices.Equal(got, want) {
		t.Errorf("the kernel holds %v, want %v", got, want)
	}
}

// services are the names in a dump, each once.
func services(t *testing.T, dump string) (names []string) {
	t.Helper()
	var d struct {
		Frontends []struct{ Service string }
	}
	if err := json.Unmarshal([]byte(dump), &d); err != nil {
		t.Fatalf("%v in %s", err, dump)
	}
	for _, f := range d.Frontends {
		if f.Service != "default/kubernetes" { // the API server's own
			names = append(names, f.Service)
		}
	}
	return slices.Compact(names)
}

// flips is how often TestEndpointFlips moves its Service, flipBound how long
// the slowest but one in a hundred may take on a machine that does much else.
const (
	flips     = 50
	flipBound = 250 * time.Millisecond
)

func TestEndpointFlipsAnswerFromTheNewBackendWithinMilliseconds(t *testing.T) {
	b := newBed(t)
	b.start().ready()
	pod := b.client("client")
	web := b.expose("web", nil)
	b.endpoints(web, "a")
	pod.reaches(clusterIP(web), "a")
	const programmed = "kubeproxy_network_programming_duration_seconds"
	counted := b.metric(programmed + "_count")
	var latencies []time.Duration
	for i := range flips {
		next := []string{"b", "a"}[i%2]
		answered := make(chan answer, 1)
		go func() {
			answered <- pod.do(question{Op: "until", To: clusterIP(web), Backend: next, Within: 5 * time.Second})
		}()
		begun := b.endpoints(web, next)
		a := <-answered
		if a.Backend != next {
			t.Fatalf("flip %d: no answer of %s within 5 s, %d tries, last %+v", i, next, a.Tries, a)
		}
		latencies = append(latencies, time.Duration(a.At-begun))
	}
	slices.Sort(latencies)
	p50, p99 := latencies[flips/2], latencies[flips*99/100]
	t.Logf("API write begun -> first answer of the new Backend, %d flips: p50 %v, p99 %v, min %v", flips, p50, p99, latencies[0])
	if p99 > flipBound {
		t.Errorf("p99 %v, want at most %v", p99, flipBound)
	}
	// Many flips may be one Apply, which observes each trigger.
	if got := b.metric(programmed+"_count") - counted; got != flips {
		t.Errorf("%s was observed %v times for %d changes with a trigger time", programmed, got, flips)
	}
	if mean := b.metric(programmed+"_sum") / b.metric(programmed+"_count"); mean <= 0 || mean > 1 {
		t.Errorf("mean of %s is %v s", programmed, mean)
	}
	if n := b.metric("fairlead_drift_repaired_total"); n != 0 {
		t.Errorf("%v Frontends drifted", n)
	}
}

func TestTrafficGoesOnWhileTheAPIServerIsAway(t *testing.T) {
	b := newBed(t)
	a := b.start().ready()
	pod, outside := b.client("client"), b.client("outside")
	web, gone := b.expose("web", nil), b.expose("gone", nil)
	b.endpoints(web, "a")
	b.endpoints(gone, "a")
	pod.reaches(clusterIP(web), "a")
	pod.reaches(clusterIP(gone), "a")
	const connected = "fairlead_source_connected"
	if v := b.metric(connected); v != 1 {
		t.Errorf("%s is %v", connected, v)
	}

	b.wire.Cut()
	b.KillAPIServer()
	eventually(t, agentBound, func() string {
		if v := b.metric(connected); v != 0 {
			return fmt.Sprintf("%s is %v without an API server", connected, v)
		}
		return ""
	})
	for range 50 {
		if got := pod.ask(clusterIP(web)) + outside.ask(b.nodePort(web)); got != "aa" {
			t.Fatalf("without an API server: %q", got)
		}
	}
	var body struct{ SourceDisconnected, NodeEligible bool }
	code, text := b.get(healthz)
	if err := json.Unmarshal([]byte(text), &body); err != nil || code != http.StatusOK || !body.SourceDisconnected || !body.NodeEligible {
		t.Errorf("/healthz answers %d %s, want 200 that says sourceDisconnected", code, text)
	}
	if code, text := b.get(livez); code != http.StatusOK {
		t.Errorf("/livez answers %d %s", code, text)
	}

	// While the API server is back but the agent cannot know.
	if err := b.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	added := b.expose("added", nil)
	b.endpoints(added, "b")
	b.endpoints(web, "b")
	b.deleteService(t, "gone")
	if got := pod.ask(clusterIP(web)) + pod.ask(clusterIP(gone)); got != "aa" {
		t.Errorf("the agent heard through a cut wire: %q", got)
	}
	b.wire.Restore()
	eventually(t, reconnectBound, func() string {
		if v := b.metric(connected); v != 1 {
			return fmt.Sprintf("%s is %v", connected, v)
		}
		return ""
	})
	pod.reaches(clusterIP(web), "b")
	pod.reaches(clusterIP(added), "b")
	pod.getsNothing(clusterIP(gone), "timed out", "refused")
	select {
	case <-a.exited:
		t.Error("the agent ended")
	default:
	}
}

func TestAnAgentStartedWithoutAnAPIServerRemovesNothing(t *testing.T) {
	b := newBed(t)
	a := b.start().ready()
	pod, outside := b.client("client"), b.client("outside")
	web, gone := b.expose("web", nil), b.expose("gone", nil)
	b.endpoints(web, "a")
	b.endpoints(gone, "a")
	outside.reaches(b.nodePort(web), "a")
	pod.reaches(clusterIP(gone), "a")
	before := b.dump()

	b.wire.Cut()
	b.KillAPIServer()
	a.kill()
	served := func(when string) {
		t.Helper()
		if got := pod.ask(clusterIP(web)) + outside.ask(b.nodePort(web)) + pod.ask(clusterIP(gone)); got != "aaa" {
			t.Fatalf("%s: %q", when, got)
		}
	}
	served("with the agent dead")
	b.start()
	notSynced := false
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		served("with an agent that knows nothing")
		code, _ := b.get(healthz)
		notSynced = notSynced || code == http.StatusServiceUnavailable
		if code == http.StatusOK {
			t.Fatal("/healthz answers 200 before the agent knows what to serve")
		}
	}
	if !notSynced {
		t.Error("the agent never answered: this test tests nothing")
	}
	if diff := cmp.Diff(before, b.dump()); diff != "" {
		t.Errorf("the kernel was changed before the objects were known (-before +after):\n%s", diff)
	}
	if err := b.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.deleteService(t, "gone")
	b.wire.Restore()
	eventually(t, reconnectBound, func() string {
		code, body := b.get(healthz)
		if code != http.StatusOK {
			return fmt.Sprintf("/healthz answers %d %s", code, body)
		}
		return ""
	})
	pod.reaches(clusterIP(web), "a")
	pod.getsNothing(clusterIP(gone), "timed out", "refused")
	if got, want := services(t, b.dump()), []string{b.namespace + "/web"}; !slices.Equal(got, want) {
		t.Errorf("the kernel holds %v, want %v", got, want)
	}
}

func TestANodeThatIsAboutToGoIsTakenOutOfLoadBalancersAndNotRestarted(t *testing.T) {
	b := newBed(t)
	b.start().ready()
	expect := func(when string, want int) {
		t.Helper()
		eventually(t, agentBound, func() string {
			if code, body := b.get(healthz); code != want {
				return fmt.Sprintf("%s: /healthz answers %d %s, want %d", when, code, body, want)
			}
			return ""
		})
		if code, body := b.get(livez); code != http.StatusOK {
			t.Errorf("%s: /livez answers %d %s", when, code, body)
		}
	}
	expect("at first", http.StatusOK)
	b.changeNode(func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule}}
	})
	expect("with the cluster autoscaler's taint", http.StatusServiceUnavailable)
	b.changeNode(func(n *corev1.Node) { n.Spec.Taints = nil })
	expect("without the taint", http.StatusOK)
	b.changeNode(func(n *corev1.Node) { n.Finalizers = []string{"fairlead.dev/test"} })
	defer b.changeNode(func(n *corev1.Node) { n.Finalizers = nil })
	if err := b.cluster.client.CoreV1().Nodes().Delete(t.Context(), b.node, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("while it is being deleted", http.StatusServiceUnavailable)
}

func TestHealthCheckNodePortTellsWhetherEndpointsAreHere(t *testing.T) {
	b := newBed(t)
	b.start().ready()
	web := b.expose("web", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	})
	url := fmt.Sprintf("http://127.0.0.1:%d/", web.Spec.HealthCheckNodePort)
	for _, c := range []struct {
		pods   []string
		local  int
		status int
	}{{[]string{"a", "b", "d"}, 2, http.StatusOK}, {[]string{"d"}, 0, http.StatusServiceUnavailable}} {
		b.endpoints(web, c.pods...)
		want := fmt.Sprintf(`{"service":{"namespace":%q,"name":"web"},"localEndpoints":%d,"serviceProxyHealthy":true}`+"\n", b.namespace, c.local)
		eventually(t, agentBound, func() string {
			r, body := b.fetch(url)
			if r == nil || r.StatusCode != c.status || body != want || r.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(c.local) {
				return fmt.Sprintf("endpoints %v: want %d %s, seen %+v %s", c.pods, c.status, want, r, body)
			}
			return ""
		})
	}
	b.deleteService(t, "web")
	eventually(t, agentBound, func() string {
		if code, body := b.get(url); code != 0 {
			return fmt.Sprintf("the port of a deleted Service answers %d %s", code, body)
		}
		return ""
	})
}
