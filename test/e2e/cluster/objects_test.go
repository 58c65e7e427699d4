// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// testCase is a test's place in the cluster.
type testCase struct {
	*testing.T
	*cluster
	namespace string
}

// eventually waits until the condition has no error.
func (k *testCase) eventually(condition func() error) {
	k.Helper()
	if err := within(patience, condition); err != nil {
		k.Fatal(err)
	}
}

// serverSpec is a Pod that serves, on all the paths that a test wants.
func serverSpec() corev1.PodSpec {
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(20)),
		DNSPolicy:                     corev1.DNSDefault, // most tests have no resolver
		Containers: []corev1.Container{{
			Name: "server", Image: workloadImage, ImagePullPolicy: corev1.PullNever, Args: []string{"serve"},
			Env: []corev1.EnvVar{{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}},
			ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 10,
				ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}}},
		}},
	}
}

// spread is a Deployment with its Pods on different nodes, as far as possible.
func (k *testCase) spread(name string, replicas int32, change func(*appsv1.Deployment)) *appsv1.Deployment {
	k.Helper()
	labels := map[string]string{"app": name}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: serverSpec()},
	}}
	d.Spec.Template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: corev1.LabelHostname,
		WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: d.Spec.Selector, MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey}}}
	if change != nil {
		change(d)
	}
	d, err := k.client.AppsV1().Deployments(k.namespace).Create(k.Context(), d, metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	return d
}

// rolledOut waits until the Deployment is as its spec says, with none of its old
// Pods left, and gives its Pods.
func (k *testCase) rolledOut(name string) (pods []corev1.Pod) {
	k.Helper()
	k.eventually(func() error {
		d, err := k.client.AppsV1().Deployments(k.namespace).Get(k.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s, want := d.Status, *d.Spec.Replicas
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.ReadyReplicas != want || s.AvailableReplicas != want || s.Replicas != want {
			return fmt.Errorf("Deployment %s: %+v", name, s)
		}
		list, err := k.client.CoreV1().Pods(k.namespace).List(k.Context(), metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
		if err != nil {
			return err
		}
		if len(list.Items) != int(want) {
			return fmt.Errorf("Deployment %s has %d Pods, want %d", name, len(list.Items), want)
		}
		pods = list.Items
		return nil
	})
	return pods
}

func podReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// expose makes a dual-stack Service for the Deployment with port 80 for TCP and
// UDP, and gives it as the API server filled it in.
func (k *testCase) expose(name, app string, change func(*corev1.Service)) *corev1.Service {
	k.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": app}, IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
		Ports: []corev1.ServicePort{
			{Name: "tcp", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP},
			{Name: "udp", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolUDP},
		},
	}}
	if change != nil {
		change(s)
	}
	s, err := k.client.CoreV1().Services(k.namespace).Create(k.Context(), s, metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	return s
}

// slices are the EndpointSlices of a Service, as the controllers made them.
func (k *testCase) slices(service string) ([]discoveryv1.EndpointSlice, error) {
	list, err := k.client.DiscoveryV1().EndpointSlices(k.namespace).List(k.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// names are those of Pods, sorted.
func names(pods []corev1.Pod) (out []string) {
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

// reaches waits until the client is answered by each of the servers and by
// nobody else.
func (k *testCase) reaches(c *client, mode traffic.Mode, to string, servers ...string) {
	k.Helper()
	seen := map[string]int{}
	var last traffic.Answer
	err := within(patience, func() error {
		clear(seen)
		for range 12 * len(servers) {
			last = c.ask(mode, to, 5*time.Second)
			if last.Failure != "" {
				return fmt.Errorf("%s", last.Failure)
			}
			if !slices.Contains(servers, last.Server) {
				return fmt.Errorf("answer of %s", last.Server)
			}
			seen[last.Server]++
			if len(seen) == len(servers) {
				return nil
			}
		}
		return fmt.Errorf("answers of %v only", seen)
	})
	if err != nil {
		k.Errorf("%s asks %s %s: want answers of each of %v; %v", c.name, mode, to, servers, err)
	}
}

// refused waits until the client gets no answer.
func (k *testCase) refused(c *client, mode traffic.Mode, to string) {
	k.Helper()
	err := within(patience, func() error {
		if a := c.ask(mode, to, 2*time.Second); a.Failure == "" {
			return fmt.Errorf("answer of %s", a.Server)
		}
		return nil
	})
	if err != nil {
		k.Errorf("%s asks %s %s: want no answer; %v", c.name, mode, to, err)
	}
}

// explain says what a failed test should know of the cluster.
func (k *testCase) explain() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if pods, err := k.client.CoreV1().Pods(k.namespace).List(ctx, metav1.ListOptions{}); err == nil {
		for _, p := range pods.Items {
			k.Logf("Pod %s on %s: ready %v, %s %s %s", p.Name, p.Spec.NodeName, podReady(&p), p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
	}
	if events, err := k.client.CoreV1().Events(k.namespace).List(ctx, metav1.ListOptions{}); err == nil {
		for _, e := range events.Items {
			if e.Type == corev1.EventTypeWarning {
				k.Logf("event: %s %s %s: %s %s (%d)", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message, e.Count)
			}
		}
	}
	k.tell(k)
}
