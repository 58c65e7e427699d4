// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/node"
)

func tokenRequest() *authenticationv1.TokenRequest {
	return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}}
}

// switchedRuntime is a container runtime that is on, off, or has no network.
type switchedRuntime struct{ state atomic.Value }

func (r *switchedRuntime) Version(context.Context, string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "1.6.20"}, nil
}

func (r *switchedRuntime) Status(context.Context, bool) (*runtimeapi.StatusResponse, error) {
	state, _ := r.state.Load().(string)
	if state == "off" {
		return nil, errors.New("no answer")
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true},
		{Type: runtimeapi.NetworkReady, Status: state == "on", Reason: "NetworkPluginNotReady", Message: "cni plugin not initialized"},
	}}}, nil
}

// run runs a Node until the test ends or stop is called.
func (c *cluster) run(t *testing.T, change func(*node.Options)) (_ *node.Node, stop func()) {
	t.Helper()
	events, stopEvents := node.NewEvents(c.node, nodeName)
	o := node.Options{Name: nodeName, Client: c.node, Events: events, Version: "v1.37.2", Root: t.TempDir(),
		Addresses: []netip.Addr{netip.MustParseAddr(nodeAddress), netip.MustParseAddr("fd00:99::1")}}
	change(&o)
	n, err := node.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var once atomic.Bool
	stop = func() {
		if once.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		stopEvents()
	}
	t.Cleanup(stop)
	return n, stop
}

func (c *cluster) getNode() (*corev1.Node, error) {
	return c.admin.CoreV1().Nodes().Get(context.Background(), nodeName, metav1.GetOptions{})
}

// ready waits until the condition Ready has this status and message.
func (c *cluster) ready(t *testing.T, status corev1.ConditionStatus, message string) {
	t.Helper()
	eventually(t, 20*time.Second, func() string {
		n, err := c.getNode()
		if err != nil {
			return err.Error()
		}
		for _, x := range n.Status.Conditions {
			if x.Type == corev1.NodeReady && x.Status == status && x.Message == message {
				return ""
			}
		}
		return fmt.Sprintf("conditions %+v, want Ready %s: %s", n.Status.Conditions, status, message)
	})
}

const (
	goodNews  = "kubelet is posting ready status"
	noNetwork = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized"
)

func TestANode(t *testing.T) {
	c := newCluster(t)
	t.Run("registers, reports and lives", c.testRegistration)
	t.Run("is taken over by a restart", c.testRestart)
	t.Run("writes the status of its Pods", c.testPodStatus)
	t.Run("counts like events in one", c.testEvents)
	t.Run("survives the API server", c.testOutage)
}

func (c *cluster) testRegistration(t *testing.T) {
	rt := &switchedRuntime{}
	rt.state.Store("no network")
	n, _ := c.run(t, func(o *node.Options) {
		o.Runtime, o.LeaseDuration, o.StatusEvery = rt, 4*time.Second, 300*time.Millisecond
		o.Labels = map[string]string{"pool": "a"}
		o.Taints = []corev1.Taint{{Key: "starting", Effect: corev1.TaintEffectNoSchedule}}
		o.DeclaredFeatures = []string{"ExtendWebSocketsToKubelet"}
		o.KubeletPort = 12345
	})
	c.ready(t, corev1.ConditionFalse, noNetwork)
	rt.state.Store("on")
	c.ready(t, corev1.ConditionTrue, goodNews)
	got, err := c.getNode()
	if err != nil {
		t.Fatal(err)
	}
	for label, want := range map[string]string{"kubernetes.io/hostname": "one", "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "pool": "a"} {
		if got.Labels[label] != want {
			t.Errorf("label %s is %q, want %q", label, got.Labels[label], want)
		}
	}
	addresses := []corev1.NodeAddress{{Type: "InternalIP", Address: nodeAddress}, {Type: "InternalIP", Address: "fd00:99::1"}, {Type: "Hostname", Address: "one"}}
	if !slices.Equal(got.Status.Addresses, addresses) {
		t.Errorf("addresses %v", got.Status.Addresses)
	}
	if !slices.ContainsFunc(got.Spec.Taints, func(t corev1.Taint) bool { return t.Key == "starting" }) {
		t.Errorf("taints %v", got.Spec.Taints)
	}
	s := got.Status
	if s.Capacity.Cpu().IsZero() || s.Allocatable.Memory().Cmp(*s.Capacity.Memory()) >= 0 || s.Capacity.Pods().Value() != 110 ||
		s.DaemonEndpoints.KubeletEndpoint.Port != 12345 || s.NodeInfo.ContainerRuntimeVersion != "containerd://1.6.20" ||
		s.NodeInfo.KubeletVersion != "v1.37.2" || s.NodeInfo.BootID == "" || s.NodeInfo.KernelVersion == "" || s.NodeInfo.OSImage == "" ||
		!slices.Equal(s.DeclaredFeatures, []string{"ExtendWebSocketsToKubelet"}) {
		t.Errorf("status %+v", s)
	}
	for _, kind := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		if !slices.ContainsFunc(s.Conditions, func(x corev1.NodeCondition) bool { return x.Type == kind && x.Reason != "" }) {
			t.Errorf("no condition %s", kind)
		}
	}
	if n.Object() == nil || n.Object().UID != got.UID {
		t.Error("the Node does not know its object")
	}
	c.leaseIsKept(t, got.UID)

	// A status that others own stays, and an unchanged one is not written.
	_, err = c.admin.CoreV1().Nodes().Patch(t.Context(), nodeName, types.StrategicMergePatchType,
		[]byte(`{"status":{"capacity":{"example.com/gpu":"2"},"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"RouteCreated"}]}}`), metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.getNode()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // five periods
	after, err := c.getNode()
	if err != nil {
		t.Fatal(err)
	}
	if before.ResourceVersion != after.ResourceVersion || after.Status.Capacity.Name("example.com/gpu", "").Value() != 2 {
		t.Errorf("the Node was written again: %s, then %s; capacity %v", before.ResourceVersion, after.ResourceVersion, after.Status.Capacity)
	}
	rt.state.Store("off")
	c.ready(t, corev1.ConditionFalse, "container runtime is down")
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.ready(t, corev1.ConditionFalse, "[container runtime is down, node is shutting down]")
	rt.state.Store("on")
	c.ready(t, corev1.ConditionFalse, "node is shutting down")
	eventually(t, 10*time.Second, func() string {
		list, err := c.admin.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=Node"})
		if err != nil {
			return err.Error()
		}
		seen := map[string]bool{}
		for _, e := range list.Items {
			seen[e.Reason] = e.Source.Component == "kubelet" && e.InvolvedObject.Name == nodeName
		}
		for _, want := range []string{"Starting", "NodeReady", "NodeNotReady", "NodeHasSufficientMemory"} {
			if !seen[want] {
				return fmt.Sprintf("no event %s in %v", want, seen)
			}
		}
		return ""
	})
}

func (c *cluster) leaseIsKept(t *testing.T, uid types.UID) {
	t.Helper()
	leases := c.admin.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	var first time.Time
	renewed := func() string {
		l, err := leases.Get(t.Context(), nodeName, metav1.GetOptions{})
		switch {
		case err != nil:
			return err.Error()
		case *l.Spec.HolderIdentity != nodeName || *l.Spec.LeaseDurationSeconds != 4 || len(l.OwnerReferences) != 1 || l.OwnerReferences[0].UID != uid:
			t.Fatalf("lease %+v", l)
		case first.IsZero():
			first = l.Spec.RenewTime.Time
		case l.Spec.RenewTime.After(first):
			return ""
		}
		return "not renewed"
	}
	eventually(t, 4*time.Second, renewed)
	if err := leases.Delete(t.Context(), nodeName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 4*time.Second, renewed)
}

func (c *cluster) testRestart(t *testing.T) {
	_, err := c.admin.CoreV1().Nodes().Patch(t.Context(), nodeName, types.StrategicMergePatchType,
		[]byte(`{"metadata":{"labels":{"kubernetes.io/hostname":"wrong","pool":"b"}},"spec":{"taints":null}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rt := &switchedRuntime{}
	rt.state.Store("on")
	_, stop := c.run(t, func(o *node.Options) {
		o.Runtime, o.StatusEvery = rt, 300*time.Millisecond
		o.Labels = map[string]string{"pool": "a"}
		o.Taints = []corev1.Taint{{Key: "starting", Effect: corev1.TaintEffectNoSchedule}}
		o.Addresses = o.Addresses[:1]
	})
	c.ready(t, corev1.ConditionTrue, goodNews)
	got, err := c.getNode()
	if err != nil {
		t.Fatal(err)
	}
	if got.Labels["kubernetes.io/hostname"] != "one" || got.Labels["pool"] != "b" {
		t.Errorf("labels %v: want the hostname corrected and the administrator's kept", got.Labels)
	}
	if slices.ContainsFunc(got.Spec.Taints, func(t corev1.Taint) bool { return t.Key == "starting" }) {
		t.Errorf("the taint of the start is back: %v", got.Spec.Taints)
	}
	if want := []corev1.NodeAddress{{Type: "InternalIP", Address: nodeAddress}, {Type: "Hostname", Address: "one"}}; !slices.Equal(got.Status.Addresses, want) {
		t.Errorf("addresses %v, want %v", got.Status.Addresses, want)
	}
	stop()
}

// writer runs a PodWriter until the test ends.
func (c *cluster) writer(t *testing.T) *node.PodWriter {
	t.Helper()
	w := node.NewPodWriter(c.node, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (c *cluster) status(t *testing.T, name string) corev1.PodStatus {
	t.Helper()
	p, err := c.admin.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Status
}

func (c *cluster) testPodStatus(t *testing.T) {
	w := c.writer(t)
	p := c.pod(t, "written", "main")
	key := types.NamespacedName{Namespace: namespace, Name: p.Name}
	// Another writes its condition meanwhile.
	_, err := c.admin.CoreV1().Pods(namespace).Patch(t.Context(), p.Name, types.StrategicMergePatchType,
		[]byte(`{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}`), metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	w.SetPodStatus(key, p.UID, corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &now, HostIP: nodeAddress, HostIPs: []corev1.HostIP{{IP: nodeAddress}},
		PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}}, QOSClass: corev1.PodQOSBestEffort,
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: now}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Ready: true, Image: "x", ImageID: "x", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}})
	eventually(t, 10*time.Second, func() string {
		s := c.status(t, p.Name)
		if s.Phase != corev1.PodRunning || len(s.PodIPs) != 2 || len(s.Conditions) != 3 || len(s.ContainerStatuses) != 1 {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
	// It is deleted, ends, and is gone when nothing of it is left.
	if err := c.admin.CoreV1().Pods(namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.SetPodStatus(key, p.UID, corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{{Name: "main",
		Image: "x", ImageID: "x", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: now, FinishedAt: now}}}}})
	eventually(t, 10*time.Second, func() string {
		if s := c.status(t, p.Name); s.Phase != corev1.PodSucceeded || !s.StartTime.Time.Equal(now.Truncate(time.Second)) {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
	w.PodFinished(key, p.UID)
	eventually(t, 10*time.Second, func() string {
		if _, err := c.admin.CoreV1().Pods(namespace).Get(t.Context(), p.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("the Pod is still there (%v)", err)
		}
		return ""
	})
	// One that finished and that nobody deletes stays.
	q := c.pod(t, "stays", "main")
	w.SetPodStatus(types.NamespacedName{Namespace: namespace, Name: "stays"}, q.UID, corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfcpu"})
	w.PodFinished(types.NamespacedName{Namespace: namespace, Name: "stays"}, q.UID)
	eventually(t, 10*time.Second, func() string {
		if s := c.status(t, "stays"); s.Phase != corev1.PodFailed || w.Pending() != 0 {
			return fmt.Sprintf("status %+v, %d pending", s, w.Pending())
		}
		return ""
	})
	// A Pod of that name, but another.
	w.SetPodStatus(types.NamespacedName{Namespace: namespace, Name: "stays"}, "other", corev1.PodStatus{Phase: corev1.PodRunning})
	eventually(t, 10*time.Second, func() string {
		if w.Pending() != 0 {
			return "pending"
		}
		return ""
	})
}

func (c *cluster) testEvents(t *testing.T) {
	events, stop := node.NewEvents(c.node, nodeName)
	defer stop()
	p := c.pod(t, "eventful", "main")
	for range 5 {
		events.Event(p, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container")
	}
	eventually(t, 20*time.Second, func() string {
		list, err := c.admin.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=eventful"})
		if err != nil {
			return err.Error()
		}
		if len(list.Items) != 1 || list.Items[0].Count != 5 || list.Items[0].Source.Host != nodeName {
			return fmt.Sprintf("events %+v", list.Items)
		}
		return ""
	})
}

func (c *cluster) testOutage(t *testing.T) {
	rt := &switchedRuntime{}
	rt.state.Store("on")
	_, stop := c.run(t, func(o *node.Options) {
		o.Runtime, o.LeaseDuration, o.StatusEvery = rt, 4*time.Second, 300*time.Millisecond
	})
	defer stop()
	w := c.writer(t)
	p := c.pod(t, "patient", "main")
	c.ready(t, corev1.ConditionTrue, goodNews)
	c.KillAPIServer()
	rt.state.Store("no network")
	for i := range 100 {
		w.SetPodStatus(types.NamespacedName{Namespace: namespace, Name: p.Name}, p.UID, corev1.PodStatus{Phase: corev1.PodRunning, Message: fmt.Sprint(i)})
		time.Sleep(5 * time.Millisecond)
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	eventually(t, 60*time.Second, func() string {
		got, err := c.admin.CoreV1().Pods(namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if got.Status.Message != "99" {
			return fmt.Sprintf("status %+v", got.Status)
		}
		return ""
	})
	t.Logf("the last status was written %v after the API server was ready", time.Since(started).Round(time.Millisecond))
	c.ready(t, corev1.ConditionFalse, noNetwork)
}
