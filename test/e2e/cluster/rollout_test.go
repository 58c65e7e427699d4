// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/test/e2e/cluster/traffic"
)

func intOrString(n int) intstr.IntOrString { return intstr.FromInt(n) }

func TestRollingUpdateUnderLoadFailsNoRequest(t *testing.T) {
	k := newCase(t)
	k.spread("web", 4, gentle)
	s := k.expose("web", "web", nodePort)
	before := k.rolledOut("web")
	k.ready(s, before)
	r := k.load(k.everyPath(s, traffic.TCP, traffic.UDP))
	begun := time.Now()
	patch := []byte(`{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}`)
	if _, err := k.client.AppsV1().Deployments(k.namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	after := k.rolledOut("web")
	t.Logf("the update of 4 Pods took %v", time.Since(begun).Round(time.Millisecond))
	time.Sleep(time.Second)
	k.answered(r.end("rolling update"), append(names(before), names(after)...))
}

func TestNodeDrainUnderLoadFailsNoRequest(t *testing.T) {
	k := newCase(t)
	k.spread("web", 4, gentle)
	s := k.expose("web", "web", nodePort)
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MaxUnavailable: new(intOrString(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	if _, err := k.client.PolicyV1().PodDisruptionBudgets(k.namespace).Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pods := k.rolledOut("web")
	k.ready(s, pods)
	n := k.nodes[1]
	if len(on(n, pods)) == 0 {
		t.Fatalf("%s has none of the Pods", n.name)
	}
	r := k.load(k.everyPath(s, traffic.TCP, traffic.UDP))
	t.Cleanup(func() {
		if out, err := k.kubectlCommand(context.Background(), "uncordon", n.name).CombinedOutput(); err != nil {
			t.Errorf("kubectl uncordon: %v: %s", err, out)
		}
	})
	begun := time.Now()
	k.kubectl("drain", n.name, "--pod-selector=app=web", "--delete-emptydir-data", "--timeout=120s")
	t.Logf("the drain of %d Pods took %v", len(on(n, pods)), time.Since(begun).Round(time.Millisecond))
	after := k.rolledOut("web")
	if left := on(n, after); len(left) > 0 {
		t.Errorf("%s was drained and has %v", n.name, left)
	}
	time.Sleep(time.Second)
	k.answered(r.end("drain"), append(names(pods), names(after)...))
}

func TestReadinessThatFlapsFailsNoRequest(t *testing.T) {
	k := newCase(t)
	k.spread("web", 2, nil)
	s := k.expose("web", "web", nodePort)
	pods := k.rolledOut("web")
	k.ready(s, pods)
	r := k.load(k.everyPath(s, traffic.TCP, traffic.UDP))
	flapping, steady := pods[0], pods[1].Name
	for range 3 {
		for _, ready := range []bool{false, true} {
			word := map[bool]string{false: "no", true: "yes"}[ready]
			resp, err := http.Post("http://"+hostPort(flapping.Status.PodIP, 8080)+"/ready?"+word, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			k.eventually(func() error {
				for _, n := range k.nodes {
					for _, f := range k.dump(n) {
						if want := map[bool]int{false: 1, true: 2}[ready]; len(f.Backends) != want {
							return fmt.Errorf("%s: %s %s has %d Backends, want %d", n.name, f.Kind, f.Address, len(f.Backends), want)
						}
					}
				}
				return nil
			})
			if !ready {
				for _, c := range k.pods {
					for range 20 {
						if a := c.ask(traffic.TCP, hostPort(s.Spec.ClusterIP, 80), 0); a.Server != steady {
							t.Errorf("with %s not ready %s is answered: %+v", flapping.Name, c.name, a)
						}
					}
				}
			}
		}
	}
	r.end("readiness flaps")
}

// containerIDs are those of Pods that must not be restarted.
func (k *testCase) containerIDs(pods []corev1.Pod) (out []string) {
	k.Helper()
	for _, p := range pods {
		got, err := k.client.CoreV1().Pods(p.Namespace).Get(k.Context(), p.Name, metav1.GetOptions{})
		if err != nil {
			k.Fatal(err)
		}
		for _, s := range got.Status.ContainerStatuses {
			out = append(out, fmt.Sprintf("%s %s %d", p.Name, s.ContainerID, s.RestartCount))
		}
	}
	return out
}
