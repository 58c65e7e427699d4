// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxImages is how many images a Node names, and maxImageNames how many names
// each has (the kubelet's limits).
const (
	maxImages     = 50
	maxImageNames = 5
)

// fill makes the status what this machine and its runtime are now. What others
// own in it, as NetworkUnavailable or extended resources, stays.
func (n *Node) fill(ctx context.Context, o *corev1.Node) {
	s := &o.Status
	n.fillAddresses(s)
	if s.Capacity == nil {
		s.Capacity = corev1.ResourceList{}
	}
	if s.Allocatable == nil {
		s.Allocatable = corev1.ResourceList{}
	}
	replaceResources(s.Capacity, n.machine.capacity(n.o.MaxPods))
	replaceResources(s.Allocatable, n.machine.allocatable(&n.o))
	s.DaemonEndpoints.KubeletEndpoint.Port = n.o.KubeletPort
	s.DeclaredFeatures = slices.Sorted(slices.Values(n.o.DeclaredFeatures))
	n.machine.info(&s.NodeInfo)
	s.NodeInfo.KubeletVersion = n.o.Version
	s.NodeInfo.OperatingSystem, s.NodeInfo.Architecture = runtime.GOOS, runtime.GOARCH
	troubles := n.fillRuntime(ctx, s)
	n.fillImages(ctx, s)

	now := metav1.NewTime(time.Now().Truncate(time.Second))
	p := n.o.Pressure()
	for _, c := range []corev1.NodeCondition{
		memoryCondition(p.Memory), diskCondition(p.Disk), pidCondition(p.PID), readyCondition(n.troubles(troubles)),
	} {
		setCondition(s, c, now)
	}
}

// troubles are all reasons why the node is not ready.
func (n *Node) troubles(runtime []string) []string {
	if n.o.Troubles != nil {
		runtime = append(runtime, n.o.Troubles()...)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shutdown != "" {
		runtime = append(runtime, n.shutdown)
	}
	return runtime
}

func (n *Node) fillAddresses(s *corev1.NodeStatus) {
	// External addresses are a cloud provider's.
	kept := slices.DeleteFunc(slices.Clone(s.Addresses), func(a corev1.NodeAddress) bool {
		return a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeHostName
	})
	s.Addresses = nil
	for _, a := range n.o.Addresses {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.o.Hostname})
	s.Addresses = append(s.Addresses, kept...)
}

// fillRuntime asks the runtime, and returns why it is not ready.
func (n *Node) fillRuntime(ctx context.Context, s *corev1.NodeStatus) (troubles []string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status, err := n.o.Runtime.Status(ctx, false)
	if err != nil {
		return []string{"container runtime is down"}
	}
	if v, err := n.o.Runtime.Version(ctx, "v1"); err == nil {
		s.NodeInfo.ContainerRuntimeVersion = v.GetRuntimeName() + "://" + v.GetRuntimeVersion()
	}
	s.RuntimeHandlers = runtimeHandlers(status.GetRuntimeHandlers())
	if f := status.GetFeatures(); f != nil {
		s.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &f.SupplementalGroupsPolicy}
	}
	for _, c := range []struct{ kind, what string }{
		{runtimeapi.RuntimeReady, "container runtime not ready"},
		{runtimeapi.NetworkReady, "container runtime network not ready"},
	} {
		if t := runtimeTrouble(status.GetStatus().GetConditions(), c.kind); t != "" {
			troubles = append(troubles, c.what+": "+t)
		}
	}
	return troubles
}

// runtimeTrouble words a condition of the runtime that does not hold.
func runtimeTrouble(conditions []*runtimeapi.RuntimeCondition, kind string) string {
	for _, c := range conditions {
		switch {
		case c.GetType() != kind:
		case c.GetStatus():
			return ""
		default:
			return fmt.Sprintf("%s=%t reason:%s message:%s", c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage())
		}
	}
	return "<nil>" // the kubelet's word for a runtime that does not say
}

func runtimeHandlers(handlers []*runtimeapi.RuntimeHandler) (out []corev1.NodeRuntimeHandler) {
	for _, h := range handlers {
		out = append(out, corev1.NodeRuntimeHandler{Name: h.GetName(), Features: &corev1.NodeRuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: new(h.GetFeatures().GetRecursiveReadOnlyMounts()),
			UserNamespaces:          new(h.GetFeatures().GetUserNamespaces()),
		}})
	}
	slices.SortFunc(out, func(a, b corev1.NodeRuntimeHandler) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (n *Node) fillImages(ctx context.Context, s *corev1.NodeStatus) {
	if n.o.Images == nil {
		return
	}
	images, err := n.o.Images(ctx)
	if err != nil {
		return // the last ones stay; the runtime's trouble is said elsewhere
	}
	s.Images = nil
	for _, i := range images[:min(len(images), maxImages)] {
		i.Names = i.Names[:min(len(i.Names), maxImageNames)]
		s.Images = append(s.Images, i)
	}
}

// replaceResources puts the values of this machine into a list, in which others
// may have put extended resources: those have a slash in their name. All others
// are this machine's, so huge pages of a size that is gone go.
func replaceResources(list, values corev1.ResourceList) {
	for name := range list {
		if _, ok := values[name]; !ok && !strings.Contains(string(name), "/") {
			delete(list, name)
		}
	}
	for name, v := range values {
		// An equal quantity in other words is no change.
		if old, ok := list[name]; !ok || old.Cmp(v) != 0 {
			list[name] = v
		}
	}
}

// sameStatus compares all but the times of the heartbeats.
func sameStatus(a, b *corev1.NodeStatus) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	for _, s := range []*corev1.NodeStatus{x, y} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return equality.Semantic.DeepEqual(x, y)
}
