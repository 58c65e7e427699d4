// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/test/e2e/controlplane"
)

// What each burner may take, and what it holds of that memory.
const (
	burnCPU       = 300 // thousandths of a core
	burnMemory    = 160 // MiB
	burnHeld      = 64  // MiB
	burnContainer = "burner"
)

func TestTopAndTheAutoscalerSeeWhatPodsUse(t *testing.T) {
	k := newCase(t)
	k.installMetricsServer()
	k.spread("burner", nodeCount, burners)
	pods := k.rolledOut("burner")
	k.autoscale("burner", nodeCount, nodeCount+1)
	begun, counted := time.Now(), k.measure(pods)
	(&testCase{T: t, cluster: k.cluster, namespace: "kube-system"}).rolledOut("metrics-server")

	var nodes, containers map[string]used
	k.eventually(func() (err error) {
		if nodes, err = k.top(1, "node"); err != nil {
			return err
		}
		if containers, err = k.top(2, "pod", "--containers"); err != nil {
			return err
		}
		for _, p := range pods {
			if _, ok := containers[p.Name+" "+burnContainer]; !ok {
				return fmt.Errorf("kubectl top pod --containers lacks %s: %v", p.Name, containers)
			}
		}
		if len(nodes) != nodeCount {
			return fmt.Errorf("kubectl top node: %v", nodes)
		}
		return nil
	})
	least, most := counted()
	t.Logf("kubectl top told after %v: %v %v; in the cgroups of the Pods were %.0f to %.0f",
		time.Since(begun).Round(time.Millisecond), nodes, containers, least, most)
	for i, p := range pods {
		// A new container's use is from when it was made: before it began.
		k.plausible("burner of "+p.Name, containers[p.Name+" "+burnContainer], 0.5*least[i], min(1.2*most[i], 1.1*burnCPU), burnHeld, burnMemory)
		k.plausible("idler of "+p.Name, containers[p.Name+" idler"], 0, 50, 0.1, burnMemory)
	}
	for _, n := range k.nodes { // each is the whole machine to the kernel
		k.plausible(n.name, nodes[n.name], 0.5*burnCPU, 1100*float64(runtime.NumCPU()), 2*burnHeld, 1<<20)
	}

	k.eventually(func() error {
		d, err := k.client.AppsV1().Deployments(k.namespace).Get(t.Context(), "burner", metav1.GetOptions{})
		if err == nil && *d.Spec.Replicas != nodeCount+1 {
			err = fmt.Errorf("the autoscaler left it at %d replicas", *d.Spec.Replicas)
		}
		return err
	})
	t.Logf("the autoscaler had it scaled after %v", time.Since(begun).Round(time.Millisecond))
}

// burners makes each Pod burn all that it may take of a core, beside a container
// that does nothing.
func burners(d *appsv1.Deployment) {
	limits := func(cpu, memory int64) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewMilliQuantity(cpu, resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(memory<<20, resource.BinarySI)}}
	}
	d.Spec.Template.Spec.TerminationGracePeriodSeconds = new(int64(1))
	d.Spec.Template.Spec.Containers = []corev1.Container{
		{Name: burnContainer, Image: workloadImage, ImagePullPolicy: corev1.PullNever, Args: []string{"burn", strconv.Itoa(burnHeld)}, Resources: limits(burnCPU, burnMemory)},
		{Name: "idler", Image: workloadImage, ImagePullPolicy: corev1.PullNever, Args: []string{"pause"}, Resources: limits(50, burnMemory)},
	}
}

// autoscale wants Pods that use a third of what they do.
func (k *testCase) autoscale(deployment string, least, most int32) {
	k.Helper()
	target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: resource.NewMilliQuantity(burnCPU/3, resource.DecimalSI)}
	a := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: deployment}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: deployment},
		MinReplicas:    &least, MaxReplicas: most,
		Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: target}}},
	}}
	if _, err := k.client.AutoscalingV2().HorizontalPodAutoscalers(k.namespace).Create(k.Context(), a, metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
}

// metricsServerOverlay changes of metrics-server's own installation the image,
// to the one that was built, and how long the test waits. The kubelets'
// certificates are verified, which that installation leaves to who has an
// authority for them.
const metricsServerOverlay = `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [base]
images:
- {name: gcr.io/k8s-staging-metrics-server/metrics-server, newName: fairlead.test/metrics-server, newTag: %[1]s}
patches:
- target: {kind: Deployment}
  patch: |
    - {op: replace, path: /spec/template/spec/containers/0/args/4, value: "--metric-resolution=10s"}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: "--kubelet-request-timeout=9s"}
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: "--kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"}
    - {op: replace, path: /spec/template/spec/containers/0/readinessProbe/initialDelaySeconds, value: 1}
    - {op: replace, path: /spec/template/spec/containers/0/readinessProbe/periodSeconds, value: 1}
    - {op: replace, path: /spec/template/spec/containers/0/readinessProbe/failureThreshold, value: 30}
`

// installMetricsServer runs it in a Pod, as its release says.
func (k *testCase) installMetricsServer() {
	k.Helper()
	k.importProgram(controlplane.MetricsServer, "fairlead.test/metrics-server:"+controlplane.MetricsServerVersion)
	dir := k.TempDir()
	base, err := controlplane.MetricsServerManifests()
	if err != nil {
		k.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "base"), os.DirFS(base)); err != nil {
		k.Fatal(err)
	}
	overlay := fmt.Sprintf(metricsServerOverlay, controlplane.MetricsServerVersion)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o644); err != nil {
		k.Fatal(err)
	}
	everywhere := &testCase{T: k.T, cluster: k.cluster} // the manifests name their namespace
	k.Cleanup(func() {
		if k.Failed() {
			out, complaints, err := everywhere.tryKubectl("", "-n", "kube-system", "logs", "deployment/metrics-server", "--tail=50")
			k.Logf("metrics-server said: %s%s %v", out, complaints, err)
		}
		// Its API before the namespace of the case, whose end asks every API.
		if _, complaints, err := everywhere.tryKubectl("", "delete", "-k", dir, "--cascade=foreground"); err != nil {
			k.Errorf("remove metrics-server: %v: %s", err, complaints)
		}
	})
	everywhere.kubectl("apply", "-k", dir)
}

// used is a row of `kubectl top`.
type used struct{ cpu, memory resource.Quantity }

func (u used) String() string { return u.cpu.String() + " " + u.memory.String() }

// top gives the rows of `kubectl top`, by their first columns.
func (k *testCase) top(columns int, args ...string) (map[string]used, error) {
	out, complaints, err := k.tryKubectl("", append([]string{"top"}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("kubectl top: %w: %s", err, complaints)
	}
	rows := map[string]used{}
	at := map[string]int{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(at) == 0 {
			for i, name := range f {
				at[name] = i
			}
			continue
		}
		var u used
		for name, to := range map[string]*resource.Quantity{"CPU(cores)": &u.cpu, "MEMORY(bytes)": &u.memory} {
			i, ok := at[name]
			if !ok || i >= len(f) {
				return nil, fmt.Errorf("kubectl top has no %s: %s", name, out)
			}
			if *to, err = resource.ParseQuantity(f[i]); err != nil {
				return nil, fmt.Errorf("kubectl top: %w: %s", err, out)
			}
		}
		rows[strings.Join(f[:columns], " ")] = u
	}
	return rows, nil
}

// plausible compares with bounds in thousandths of a core and in MiB.
func (k *testCase) plausible(what string, u used, leastCPU, mostCPU, leastMemory, mostMemory float64) {
	k.Helper()
	if cpu := float64(u.cpu.MilliValue()); cpu < leastCPU || cpu > mostCPU {
		k.Errorf("%s uses %v of a core, want %.0fm to %.0fm", what, &u.cpu, leastCPU, mostCPU)
	}
	if m := float64(u.memory.Value()) / (1 << 20); m < leastMemory || m > mostMemory {
		k.Errorf("%s uses %v of memory, want %gMi to %gMi", what, &u.memory, leastMemory, mostMemory)
	}
}

// measure follows what Pods use until it is asked for the least and the most
// that each used in any 3 s, in thousandths of a core. What metrics-server
// compares is in there, and a shared machine gives more or less as it goes.
func (k *testCase) measure(pods []corev1.Pod) func() (least, most []float64) {
	const over = 3 * time.Second
	var at []time.Time
	var samples [][]time.Duration
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			at, samples = append(at, time.Now()), append(samples, k.cpuUsed(pods))
			select {
			case <-k.Context().Done():
				return
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	return func() (least, most []float64) {
		close(stop)
		<-stopped
		for p := range pods {
			low, high := math.Inf(1), 0.0
			for i, j := 0, 0; j < len(at); j++ {
				for ; at[j].Sub(at[i]) >= over; i++ {
					used := 1000 * (samples[j][p] - samples[i][p]).Seconds() / at[j].Sub(at[i]).Seconds()
					low, high = min(low, used), max(high, used)
				}
			}
			least, most = append(least, low), append(most, high)
		}
		return least, most
	}
}

// cpuUsed is the CPU time of each Pod, as the kernel counts it.
func (k *testCase) cpuUsed(pods []corev1.Pod) (out []time.Duration) {
	for _, p := range pods {
		n := k.nodes[slices.IndexFunc(k.nodes, func(n *node) bool { return n.name == p.Spec.NodeName })]
		d, err := n.cpuUsed(p.UID)
		if err != nil {
			k.Error(err)
		}
		out = append(out, d)
	}
	return out
}

// cpuUsed is of a Pod that is Guaranteed what it asks for.
func (n *node) cpuUsed(pod types.UID) (time.Duration, error) {
	for _, top := range containerdtest.CgroupMounts() {
		dir := filepath.Join(top+n.podRoot, "pod"+string(pod))
		if b, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
			ns, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			return time.Duration(ns), err
		}
		b, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		if m := regexp.MustCompile(`(?m)^usage_usec (\d+)$`).FindSubmatch(b); err == nil && m != nil {
			us, err := strconv.ParseInt(string(m[1]), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("no cgroup of Pod %s on %s counts CPU", pod, n.name)
}
