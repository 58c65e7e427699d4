// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/e2e/controlplane"
)

// clusterDNS is the resolver's ClusterIP, in dns.yaml too.
const clusterDNS = "10.96.0.10"

//go:embed dns.yaml
var dnsManifests string

// asking is how long a Pod asks, while the resolvers are replaced.
const asking = 25 * time.Second

func TestAPodsResolverOutlivesTheResolversBehindIt(t *testing.T) {
	k := newCase(t)
	system := k.installDNS()
	k.spread("web", nodeCount, nil)
	k.rolledOut("web")
	web := k.expose("web", "web", nil)
	full := "web." + k.namespace + ".svc.cluster.local."

	name := "asker"
	_, err := k.client.CoreV1().Pods(k.namespace).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever,
		Containers: []corev1.Container{{Name: "c", Image: workloadImage, ImagePullPolicy: corev1.PullNever,
			Args: []string{"resolve", "web", full, web.Spec.ClusterIP, fmt.Sprint(asking.Seconds())}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k.eventually(func() error {
		if out, complaints, err := k.tryKubectl("", "logs", name); err != nil || !strings.Contains(out, "READY") {
			return fmt.Errorf("the asker: %s%s %w", out, complaints, err)
		}
		return nil
	})
	before := podNames(system.rolledOut("coredns"))
	system.kubectl("rollout", "restart", "deployment/coredns")
	after := podNames(system.rolledOut("coredns"))
	for pod := range before {
		if after[pod] {
			t.Errorf("Pod %s was not replaced", pod)
		}
	}
	var said string
	k.eventually(func() error {
		p, err := k.client.CoreV1().Pods(k.namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			err = fmt.Errorf("the asker is %s", p.Status.Phase)
		}
		said = k.kubectl("logs", name)
		return err
	})
	lines := strings.Split(strings.TrimSpace(said), "\n")
	var asked, again, failed int
	if _, err := fmt.Sscanf(lines[len(lines)-1], "asked %d again %d failed %d", &asked, &again, &failed); err != nil {
		t.Fatalf("the asker said:\n%s", said)
	}
	t.Logf("asked %d, %d asked again, %d failed", asked, again, failed)
	// The socket ends once with each server, and is opened again. CoreDNS answers for
	// 5 s after it was told to go: only what was on its way is asked again.
	if asked < 100 || failed > 0 || again > 5 {
		t.Errorf("want over 100 questions, none failed and few asked again:\n%s", said)
	}
}

func podNames(pods []corev1.Pod) map[string]bool {
	names := map[string]bool{}
	for i := range pods {
		names[pods[i].Name] = true
	}
	return names
}

// installDNS gives the cluster its resolver until the test ends.
func (k *testCase) installDNS() (system *testCase) {
	k.Helper()
	image := "fairlead.test/coredns:" + controlplane.CoreDNSVersion
	k.importProgram(controlplane.CoreDNS, image)
	manifests := strings.Replace(dnsManifests, "IMAGE", image, 1)
	system = &testCase{T: k.T, cluster: k.cluster, namespace: "kube-system"}
	k.Cleanup(func() {
		if _, complaints, err := system.tryKubectl(manifests, "delete", "-f", "-", "--cascade=foreground"); err != nil {
			k.Errorf("remove the resolver: %v: %s", err, complaints)
		}
	})
	if _, complaints, err := system.tryKubectl(manifests, "apply", "-f", "-"); err != nil {
		k.Fatalf("install the resolver: %v: %s", err, complaints)
	}
	system.rolledOut("coredns")
	return system
}
